"""The fused forward pass equals the reference bit for bit, whatever the neuron, variant, shape, option or thread."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers import (
    COMBINATIONS,
    FLOATS,
    HALVES,
    NEURONS,
    PARAMETERS,
    RESETS,
    SURROGATES,
    VARIANTS,
    Case,
    Outputs,
    Tensors,
    assert_bits_equal,
    assert_close,
    assert_equals_reference,
    every_other,
    expected,
    fused,
    inputs,
    leaves,
    random_cases,
)

DTYPES = FLOATS + HALVES
IDS = ["-".join(both) for both in COMBINATIONS]
each = pytest.mark.parametrize(("neuron", "variant"), COMBINATIONS, ids=IDS)
neurons = pytest.mark.parametrize("neuron", NEURONS)
RESET_CASES = list(itertools.product(RESETS, (True, False)))


@each
def test_every_option(neuron: str, variant: str, device: torch.device) -> None:
    options = enumerate(itertools.product(DTYPES, RESET_CASES, (True, False)))
    for i, (dtype, (reset, delay), record_mem) in every_other(options, neuron, VARIANTS.index(variant)):
        case = Case(neuron, variant, 17, (3, 10), dtype, reset, delay, record_mem, PARAMETERS[i % 8]).fitted()
        assert_equals_reference(case, inputs(case, device))


@each
def test_random_calls(neuron: str, variant: str, device: torch.device) -> None:
    for i, case in enumerate(random_cases(20, seed=3, neuron=(neuron,), variant=(variant,))):
        assert_equals_reference(case, inputs(case, device, seed=i, wild=i % 2 == 0))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 8, 15, 16, 17, 33, 40, 129, 151, 300], ids=lambda n: f"T{n}")
def test_every_number_of_steps(steps: int, device: torch.device) -> None:
    shapes = ((5,), (3, 10), (2, 33))
    for i, case in enumerate(random_cases(12 if steps < 100 else 5, seed=steps, steps=(steps,), shape=shapes)):
        found = assert_equals_reference(case, inputs(case, device, seed=i))
        if case.has("count") and steps == 0:
            assert not found["spk"].any()


SHAPES = ((), (0,), (1,), (7,), (3, 0), (0, 4), (3, 10), (1, 64), (2, 257), (2, 3, 5), (2, 3, 4, 5), (4, 1030))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)) or "0d")
def test_every_shape_with_every_parameter_shape(shape: tuple[int, ...], device: torch.device) -> None:
    for i, (neuron, parameters) in enumerate(itertools.product(NEURONS, PARAMETERS)):
        variant, dtype = VARIANTS[i % len(VARIANTS)], DTYPES[i % 4]
        case = Case(neuron, variant, 5, shape, dtype, RESETS[i % 3], i % 2 == 0, i % 5 != 0, parameters, i % 3 != 1)
        assert_equals_reference(case.fitted(), inputs(case.fitted(), device, seed=i))


@neurons
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_many_neurons_and_few(reset: str, delay: bool, neuron: str, device: torch.device) -> None:
    """Full vectors and what is left over, several blocks of neurons, and fewer neurons than a vector."""
    shapes, some = ((8, 4096), (3, 1367), (16,), (17,), (3,)), (torch.float32, torch.float64, torch.bfloat16)
    turn = RESET_CASES.index((reset, delay))
    for i, (shape, dtype) in every_other(enumerate(itertools.product(shapes, some)), neuron, turn):
        case = Case(neuron, ("unroll", "count")[i // 2 % 2], 3, shape, dtype, reset, delay, parameters="neuron")
        assert_equals_reference(case, inputs(case, device))


@neurons
def test_about_a_third_of_the_neurons_spike(neuron: str, device: torch.device) -> None:
    """Of the inputs that these tests are made of: spikes, resets and their absence are all there."""
    for reset in RESETS:
        case = Case(neuron, steps=40, shape=(8, 50), reset=reset, parameters="element")
        assert 0.15 < fused(inputs(case, device), case)["spk"].count_nonzero() / (40 * 400) < 0.75


@pytest.mark.parametrize("name", list(SURROGATES))
def test_the_surrogate_does_not_change_the_forward_pass(name: str, device: torch.device) -> None:
    for neuron, variant in itertools.product(NEURONS, ("unroll", "callable", "step")):
        case = Case(neuron, variant)
        outputs = fused(inputs(case, device), replace(case, spike_grad=SURROGATES[name]))
        for which, t in expected(inputs(case, device), case).items():
            assert_bits_equal(outputs[which], t, which)


@neurons
def test_one_step_in_every_mode_equals_an_unroll_of_one_step(neuron: str, device: torch.device) -> None:
    for i, case in enumerate(
        random_cases(
            60, seed=9, neuron=(neuron,), steps=(1,), variant=("step", "constant", "count", "callable+step", "callable")
        )
    ):
        tensors = inputs(case, device, seed=i, wild=i % 3 == 0)
        whole = {**tensors, "current": tensors["current"].unsqueeze(0)} if case.has("constant") else tensors  # type: ignore[union-attr]
        unrolled = fused(whole, replace(case, variant="unroll"))
        for name, t in fused(tensors, case).items():
            one = unrolled[name][0] if name == "spk" and case.has("count") else unrolled[name]
            assert_bits_equal(t, one, f"{case}: {name}")


@neurons
def test_a_current_that_does_not_change_equals_num_steps(neuron: str, device: torch.device) -> None:
    for dtype, record_mem in ((torch.float32, True), (torch.float16, False)):
        case = Case(neuron, "constant", 20, dtype=dtype, record_mem=record_mem)
        tensors = inputs(case, device)
        repeated = {**tensors, "current": tensors["current"].expand(20, 3, 10)}  # type: ignore[union-attr]
        unrolled = fused(repeated, replace(case, variant="unroll"))
        for name, t in fused(tensors, case).items():
            assert_bits_equal(t, unrolled[name], name)


# ---- numbers ------------------------------------------------------------------------------------------------------


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


@neurons
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


@neurons
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


@neurons
def test_dtypes_promote_as_in_the_reference(neuron: str, device: torch.device) -> None:
    single, double, half = (torch.rand(5, device=device).to(d) for d in (torch.float32, torch.float64, torch.float16))
    for current, state, decay, threshold, (variant, record_mem) in itertools.product(
        (single, double, half), (None, single, double, half), (single, double), (double, double[0], half),
        (("unroll", True), ("unroll", False), ("count", True)),
    ):  # fmt: skip
        case = Case(neuron, variant, 6, (5,), record_mem=record_mem)
        kind = case.kind
        tensors = {"current": current.expand(6, 5), **dict.fromkeys(kind.ops.states, state)}
        tensors |= {**dict.fromkeys(kind.decays, decay), "threshold": threshold, "graded_spikes_factor": single[0]}
        assert_equals_reference(case, tensors)


def test_a_count_in_half_precision_is_rounded_once(device: torch.device) -> None:
    """Counts beyond what a half can hold exactly are those of a sum in float32, not of one that stops growing."""
    for neuron, (dtype, steps) in itertools.product(NEURONS, ((torch.float16, 3001), (torch.bfloat16, 1001))):
        case = Case(neuron, "count+constant", steps, (5,), dtype, "none", record_mem=False)
        tensors = inputs(case, device)
        one = torch.ones((), device=device)
        tensors |= {"current": torch.full((5,), 2.0, dtype=dtype, device=device), "graded_spikes_factor": one}
        tensors |= {"threshold": one, **dict.fromkeys(case.kind.ops.states)}
        assert_bits_equal(fused(tensors, case)["spk"], torch.full((5,), steps, dtype=dtype, device=device))


@neurons
def test_a_count_is_the_sum_of_the_spikes(neuron: str, device: torch.device) -> None:
    for i, case in enumerate(random_cases(20, seed=6, neuron=(neuron,), variant=("count", "count+constant"))):
        tensors = inputs(case, device, seed=i)
        tensors["graded_spikes_factor"] = torch.ones((), dtype=case.acc, device=device)
        spikes = fused(tensors, replace(case, variant=case.variant.replace("count", "unroll")))["spk"]
        count = fused(tensors, case)["spk"]
        assert count.is_contiguous()
        assert_bits_equal(count, spikes.sum(0), str(case))


# ---- memory and threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_results_share_no_memory_with_inputs_or_each_other(steps: int, device: torch.device) -> None:
    for i, case in enumerate(random_cases(20, seed=steps, steps=(steps,), shape=((3, 10),), parameters=("element",))):
        tensors = inputs(case, device, seed=i)
        before = {name: t.clone() for name, t in tensors.items() if t is not None}
        outputs = fused(tensors, case)
        copies = {name: t.clone() for name, t in outputs.items()}
        for name, t in outputs.items():
            t.fill_(-5)
            for other, u in outputs.items():
                if other != name:
                    assert_bits_equal(u, copies[other], f"{case}: {other} when {name} is written to")
            t.copy_(copies[name])
        for t in outputs.values():
            t.fill_(-7)
        for name, t in before.items():
            assert_bits_equal(tensors[name], t, f"{case}: {name}")  # type: ignore[arg-type]


@each
def test_without_gradients_the_results_are_the_same(neuron: str, variant: str, device: torch.device) -> None:
    for case in random_cases(4, seed=5, neuron=(neuron,), variant=(variant,), steps=(17,), shape=((3, 10),)):
        tensors = inputs(case, device)
        with_gradients = fused(leaves(tensors), case)
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                outputs = fused(tensors, case)
            for name, t in with_gradients.items():
                tolerance = 2e-2 if name == "spk" and case.has("callable") and case.has("count") else 0.0
                assert_close(outputs[name], t, tolerance, f"{case}: {name}")
                assert not outputs[name].requires_grad
                assert t.requires_grad


def with_gradients_of(case: Case, device: torch.device, seed: int = 0) -> Outputs:
    """Outputs, and the gradients of all inputs."""
    tensors = leaves(inputs(case, device, seed))
    outputs = fused(tensors, case)
    asking = {name: t for name, t in tensors.items() if t is not None}
    weights = [
        torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype, device=t.device).view(t.shape) for t in outputs.values()
    ]
    found = torch.autograd.grad(list(outputs.values()), list(asking.values()), weights)
    return outputs | {f"grad of {name}": g for name, g in zip(asking, found, strict=True)}


THREADED = ("unroll", "count", "callable")


@neurons
@pytest.mark.parametrize("variant", THREADED)
def test_number_of_threads_and_repetition_change_no_bit(variant: str, neuron: str, device: torch.device) -> None:
    case = Case(neuron, variant, 20, (7, 3001), record_mem=variant == "unroll", delay=variant == "unroll")
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(with_gradients_of(case, device))
    for again in results[1:]:
        for name, t in results[0].items():
            assert_bits_equal(again[name], t, name)


@neurons
def test_results_keep_their_values_whatever_is_called_and_freed_later(neuron: str, device: torch.device) -> None:
    case = Case(neuron, "unroll", 20, (7, 4001), record_mem=False)
    outputs = fused(inputs(case, device), case)
    kept = [outputs["spk"][3], outputs["spk"][-1, 2:], *(outputs[name] for name in case.kind.ops.states)]
    copies = [t.clone() for t in kept]
    del outputs
    for seed in range(1, 5):
        fused(inputs(case, device, seed), case)
    for a, b in zip(kept, copies, strict=True):
        assert_bits_equal(a, b)


def test_calls_from_several_threads_at_once(device: torch.device) -> None:
    cases = [
        Case(neuron, "unroll", 30, (7, 501), dtype, reset)
        for neuron, dtype, reset in itertools.product(NEURONS, FLOATS, RESETS)
    ]
    alone = [with_gradients_of(case, device) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda case: with_gradients_of(case, device), cases * 2)
        for found, outputs in zip(results, alone * 2, strict=True):
            for name, t in outputs.items():
                assert_bits_equal(found[name], t, name)
