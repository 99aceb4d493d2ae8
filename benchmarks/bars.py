"""What a run must reach, in one table. docs/benchmarks.md says how a bar is chosen."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import snnfast

from .peers.ours import BACKEND, CHECKPOINT, DEFAULT, DENSE, NUMBERS, OURS, RECORDED, WITH_LOSS
from .peers.snntorch_loop import COMPILED, HOISTED, LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .registry import DIRECTIONS, Case
from .runner import Row

# Bars of snnfast alone, by the value of its row: the most that it may be.
FLOOR, SAVED, HELD = "copy_", "saved", "held"
OF_ITSELF = {FLOOR: "time / copy_", SAVED: "bytes saved", HELD: "bytes held"}
# A time of snnfast, used in another way, is at most a multiple of ours. Not with spikes as numbers: bits are faster.
OWN = (OURS, CHECKPOINT, RECORDED, WITH_LOSS, BACKEND)

# The bars on FLOOR are for AVX-512. With shorter registers they are so many times higher: the arithmetic of a backward
# pass then takes longer than its way to memory.
SHORT_REGISTERS = 2.0

Limits = dict[str | tuple[str, str], float]

# The cases by their names, as `list` prints them. Under a peer's name: its time / that of snnfast. Under two names: the
# time of the first / that of the second. At least; at most, where the time above is one of OWN.
# All of the CPU with two threads.
BARS: dict[str, Limits] = {
    # The time of copy_ depends on the processor where the last-level cache holds all of it: 0.87 of it on AMD EPYC, 1.1
    # to 1.4 on a virtual machine with two cores of a large Intel Xeon.
    "lif [25, 128, 1000] float32, forward + backward": {
        FLOOR: 1.4, SAVED: 4.2, LOOP: 7, COMPILED: 1.8, JELLY: 7, f"{JELLY}, compiled": 1.7,
    },
    # The others gain as well by what glibc keeps while snnfast is loaded: without it they take up to twice the time.
    # On one machine, within an hour: 0.84 of copy_ where that moved 43 GB/s, 0.98 where it moved 75.
    "lif [100, 128, 1024] float32, forward + backward": {FLOOR: 1.25, SAVED: 4.3, LOOP: 6, COMPILED: 3, JELLY: 5.5},
    "lif [500, 16, 16384] float32, forward + backward": {FLOOR: 1.25, SAVED: 4.3, LOOP: 11, COMPILED: 6, JELLY: 18},
    "lif [25, 1, 10000] float32, forward + backward": {FLOOR: 7},
    "lif [25, 1, 100000] float32, forward + backward": {FLOOR: 1.5},
    "lif [25, 1, 1000000] float32, forward + backward": {FLOOR: 1.25},
    "lif [100, 1, 100000] float32, forward + backward": {FLOOR: 1.25},
    "lif [1000, 1, 10000] float32, forward + backward": {FLOOR: 1.25, SAVED: 4.3},
    "lif [4096, 1, 10000] float32, forward + backward": {FLOOR: 1.3, SAVED: 4.3},
    # One step at a time and any surrogate: loops for more would be a fifth of the code to compile.
    "lif [25, 128, 1000] float64, forward + backward": {FLOOR: 2.4, SAVED: 8.4},
    "lif [25, 128, 1000] float32, constant current, forward + backward": {SAVED: 0.33},
    "lif [25, 128, 1000] float32, surrogate=straight_through_estimator, forward + backward": {SAVED: 0.17},
    "inference [100, 128, 1024] float32, forward": {FLOOR: 1.1, LOOP: 12},
    "loop [25, 128, 1000] float32, forward + backward": {LOOP: 2.5},
    "loop [25, 1, 10] float32, forward + backward": {LOOP: 2},
    "neurons [25, 128, 1000] float32, synaptic, forward + backward": {LOOP: 8},
    "neurons [25, 128, 1000] float32, lapicque, forward + backward": {LOOP: 7.5},
    "neurons [25, 128, 1000] float32, alpha, forward + backward": {LOOP: 8},
    "neurons [25, 128, 1000] float32, rleaky, forward + backward": {LOOP: 5},
    "neurons [25, 128, 1000] float32, rsynaptic, forward + backward": {LOOP: 4.5},
    "neurons [100, 64, 256] float32, connected, forward + backward": {LOOP: 2},
    "neurons [25, 128, 1000] float32, connected, forward + backward": {LOOP: 1.3},
    "neurons [100, 128, 8192] float32, synaptic, forward + backward": {FLOOR: 1.25},
    "loop [25, 32, 100] float32, recurrent, forward + backward": {RECORDED: 1.05},
    "loop [25, 128, 1000] float32, recurrent, forward + backward": {RECORDED: 1.05},
    "tutorial5 [25, 128, 784] float32, forward + backward": {
        LOOP: 9, HOISTED: 3.5, JELLY: 3, NETWORK: 3.5, NUMBERS: 1, HELD: 0.6,
        WITH_LOSS: 1.1, (LOOP, WITH_LOSS): 9, (NETWORK, WITH_LOSS): 4,
        RECORDED: 1.7, (LOOP, RECORDED): 8, (NETWORK, RECORDED): 3.5,  # 25 cross-entropies stay outside
        BACKEND: 1.2,
    },
    "norm [25, 32, 64, 8, 8] float32, forward + backward": {FLOOR: 1.3},
    "norm [10, 16, 64, 32, 32] float32, forward + backward": {FLOOR: 1.3},
    "norm [25, 32, 12, 24, 24] float32, forward + backward": {FLOOR: 1.3},
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward + backward": {
        LOOP: 2.5, RECORDED: 1.4, WITH_LOSS: 1.4, HELD: 14.5,
    },
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward": {LOOP: 3},
    "events [25, 128, 1000] float32, constant current, forward + backward": {NUMBERS: 1.1, HELD: 0.6},
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward + backward": {NUMBERS: 1},
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward": {NUMBERS: 1.25},
    "memory [25, 128, 784] float32, 784-1000-1000-1000-1000-10, forward + backward": {HELD: 3.5},
    "memory [2048, 64, 512] float32, 512-512-512-512-10, forward + backward": {CHECKPOINT: 1.5},
    "spikingjelly [4, 32, 64, 32, 32] float32, LIFNode, forward + backward": {JELLY: 8},
    "spikingjelly [25, 128, 1000] float32, LIFNode, forward + backward": {JELLY: 8},
    "long [1000, 1, 100] float32, forward + backward": {LOOP: 350},
    **{
        f"products [25, 128, 1024] float32, {direction}, {rate} spikes": {DENSE: limit}
        for rate, limits in (
            ("1%", (4, 2.3)), ("4%", (2.7, 1.7)), ("10%", (1.9, 1.1)), ("20%", (1.1, 0.8)), ("50%", (0.93, 0.9)),
            ("100%", (0.93, 0.93)),
        )
        for direction, limit in zip(DIRECTIONS, limits, strict=True)
    },
}  # fmt: skip
# Of the suite `collection`, as its users meet it: every program from the 12th call of a shape on; and all of them.
COLLECTED: Limits = {(LOOP, DEFAULT): 1}
COLLECTED_MEDIAN, VARIED_MEDIAN = 4, 3.5  # of gains, with other numbers of steps and samples in every call at last
FIRST_MEDIAN, FIRST_WORST = 0.7, 3  # CPU seconds of the first call


def limits_of(case: Case) -> Limits:
    return COLLECTED if case.kind == "collection" else BARS.get(case.name, {})


@dataclass
class Bar:
    """One promise, and the value that was found; None where it was not measured."""

    name: str
    value: float | None
    bar: float
    at_least: bool = False
    detail: str = ""
    required: bool = True  # it was asked for, so that it is missed where it is not measured

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "NOT MEASURED" if self.required else "not measured"
        held = self.value >= self.bar if self.at_least else self.value <= self.bar
        return "holds" if held else "MISSED"

    @property
    def missed(self) -> bool:
        return self.verdict.isupper()

    @property
    def text(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3g}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.verdict:<12}  {value:>6} {'>=' if self.at_least else '<='} {self.bar:<6g}  {self.name}{detail}"


def judge(
    case: Case, rows: Sequence[Row], peers: Collection[str] | None = None, asked: Collection[str] = ()
) -> list[Bar]:
    """The bars of a case, those against ``peers`` (default: all) and its own, of rows that may lack any of them.

    ``asked`` names peers and those of OF_ITSELF, whose bars are missed where they are not measured.
    """
    found = {row.peer: row for row in rows if row.case == case.name}
    bars = []
    for of, limit in limits_of(case).items():
        bar = partial(Bar, bar=limit)
        if of in OF_ITSELF:
            if of == FLOOR and not snnfast.config()["CPU instructions"].startswith("avx512"):
                bar = partial(Bar, bar=limit * SHORT_REGISTERS)
            row = found.get(OURS)
            value = None if row is None else _of_itself(of, row)
            bars.append(bar(f"{case.name}: {OF_ITSELF[of]}", value, required=of in asked))
            problem = "" if row is None else row.problem
        else:
            above, below = of if isinstance(of, tuple) else (of, OURS)
            others = {above, below} - {OURS}
            if peers is not None and not others.issubset(peers):
                continue
            both = [found[name] for name in (above, below) if name in found]
            times = [row.median for row in both if row.median is not None]
            value = times[0] / times[1] if len(times) == 2 else None
            name = f"{case.name}: {above} / {'ours' if below == OURS else below}"
            bars.append(bar(name, value, at_least=above not in OWN, required=others.issubset(asked)))
            problem = next((row.problem for row in both if row.problem), "")
        bars[-1].detail = problem
    return bars


def _of_itself(of: str, ours: Row) -> float | None:
    if of == FLOOR:
        return None if ours.share_of_copy is None else 1 / ours.share_of_copy
    return getattr(ours, of)


def gains_of(rows: Sequence[Row], peer: str = DEFAULT, of: str = "median") -> dict[str, float]:
    """How many times faster each program of the collection is when it is compiled, or by a peer; the slowest first.

    ``of`` is ``"median"``, of calls of one shape, or ``"varied"``, of calls of other sizes.
    """
    times = {(row.case, row.peer): getattr(row, of) for row in rows if row.case.startswith("collection ")}
    cases = dict.fromkeys(case for case, _ in times)
    found = {case: (times.get((case, LOOP)), times.get((case, peer))) for case in cases}
    gains = {case: loop / other for case, (loop, other) in found.items() if loop and other}
    return dict(sorted(gains.items(), key=lambda item: item[1]))


def firsts_of(rows: Sequence[Row]) -> list[float]:
    """CPU seconds of the first call of each program of the collection, the shortest first."""
    return sorted(row.first for row in rows if row.first is not None)


def judge_collection(rows: Sequence[Row]) -> list[Bar]:
    """The bars of all programs together, of what was measured."""
    gains, varied, firsts = gains_of(rows).values(), gains_of(rows, of="varied").values(), firsts_of(rows)
    name, bars = f"collection: median of {LOOP} / {DEFAULT}", []
    if gains:
        bars.append(Bar(f"{name}, from the 12th call of a shape on", median(gains), COLLECTED_MEDIAN, at_least=True))
    if varied:
        bars.append(Bar(f"{name}, other sizes in every call", median(varied), VARIED_MEDIAN, at_least=True))
    if firsts:
        bars.append(Bar("collection: CPU seconds of a first call, median", median(firsts), FIRST_MEDIAN))
        bars.append(Bar("collection: CPU seconds of a first call, worst", firsts[-1], FIRST_WORST))
    return bars
