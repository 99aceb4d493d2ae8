"""A state that goes from call to call is never rounded to half precision, or neurons would spike without a reset."""

import itertools

import pytest
import torch
from gradient_checks import RELATIVE
from helpers import HALVES, RESETS, SURROGATES, assert_bits_equal, assert_close
from torch import Tensor

from snnfast import Leaky, MultiStep, reference
from snnfast.functional import lif

BETAS = (0.9, 0.95, 0.99)
STEPS = 500


def currents(dtype: torch.dtype, device: torch.device, beta: float, steps: int = STEPS) -> Tensor:
    """For a membrane that often comes just above the threshold."""
    return (2.4 * (1 - beta) * torch.rand(steps, 3, 67)).to(dtype).to(device)


def one_call_per_step(layer: Leaky, current: Tensor) -> tuple[Tensor, Tensor]:
    mem, record = torch.zeros(0, device=current.device), []
    for x in current:
        spk, mem = layer(x, mem)
        record.append(spk)
    return torch.stack(record), mem


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_step_by_step_is_the_unroll_spike_for_spike(beta: float, dtype: torch.dtype, device: torch.device) -> None:
    for reset, delay in itertools.product(RESETS, (True, False)):
        layer = Leaky(beta, reset_mechanism=reset, reset_delay=delay).to(device)
        current = currents(dtype, device, beta, STEPS if delay and reset == "subtract" else 250)
        spk, mem = one_call_per_step(layer, current)
        expected, last = layer.unroll(current, record_mem=False)
        assert 0 < expected.float().mean() < 1
        assert_bits_equal(spk, expected, f"{reset}, delay {delay}: spikes")
        assert_bits_equal(mem, last, f"{reset}, delay {delay}: last membrane")
        assert mem.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_chunks_are_the_whole(dtype: torch.dtype, device: torch.device) -> None:
    """Whether the last membrane is passed on or held, and whether the others are recorded."""
    current = currents(dtype, device, 0.95, 120)
    expected, rec = Leaky(0.95).to(device).unroll(current)
    for lengths in ([1] * 120, [40, 1, 79]):
        layer, mem, spks = Leaky(0.95).to(device), None, []
        for chunk in current.split(lengths):
            spk, mem = layer.unroll(chunk, mem, record_mem=False)
            spks.append(spk)
        assert_bits_equal(torch.cat(spks), expected, f"{lengths[:2]} passed")
        for record_mem in (True, False):
            holder = Leaky(0.95, init_hidden=True).to(device)
            parts = [holder.unroll(chunk, record_mem=record_mem) for chunk in current.split(lengths)]
            assert_bits_equal(torch.cat([spk for spk, _ in parts]), expected, f"{lengths[:2]} held, {record_mem}")
            assert holder.mem.dtype == torch.float32
            if record_mem:
                assert_bits_equal(torch.cat([m for _, m in parts]), rec, f"{lengths[:2]} records")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_spikes_are_those_of_snntorch(dtype: torch.dtype, device: torch.device) -> None:
    """Which carries float32 whatever a layer under autocast hands to it."""
    snntorch = pytest.importorskip("snntorch")
    for beta in BETAS:
        current = currents(dtype, device, beta)
        spk, _ = one_call_per_step(Leaky(beta).to(device), current)
        expected, _ = one_call_per_step(snntorch.Leaky(beta).to(device), current)
        assert_bits_equal(spk.float(), expected, f"beta {beta}")


def test_a_membrane_just_above_the_threshold_is_reset(device: torch.device) -> None:
    """1.0008 would be 1 in bfloat16, which is not above the threshold."""
    current = torch.full((3, 1), 0.55078125, dtype=torch.bfloat16, device=device)
    layer, mem, spikes = Leaky(0.9), torch.full((1, 1), 0.5, device=device), []
    for x in current:
        spk, mem = layer(x.unsqueeze(0), mem)
        spikes.append(spk.item())
    assert spikes == [1, 0, 0]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["atan", "straight_through_estimator"])
def test_gradients_through_the_last_membrane(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Of chunks that are joined by it, and where the loss is of it alone; in the dtype of each input."""
    x, options = currents(dtype, device, 0.9, 20), {"spike_grad": SURROGATES[name], "record_mem": False}
    for flow, beta_learns in itertools.product(("both", "mem"), (True, False)):
        found = []
        for function, chunks in ((lif, [7, 13]), (lif, [1] * 20), (reference.lif, [20])):
            current = x.clone().requires_grad_()
            beta = torch.full((67,), 0.9, dtype=dtype, device=device, requires_grad=beta_learns)
            mem, loss = None, torch.zeros((), device=device)
            for chunk in current.split(chunks):
                spk, mem = function(chunk, mem, beta=beta, **options)
                loss = loss + spk.float().sum() * (flow == "both")
            assert mem is not None
            assert mem.dtype == torch.float32
            (loss + mem.square().sum()).backward()
            assert current.grad is not None
            found.append((current.grad, beta.grad))
        for grads in found[:2]:
            for grad, expected in zip(grads, found[2], strict=True):
                assert_close(grad, expected, RELATIVE[dtype], f"{flow}, beta learns {beta_learns}")


def test_without_a_step_the_state_is_a_copy_in_the_dtype_of_the_arithmetic(device: torch.device) -> None:
    mem = torch.rand(2, 3, device=device).half()
    net = MultiStep(Leaky(0.9))
    for x in (torch.zeros(0, 2, 3), torch.zeros(0, 2, 3).half()):
        for record_mem in (True, False):
            _, _, (last,) = net(x.to(device), states=[mem], record_mem=record_mem, return_states=True)
            assert last.dtype == torch.float32
            assert_bits_equal(last, mem.float())
            assert last.data_ptr() != mem.data_ptr()
