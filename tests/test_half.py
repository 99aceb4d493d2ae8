"""A state that goes from call to call is never rounded to half precision, or neurons would spike without a reset."""

import itertools
from typing import Any

import pytest
import torch
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
    RESETS,
    Case,
    assert_bits_equal,
    emulated_if_thorough,
    inputs,
    layer_of,
)
from torch import Tensor

import snnfast
from snnfast import Leaky, MultiStep

neurons = pytest.mark.parametrize("neuron", NEURONS)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


def currents(dtype: torch.dtype, device: torch.device, neuron: str, beta: float, steps: int) -> Tensor:
    """For a membrane that often comes just above the threshold.

    Synaptic with alpha 0.5 doubles the current, and Lapicque scales it itself.
    """
    strength = {"leaky": 2.4 * (1 - beta), "synaptic": 1.2 * (1 - beta), "lapicque": 2.4}[neuron]
    return (strength * torch.rand(steps, 3, 67)).to(dtype).to(device)


def decays_of(neuron: str, beta: float) -> tuple[float, ...]:
    """Positional arguments of the layer."""
    return (0.5, beta) if neuron == "synaptic" else (beta,)


def make(neuron: str, beta: float, device: torch.device, **options: Any) -> Any:
    layer = getattr(snnfast, neuron.capitalize())(*decays_of(neuron, beta), **options)
    return layer.to(device)


@emulated_if_thorough
@halves
@neurons
def test_a_record_and_held_states_come_from_one_call_in_the_dtype_of_the_current(
    neuron: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record rounded, the last states exact; the kernels are not given a float32 copy of the current."""
    case = Case(neuron)
    ops, calls = case.kind.ops, []
    forward = ops.forward
    monkeypatch.setattr(ops, "forward", lambda x, *args: calls.append(x.dtype) or forward(x, *args))
    for grad, reset, delay in itertools.product((True, False), RESETS, (True, False)):
        current = currents(dtype, device, neuron, 0.9, 40).requires_grad_(grad)
        holder = make(neuron, 0.9, device, init_hidden=True, reset_mechanism=reset, reset_delay=delay)
        calls.clear()
        spk, *record = holder.unroll(current)
        assert calls == [dtype]
        exact = make(neuron, 0.9, device, reset_mechanism=reset, reset_delay=delay).unroll(current.float())
        assert_bits_equal(spk, exact[0].to(dtype))
        for name, rounded, wide in zip(ops.states, record, exact[1:], strict=True):
            assert_bits_equal(rounded, wide.to(dtype), name)
            assert_bits_equal(getattr(holder, name), wide[-1], f"last {name}")


@emulated_if_thorough
def test_a_membrane_just_above_the_threshold_is_reset(device: torch.device) -> None:
    """1.0008 would be 1 in bfloat16, which is not above the threshold."""
    current = torch.full((3, 1), 0.55078125, dtype=torch.bfloat16, device=device)
    layer, mem, spikes = Leaky(0.9), torch.full((1, 1), 0.5, device=device), []
    for x in current:
        spk, mem = layer(x.unsqueeze(0), mem)
        spikes.append(spk.item())
    assert spikes == [1, 0, 0]


@emulated_if_thorough
@neurons
def test_without_a_step_the_states_are_copies_in_the_dtype_of_the_arithmetic(neuron: str, device: torch.device) -> None:
    for dtype, record_mem in itertools.product((*FLOATS, *HALVES), (True, False)):
        case = Case(neuron, "unroll", 0, dtype=dtype)
        names, tensors = case.kind.ops.states, inputs(case, device)
        given = [tensors[name].half() for name in names]  # type: ignore[union-attr]
        layer = layer_of(case, tensors)
        last = layer.unroll(tensors["current"], *given, record_mem=False)[1:]
        if neuron == "leaky":
            net = MultiStep(layer)
            _, _, last = net(tensors["current"], states=given, record_mem=record_mem, return_states=True)
        for a, b in zip(last, given, strict=True):
            assert a.dtype == case.acc
            assert_bits_equal(a, b.to(case.acc))
            assert a.data_ptr() != b.data_ptr()
