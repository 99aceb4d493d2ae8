"""Calls whose tensors over time exceed the cache of the device go past it, others through it."""

from collections.abc import Iterator

import pytest
import torch
from emulator.build import Streamed, cache_bytes, last_launch, set_chunked_limits, set_stream_bytes, streamed
from gradient_checks import gradients
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
    SURROGATES,
    Case,
    assert_bits_equal,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)
from ops import backward_arguments, call_op, forward_arguments
from torch import Tensor

from snnfast._core.ops import SAVE_NOTHING, SAVE_SPIKES
from snnfast.functional import lif

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.parametrize("device", ["emulated"], indirect=True),
]
EVERYTHING, NOTHING, DEFAULT = 0, 1 << 60, -1
LIMITS, ALWAYS = (256, 12288), (0, 1 << 40)  # steps from which, neurons up to which backward shares out time


@pytest.fixture(autouse=True)
def limits(device: torch.device) -> Iterator[None]:
    streamed()
    yield
    set_stream_bytes(DEFAULT)
    set_chunked_limits(*LIMITS)


def accesses(case: Case, device: torch.device) -> tuple[Streamed, Streamed]:
    """Of the forward and the backward pass, with a gradient for every input."""
    tensors = leaves(inputs(case, device))
    outputs = fused(tensors, case)
    forward = streamed()
    wanted = list(outputs.values()) if case.record_mem else [outputs["spk"]]
    asking = [t for t in tensors.values() if t is not None]
    torch.autograd.grad(wanted, asking, [torch.ones_like(t) for t in wanted], allow_unused=True)
    return forward, streamed()


# T, N and dtype of all: a row is 8 accesses of 4 neurons, of the current, spikes or states.
T, ROW = 40, 8


def expected_accesses(neuron: str, variant: str, record_mem: bool) -> tuple[Streamed, Streamed]:
    """Rows of T steps, and checkpoints."""
    ops = Case(neuron).kind.ops
    states, tells = len(ops.states), record_mem and ops.record_tells
    rows = 0 if tells else 2 * states * ROW
    x, spikes = variant != "constant", variant != "count"
    recorded = states * record_mem
    read_again = not tells and x  # in backward: so forward leaves the current in the caches
    return (
        Streamed(T * ROW * (x and not read_again), T * ROW * (spikes + recorded) + rows),
        Streamed(T * ROW * (read_again + tells + spikes + recorded) + rows, T * ROW * x),
    )


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("variant", ["unroll", "count", "constant"])
def test_rows_are_streamed_once(variant: str, record_mem: bool, neuron: str, device: torch.device) -> None:
    case = Case(neuron, variant, T, (32,), record_mem=record_mem)
    set_stream_bytes(EVERYTHING)
    assert accesses(case, device) == expected_accesses(neuron, variant, record_mem)
    set_stream_bytes(NOTHING)
    assert accesses(case, device) == (Streamed(0, 0), Streamed(0, 0))


@pytest.mark.parametrize("steps", [2, 15, 16])
def test_a_current_that_backward_reads_again(steps: int, device: torch.device) -> None:
    set_stream_bytes(EVERYTHING)
    for neuron in NEURONS:
        case = Case(neuron, "unroll", steps, (32,), record_mem=False)
        forward, backward = accesses(case, device)
        assert forward == Streamed(0, steps * ROW)
        assert backward == Streamed(2 * steps * ROW, steps * ROW)
        tensors = leaves(inputs(case, device))
        layer_of(case, tensors)(tensors["current"][0], *(tensors[s] for s in case.kind.ops.states))  # type: ignore[index]
        assert streamed().loads == 0


