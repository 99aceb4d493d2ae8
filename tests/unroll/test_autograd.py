"""What autograd asks of a function beside its gradients: which inputs and outputs, second derivatives, forward mode."""

import pytest
import torch
from gradient_checks import gradients, loss_of
from helpers import NEURONS, SURROGATES, Case, assert_bits_equal, emulated_if_thorough, fused, inputs, leaves
from torch import Tensor

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


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("variant", ["unroll", "step", "callable", "count"])
def test_a_second_derivative_is_refused_by_name(variant: str, neuron: str, device: torch.device) -> None:
    for record_mem, delay in ((True, True), (False, True), (True, False)):
        case = Case(neuron, variant, 5, (3,), torch.float64, delay=delay, record_mem=record_mem)
        for name in case.names:
            if variant == "callable" and delay and name in ("threshold", "graded_spikes_factor"):
                continue  # PyTorch itself differentiates what becomes of a recorded membrane
            tensors = inputs(case, device)
            asked = tensors[name]
            assert asked is not None
            outputs = fused({**tensors, name: asked.requires_grad_()}, case)
            loss = outputs["spk"].sum() + outputs["mem"].square().sum()
            (grad,) = torch.autograd.grad(loss, [asked], create_graph=True)
            with pytest.raises(NotImplementedError, match="double backward"):
                torch.autograd.grad(grad.sum(), [asked])


@neurons
def test_a_second_derivative_of_the_incoming_gradient_is_refused(neuron: str, device: torch.device) -> None:
    case = Case(neuron)
    tensors = leaves(inputs(case, device))
    spk = fused(tensors, case)["spk"]
    weight = torch.ones_like(spk, requires_grad=True)
    (grad,) = torch.autograd.grad(spk, [tensors["current"]], weight, create_graph=True)  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(grad.sum(), [weight])


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
