"""The fused backward pass by finite differences and at edges of numbers; test_kernels.py has the reference's."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from gradient_checks import FLOWS, check_against_reference, check_is_a_gradient, gradients, or_zeros
from helpers import (
    FLOATS,
    HALVES,
    KINDS,
    NEURONS,
    RESETS,
    SURROGATES,
    THOROUGH,
    VARIANTS,
    Case,
    Outputs,
    Tensors,
    assert_close,
    emulated_if_thorough,
    expected,
    fused,
    inputs,
    layer_of,
    leaves,
    named,
    random_cases,
)
from ops import backward_arguments, call_op
from torch.autograd.gradcheck import GradcheckError

import snnfast
from snnfast._core import ops
from snnfast.surrogate import DISABLED

RESET_CASES = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]
neurons, every_neuron = (pytest.mark.parametrize("neuron", names) for names in (NEURONS, KINDS))


@emulated_if_thorough
@every_neuron
@pytest.mark.parametrize("name", list(SURROGATES))
def test_backward_is_a_gradient_by_finite_differences(name: str, neuron: str, device: torch.device) -> None:
    choices = {"steps": (5,), "shape": ((2, 3),), "dtype": (torch.float64,), "states": (True,), "variant": VARIANTS}
    number = 12 if THOROUGH else 4
    for case in random_cases(number, f"{name}-{neuron}", neuron=(neuron,), spike_grad=(SURROGATES[name],), **choices):
        check_is_a_gradient(case, device)


@emulated_if_thorough
@neurons
def test_gradients_of_record_and_last_states_at_once(neuron: str, device: torch.device) -> None:
    """A layer that holds its states records them too: a loss may depend on both, in half precision on each as it is."""

    def held(backend: str, tensors: Mapping[str, Any], case: Case) -> Outputs:
        layer, states = layer_of(case, tensors, init_hidden=True), case.kind.ops.states
        with snnfast.use_backend(backend):
            options = {name: case.options[name] for name in ("num_steps", "reduce")}
            outputs = named(layer.unroll(tensors["current"], **options), case)
        return outputs | {f"last {name}": getattr(layer, name) for name in states}

    variants = ("unroll", "constant", "count", "count+constant")
    for case in random_cases(26, seed=7, neuron=(neuron,), variant=variants, record_mem=(True,), states=(False,)):
        check_against_reference(case, device, function=partial(held, "fused"), oracle=partial(held, "reference"))


# ---- the checks themselves ----------------------------------------------------------------------------------------

CASE = Case("leaky", "unroll", 6, (2, 3), torch.float64, parameters="neuron")
Arguments = dict[str, Any]


def forget_the_decay(backward: Callable[[Arguments], Any], given: Arguments) -> Any:
    name = "beta" if "beta" in given else "decay"
    return backward({**given, name: torch.ones_like(given[name])})


def forget_the_membrane(backward: Callable[[Arguments], Any], given: Arguments) -> Any:
    spk, record = given["grad_spk"], given["grad_mem_rec"]
    given = {**given, "grad_mem_rec": torch.zeros_like(record) if spk is None else None, "grad_mem_last": None}
    return backward(given)


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("check", [check_against_reference, check_is_a_gradient])
@pytest.mark.parametrize("fault", [forget_the_decay, forget_the_membrane])
def test_a_broken_backward_does_not_pass(
    fault: Callable[..., Any], check: Callable[..., None], neuron: str, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    case = replace(CASE, neuron=neuron)
    check(case, device)
    ops = case.kind.ops
    backward, names = ops.backward, [a.name for a in ops.backward._schema.arguments]
    monkeypatch.setattr(
        ops,
        "backward",
        lambda *args: fault(lambda given: backward(*given.values()), dict(zip(names, args, strict=True))),
    )
    with pytest.raises((AssertionError, GradcheckError)):
        check(case, device)


# ---- numbers ------------------------------------------------------------------------------------------------------


@emulated_if_thorough
@neurons
def test_nan_and_infinities_flow_backward_as_in_the_reference(neuron: str, device: torch.device) -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.3], dtype=torch.float64, device=device)
    for reset, delay, variant in itertools.product(RESETS, (True, False), ("unroll", "step")):
        case = Case(neuron, variant, 5, (4, 4), torch.float64, reset, delay, parameters="element")
        tensors = inputs(case, device)
        for name in ("current", *case.kind.ops.states):
            tensors[name][2] = special  # type: ignore[index]
        found, grads = (gradients(f, leaves(tensors), case) for f in (fused, expected))
        for name, grad in grads.items():
            assert_close(found[name], grad, 1e-12, f"{case}: grad of {name}")


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("name", list(SURROGATES))
def test_surrogates_where_they_jump(name: str, neuron: str, device: torch.device) -> None:
    """Membranes exactly at the threshold, one unit above it, and where SFS begins."""
    spike_grad = snnfast.surrogate.SFS(slope=2.0, B=0.25) if name == "SFS" else SURROGATES[name]
    exact = torch.tensor([1.0, 1.25, 2.0, 0.75, 1.0 - 2**-20, 1.25 + 2**-20], device=device)
    for delay, variant in itertools.product((True, False), ("unroll", "step")):
        case = Case(neuron, variant, 1, (6,), delay=delay, spike_grad=spike_grad)
        tensors = dict.fromkeys(case.kind.ops.parameters, torch.ones((), device=device))
        tensors = {"current": exact[None], **dict.fromkeys(case.kind.ops.states, 0 * exact), **tensors}
        found, grads = (gradients(f, leaves(tensors), case) for f in (fused, expected))
        for tensor, grad in grads.items():
            assert_close(found[tensor], grad, 1e-6, tensor)


@emulated_if_thorough
@pytest.mark.parametrize(("neuron", "variant"), list(zip(NEURONS, ("unroll", "count", "callable"), strict=True)))
def test_sums_over_two_thousand_steps_are_accurate(variant: str, neuron: str, device: torch.device) -> None:
    """Of each parameter, to 1e-5 of what float64 makes of the same spikes."""
    case = Case(neuron, variant, 2000, (2, 8), record_mem=False, parameters="neuron")
    tensors = inputs(case, device)
    # Multiples of a power of two, small enough: both dtypes make the same spikes of them.
    tensors["current"] = (tensors["current"] * 16).round() / 16  # type: ignore[operator]
    tensors |= {name: torch.full((8,), 0.5, device=device) for name in case.kind.decays}
    tensors |= {"threshold": torch.full((8,), 0.75, device=device), **dict.fromkeys(case.kind.ops.states)}
    wide = {name: t if t is None else t.double() for name, t in tensors.items()}
    found, exact = (
        gradients(fused, leaves(tensors), case),
        gradients(expected, leaves(wide), replace(case, dtype=torch.float64)),
    )
    for name in case.kind.ops.parameters:
        assert found[name] is not None
        assert_close(found[name].double(), exact[name], 1e-5, name)  # type: ignore[union-attr]


@emulated_if_thorough
@neurons
def test_a_nan_reaches_no_gradient_that_does_not_pass_through_it(neuron: str, device: torch.device) -> None:
    """With no loss on the spikes, nothing depends on the derivative at a NaN membrane."""
    for record_mem, variant in itertools.product((True, False), ("unroll", "step", "callable")):
        case = Case(neuron, variant, 5, (3,), record_mem=record_mem)
        tensors = inputs(case, device)
        tensors["current"][2, 1] = math.nan  # type: ignore[index]
        found = []
        for function in (fused, expected):
            current = tensors["current"].clone().requires_grad_()  # type: ignore[union-attr]
            mem = function({**tensors, "current": current}, case)["mem"]
            found += torch.autograd.grad((mem[0] if record_mem else mem)[..., 0].sum(), [current])
        torch.testing.assert_close(found[0], found[1], equal_nan=True)
        assert found[0][:, 0].isfinite().all()


@emulated_if_thorough
@neurons
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_without_a_surrogate_a_spike_has_no_gradient(
    reset: str, delay: bool, neuron: str, device: torch.device
) -> None:
    for i, (dtype, variant) in enumerate(itertools.product((*FLOATS, *HALVES), ("unroll", "constant", "step"))):
        case = Case(neuron, variant, 9, (3, 10), dtype, reset, delay, i % 2 == 0, "neuron", spike_grad=DISABLED)
        tensors = leaves(inputs(case, device))
        tensors["graded_spikes_factor"] = torch.ones(10, dtype=case.acc, device=device)
        outputs = fused(tensors, case)
        assert not outputs["spk"].requires_grad
        assert outputs["mem"].requires_grad
        # A gradient that is not finite stops at the spike: 0 * inf would be NaN.
        case = replace(case, steps=1, variant="step" if variant == "step" else "unroll")
        tensors = leaves(inputs(case, device))
        spk = fused(tensors, case)["spk"]
        *grads, _ = torch.autograd.grad(spk, list(tensors.values()), torch.full_like(spk, math.inf), allow_unused=True)  # type: ignore[arg-type]
        assert all(g is None or (g == 0).all() for g in grads)


# ---- decays at exactly 0 and 1, where the gradient of torch.clamp depends on the version of torch


EDGES = (0.0, 1.0, -0.1, 1.1, 0.5)
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
    choices |= {"variant": variants, "spike_grad": (SURROGATES["atan"],)}
    for i, case in enumerate(random_cases(20 if THOROUGH else 5, 1, **choices)):
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
