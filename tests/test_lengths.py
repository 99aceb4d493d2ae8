"""A ragged batch equals a call for each sample alone: bit for bit forward, to rounding backward."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from fuzz import quantized
from gradient_checks import FLOWS, check_against_reference
from helpers import (
    HALVES,
    KINDS,
    THOROUGH,
    VARIANTS,
    Case,
    assert_all_bits_equal,
    assert_bits_equal,
    assert_same_outputs,
    emulated_if_thorough,
    expected,
    inputs,
    leaves,
    random_cases,
)
from ops import call_op, forward_arguments
from ragged import alone, ragged, some_lengths
from torch import Tensor

from snnfast import functional, reference
from snnfast._core import backend
from snnfast._core import ops as _ops

every_neuron = pytest.mark.parametrize("neuron", KINDS)
SHAPES = ((3, 10), (5, 64), (4,), (2, 3, 7), (3, 2, 3, 3), (6, 1), (2, 130))


def some(number: int, seed: int, **choices: Any) -> Iterator[tuple[Case, Tensor]]:
    choices = {"shape": SHAPES, "steps": (1, 2, 5, 16, 18, 33, 40), **choices}
    for i, case in enumerate(random_cases(number, seed, **choices)):
        yield case, some_lengths(case.steps, case.shape[0], seed=i)


# ---- numbers


def check(some_cases: Iterator[tuple[Case, Tensor]], device: torch.device, call: Any, one: Any = expected) -> None:
    """Outputs bit for bit, and gradients to rounding."""
    flows = itertools.cycle(FLOWS)
    for i, (case, lengths) in enumerate(some_cases):
        check_against_reference(case, device, next(flows), i, function=call(lengths), oracle=alone(lengths, one))


MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "inhibition": {"inhibition": True},
    "quantized": {"state_quant": quantized},
}


@every_neuron
@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_the_reference_is_each_sample_alone(neuron: str, more: dict[str, Any]) -> None:
    reference = partial(expected, **more)
    shape = ((3, 10), (4, 6)) if "inhibition" in more else SHAPES
    drawn = some(12, seed=1, neuron=(neuron,), variant=("unroll", "constant", "count"), shape=shape)
    check(drawn, torch.device("cpu"), lambda lengths: partial(reference, lengths=lengths), reference)


@every_neuron
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "step" not in v])
def test_the_kernels_are_each_sample_alone(variant: str, neuron: str, device: torch.device) -> None:
    if Case(neuron, variant).fitted().variant != variant:
        pytest.skip("the neuron has no such variant")
    check(some(20 if THOROUGH else 4, seed=3, neuron=(neuron,), variant=(variant,)), device, ragged)


@pytest.mark.needs_extension
def test_threads_instruction_sets_and_stores_past_the_caches_change_no_bit(isa: str, stream_bytes: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    for shape, dtype in itertools.product(((7, 1000), (9, 640), (33, 10), (3, 4032)), (torch.float32, *HALVES)):
        case = Case("leaky", "unroll", 40, shape, dtype, record_mem=shape[0] != 9)
        lengths = torch.randint(0, 41, shape[:1], generator=draw)
        tensors, results = leaves(inputs(case)), []
        for threads, least in ((1, 1 << 60), (1, 0), (2, 0), (5, 1 << 60)):
            torch.set_num_threads(threads)
            stream_bytes(least)
            outputs = ragged(lengths)(tensors, case)
            loss = sum((i + 1) * t.double().square().sum() for i, t in enumerate(outputs.values()))
            results.append([*outputs.values(), *torch.autograd.grad(loss, list(tensors.values()))])  # type: ignore[arg-type]
        for result in results[1:]:
            assert_all_bits_equal(result, results[0])


@emulated_if_thorough
def test_what_is_in_the_padding_does_not_matter(device: torch.device) -> None:
    for case, lengths in some(12, seed=6, variant=("unroll", "callable"), record_mem=(True,), states=(True,)):
        tensors = leaves(inputs(case, device))
        padding = torch.arange(case.steps).view(-1, 1) >= lengths
        padding = padding.to(device).view(*padding.shape, *(1,) * (len(case.shape) - 1))
        results = []
        for value in (0.0, float("nan"), float("inf")):
            with torch.no_grad():
                tensors["current"].masked_fill_(padding, value)  # type: ignore[union-attr]
            found = ragged(lengths)(tensors, case)
            loss = sum((i + 1) * t.double().sum() for i, t in enumerate(found.values()))
            results.append([*found.values(), *torch.autograd.grad(loss, list(tensors.values()))])  # type: ignore[arg-type]
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert_bits_equal(a, b, str(case))
        assert not results[0][len(case.kind.results)].masked_select(padding).any()


@emulated_if_thorough
@every_neuron
def test_a_batch_of_whole_samples_is_a_dense_call(neuron: str, device: torch.device) -> None:
    for whole in (torch.full((3,), 9), torch.full((3,), 9, dtype=torch.int8)):
        case = Case(neuron)
        tensors = inputs(case, device)
        assert_same_outputs(ragged(whole)(tensors, case), alone(whole)(tensors, case), case)


# ---- the reference in place of the kernels


@pytest.mark.needs_extension
def test_a_transform_goes_by_the_reference_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_warned", set())
    x, lengths = torch.rand(2, 9, 3, 4), torch.tensor([2, 9, 5])
    with pytest.warns(UserWarning, match="no rule of a torch.func transform for lengths"):
        found = torch.vmap(lambda x: functional.lif(x, beta=0.9, lengths=lengths)[1])(x)
    for i in range(2):
        assert_bits_equal(found[i], functional.lif(x[i], beta=0.9, lengths=lengths)[1])


# ---- the ops


@every_neuron
def test_the_ops_take_the_nearest_of_0_and_all_steps(neuron: str, device: torch.device) -> None:
    case = Case(neuron, steps=9, shape=(4, 5))
    ops, arguments = case.kind.ops, forward_arguments(case, device)
    found, wanted = (
        call_op(ops.forward, {**arguments, "lengths": torch.tensor(lengths, device=device)})
        for lengths in ([-7, 99, 3, 9], [0, 9, 3, 9])
    )
    saved = len(found) - 1  # nobody reads it beyond the length
    assert_all_bits_equal(found[:saved], wanted[:saved])


def test_wrong_lengths_are_refused_by_the_ops(device: torch.device) -> None:
    case = Case(shape=(3, 4))
    arguments = forward_arguments(case, device)
    good = torch.tensor([1, 2, 3], device=device)
    for wrong in (good[:2], good.int(), good.double(), good.view(3, 1), torch.stack([good, good], 1)[:, 0]):
        with pytest.raises(RuntimeError, match="lengths: expected contiguous int64"):
            call_op(_ops.NEURONS["leaky"].forward, {**arguments, "lengths": wrong})
    arguments["x"] = arguments["x"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="lengths: need samples one after the other in memory"):
        call_op(_ops.NEURONS["leaky"].forward, {**arguments, "lengths": good})


# ---- errors, and torch.compile


def test_the_definition_needs_no_kernels() -> None:
    spk, mem = reference.lif(torch.full((3, 2), 0.6), beta=1.0, lengths=torch.tensor([2, 3]))
    assert spk.tolist() == [[0, 0], [1, 1], [0, 0]]
    torch.testing.assert_close(mem, torch.tensor([[0.6, 0.6], [1.2, 1.2], [1.2, 0.8]]))