@pytest.mark.thorough
def test_a_pass_that_is_repeated(device: torch.device) -> None:
    """Warps that share out the time read all but the first and last segments twice."""
    set_chunked_limits(*ALWAYS)
    set_stream_bytes(EVERYTHING)
    steps, neurons = 300, 32
    checkpoints = 18
    _, backward = accesses(Case("leaky", "unroll", steps, (neurons,), record_mem=False), device)
    assert last_launch().threads == 512
    assert backward == Streamed((2 * steps + checkpoints) * neurons, steps * neurons)


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=lambda d: str(d)[6:])
def test_the_limit(dtype: torch.dtype, device: torch.device) -> None:
    case = Case("leaky", "unroll", T, (32,), dtype, record_mem=False)
    size, acc = (torch.empty(0, dtype=t).element_size() for t in (dtype, case.acc))
    forward = T * 32 * 2 * size + 2 * 32 * acc  # current, spikes, checkpoints
    set_stream_bytes(forward)
    assert accesses(case, device)[0] == Streamed(0, 0)
    set_stream_bytes(forward - 1)
    assert accesses(case, device)[0].stores > 0
    backward = T * 32 * 3 * size + 2 * 32 * acc  # gradients of spikes and current besides
    set_stream_bytes(backward)
    assert accesses(case, device)[1] == Streamed(0, 0)
    set_stream_bytes(backward - 1)
    assert accesses(case, device)[1].stores > 0


@pytest.mark.thorough
def test_the_limit_counts_what_is_saved(device: torch.device) -> None:
    case = Case("leaky", "unroll", T, (32,))
    op = case.kind.ops

    def stores(saved: int, size: int) -> int:
        set_stream_bytes(size)
        call_op(op.forward, forward_arguments(case, device, saved=saved, record=0, last=True))
        return streamed().stores

    for saved, size in ((SAVE_SPIKES, 5 * 32), (SAVE_NOTHING, 0)):
        size += 2 * T * 32 * 4
        assert stores(saved, size) == 0
        assert stores(saved, size - 1) > 0

    def loads(given: bool, size: int) -> int:
        arguments = backward_arguments(case, device, saved=SAVE_NOTHING, needs=1, derivative=given)
        streamed()
        set_stream_bytes(size)
        call_op(op.backward, {**arguments, "grad_mem_rec": None})
        return streamed().loads

    for given, tensors in ((False, 3), (True, 4)):
        assert loads(given, tensors * T * 32 * 4) == 0
        assert loads(given, tensors * T * 32 * 4 - 1) > 0


def test_the_cache_of_the_device(device: torch.device) -> None:
    neurons = cache_bytes() // (2 * 4 * 4)
    for N, beyond in ((neurons, False), (neurons + 4, True)):
        with torch.no_grad():
            lif(torch.rand(4, N, device=device), beta=0.9, record_mem=False)
        assert streamed() == Streamed(beyond * N, beyond * N)


@pytest.mark.thorough
@pytest.mark.parametrize("neuron", NEURONS)
def test_streaming_changes_no_bit(neuron: str, device: torch.device) -> None:
    variants = ("unroll", "constant", "count", "count+constant", "bits")
    for case in random_cases(40, 1, neuron=(neuron,), variant=variants, steps=(21,), shape=((37,), (64,))):
        found: list[dict[str, Tensor | None]] = []
        for size in (EVERYTHING, NOTHING):
            set_stream_bytes(size)
            tensors = leaves(inputs(case, device), case.wrt)
            found.append({**fused(tensors, case), **gradients(fused, tensors, case)})
            assert (streamed().stores > 0) == (size == EVERYTHING)
        for name, t in found[0].items():
            if t is None:
                assert found[1][name] is None
            else:
                assert_bits_equal(t, found[1][name], f"{case}: {name}")  # type: ignore[arg-type]


def test_bits_are_streamed(device: torch.device) -> None:
    set_stream_bytes(EVERYTHING)
    row = 64 // 4
    x = torch.rand(T, 64, device=device).requires_grad_()
    lif(x, beta=0.9, spike_grad=SURROGATES["straight_through_estimator"], record_mem=False)
    assert streamed() == Streamed(T * row, T * row + 5 * row)
