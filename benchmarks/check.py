"""A gate against regressions: ratios to snnTorch below half their bars. No time is judged by itself."""

import argparse
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from . import bars, report
from .bars import Bar
from .measure import alternate
from .peers.snntorch_loop import LOOP
from .registry import Case, suites
from .runner import COPY, Row, run_case

# The layer [25, 128, 1000], the training step of tutorial 5, and one call per step [128, 1000].
CASES = [suites("cpu")[suite][0] for suite in ("lif", "tutorial5", "loop")]
ATTEMPTS = 3  # a neighbour of the machine may have slowed the first ones down
SECONDS = 5.0  # per case: all of it within a minute


class Measurement(NamedTuple):
    rows: Sequence[Row]
    copy: float | None
    """Seconds of a ``copy_`` that moves as many bytes as a layer must; None for networks."""


def run(args: argparse.Namespace) -> bool:
    seconds = min(args.seconds, SECONDS)

    def measure(case: Case) -> Measurement:
        rows = run_case(case, [LOOP], torch.device("cpu"), seconds)
        report.print_case(case, rows)
        return Measurement(rows, copy_seconds(case))

    print("ratios to snnTorch against half their bars, or a quarter of what the memory allows where that is less\n")
    held = [passes(case, measure) for case in CASES]
    return all(held)


def copy_seconds(case: Case, seconds: float = 1.0) -> float | None:
    if case.ideal_bytes is None:
        return None
    # As many bytes, so that the caches serve it no better than the layer.
    source = torch.rand(int(case.ideal_bytes * case.neuron_steps / 8))
    target = torch.empty_like(source)
    return median(alternate({COPY: lambda: target.copy_(source)}, seconds)[COPY])


def passes(case: Case, measure: Callable[[Case], Measurement]) -> bool:
    """Whether the ratio of a case holds, in one of several attempts; what can't be measured does not."""
    for attempt in range(1, ATTEMPTS + 1):
        found = measure(case)
        bar = judge(case, found)
        if bar is None:
            print(f"not measured: {case.name}: {'; '.join(row.problem for row in found.rows if row.problem)}\n")
            return False
        print(f"{bar.name}: {bar.value:.1f}, needs {bar.bar:.1f} ({bar.detail}): {bar.verdict}\n")
        if bar.verdict == "holds":
            return True
        if attempt < ATTEMPTS:
            print("once more, in case the machine was busy\n")
    return False


def judge(case: Case, found: Measurement) -> Bar | None:
    """The ratio to snnTorch, and the least that is taken for no regression; None where it was not measured."""
    promises = bars.judge({case.name: case}, found.rows)
    promise = next((bar for bar in promises if bar.at_least and bar.value is not None), None)
    theirs = next((row.median for row in found.rows if row.peer == LOOP), None)
    if promise is None or theirs is None:
        return None
    # Where memory is slow beside the arithmetic, no kernel reaches the bar; half of what the kernels attain, which is
    # about half of that roof, is then a quarter of the roof.
    reach = math.inf if found.copy is None else theirs / found.copy
    if reach / 4 < promise.bar / 2:
        detail = f"a quarter of {reach:.1f}, snnTorch / copy_ of as many bytes in this run; the bar is {promise.bar:g}"
    else:
        detail = f"half of the bar, {promise.bar:g}"
    return Bar(promise.name, promise.value, min(promise.bar / 2, reach / 4), True, detail)
