"""Timing side by side, and the machine it was done on."""

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

TURN = 5  # calls, or
TURN_SECONDS = 0.05  # what is more


def alternate(
    functions: Mapping[str, Callable[[], object]],
    seconds: float = 20.0,
    warm_up: int = 1,
    least: int = 5,
    slow: float = math.inf,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns, so that a slow moment of the machine hits all alike.

    A turn is ``TURN`` calls, or as many as take ``TURN_SECONDS``. Its first fifth is not counted: these calls find the
    caches as another function left them. There are at least ``least`` turns after ``warm_up`` uncounted ones, and the
    turns go on for ``seconds``. A function that takes longer than ``slow`` seconds gets turns of one call, which
    counts: what the caches hold does not matter to it. ``clock`` times one call, by default :func:`seconds_of`.
    """
    clock = clock or seconds_of
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = None
    turns = 0
    calls = dict.fromkeys(functions, TURN)
    while turns < warm_up + least or (end is not None and time.perf_counter() < end):
        if turns == warm_up:
            end = time.perf_counter() + seconds
        for name, function in functions.items():
            taken = [clock(function) for _ in range(min(2, calls[name]))]
            if turns == 0:
                best = min(taken)
                calls[name] = 1 if best > slow else max(TURN, math.ceil(TURN_SECONDS / max(best, 1e-6)))
            taken += [clock(function) for _ in range(calls[name] - 2)]
            if turns >= warm_up:
                times[name] += taken[len(taken) // TURN :]
        turns += 1
    return times


def seconds_of(function: Callable[[], object]) -> float:
    """The time of one call, until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    del result  # freed outside of the clock, before the next call
    return taken


def seconds_on_gpu(function: Callable[[], object]) -> float:
    """The time of one call by the clock of the card: from before its first kernel to after its last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = function()
    end.record()
    end.synchronize()
    del result
    return start.elapsed_time(end) / 1e3


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> str:
    """Settings that change times. A path is cut to its last name: where files lie is not part of a result."""
    settings = {
        name: " ".join(Path(part).name for part in value.replace(":", " ").split())
        for name, value in sorted(os.environ.items())
        if name.startswith(("MALLOC_", "THP_", "OMP_", "LD_PRELOAD", "SNNFAST_")) and name != "SNNFAST_DATA"
    }
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "default"
