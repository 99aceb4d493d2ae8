"""Time of the kernels alone beside ``copy_`` of the same bytes, neither of which finds its inputs in the L2 cache.

A CUDA graph holds several calls, each on tensors of its own. Together they move more bytes than the cache holds. Ours
and ``copy_`` are replayed in turns, after a warm-up in which the card raises its clocks.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from torch import Tensor

import snnfast

from ..networks import over_time
from ..peers.base import Neuron
from ..peers.ours import make
from ..registry import DTYPES, NODE, Case, suites

ROTATED = 128 << 20  # bytes that the calls of a graph move at least, and more where the L2 cache is larger
MOST_CALLS = 64  # of a graph
# Neuron-steps of a case: with fewer, even that many calls stay in the cache; with more, a card has no memory for both.
LEAST_STEPS, MOST_STEPS = 1 << 18, 1 << 29
WARM_UP = 0.5  # seconds: an idle card runs at a fifth of its clock
REPLAYS = 5  # of a graph that are timed together, so that its launch is hidden behind the one before
LEAST_TURNS = 5


def cases(text: str = "") -> list[Case]:
    """The cases of the registry that are one layer of the kernels and whose name has this text in it."""
    return [
        case
        for suite in suites("cuda").values()
        for case in suite
        if case.kind == "layer" and case.neuron not in ("connected", NODE) and text in case.name
        if case.backward and LEAST_STEPS <= case.neuron_steps <= MOST_STEPS
    ]


def bytes_of(case: Case) -> dict[str, float]:
    """The least that each pass of a layer moves."""
    forward, both = (replace(case, backward=backward).ideal_bytes or 0 for backward in (False, True))
    return {"forward": forward * case.neuron_steps, "backward": (both - forward) * case.neuron_steps}


def calls_of(moved: float, cache: int) -> int:
    """How many calls that move so many bytes fill a graph."""
    return min(MOST_CALLS, math.ceil(max(ROTATED, 2 * cache) / moved))


def passes(case: Case, neuron: Neuron) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """Forward and backward of a layer on the current stream, on tensors of their own."""
    dtype, step = DTYPES[case.dtype], (case.B, *case.shape)
    x = torch.rand(step if case.constant else (case.T, *step), dtype=dtype, device="cuda").requires_grad_()
    grad = torch.rand(case.T, *step, dtype=dtype, device="cuda")

    def forward() -> Tensor:
        if case.constant:
            return over_time(neuron, x, case.T, case.options.record_mem)[0]
        return neuron.unroll(x, case.options.record_mem)[0]

    spk = forward()
    return forward, lambda: torch.autograd.grad(spk, [x, *neuron.parameters], grad, retain_graph=True)


def copies(moved: float, calls: int) -> list[Callable[[], object]]:
    """``copy_`` that moves so many bytes, half of them read and half written."""
    pairs = [torch.rand(2, max(1, round(moved / 8)), device="cuda") for _ in range(calls)]
    return [lambda target=target, source=source: target.copy_(source) for target, source in pairs]


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Capture the calls one after another in a CUDA graph, and return its replay.

    Autograd runs the node of a backward pass on the stream where it was made, and the default stream can't be captured.
    So whatever the calls go back through must have been made on the current stream, and that is not the default one.
    """
    for call in calls:  # what libraries set up at their first calls must not happen while a graph is captured
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        results = [call() for call in calls]  # all live until the end, so that each call writes memory of its own
    del results
    replay: Callable[[], None] = graph.replay
    return replay


def seconds_of(replay: Callable[[], None]) -> float:
    """The time of one replay, by the clock of the card."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPLAYS):
        replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / REPLAYS


def in_turns(replays: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median seconds of a replay of each, without the turns of the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in replays}
    start = time.perf_counter() + WARM_UP
    while (now := time.perf_counter()) < start + seconds or min(map(len, times.values())) < LEAST_TURNS:
        for name, replay in replays.items():
            taken = seconds_of(replay)
            times[name] += [taken] if now >= start else []
    return {name: median(taken) for name, taken in times.items()}


def measure(case: Case, seconds: float) -> list[dict[str, Any]]:
    """A row for forward and one for backward."""
    moved, cache = bytes_of(case), torch.cuda.get_device_properties("cuda").L2_cache_size
    calls = max(calls_of(each, cache) for each in moved.values())
    neuron, rows = make(case, torch.device("cuda")), []
    both = zip(*(passes(case, neuron) for _ in range(calls)), strict=True)
    for direction, functions in zip(moved, both, strict=True):
        replays = {"kernel": captured(functions), "copy": captured(copies(moved[direction], calls))}
        kernel, copy = (taken / calls for taken in in_turns(replays, seconds).values())
        found = {"case": case.name, "pass": direction, "bytes": moved[direction], "calls": calls, "kernel": kernel}
        rows.append(found | {"copy": copy, "share of copy_": copy / kernel, "GB/s": 1e-9 * moved[direction] / kernel})
    return rows


def write_each(file: Path, measurements: Iterable[tuple[str, Callable[[list[dict[str, Any]]], None]]]) -> NoReturn:
    """Let each measurement add its rows, and write the file after each; exit with 1 if one failed."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device")
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    found = {"card": torch.cuda.get_device_name(), **snnfast.config(), "rows": rows, "failed": failed}
    # A stream of its own, which a graph can capture.
    with snnfast.use_backend("fused"), torch.cuda.stream(torch.cuda.Stream()):
        for name, add in measurements:
            try:
                add(rows)
            except RuntimeError as error:  # the others are still measured; the exit code tells of this one
                failed[name] = str(error)
            torch.cuda.empty_cache()
            file.write_text(json.dumps(found, indent=1))
    sys.exit("\n".join(f"FAILED: {name}: {error}" for name, error in failed.items()) or None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.times", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="written after each case")
    parser.add_argument("--case", default="", help="only cases with this text in their name")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each figure (default: %(default)g)")
    args = parser.parse_args()

    def add(rows: list[dict[str, Any]], case: Case) -> None:
        rows += measure(case, args.seconds)
        for r in rows[-2:]:
            times = f"{1e6 * r['kernel']:9.1f} us, {r['share of copy_']:4.0%} of copy_, {r['GB/s']:5.0f} GB/s"
            print(f"{times}: {r['case']}: {r['pass']}", flush=True)

    write_each(args.json, ((case.name, partial(add, case=case)) for case in cases(args.case)))


if __name__ == "__main__":
    main()
