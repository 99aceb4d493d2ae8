"""Numbers at the edges, states in half precision, memory and threads of the fused forward pass.

test_kernels.py compares whole calls.
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from gradient_checks import outputs_and_gradients
from helpers import (
    FLOATS,
    HALVES,
    KINDS,
    NEURONS,
    RESETS,
    Case,
    Tensors,
    assert_bits_equal,
    assert_each_equal,
    assert_equals_reference,
    emulated_if_thorough,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)

from snnfast import Leaky, MultiStep

DTYPES = FLOATS + HALVES
neurons, first = (pytest.mark.parametrize("neuron", names) for names in (KINDS, NEURONS))
RESET_CASES = list(itertools.product(RESETS, (True, False)))


@first
def test_about_a_third_of_the_neurons_spike(neuron: str, device: torch.device) -> None:
    """Of the inputs that these tests are made of: spikes, resets and their absence are all there."""
    for reset in RESETS:
        case = Case(neuron, steps=40, shape=(8, 50), reset=reset, parameters="element")
        assert 0.15 < fused(inputs(case, device), case)["spk"].count_nonzero() / (40 * 400) < 0.75


# ---- numbers ------------------------------------------------------------------------------------------------------


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_nan_infinities_and_negative_zero(dtype: torch.dtype, neuron: str, device: torch.device) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1e-40, 3e38, 0.7], device=device)
    current, state = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    special = torch.tensor([0.9, math.nan, math.inf, -0.0], device=device)
    for reset, delay in RESET_CASES:
        case = Case(neuron, "unroll", 4, (81,), dtype, reset, delay)
        states, parameters = case.kind.ops.states, case.kind.ops.parameters
        for chosen in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 2, 2), (3, 3, 3), (0, 0, 1)):  # decays, threshold, height
            indices = [chosen[0]] * len(case.kind.decays) + list(chosen[1:])
            tensors: Tensors = {
                "current": torch.stack([current, current.roll(1), current.roll(5), current.roll(30)]).to(dtype),
                **{name: state.roll(i) for i, name in enumerate(reversed(states))},
                **dict(zip(parameters, special[indices], strict=True)),
            }
            assert_equals_reference(case, tensors)


@first
def test_subnormal_numbers_are_not_flushed_to_zero(neuron: str, device: torch.device) -> None:
    for dtype, small in ((torch.float32, 1e-42), (torch.float64, 1e-310)):
        case = Case(neuron, "unroll", 3, (40,), dtype, "none")
        tensors = {**inputs(case, device), "threshold": torch.zeros((), dtype=dtype, device=device)}
        tensors["current"] = torch.full((3, 40), small, dtype=dtype, device=device)
        tensors["mem"] = torch.full((40,), -small, dtype=dtype, device=device)
        for name in case.kind.ops.states[:-1]:
            tensors[name] = torch.zeros(40, dtype=dtype, device=device)
        for t in assert_equals_reference(case, tensors).values():
            assert (t[-1] > 0).all()


@first
def test_multiplication_and_addition_round_separately(neuron: str, device: torch.device) -> None:
    """A fused multiply-add would leave the rounding error of the product, 2^-25, in the state."""
    case = Case(neuron, "unroll", 1, (64,))
    decay, state = torch.tensor(1 + 2.0**-12, device=device) / 2, torch.full((64,), 1 + 2.0**-12, device=device)
    for name in case.kind.ops.states:
        tensors = {**inputs(case, device), "threshold": torch.tensor(2.0), "current": -(decay * state).expand(1, 64)}
        tensors |= {own: state if own == name else torch.zeros(64, device=device) for own in case.kind.ops.states}
        tensors |= {own: decay if own in ("alpha", "beta", "decay") else torch.ones(()) for own in case.kind.decays}
        for t in fused(tensors, case).values():
            assert name == "mem" or not t.any()
        assert not fused(tensors, case)["mem"].any()


@first
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d)[6:])
def test_a_record_in_the_middle_is_rounded_to_even(dtype: torch.dtype, neuron: str, device: torch.device) -> None:
    case = Case(neuron, "unroll", 1, (37,), dtype, "none")
    mem = 1 + torch.finfo(dtype).eps * (torch.arange(37, device=device) + 0.5)
    tensors = {**inputs(case, device), "current": torch.zeros(1, 37, dtype=dtype, device=device)}
    tensors |= dict.fromkeys(case.kind.ops.states, torch.zeros(37, device=device)) | {"mem": mem}
    tensors |= dict.fromkeys(case.kind.decays, torch.ones((), device=device))
    assert (assert_equals_reference(case, tensors)["mem"].float() != mem).all()


def test_a_count_in_half_precision_is_rounded_once(device: torch.device) -> None:
    """Counts beyond what a half can hold exactly are those of a sum in float32, not of one that stops growing."""
    for neuron, (dtype, steps) in itertools.product(NEURONS, ((torch.float16, 3001), (torch.bfloat16, 1001))):
        case = Case(neuron, "count+constant", steps, (5,), dtype, "none", record_mem=False)
        tensors = inputs(case, device)
        one = torch.ones((), device=device)
        tensors |= {"current": torch.full((5,), 2.0, dtype=dtype, device=device), "graded_spikes_factor": one}
        tensors |= {"threshold": one, **dict.fromkeys(case.kind.ops.states)}
        assert_bits_equal(fused(tensors, case)["spk"], torch.full((5,), steps, dtype=dtype, device=device))


# ---- memory and threads -------------------------------------------------------------------------------------------


@emulated_if_thorough
@pytest.mark.parametrize("steps", [0, 1, 20])
def test_results_share_no_memory_with_inputs_or_each_other(steps: int, device: torch.device) -> None:
    for i, case in enumerate(random_cases(20, seed=steps, steps=(steps,), shape=((3, 10),), parameters=("element",))):
        tensors = inputs(case, device, seed=i)
        before = {name: t.clone() for name, t in tensors.items() if t is not None}
        outputs = fused(tensors, case)
        copies = {name: t.clone() for name, t in outputs.items()}
        for name, t in outputs.items():
            t.fill_(-5)
            assert_each_equal(outputs, {**copies, name: t}, f"{case} when {name} is written to")
            t.copy_(copies[name])
        for t in outputs.values():
            t.fill_(-7)
        assert_each_equal(tensors, before, case)


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("variant", ["unroll", "count", "callable"])
def test_number_of_threads_and_repetition_change_no_bit(variant: str, neuron: str, device: torch.device) -> None:
    for shape in ((7, 3001), (3, 111)):
        case = Case(neuron, variant, 20, shape, record_mem=variant == "unroll", delay=variant == "unroll")
        results = []
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(case, leaves(inputs(case, device))))
        for again in results[1:]:
            assert_each_equal(again, results[0], case)


@emulated_if_thorough
def test_calls_from_several_threads_at_once(device: torch.device) -> None:
    cases = [
        Case(neuron, "unroll", 30, (7, 501), dtype, reset)
        for neuron, dtype, reset in itertools.product(NEURONS, FLOATS, RESETS)
    ]
    alone = [outputs_and_gradients(case, leaves(inputs(case, device))) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda case: outputs_and_gradients(case, leaves(inputs(case, device))), cases * 2)
        for case, found, wanted in zip(cases * 2, results, alone * 2, strict=True):
            assert_each_equal(found, wanted, case)


# ---- a state that goes from call to call is never rounded to half precision, or neurons would spike without a reset


halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


@emulated_if_thorough
@halves
@first
def test_a_record_and_held_states_come_from_one_call_in_the_dtype_of_the_current(
    neuron: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record rounded, the last states exact; the kernels are not given a float32 copy of the current."""
    ops, calls = Case(neuron).kind.ops, []
    forward = ops.forward
    monkeypatch.setattr(ops, "forward", lambda x, *args: calls.append(x.dtype) or forward(x, *args))
    for grad, reset, delay in itertools.product((True, False), RESETS, (True, False)):
        case = Case(neuron, "unroll", 40, (3, 67), dtype, reset, delay)
        tensors: Any = inputs(case, device)
        current = tensors["current"].requires_grad_(grad)
        holder = layer_of(case, tensors, init_hidden=True)
        calls.clear()
        spk, *record = holder.unroll(current)
        assert calls == [dtype]
        exact = layer_of(case, tensors).unroll(current.float())
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
@first
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
