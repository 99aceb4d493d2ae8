"""The examples on event frames and on a stream."""

import re
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from helpers import assert_bits_equal, assert_close
from test_examples import Run, example, losses_side_by_side, run  # noqa: F401 - fixtures
from torch import Tensor

import snnfast

Example = Callable[[str], ModuleType]

# ---- event frames


def test_event_frames_are_learned_unrolled_and_the_losses_are_those_of_the_loop(run: Run) -> None:  # noqa: F811
    args = ["--side", "12", "--batch-size", "32", "--num-steps", "8", "--compare", "4", "--iterations", "100"]
    out = run("events", *args, "--test", "4")
    seen = losses_side_by_side(out)
    assert len(seen) == 4
    assert seen.unique().numel() > 2
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-4, atol=0)
    assert re.search(r"unrolled [\d.]+ ms, loop [\d.]+ ms; unrolled is [\d.]+ times as fast as loop", out)
    assert float(re.search(r"after 100 iterations: (\d\.\d+)$", out, re.MULTILINE)[1]) > 0.5  # of eight directions


def test_event_frames_have_the_shape_of_tonics_and_follow_the_pattern(example: Example) -> None:  # noqa: F811
    events = example("events")
    events.NOISE = 0.0
    frames, directions = events.moving_patterns(16, 7, 20, torch.Generator().manual_seed(0))
    assert frames.shape == (7, 16, 2, 20, 20)
    assert frames.unique().tolist() == [0, 1]
    assert directions.unique().numel() > 4
    rows = frames.sum((0, 2, 4)) > 0
    for row, direction in zip(rows, directions, strict=True):
        if direction % 4 == 0:  # along a row: no event outside of the pattern's rows
            assert row.sum() <= events.PATTERN


# ---- the stream


@pytest.fixture
def stream(example: Example) -> ModuleType:  # noqa: F811
    return example("stream")


def by_steps(stream: ModuleType, net: snnfast.MultiStep, x: Tensor, states: list[Tensor | None]) -> Tensor:
    membranes = []
    for step in x:
        mem, states = stream.one_step(net, step, states)
        membranes.append(mem)
    return torch.stack(membranes)


def test_gradients_of_a_chunk_are_those_of_full_backpropagation_in_it(stream: ModuleType) -> None:
    net = stream.build(30)
    x, targets = stream.Stream(4, 0).chunk(60)
    states: list[Tensor] | None = None
    for part, wanted in zip(x.split(20), targets.split(20), strict=True):
        begin = [None, None] if states is None else states
        net.zero_grad()
        loss, mem_rec, states = stream.chunk_loss(net, part, wanted, states)
        loss.backward()
        found = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        stepped = by_steps(stream, net, part, begin)  # PyTorch's autograd goes back step by step
        torch.nn.functional.cross_entropy(stepped.flatten(0, 1), wanted.flatten()).backward()
        assert_close(mem_rec, stepped, 1e-5)
        for grad, p in zip(found, net.parameters(), strict=True):
            assert grad.any()
            assert_close(grad, p.grad, 1e-5)
        assert not any(state.requires_grad for state in states)


def test_chunks_with_carried_states_are_the_whole_stream(stream: ModuleType) -> None:
    net = stream.build(30)
    x, targets = stream.Stream(4, 0).chunk(60)
    states, parts = None, []
    for part, wanted in zip(x.split(20), targets.split(20), strict=True):
        _, mem_rec, states = stream.chunk_loss(net, part, wanted, states)
        parts.append(mem_rec)
    whole, mem_rec = net(x)
    assert_close(torch.cat(parts), mem_rec, 1e-5)
    assert_bits_equal(net(x)[0], whole)


def test_the_stream_is_learned_and_the_latency_of_a_step_is_shown(run: Run) -> None:  # noqa: F811
    out = run("stream", "--chunks", "40", "--num-steps", "20", "--hidden", "60", "--steps", "120", "--seed", "1")
    assert float(re.search(r"chunk 40 of 40: loss \S+, (\S+)% of the steps right", out)[1]) > 50  # of four patterns
    assert float(re.search(r"one stream: (\S+)% of 140 steps right", out)[1]) > 50
    middle, high = map(int, re.search(r"step: median (\d+) us, 99th percentile (\d+) us", out).groups())
    assert 0 < middle <= high
    assert float(re.search(r"from all steps at once: (\S+)$", out, re.MULTILINE)[1]) < 1e-4
