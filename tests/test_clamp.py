"""Decays at exactly 0 and 1, where the gradient of torch.clamp depends on the version of torch."""

import itertools

import pytest
import torch
from gradient_checks import FLOWS, check_against_reference, gradients
from helpers import FLOATS, HALVES, RESETS, Case, assert_close, call, inputs, leaves
from torch import Tensor

from snnfast import Leaky, _ops, reference
from snnfast.functional import lif

EDGES = (0.0, 1.0, -0.1, 1.1, 0.5)


def at_edges(case: Case, device: torch.device, one: float | None = None) -> dict[str, Tensor | None]:
    tensors = inputs(case, device)
    values = torch.tensor(EDGES if one is None else [one], dtype=case.acc, device=device)
    return {**tensors, "beta": values.repeat(2) if one is None else values[0]}


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_the_gradient_at_the_edges_is_that_of_this_torch(dtype: torch.dtype, device: torch.device) -> None:
    for reset, delay, record_mem, steps in itertools.product(RESETS, (True, False), (True, False), (1, 20)):
        case = Case(steps, (3, 10), dtype, reset, delay, record_mem, parameters="neuron")
        for one, flow in itertools.product((None, 0.0, 1.0), FLOWS[:2]):
            tensors = at_edges(case, device, one)
            found, expected = (gradients(f, leaves(tensors, ("beta",)), case, flow) for f in (lif, reference.lif))
            zero = torch.zeros_like(tensors["beta"])  # type: ignore[arg-type]
            a, b = (zero if g["beta"] is None else g["beta"] for g in (found, expected))
            assert_close(a, b, 1e-4 if dtype != torch.float64 else 1e-11, f"{case}, beta {one}, loss of {flow}")


@pytest.mark.parametrize("closed", [True, False])
def test_the_kernels_have_both_rules(closed: bool, device: torch.device) -> None:
    case = Case(20, (3, 10), parameters="neuron")
    ops = _ops.namespace(_ops.NAMESPACE)
    ops.set_clamp_closed(closed)
    try:
        tensors = leaves(at_edges(case, device))
        spk, mem = call(lif, tensors, case)
        (grad,) = torch.autograd.grad(mem.sum() + spk.sum(), [tensors["beta"]])
    finally:
        ops.set_clamp_closed(_ops.clamp_is_closed())
    assert [bool(g) for g in grad[:5]] == [closed, closed, False, False, True]


def test_torch_is_asked_for_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    x.clamp(0, 1).sum().backward()
    assert _ops.clamp_is_closed() == bool(x.grad.all())  # type: ignore[union-attr]
    with torch.inference_mode():
        assert _ops.clamp_is_closed() == bool(x.grad.all())  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beta", [1.0, 0.999, 0.0])
def test_a_learned_decay_at_the_edge_takes_the_steps_that_snntorch_takes(
    beta: float, dtype: torch.dtype, backend: str
) -> None:
    """In bfloat16, 0.999 is 1."""
    snntorch = pytest.importorskip("snntorch")
    values = []
    for leaky in (snntorch.Leaky, Leaky):
        layer = leaky(beta=torch.tensor(beta).to(dtype), learn_beta=True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            mem, loss = torch.zeros(2, 3), torch.zeros(())
            for _ in range(6):
                _spk, mem = layer(torch.full((2, 3), 0.3), mem)
                loss = loss + mem.sum()
            loss.backward()
            optimizer.step()
        values.append(layer.beta.item())
    assert values[1] == pytest.approx(values[0], abs=1e-6)


def test_every_option_at_the_edges(device: torch.device) -> None:
    """With decays on both sides of 0 and 1, and other parameters as they come."""
    for i, (reset, constant, count) in enumerate(itertools.product(RESETS, (True, False), (True, False))):
        case = Case(9, (3, 10), FLOATS[i % 2], reset, i % 3 > 0, i % 2 > 0, constant, "neuron", count=count)
        check_against_reference(case, device, seed=i, wild=True)
