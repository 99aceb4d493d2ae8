"""The fused backward pass: equal to the reference's gradients, and a gradient by finite differences."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradient_checks import FLOWS, RELATIVE, check_against_reference, check_chained, check_is_a_gradient, gradients
from helpers import (
    FLOATS,
    HALVES,
    PARAMETERS,
    RESETS,
    SURROGATES,
    TENSORS,
    Case,
    assert_bits_equal,
    assert_close,
    call,
    inputs,
    leaves,
    random_cases,
)
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

import snnfast
from snnfast import _ops, reference, surrogate
from snnfast.functional import lif

RESET_CASES = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_every_surrogate_against_the_reference(reset: str, delay: bool, name: str, device: torch.device) -> None:
    for i, (record_mem, constant) in enumerate(itertools.product((True, False), (True, False))):
        dtype, parameters = FLOATS[i % 2], ("scalar", "neuron", "element", "mixed")[i]
        case = Case(7, (3, 10), dtype, reset, delay, record_mem, constant, parameters, i != 2, SURROGATES[name])
        check_against_reference(case, device, seed=i, wild=True)
        check_against_reference(
            Case(7, (3, 10), FLOATS[1 - i % 2], reset, delay, record_mem, constant, spike_grad=SURROGATES[name]), device
        )


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_every_flow_of_gradients(reset: str, delay: bool, flow: str, device: torch.device) -> None:
    for dtype, record_mem, constant in itertools.product((*FLOATS, *HALVES), (True, False), (True, False)):
        case = Case(9, (2, 11), dtype, reset, delay, record_mem, constant, "neuron")
        check_against_reference(case, device, flow)


@pytest.mark.parametrize("strides", [0, 1, 2, 3])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_every_number_of_steps_around_the_checkpoints(strides: int, offset: int, device: torch.device) -> None:
    steps = strides * _ops.checkpoint_stride() + offset
    for reset, delay, constant in itertools.product(RESETS, (True, False), (True, False)):
        if steps >= 0:
            check_against_reference(Case(steps, (5,), torch.float64, reset, delay, False, constant, "neuron"), device)
            check_against_reference(Case(steps, (2, 9), torch.float32, reset, delay, delay, constant), device, "mem")


@pytest.mark.parametrize("wrt", [*TENSORS, "all but current", "all but beta"])
def test_a_gradient_for_some_inputs_only(wrt: str, device: torch.device) -> None:
    asked = (wrt,) if wrt in TENSORS else tuple(t for t in TENSORS if not wrt.endswith(t))
    for (reset, delay), record_mem, constant in itertools.product(
        itertools.product(RESETS, (True, False)), (True, False), (True, False)
    ):
        case = Case(6, (2, 5), torch.float64, reset, delay, record_mem, constant, "mixed")
        check_against_reference(case, device, wrt=asked)


def test_random_calls_against_the_reference(device: torch.device) -> None:
    cases = random_cases(
        100, seed=4, steps=(1, 5, 18, 40), shape=((), (1,), (9,), (0, 4), (3, 10), (2, 3, 7), (2, 4, 3, 3), (2, 301)),
        dtype=(*FLOATS, *FLOATS, *HALVES), reset=RESETS, delay=(True, False), record_mem=(True, False),
        constant=(True, False, False), parameters=PARAMETERS, mem=(True, False), spike_grad=tuple(SURROGATES.values()),
    )  # fmt: skip
    for i, case in enumerate(cases):
        if case.parameters != "mixed" or len(case.shape) > 1:
            check_against_reference(case, device, FLOWS[i % 4], seed=i, wild=i % 2 == 0)


def test_nan_and_infinities_flow_backward_as_in_the_reference(device: torch.device) -> None:
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.3], dtype=torch.float64)
    for reset, delay, record_mem in itertools.product(RESETS, (True, False), (True, False)):
        case = Case(5, (4, 4), torch.float64, reset, delay, record_mem, parameters="element")
        tensors = inputs(case, device)
        current, mem = tensors["current"], tensors["mem"]
        assert current is not None
        assert mem is not None
        current[2] = special.to(device)
        mem[2] = special.to(device)
        for name, grad in gradients(reference.lif, leaves(tensors), case).items():
            assert_close(gradients(lif, leaves(tensors), case)[name], grad, 1e-12, f"{case}: grad of {name}")


@pytest.mark.parametrize("name", list(SURROGATES))
def test_surrogates_where_they_jump(name: str, device: torch.device) -> None:
    """Membranes exactly at the threshold, one unit above it, and where SFS begins."""
    spike_grad = surrogate.SFS(slope=2.0, B=0.25) if name == "SFS" else SURROGATES[name]
    exact = torch.tensor([1.0, 1.25, 2.0, 0.75, 1.0 - 2**-20, 1.25 + 2**-20], device=device)
    one = torch.ones((), device=device)
    for delay in (True, False):
        case = Case(1, (6,), delay=delay, spike_grad=spike_grad)
        found, expected = (
            gradients(lif, leaves(dict(zip(TENSORS, (exact[None], 0 * exact, one, one, one), strict=True))), case)
            for lif in (snnfast.functional.lif, reference.lif)
        )
        for tensor, grad in expected.items():
            assert_close(found[tensor], grad, 1e-6, tensor)


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_backward_is_a_gradient_by_finite_differences(reset: str, delay: bool, name: str, device: torch.device) -> None:
    position = (list(SURROGATES).index(name) + RESETS.index(reset) + delay) % 4
    check_is_a_gradient(
        Case(
            5, (2, 3), torch.float64, reset, delay, position % 2 == 0, position == 3,
            ("neuron", "scalar", "mixed", "element")[position], spike_grad=SURROGATES[name],
        ), device
    )  # fmt: skip


@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_unrolls_joined_by_the_membrane_equal_one(reset: str, delay: bool, device: torch.device) -> None:
    for dtype in FLOATS:
        check_chained(Case(12, (3, 5), dtype, reset, delay, parameters="neuron"), device)


def flip_the_sign_of_the_current(backward: Callable[..., Any], args: list[Any]) -> Any:
    grad_current, *others = backward(*args)
    return -grad_current, *others


def forget_the_decay(backward: Callable[..., Any], args: list[Any]) -> Any:
    return backward(*args[:6], torch.ones_like(args[6]), *args[7:])


def forget_the_membrane(backward: Callable[..., Any], args: list[Any]) -> Any:
    grad_spk, grad_mem, *others = args
    return backward(grad_spk, torch.zeros_like(grad_mem) if grad_spk is None else None, *others)


CASE = Case(6, (2, 3), torch.float64, parameters="neuron")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(lambda device: check_against_reference(CASE, device), id="reference"),
        pytest.param(lambda device: check_is_a_gradient(CASE, device), id="finite_differences"),
        pytest.param(lambda device: check_chained(CASE, device), id="chained"),
    ],
)
@pytest.mark.parametrize("fault", [flip_the_sign_of_the_current, forget_the_decay, forget_the_membrane])
def test_a_broken_backward_does_not_pass(
    fault: Callable[..., Any], check: Callable[..., None], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(device)
    backward = _ops.lif_backward
    monkeypatch.setattr(_ops, "lif_backward", lambda *args: fault(backward, list(args)))
    with pytest.raises((AssertionError, GradcheckError)):
        check(device)


def test_any_callable_as_surrogate_has_the_gradients_of_the_reference(device: torch.device) -> None:
    for dtype, record_mem, constant, steps in itertools.product(FLOATS, (True, False), (True, False), (1, 9)):
        case = Case(steps, (3, 5), dtype, record_mem=record_mem, constant=constant, parameters="neuron")
        tensors = leaves(inputs(case, device))
        own = replace(case, spike_grad=lambda z: SURROGATES["atan"](z))  # a callable that the kernels do not know
        expected, actual = gradients(reference.lif, tensors, case), gradients(lif, tensors, own)
        for name, grad in expected.items():
            assert_close(actual[name], grad, RELATIVE[dtype], f"{case}: {name}")


def test_learned_numbers_on_the_cpu_serve_any_device(device: torch.device) -> None:
    case = Case(6, (4, 8), torch.float64)
    tensors, numbers = inputs(case, device), leaves(inputs(case))
    here = gradients(lif, leaves(tensors), case)
    mixed = {name: tensors[name] if name in TENSORS[:2] else numbers[name] for name in TENSORS}
    for name, grad in gradients(lif, mixed, case).items():
        assert grad is not None
        assert grad.device.type == "cpu"
        assert_bits_equal(grad, here[name])  # type: ignore[arg-type]


def test_gradients_in_any_layout_give_the_same(device: torch.device) -> None:
    case = Case(6, (4, 8), parameters="neuron")
    tensors = leaves(inputs(case, device))
    spk, mem = call(lif, tensors, case)
    asked = [t for t in tensors.values() if t is not None]
    grad = torch.rand(6, device=device).view(6, 1, 1).expand(6, 4, 8)
    plain = torch.autograd.grad((spk, mem), asked, (grad.contiguous(), grad.contiguous()), retain_graph=True)
    moved = grad.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for a, b in zip(torch.autograd.grad((spk, mem), asked, (grad, moved)), plain, strict=True):
        assert_bits_equal(a, b)


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_a_second_derivative_is_refused_by_name(record_mem: bool, device: torch.device) -> None:
    case = Case(5, (3,), torch.float64, record_mem=record_mem)
    for name in TENSORS:
        tensors = inputs(case, device)
        asked = tensors[name]
        assert asked is not None
        spk, mem = call(lif, {**tensors, name: asked.requires_grad_()}, case)
        (grad,) = torch.autograd.grad(spk.sum() + mem.square().sum(), [asked], create_graph=True)
        with pytest.raises(NotImplementedError, match="double backward"):
            torch.autograd.grad(grad.sum(), [asked])


def test_a_second_derivative_with_respect_to_the_incoming_gradient_is_refused(device: torch.device) -> None:
    tensors = leaves(inputs(Case(), device))
    spk, _ = call(lif, tensors, Case())
    weight = torch.ones_like(spk, requires_grad=True)
    (grad,) = torch.autograd.grad(spk, [tensors["current"]], weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(grad.sum(), [weight])


def test_the_reference_backend_has_a_second_derivative(device: torch.device) -> None:
    case = Case(5, (3,), torch.float64)
    current, *_ = tensors = list(leaves(inputs(case, device)).values())
    with snnfast.use_backend("reference"):
        spk, mem = call(lif, dict(zip(TENSORS, tensors, strict=True)), case)
    (grad,) = torch.autograd.grad(spk.sum() + mem.sum(), [current], create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), [current])
    assert second.abs().max() > 0


def test_a_loss_on_one_output_or_none_works(device: torch.device) -> None:
    tensors = leaves(inputs(Case(), device))
    spk, mem = call(lif, tensors, Case())
    for output in (spk, mem):
        output.sum().backward(retain_graph=True)
    assert all(t is not None and t.grad is not None for t in tensors.values())
    assert torch.autograd.grad(tensors["current"].sum(), [tensors["mem"]], allow_unused=True) == (None,)  # type: ignore[union-attr]
    call(lif, tensors, Case())  # outputs dropped


def bytes_held(tensors: dict[str, Tensor | None], case: Case) -> int:
    """Bytes that autograd keeps for the backward pass beyond inputs and outputs."""
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = call(lif, tensors, case)
    known = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *outputs) if t is not None}
    return sum(size for pointer, size in held.items() if pointer not in known)


def test_what_is_held_for_backward(device: torch.device) -> None:
    for steps, reset in itertools.product((1, 16, 17, 100), RESETS):
        for dtype in FLOATS:
            case = Case(steps, (4, 25), dtype, reset)
            assert bytes_held(leaves(inputs(case, device)), case) == 0
        for delay, record_mem, constant in [(True, False, False), (False, True, False), (True, False, True)]:
            case = Case(steps, (4, 25), torch.float32, reset, delay, record_mem, constant)
            limit = 4 / _ops.checkpoint_stride() * steps * 100
            assert bytes_held(leaves(inputs(case, device)), case) <= limit


def test_without_a_gradient_asked_for_nothing_is_held(device: torch.device) -> None:
    for record_mem in (True, False):
        case = Case(100, (4, 25), record_mem=record_mem)
        assert bytes_held(inputs(case, device), case) == 0
        with torch.no_grad():
            assert bytes_held(leaves(inputs(case, device)), case) == 0


def test_forward_mode_differentiation_is_refused_not_ignored(device):
    with torch.autograd.forward_ad.dual_level():
        current = torch.autograd.forward_ad.make_dual(torch.ones(3, 2), torch.ones(3, 2))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            snnfast.functional.lif(current, beta=0.9)
        with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            snnfast.functional.lif(current, beta=0.9)


@pytest.mark.parametrize("record_mem", [True, False])
def test_a_nan_reaches_no_gradient_that_does_not_pass_through_it(device, record_mem):
    """With no loss on the spikes, nothing depends on the derivative at a NaN membrane."""
    values = torch.full((5, 3), 0.4)
    values[2, 1] = float("nan")
    found = []
    for unroll in (snnfast.functional.lif, reference.lif):
        current = values.to(device).requires_grad_()
        _, mem = unroll(current, beta=0.9, record_mem=record_mem)
        (mem[0] if record_mem else mem)[..., 0].sum().backward()
        found.append(current.grad)
    torch.testing.assert_close(found[0], found[1], equal_nan=True)
    assert found[0][:, 0].isfinite().all()
