"""Calls whose tensors over time exceed the cache of the device go past it, others through it."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from emulator.build import Streamed, cache_bytes, last_launch, set_chunked_limits, set_stream_bytes, streamed
from gradient_checks import gradients
from helpers import FLOATS, HALVES, RESETS, SURROGATES, Case, assert_bits_equal, call, inputs, leaves
from test_chunked_backward import ALWAYS, LIMITS
from torch import Tensor

from snnfast import Leaky, _ops
from snnfast.functional import lif

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.parametrize("device", ["emulated"], indirect=True),
]
EVERYTHING, NOTHING, DEFAULT = 0, 1 << 60, -1


@pytest.fixture(autouse=True)
def limits(device: torch.device) -> Iterator[None]:
    streamed()
    yield
    set_stream_bytes(DEFAULT)
    set_chunked_limits(*LIMITS)


def accesses(case: Case, device: torch.device) -> tuple[Streamed, Streamed]:
    """Of the forward and the backward pass, with a gradient for every input."""
    tensors = leaves(inputs(case, device))
    spk, mem = call(lif, tensors, case)
    forward = streamed()
    outputs = (spk, mem) if case.record_mem else (spk,)
    torch.autograd.grad(outputs, list(tensors.values()), [torch.ones_like(t) for t in outputs])
    return forward, streamed()


# T, N and dtype of all: a row is 8 accesses of 4 neurons, of the current, spikes or membranes.
T, ROW = 40, 8
CHECKPOINTS = 2 * ROW


CASES = {
    # In: current; membranes and two gradients. Out: spikes and membranes; gradient of the current.
    "recorded": ({}, Streamed(T * ROW, 2 * T * ROW), Streamed(3 * T * ROW, T * ROW)),
    # The current is read again in backward.
    "checkpoints": (
        {"record_mem": False},
        Streamed(0, T * ROW + CHECKPOINTS),
        Streamed(2 * T * ROW + CHECKPOINTS, T * ROW),
    ),
    "count": (
        {"record_mem": False, "count": True},
        Streamed(0, CHECKPOINTS),
        Streamed(T * ROW + CHECKPOINTS, T * ROW),
    ),
    "constant": (
        {"record_mem": False, "constant": True},
        Streamed(0, T * ROW + CHECKPOINTS),
        Streamed(T * ROW + CHECKPOINTS, 0),
    ),
}


@pytest.mark.parametrize(("options", "forward", "backward"), CASES.values(), ids=CASES)
def test_what_has_a_row_per_step_is_streamed_once(
    options: dict[str, bool], forward: Streamed, backward: Streamed, device: torch.device
) -> None:
    case = Case(T, (32,), **options)
    set_stream_bytes(EVERYTHING)
    assert accesses(case, device) == (forward, backward)
    set_stream_bytes(NOTHING)
    assert accesses(case, device) == (Streamed(0, 0), Streamed(0, 0))


@pytest.mark.parametrize("steps", [2, 15, 16])
def test_a_current_that_backward_reads_again_stays_also_where_there_is_no_checkpoint(
    steps: int, device: torch.device
) -> None:
    set_stream_bytes(EVERYTHING)
    forward, backward = accesses(Case(steps, (32,), record_mem=False), device)
    assert forward == Streamed(0, steps * ROW)
    assert backward == Streamed(2 * steps * ROW, steps * ROW)
    layer, x = Leaky(0.9), torch.rand(32, device=device, requires_grad=True)
    layer(x, torch.zeros(32, device=device))
    assert streamed().loads == 0


def test_a_pass_that_is_repeated_is_streamed_only_the_last_time(device: torch.device) -> None:
    """Warps that share out the time read all but the first and last segments twice."""
    set_chunked_limits(*ALWAYS)
    set_stream_bytes(EVERYTHING)
    steps, neurons = 300, 32
    checkpoints = 18
    _, backward = accesses(Case(steps, (neurons,), record_mem=False), device)
    assert last_launch().threads == 512
    assert backward == Streamed((2 * steps + checkpoints) * neurons, steps * neurons)


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=lambda d: str(d)[6:])
def test_the_limit_is_the_sum_of_all_tensors_over_time(dtype: torch.dtype, device: torch.device) -> None:
    case = Case(T, (32,), dtype, record_mem=False)
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


def test_what_is_kept_and_a_given_derivative_count_too(device: torch.device) -> None:
    x, number = torch.rand(T, 32, device=device), torch.tensor(1.0)

    def stores(keep: int, size: int) -> int:
        set_stream_bytes(size)
        _ops.lif_forward(x, None, number, number, number, None, 0, True, False, False, keep)
        return streamed().stores

    for keep, size in ((_ops.KEEP_ROUNDED, T * 32 * 2), (_ops.KEEP_BITS, 5 * 32), (_ops.KEEP_NOTHING, 0)):
        size += 2 * T * 32 * 4
        assert stores(keep, size) == 0
        assert stores(keep, size - 1) > 0

    def loads(derivative: Tensor | None, size: int) -> int:
        set_stream_bytes(size)
        _ops.lif_backward(
            x, None, None, x, None, None, number, number, number, derivative, T, False, 0, True, False,
            _ops.KEEP_NOTHING, 0, 0.0, 0.0, 1,
        )  # fmt: skip
        return streamed().loads

    for derivative, tensors in ((None, 3), (x, 4)):
        assert loads(derivative, tensors * T * 32 * 4) == 0
        assert loads(derivative, tensors * T * 32 * 4 - 1) > 0


def test_the_cache_is_that_of_the_device(device: torch.device) -> None:
    neurons = cache_bytes() // (2 * 4 * 4)
    for N, beyond in ((neurons, False), (neurons + 4, True)):
        with torch.no_grad():
            lif(torch.rand(4, N, device=device), beta=0.9, record_mem=False)
        assert streamed() == Streamed(beyond * N, beyond * N)


def test_streaming_changes_no_bit(device: torch.device) -> None:
    for i, (dtype, reset, delay, record_mem) in enumerate(
        itertools.product(FLOATS + HALVES, RESETS, (True, False), (True, False))
    ):
        for neurons in (37, 64):
            case = Case(21, (neurons,), dtype, reset, delay, record_mem, i % 5 == 0, "neuron", count=i % 7 == 0)
            found = []
            for size in (EVERYTHING, NOTHING):
                set_stream_bytes(size)
                tensors = leaves(inputs(case, device))
                outputs = dict(zip(("spk", "mem"), call(lif, tensors, case), strict=True))
                found.append(outputs | gradients(lif, tensors, case))
                assert (streamed().stores > 0) == (size == EVERYTHING)
            for name in found[0]:
                assert_bits_equal(found[0][name], found[1][name], f"{case}: {name}")


def test_rounded_membranes_and_bits_are_streamed(device: torch.device) -> None:
    set_stream_bytes(EVERYTHING)
    row = 64 // 4
    for spike_grad, options, kept in (
        (SURROGATES["atan"], {"membrane_dtype": torch.bfloat16}, T * row),
        (SURROGATES["straight_through_estimator"], {}, 5 * row),
    ):
        x = torch.rand(T, 64, device=device).requires_grad_()
        lif(x, beta=0.9, spike_grad=spike_grad, record_mem=False, **options)
        assert streamed() == Streamed(T * row, T * row + kept)
