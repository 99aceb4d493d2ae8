"""Dtypes of spikes and states: where snnTorch rounds to float32 or to half precision, and this package does not."""

import warnings

import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, assert_bits_equal, assert_close
from snntorch.functional import loss
from snntorch_checks import NEURONS, held, make, own_list_of_neurons  # noqa: F401
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn


@NEURONS
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_spikes_and_records_have_the_dtype_of_the_input_and_states_that_of_the_arithmetic(
    name: str, dtype: torch.dtype, backend: str
) -> None:
    acc = torch.float32 if dtype in HALVES else dtype
    for options in ({}, {"reset_delay": False}, {"surrogate_disable": True}, {"inhibition": True}):
        layer = make(snn, name, **options)
        given = [torch.zeros(2, 3) for _ in held(layer)]
        x = (torch.rand(4, 2, 3) * 2).to(dtype)
        for found in (layer.unroll(x), layer.unroll(x, *given)):
            assert {t.dtype for t in found} == {dtype}
        for spk, *states in (layer(x[0]), layer(x[0], *given), layer.unroll(x, record_mem=False)):
            assert [spk.dtype, *(s.dtype for s in states)] == [dtype, *(acc for _ in given)]


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_in_snntorch_spikes_are_float32_and_a_half_state_depends_on_the_reset(dtype: torch.dtype) -> None:
    for reset in RESETS:
        x = torch.rand(2, 3).to(dtype)
        spk, mem = snntorch.Leaky(0.9, reset_mechanism=reset)(x)
        assert spk.dtype == torch.float32
        assert mem.dtype == (torch.float32 if dtype in HALVES and reset != "none" else dtype)
        spk, syn, mem = snntorch.Synaptic(0.9, 0.8, reset_mechanism=reset)(x)
        assert spk.dtype == torch.float32
        assert syn.dtype == dtype
        assert mem.dtype == (torch.float32 if dtype in HALVES and reset == "subtract" else dtype)


@NEURONS
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_float64_state_makes_the_step_float64_as_in_snntorch(name: str, dtype: torch.dtype, backend: str) -> None:
    ours, theirs, x = make(snn, name), make(snntorch, name), (torch.rand(2, 3) * 2).to(dtype)
    states = [torch.rand(2, 3, dtype=torch.float64) for _ in held(ours)]
    (spk, *found), (spk_expected, *expected) = ours(x, *states), theirs(x, *states)
    assert spk.dtype == dtype
    assert_bits_equal(spk.float(), spk_expected)
    for state, wanted in zip(found, expected, strict=True):
        assert state.dtype == torch.float64
        if dtype == torch.float32 and name != "Lapicque":
            assert_bits_equal(state, wanted)
        else:  # snnTorch multiplies the input before it meets the state
            assert_close(state, wanted, 1e-6 if dtype == torch.float32 else 1e-2)
    *_, mem = ours(x, *found[:-1], found[-1].float())  # one of them is enough
    assert mem.dtype == (torch.float32 if len(found) == 1 else torch.float64)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_synaptic_current_of_a_half_input_is_not_rounded_at_every_step(dtype: torch.dtype, backend: str) -> None:
    x = torch.rand(20, 3, 5).to(dtype)
    exact = snntorch.Synaptic(0.9, 0.8)
    wide = [exact(step)[1:] for step in x.float()]
    ours, theirs = snn.Synaptic(0.9, 0.8), snntorch.Synaptic(0.9, 0.8)
    for step, (syn, mem) in zip(x, wide, strict=True):
        _, *found = ours(step)
        rounded = theirs(step)[1]
        assert_bits_equal(found[0], syn)
        assert_bits_equal(found[1], mem)
    assert not torch.equal(rounded.float(), syn)
    for record, state in zip(snn.Synaptic(0.9, 0.8).unroll(x)[1:], found, strict=True):
        assert_bits_equal(record[-1], state.to(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_the_losses_of_snntorch_take_spikes_of_every_dtype(dtype: torch.dtype) -> None:
    x = (torch.rand(4, 2, 3) * 2).to(dtype).requires_grad_()
    targets = torch.tensor([0, 2])
    made_by_snntorch = [loss.ce_rate_loss(), loss.ce_count_loss(), loss.ce_max_membrane_loss()]
    if not torch.__version__.startswith("2.11"):  # whose mse_loss takes no two dtypes
        made_by_snntorch.append(loss.mse_count_loss())
    for made in made_by_snntorch:
        spk, _ = snn.Leaky(0.9).unroll(x)
        made(spk, targets).sum().backward()
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


def test_our_squared_errors_take_spikes_of_every_dtype_with_every_torch() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        spk = torch.rand(4, 2, 3).to(dtype).requires_grad_()
        snnfast.losses.mse_count_loss()(spk, torch.tensor([0, 2])).backward()
        assert spk.grad.dtype == dtype


def test_under_autocast_spikes_are_as_low_as_the_layer_before_made_them(backend: str) -> None:
    fc, lif = nn.Linear(6, 5), snn.Leaky(0.9, init_hidden=True, output=True, learn_beta=True)
    x = torch.rand(4, 2, 6) * 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cur = fc(x)
        assert cur.dtype == torch.bfloat16
        spk, mem = lif.unroll(cur)
        assert spk.dtype == mem.dtype == torch.bfloat16
        stepped = snn.Leaky(0.9, init_hidden=True, output=True)
        steps = [stepped(step) for step in cur]
        assert {(s.dtype, m.dtype) for s, m in steps} == {(torch.bfloat16, torch.float32)}
        theirs = snntorch.Leaky(0.9, init_hidden=True, output=True)
        spk_expected = torch.stack([theirs(step)[0] for step in cur])
    assert spk_expected.dtype == theirs.mem.dtype == torch.float32
    assert spk.any()
    assert_bits_equal(spk.float(), spk_expected)  # the state is float32, as snnTorch's
    assert_bits_equal(torch.stack([s for s, _ in steps]).float(), spk_expected)
    assert_bits_equal(stepped.mem, theirs.mem)
    (spk.sum() + mem.sum()).backward()
    assert fc.weight.grad.dtype == lif.beta.grad.dtype == torch.float32
    assert fc.weight.grad.any()


def test_an_inhibited_float64_layer_divides_by_its_graded_factor_in_float64(backend: str) -> None:
    """As snnTorch would, were its spikes not float32."""

    class Corrected(snntorch.Leaky):
        def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
            return super().fire_inhibition(batch_size, mem).double()

    x, graded = torch.rand(6, 4, 5, dtype=torch.float64) * 2, torch.tensor(1.3, dtype=torch.float64)
    records = []
    for leaky in (snn.Leaky, Corrected, snntorch.Leaky):
        layer = leaky(0.9, inhibition=True, reset_delay=False, graded_spikes_factor=graded)
        mem, record = torch.zeros(4, 5, dtype=torch.float64), []
        with snnfast.use_backend("auto" if backend == "fused" else backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in x:
                _, mem = layer(step, mem)
                record.append(mem)
        records.append(torch.stack(record))
    assert_bits_equal(records[0], records[1])
    assert not torch.equal(records[0], records[2])
    assert_close(records[0], records[2], 1e-6)
