"""Fold a record: find the calls that repeat with a period."""

import operator
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

LEAST = 3
"""So many like periods are a loop."""

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
    """The loops of a record, in order. Calls of a loop are of one kind, and their leaves grow by the same strides."""
    return list(_runs(kinds, leaves, 0, len(kinds)))


def _runs(kinds: Sequence[Any], leaves: Sequence[tuple[Any, ...]], low: int, high: int) -> Iterator[Run]:
    if high - low < LEAST:
        return
    found = _longest(kinds, leaves, low, high)
    if found is not None:
        yield from _runs(kinds, leaves, low, found.start)
        yield found
        yield from _runs(kinds, leaves, found.end, high)


def _longest(kinds: Sequence[Any], leaves: Sequence[tuple[Any, ...]], low: int, high: int) -> Run | None:
    """The run with most calls."""
    stretches = [_stretch(kinds, period, low, high) for period in _periods(kinds, low, high)]
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


def _stretch(kinds: Sequence[Any], period: int, low: int, high: int) -> tuple[int, int, int]:
    """The longest stretch of calls of which each is of the kind of the one a period later: start, end, period."""
    best = (low, low)
    start = low
    while start < high - period:
        stop = start
        while stop < high - period and kinds[stop] is kinds[stop + period]:
            stop += 1
        if stop - start > best[1] - best[0]:
            best = (start, stop)
        start = stop + 1
    start, stop = best
    return start, stop + period if stop > start else start, period


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
