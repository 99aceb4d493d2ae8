"""Decays at exactly 0 and 1, where the gradient of torch.clamp depends on the version of torch."""

import itertools
from dataclasses import replace

import pytest
import torch
from gradient_checks import FLOWS, gradients, or_zeros
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
    SURROGATES,
    THOROUGH,
    Case,
    Tensors,
    assert_close,
    emulated_if_thorough,
    expected,
    fused,
    inputs,
    leaves,
    random_cases,
)
from ops import backward_arguments, call_op

from snnfast._core import ops

EDGES = (0.0, 1.0, -0.1, 1.1, 0.5)
neurons = pytest.mark.parametrize("neuron", NEURONS)
CLAMPED = [neuron for neuron in NEURONS if "beta" in Case(neuron).kind.decays]  # Lapicque clamps none


def at_edges(case: Case, device: torch.device, one: float | None = None) -> Tensors:
    values = torch.tensor(EDGES if one is None else [one], dtype=case.acc, device=device)
    decay = values.repeat(2) if one is None else values[0]
    return {**inputs(case, device), **{name: decay.clone() for name in case.kind.decays}}


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_the_gradient_at_the_edges_is_that_of_this_torch(dtype: torch.dtype, neuron: str, device: torch.device) -> None:
    choices = {"neuron": (neuron,), "dtype": (dtype,), "shape": ((3, 10),), "steps": (1, 20)}
    variants = ("unroll", "constant", "count", "step", "callable")
    for i, case in enumerate(
        random_cases(20 if THOROUGH else 5, 1, variant=variants, spike_grad=(SURROGATES["atan"],), **choices)
    ):
        case = replace(case, parameters="neuron")
        for one, flow in itertools.product((None, 0.0, 1.0), FLOWS[i % 2 :: 4]):
            tensors = leaves(at_edges(case, device, one), case.kind.decays)
            found, grads = (or_zeros(gradients(f, tensors, case, flow), tensors) for f in (fused, expected))
            for name in case.kind.decays:
                tolerance = 1e-4 if dtype != torch.float64 else 1e-11
                assert_close(found[name], grads[name], tolerance, f"{case}, decay {one}, loss of {flow}: {name}", 1.0)


@pytest.mark.parametrize("neuron", CLAMPED)
@pytest.mark.parametrize("closed", [True, False])
def test_the_kernels_have_both_rules(closed: bool, neuron: str, device: torch.device) -> None:
    for variant in ("unroll", "step"):
        case = Case(neuron, variant, parameters="neuron")
        tensors = at_edges(case, device)
        decays = {name: tensors[name] for name in case.kind.decays}
        given = {**backward_arguments(case, device), **decays, "clamp_closed": closed}
        _, *grads = call_op(case.kind.ops.backward, given)
        for grad in grads[len(case.kind.ops.states) :][: len(decays)]:
            assert [bool(g) for g in grad.sum(0)[:5]] == [closed, closed, False, False, True]


def test_torch_is_asked_for_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    x.clamp(0, 1).sum().backward()
    assert ops.clamp_is_closed() == bool(x.grad.all())  # type: ignore[union-attr]
    with torch.inference_mode():
        assert ops.clamp_is_closed() == bool(x.grad.all())  # type: ignore[union-attr]
