"""What autograd asks of a function beside its gradients: which inputs and outputs, second derivatives, forward mode."""

import pytest
import torch
from gradient_checks import Function, gradients, loss_of
from helpers import (
    NEURONS,
    SURROGATES,
    VARIANTS,
    Case,
    Tensors,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    expected,
    fused,
    inputs,
    leaves,
)
from torch import Tensor

import snnfast

neurons = pytest.mark.parametrize("neuron", NEURONS)


@emulated_if_thorough
@neurons
def test_learned_numbers_on_the_cpu_serve_any_device(neuron: str, device: torch.device) -> None:
    for variant in ("unroll", "step"):
        case = Case(neuron, variant, 6, (4, 8), torch.float64)
        tensors, numbers = inputs(case, device), leaves(inputs(case))
        here = gradients(fused, leaves(tensors), case)
        mixed = {name: numbers[name] if name in case.kind.ops.parameters else t for name, t in tensors.items()}
        for name, grad in gradients(fused, mixed, case).items():
            assert grad is not None
            assert grad.device.type == "cpu"
            assert_bits_equal(grad, here[name])  # type: ignore[arg-type]


def twice(function: Function, tensors: Tensors, case: Case) -> dict[str, Tensor | None]:
    """The first gradients, and second ones of a function of them: also of the gradients of the outputs."""
    given = leaves(tensors, case.wrt)
    outputs = function(given, case)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in outputs.values()]
    loss = torch.zeros((), dtype=torch.float64, device=outputs["spk"].device)
    for t, weight in zip(outputs.values(), weights, strict=True):
        loss = loss + ((t + 0.1 * t.square()) * weight.requires_grad_()).sum()
    asking = {name: t for name, t in given.items() if t is not None and t.requires_grad}
    first = torch.autograd.grad(loss, list(asking.values()), create_graph=True, allow_unused=True)
    again = sum(g.sin().sum() for g in first if g is not None)
    wanted = {**asking, **{f"gradient of {name}": t for name, t in zip(outputs, weights, strict=True)}}
    second = torch.autograd.grad(again, list(wanted.values()), allow_unused=True)  # type: ignore[arg-type]
    found = {f"first of {name}": g for name, g in zip(asking, first, strict=True)}
    found |= {f"second of {name}": g for name, g in zip(wanted, second, strict=True)}
    return {name: g if g is None else g.detach() for name, g in found.items()}


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("variant", VARIANTS)
@snnfast.use_backend("auto")
def test_a_second_derivative_is_that_of_the_loop(variant: str, neuron: str, device: torch.device) -> None:
    for record_mem, delay, reset in ((True, True, "subtract"), (False, True, "zero"), (True, False, "zero")):
        case = Case(neuron, variant, 3, (2, 3), torch.float64, reset, delay, record_mem).fitted()
        tensors = inputs(case, device)
        found, wanted = twice(fused, tensors, case), twice(expected, tensors, case)
        assert wanted["second of current"] is not None or case.has("bits")
        for name, b in wanted.items():
            a = found[name]
            if a is not None or b is not None:
                a, b = torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b  # type: ignore[arg-type]
                assert_close(a, b, 1e-10)


@emulated_if_thorough
@pytest.mark.parametrize("record_mem", [True, False])
@pytest.mark.parametrize("neuron", ["leaky", "synaptic", "lapicque"])
@snnfast.use_backend("auto")
def test_a_second_derivative_is_the_slope_of_the_first(neuron: str, record_mem: bool, device: torch.device) -> None:
    """Where no spike changes. The gradient of the spikes' height changes with these alone."""
    case = Case(neuron, "unroll", 4, (3,), torch.float64, record_mem=record_mem)
    tensors = inputs(case, device)
    wrt = [name for name in case.wrt if name != "graded_spikes_factor"]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(fused({**tensors, **dict(zip(wrt, given, strict=True))}, case).values())

    assert torch.autograd.gradgradcheck(function, [tensors[name].detach().requires_grad_() for name in wrt])  # type: ignore[union-attr]


def test_a_spike_that_is_rounded_away_is_the_same_one_in_a_second_derivative() -> None:
    """The current is not saved, and made of the membranes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 4, 50, generator=generator).requires_grad_()
    mem_rec = snnfast.functional.lif(x, beta=0.9)[1].detach()
    threshold = mem_rec.flatten(0, 1).median(0).values  # exactly a membrane of each neuron, which does not spike

    def second() -> Tensor:
        spk, mem = snnfast.functional.lif(x, beta=0.9, threshold=threshold, reset_mechanism="none")
        (first,) = torch.autograd.grad((spk * mem).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found = second()
    with snnfast.use_backend("reference"):
        assert_close(found, second(), 1e-5)


def test_a_second_derivative_is_said_to_be_slow_and_may_be_forbidden() -> None:
    x = torch.rand(5, 3, requires_grad=True)
    spk, _ = snnfast.functional.lif(x, beta=0.9)
    with pytest.warns(UserWarning, match="step by step on the slow reference path"):
        torch.autograd.grad(spk.sum(), x, create_graph=True)
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match="'fused' has no second derivative"):
        torch.autograd.grad(snnfast.functional.lif(x, beta=0.9)[0].sum(), x, create_graph=True)


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("variant", ["unroll", "step", "callable"])
def test_forward_mode_differentiation_is_refused_not_ignored(variant: str, neuron: str, device: torch.device) -> None:
    case = Case(neuron, variant, 3, delay=variant == "step")
    tensors = inputs(case, device)
    with torch.autograd.forward_ad.dual_level():
        current = tensors["current"]
        assert current is not None
        tensors["current"] = torch.autograd.forward_ad.make_dual(current, torch.ones_like(current))
        for asked in (True, False):
            with (
                torch.set_grad_enabled(asked),
                pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"),
            ):
                fused(tensors, case)


@emulated_if_thorough
@neurons
def test_a_callable_is_asked_once_for_all_steps(neuron: str, device: torch.device) -> None:
    asked = []

    def spike_grad(z: Tensor) -> Tensor:
        asked.append(z.shape)
        return SURROGATES["atan"](z)

    case = Case(neuron, "unroll", 9, (3, 10), delay=False, record_mem=False, spike_grad=spike_grad)
    fused(leaves(inputs(case, device)), case)  # it is tried out at its first use
    asked.clear()
    outputs = fused(leaves(inputs(case, device)), case)
    assert asked == []
    loss_of(outputs, case).backward()
    assert asked == [(9, 3, 10)]
