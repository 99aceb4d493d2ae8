"""Neurons whose spikes come back to them without connections: what only they have."""

import functools
import warnings
from typing import Any

import pytest
import torch
from gradient_checks import check_against_reference
from helpers import (
    KINDS,
    NEURONS,
    Case,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    fused,
    inputs,
    layer_of,
    leaves,
)
from ops import call_op, forward_arguments
from torch import Tensor

from snnfast import functional, use_backend
from snnfast._core import backend

FED_BACK = [name for name in KINDS if KINDS[name].ops.fed_back]
others = pytest.mark.parametrize("neuron", [name for name in KINDS if name not in NEURONS])  # test_compile.py: those


@pytest.mark.parametrize("neuron", FED_BACK)
def test_one_step_returns_its_spikes_once(neuron: str, device: torch.device) -> None:
    case = Case(neuron, "step", 1)
    assert len(call_op(case.kind.ops.forward, forward_arguments(case, device))) == len(case.kind.results)


@emulated_if_thorough
@pytest.mark.parametrize("neuron", FED_BACK)
def test_the_gradient_of_states_alone_comes_through_the_spikes_before(neuron: str, device: torch.device) -> None:
    """A loss that reads no spike depends on them all the same."""
    case = Case(neuron, steps=3, record_mem=False, dtype=torch.float64)
    tensors = leaves(inputs(case, device), ("V",))
    assert tensors["V"] is not None
    fused(tensors, case)["mem"].sum().backward()
    assert tensors["V"].grad.abs() > 1e-3
    check_against_reference(case, device, "last", wrt=("current", "spk", "V"))


@pytest.mark.needs_extension
def test_what_makes_a_neuron_wait_for_others_runs_step_by_step_and_says_so() -> None:
    x = torch.rand(7, 3, 10) * 2
    for options, why in (
        ({"inhibition": True}, "inhibition in a rleaky layer makes each neuron wait for all others"),
        ({"state_quant": torch.round}, "state_quant is called on the states of every step"),
    ):
        call = functools.partial(functional.rleaky, x, beta=0.9, V=0.5, **options)  # type: ignore[arg-type]
        with use_backend("fused"), pytest.raises(RuntimeError, match=why):
            call()
        backend._warned.clear()
        with use_backend("auto"), pytest.warns(UserWarning, match=why):
            found = call()
        with warnings.catch_warnings(), use_backend("reference"):
            warnings.simplefilter("error")
            for a, b in zip(found, call(), strict=True):
                assert_bits_equal(a, b)


@others
def test_layers_compile_without_graph_breaks_to_the_same_numbers(neuron: str) -> None:
    case = Case(neuron, "step", 3, parameters="neuron")
    states = case.kind.ops.states

    def steps(tensors: dict[str, Tensor], layer: Any) -> tuple[Tensor, ...]:
        now, spks = [tensors[s] for s in states], []
        for x in tensors["current"]:
            spk, *now = layer(x, *now)
            spks.append(spk)
            now = [spk, *now] if case.kind.ops.fed_back else now
        return *layer.unroll(tensors["current"]), torch.stack(spks), *now

    tensors = leaves(inputs(case), ("current", *states))
    asking = [t for t in tensors.values() if t is not None and t.requires_grad]
    layer = layer_of(case, tensors)
    results = []
    for function in (steps, torch.compile(steps, backend="aot_eager", fullgraph=True)):
        outputs = function(tensors, layer)
        results.append((outputs, torch.autograd.grad(sum(t.sum() for t in outputs), asking)))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert_bits_equal(a, b)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert_close(a, b, 1e-6)


@emulated_if_thorough
@others
def test_vmap_equals_a_loop(neuron: str, device: torch.device) -> None:
    case = Case(neuron, steps=9, states=False)
    tensors, x = inputs(case, device), torch.rand(4, 9, 3, 10, device=device)

    def call(current: Tensor) -> Any:
        return case.kind.function(**{**tensors, "current": current}, **case.options)

    with torch.no_grad():
        for a, b in zip(torch.vmap(call)(x), zip(*map(call, x), strict=True), strict=True):
            assert_bits_equal(a, torch.stack(b))
