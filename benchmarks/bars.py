"""What a run must reach, in one table. docs/benchmarks.md says how a bar is chosen."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .peers.ours import LOOPED, NUMBERS, OURS, WITH_LOSS
from .peers.snntorch_loop import COMPILED, HOISTED, LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .runner import Row

# Time of snnfast / time of a copy_ of the fewest bytes possible, and bytes per neuron-step: at most.
FLOOR, SAVED, HELD = "copy_", "saved", "held"
OF_ITSELF = {FLOOR: "time / copy_", SAVED: "bytes saved", HELD: "bytes held"}
OWN = (OURS, LOOPED, WITH_LOSS)  # not with spikes as numbers, than which bits must be faster

# The cases by their names, as `list` prints them. Under a peer's name: its time / that of snnfast. Under two names: the
# time of the first / that of the second. At least; at most, where the time above is one of OWN.
# All of the CPU with two threads.
BARS: dict[str, dict[str | tuple[str, str], float]] = {
    "lif [25, 128, 1000] float32, forward + backward": {
        FLOOR: 1.1, SAVED: 4.2, LOOP: 7, COMPILED: 1.8, JELLY: 7, f"{JELLY}, compiled": 1.7,
    },
    "lif [100, 128, 1024] float32, forward + backward": {FLOOR: 1.3, SAVED: 4.3, LOOP: 9, COMPILED: 6, JELLY: 10},
    "lif [500, 16, 16384] float32, forward + backward": {FLOOR: 1.5, SAVED: 4.3, LOOP: 11, COMPILED: 6, JELLY: 18},
    "lif [25, 1, 10000] float32, forward + backward": {FLOOR: 7},
    "lif [25, 1, 100000] float32, forward + backward": {FLOOR: 1.5},
    "lif [25, 1, 1000000] float32, forward + backward": {FLOOR: 1.3},
    "lif [100, 1, 100000] float32, forward + backward": {FLOOR: 1.4},
    "lif [1000, 1, 10000] float32, forward + backward": {FLOOR: 1.4, SAVED: 4.3},
    "lif [4096, 1, 10000] float32, forward + backward": {FLOOR: 1.4, SAVED: 4.3},
    "lif [25, 128, 1000] float64, forward + backward": {FLOOR: 1.4, SAVED: 8.4},
    "lif [25, 128, 1000] float32, constant current, forward + backward": {SAVED: 0.33},
    "lif [25, 128, 1000] float32, membrane_dtype=bfloat16, forward + backward": {SAVED: 2.1},
    "lif [25, 128, 1000] float32, surrogate=straight_through_estimator, forward + backward": {SAVED: 0.17},
    "inference [100, 128, 1024] float32, forward": {FLOOR: 1.1, LOOP: 20},
    "loop [25, 128, 1000] float32, forward + backward": {LOOP: 2.5},
    "loop [25, 1, 10] float32, forward + backward": {LOOP: 2},
    "neurons [25, 128, 1000] float32, synaptic, forward + backward": {LOOP: 8},
    "neurons [25, 128, 1000] float32, lapicque, forward + backward": {LOOP: 7.5},
    "neurons [25, 128, 1000] float32, alpha, forward + backward": {LOOP: 8},
    "neurons [25, 128, 1000] float32, rleaky, forward + backward": {LOOP: 6},
    "neurons [25, 128, 1000] float32, rsynaptic, forward + backward": {LOOP: 6},
    "neurons [100, 64, 256] float32, connected, forward + backward": {LOOP: 2},
    "neurons [25, 128, 1000] float32, connected, forward + backward": {LOOP: 1.3},
    "neurons [100, 128, 8192] float32, synaptic, forward + backward": {FLOOR: 1.25},
    "loop [25, 32, 100] float32, recurrent, forward + backward": {LOOPED: 1.05},
    "loop [25, 128, 1000] float32, recurrent, forward + backward": {LOOPED: 1.05},
    "tutorial5 [25, 128, 784] float32, forward + backward": {
        LOOP: 11, HOISTED: 4.5, JELLY: 4, NETWORK: 4, NUMBERS: 1,
        WITH_LOSS: 1.1, (LOOP, WITH_LOSS): 10, (NETWORK, WITH_LOSS): 4,
        LOOPED: 1.4, (LOOP, LOOPED): 8, (NETWORK, LOOPED): 3.5,  # 25 cross-entropies stay outside
    },
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward + backward": {
        LOOP: 2.5, LOOPED: 1.1, WITH_LOSS: 1.1,
    },
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward": {LOOP: 3},
    "events [25, 128, 1000] float32, constant current, forward + backward": {NUMBERS: 1.2, HELD: 0.6},
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward + backward": {NUMBERS: 1},
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward": {NUMBERS: 1.25},
    "long [1000, 1, 100] float32, forward + backward": {LOOP: 350},
}  # fmt: skip

# Of the commands that measure one thing each.
COMPILE_TIME = 1 / 8  # compile: seconds / those of snnTorch's network under torch.compile
COMPILATIONS = 3  # compile: graphs of a training with a smaller last batch and with evaluation
OVERHEAD = 1.05  # overhead: a training step under torch.compile with nothing to merge / one that is not compiled
LOOPS = 0.95  # loops: each loop of the tests / the same compiled; at least
ACCURACY, ACCURACY_DIFFERENCE = 0.905, 0.005  # epoch: share of the test images, mean over the seeds
NUMBER_KIND, HALF_KIND = 1.1, 1.4  # kinds: time / that of float32
IDLE = 0.25  # pool: of the bytes of the largest step, or 1 GiB if that is more
HELD_OF = {"784-1000-10": 0.6, "784-1000-1000-1000-1000-10": 3.5, "convolutional": 14.5}  # held: bytes per neuron-step
# products: dense / bits by the share of neurons that spike, forward and weight gradient; at least
PRODUCTS = {0.01: (5, 2.3), 0.04: (3.4, 1.7), 0.1: (1.9, 1.4), 0.2: (1.1, 1.1), 0.5: (0.93, 0.9), 1.0: (0.93, 0.93)}
ROUNDED = 1.7e-3  # rounding: root mean square of the error / that of the gradient


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


class Found(NamedTuple):
    """What a command found."""

    bars: Sequence[Bar] = ()
    rows: Sequence[dict[str, Any]] = ()  # what it printed, as `store` keeps it


def judge(
    case: str, rows: Sequence[Row], peers: Collection[str] | None = None, asked: Collection[str] = ()
) -> list[Bar]:
    """The bars of a case, those against ``peers`` (default: all) and its own, of rows that may lack any of them.

    ``asked`` names peers and those of OF_ITSELF, whose bars are missed where they are not measured.
    """
    found = {row.peer: row for row in rows if row.case == case}
    bars = []
    for of, limit in BARS.get(case, {}).items():
        own = of in OF_ITSELF
        above, below = of if isinstance(of, tuple) else (OURS if own else of, OURS)
        others = {above, below} - {OURS}
        if peers is not None and not others.issubset(peers):
            continue
        rows_of = [found[name] for name in (above, below) if name in found]
        value = _value(of, *rows_of) if len(rows_of) == 2 else None
        what = OF_ITSELF[of] if own else f"{above} / {'ours' if below == OURS else below}"
        problem = next((row.problem for row in rows_of if row.problem), "")
        required = of in asked if own else others.issubset(asked)
        bars.append(Bar(f"{case}: {what}", value, limit, not own and above not in OWN, problem, required))
    return bars


def _value(of: str | tuple[str, str], above: Row, below: Row) -> float | None:
    if of == FLOOR:
        return None if above.share_of_copy is None else 1 / above.share_of_copy
    if of in (SAVED, HELD):
        return above.saved if of == SAVED else above.held
    if above.ratio is None or below.ratio is None:
        return None
    return above.ratio if below.peer == OURS else above.ratio / below.ratio
