"""Fold a record: find the calls that repeat with a period."""

import operator
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from snnfast.compiler.emit.emitter import LEAST_NUMBER
from snnfast.compiler.record.later import AT

LEAST = 3
"""So many like periods are a loop."""

MOST = 64
"""More loops are not looked for. They are parts of a loop whose steps differ, and its graph would have them all."""

_CANDIDATES = 8


class Run(NamedTuple):
    """Calls that repeat: those of ``steps`` periods.

    Attributes:
        start: The number of its first call.
        period: The calls of one period.
        steps: How many periods there are.
        strides: Of each call of a period, by how much its leaves differ from those a period before.
    """

    start: int
    period: int
    steps: int
    strides: tuple[tuple[Any, ...], ...]

    @property
    def end(self) -> int:
        return self.start + self.period * self.steps


def runs_of(kinds: Sequence[Any], leaves: Sequence[tuple[Any, ...]]) -> list[Run]:
    """The loops of a record, in order, or one more than ``MOST`` of them.

    Calls of a loop are of one kind, and their leaves grow by the same strides.
    """
    alike = _Alike(kinds)
    found: list[Run] = []
    rest = [(0, len(kinds))]
    while rest and len(found) <= MOST:
        low, high = rest.pop()
        run = _longest(alike, leaves, low, high) if high - low >= LEAST else None
        if run is not None:
            found.append(run)
            rest += [(low, run.start), (run.end, high)]
    return sorted(found, key=lambda run: run.start)


def _longest(alike: "_Alike", leaves: Sequence[tuple[Any, ...]], low: int, high: int) -> Run | None:
    """The run with most calls."""
    stretches = [alike.stretch(period, low, high) for period in _periods(alike.kinds, low, high)]
    stretches.sort(key=lambda s: (s[0] - s[1], s[2]))  # most calls first, and of those the shortest period
    best: Run | None = None
    for start, end, period in stretches:
        if best is not None and end - start <= best.period * best.steps:
            break
        run = _regular(leaves, start, end, period)
        if run is not None and (best is None or run.period * run.steps > best.period * best.steps):
            best = run
    return best


def _periods(kinds: Sequence[Any], low: int, high: int) -> list[int]:
    """Distances that may be periods: those between calls of one kind."""
    at: dict[int, list[int]] = defaultdict(list)
    for i in range(low, high):
        at[id(kinds[i])].append(i)
    distances: Counter[int] = Counter()
    for places in at.values():
        if len(places) >= LEAST:
            distances.update(b - a for a, b in pairwise(places))
    return [distance for distance, _ in distances.most_common(_CANDIDATES) if distance * LEAST <= high - low]


class _Alike:
    """The stretches of calls of which each is of the kind of the one a period later."""

    def __init__(self, kinds: Sequence[Any]) -> None:
        self.kinds = kinds
        self._of_period: dict[int, list[tuple[int, int]]] = {}

    def stretch(self, period: int, low: int, high: int) -> tuple[int, int, int]:
        """The longest one between two calls: start, end, period."""
        if period not in self._of_period:
            self._of_period[period] = self._stretches(period)
        every, last = self._of_period[period], high - period
        best = (low, low)
        for i in range(bisect_right(every, low, key=itemgetter(1)), len(every)):
            start, stop = max(every[i][0], low), min(every[i][1], last)
            if every[i][0] >= last:
                break
            if stop - start > best[1] - best[0]:
                best = (start, stop)
        start, stop = best
        return start, stop + period if stop > start else start, period

    def _stretches(self, period: int) -> list[tuple[int, int]]:
        found, start = [], 0
        for i, (a, b) in enumerate(zip(self.kinds, self.kinds[period:], strict=False)):
            if a is not b:
                if i > start:
                    found.append((start, i))
                start = i + 1
        end = len(self.kinds) - period
        return [*found, (start, end)] if end > start else found


def _regular(leaves: Sequence[tuple[Any, ...]], start: int, end: int, period: int) -> Run | None:
    """The most periods of a stretch in which all leaves grow by the same strides."""
    steps = (end - start) // period
    if steps < LEAST:
        return None
    middle = start + (steps // 2) * period
    strides = tuple([_difference(leaves[i], leaves[i - period]) for i in range(middle, middle + period)])
    if any(None in s for s in strides):
        return None
    first = last = steps // 2
    while last + 1 < steps and _fits(leaves, start + (last + 1) * period, period, strides):
        last += 1
    while first > 1 and _fits(leaves, start + (first - 1) * period, period, strides):
        first -= 1
    count = last - first + 2
    return Run(start + (first - 1) * period, period, count, strides) if count >= LEAST else None


def _fits(leaves: Sequence[tuple[Any, ...]], at: int, period: int, strides: Sequence[tuple[Any, ...]]) -> bool:
    for i, stride in enumerate(strides, at):
        if tuple(map(operator.sub, leaves[i], leaves[i - period])) != stride:
            return False
    return True


def _difference(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """By how much leaves grow. A number that is no integer must stay the same."""
    return tuple([None if type(x) is float and x != y else x - y for x, y in zip(a, b, strict=True)])


def over_time(runs: Sequence[Run], kinds: Sequence[Any], leaves: Sequence[tuple[Any, ...]]) -> list[Run]:
    """The loops that may have another number of steps in another call. The rest is straight code.

    The rest are loops of a few steps, and what is done to each of several tensors of the caller, one after the other:
    ``utils.reset`` of snnTorch sets the states of all networks of the process.
    """
    runs = [run for run in runs if run.steps >= LEAST_NUMBER]
    if not runs:
        return []
    folded = Folded(runs, len(kinds))
    kept = {max(range(len(runs)), key=lambda i: runs[i].period * runs[i].steps)}
    reads: list[tuple[int, int]] = []
    for i, run in enumerate(runs):
        for number, strides in enumerate(run.strides, run.start):
            for a, stride, is_tensor in zip(leaves[number], strides, kinds[number].tensors, strict=True):
                if not stride or (is_tensor and a < 0):
                    continue
                other = folded.run_at((a + stride * (run.steps // 2)) >> AT) if is_tensor else None
                if other is None or (other == i and a >> AT < run.start):
                    kept.add(i)  # it counts its steps, or reads the step before
                elif other != i:
                    reads.append((i, other))
    for number, kind in enumerate(kinds):
        if len(kind.tensors) >= LEAST_NUMBER and folded.run_at(number) is None:
            rows = [folded.run_at(a >> AT) for a, t in zip(leaves[number], kind.tensors, strict=True) if t and a >= 0]
            kept.update(i for i, j in pairwise(rows) if i is not None and i == j)
    before = 0
    while len(kept) > before:
        before = len(kept)
        kept.update(i for pair in reads if not kept.isdisjoint(pair) for i in pair)
    return [runs[i] for i in sorted(kept)]


class Folded:
    """A record with one period for each loop.

    A *place* is the number of a call in it. A call of a loop has a step, too.

    Attributes:
        runs: The loops.
        places: The number of places.
    """

    def __init__(self, runs: list[Run], calls: int) -> None:
        self.runs = runs
        self._starts = [run.start for run in runs]
        cut = [0]
        for run in runs:
            cut.append(cut[-1] + run.period * (run.steps - 1))
        self._cut = cut
        self.places = calls - cut[-1]

    def run_at(self, number: int) -> int | None:
        """The loop that a call is in."""
        i = bisect_right(self._starts, number) - 1
        return i if i >= 0 and number < self.runs[i].end else None

    def place(self, number: int) -> int:
        """The place of a call outside of any loop."""
        i = bisect_right(self._starts, number)
        return number - self._cut[i]
