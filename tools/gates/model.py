"""How long the kernels would take on a card, by a model: a prediction from counted instructions, not a measurement.

A kernel takes the 4-norm of three times, so that two of equal size cost a fifth more than one: those of issuing its
instructions, of its warps alone one generation after the other, and of its bytes at the speed of a copy. Bytes are
those that a pass must read and write. What is assumed stands in the constants below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cases import Case, arguments
from .cost import Code, cost, find, run

CLOCK = 1.9e9  # cycles in a second
ISSUE = 0.85  # share of the cycles in which a scheduler issues, at best
SCHEDULERS, LANES = 4, 32  # of a multiprocessor; of a warp
CACHE = 50e6  # bytes of the L2 cache
# Cycles of a load: from the L2 cache; from memory that few warps ask; from busy memory.
IN_CACHE, IDLE, BUSY = 400, 600, 1200
FEW_WARPS = 8  # of a multiprocessor
VECTOR_MINIMUM = 1 << 18  # as in device.cu
CHUNKED_STEPS, CHUNKED_NEURONS = 256, 12288


@dataclass(frozen=True)
class Card:
    """The speed of a copy is nine tenths of what the data sheet says of the memory."""

    name: str
    multiprocessors: int
    bytes_per_second: float

    @property
    def copy(self) -> float:
        return 0.9 * self.bytes_per_second


CARDS = (Card("H100", 132, 3.35e12), Card("H200", 132, 4.8e12))


@dataclass(frozen=True)
class Shape:
    """Steps and neurons of a call in float32."""

    name: str
    steps: int
    neurons: int


SHAPES = (
    Shape("[25, 128, 1000]", 25, 128 * 1000),
    Shape("[100, 128, 1024]", 100, 128 * 1024),
    Shape("[500, 16, 16384]", 500, 16 * 16384),
    Shape("[1000, 32, 700]", 1000, 32 * 700),
    Shape("[4096, 1, 256]", 4096, 256),
    Shape("[4, 32, 128, 32, 32]", 4, 32 * 128 * 32 * 32),
)


@dataclass(frozen=True)
class Prediction:
    """Of one pass over one shape on one card, in seconds."""

    shape: Shape
    backward: bool
    kernel: str
    card: Card
    issue: float
    latency: float
    copy: float

    @property
    def time(self) -> float:
        return float((self.issue**4 + self.latency**4 + self.copy**4) ** 0.25)

    @property
    def share(self) -> float:
        """Of the speed of a copy."""
        return self.copy / self.time


def bytes_of(shape: Shape, backward: bool) -> int:
    """Current and spikes, or besides them the gradients; checkpoints; in forward the last membrane."""
    checkpoints = (shape.steps - 1) // 16
    return 4 * shape.neurons * (3 * shape.steps + checkpoints if backward else 2 * shape.steps + checkpoints + 1)


def kernel_of(shape: Shape, backward: bool) -> str:
    """What the launch code chooses for a ``Leaky`` in training."""
    vectors = shape.neurons >= VECTOR_MINIMUM and shape.neurons % 4 == 0
    if not backward:
        return f"forward_plain<Leaky, float, {4 if vectors else 1}, (Reset)0, false>"
    if shape.steps >= CHUNKED_STEPS and shape.neurons <= CHUNKED_NEURONS:
        return "backward_plain_chunked<Leaky, float, 1, (Reset)0>"
    return f"backward_plain<Leaky, float, {4 if vectors else 1}, (Reset)0>"


def predict(program: Path, codes: dict[str, Code], resident: dict[str, int]) -> list[Prediction]:
    """``resident``: warps of each kernel that a multiprocessor holds."""
    return [
        p for shape in SHAPES for backward in (False, True) for p in _pass(program, codes, resident, shape, backward)
    ]


def _pass(
    program: Path, codes: dict[str, Code], resident: dict[str, int], shape: Shape, backward: bool
) -> list[Prediction]:
    kernel, moved = kernel_of(shape, backward), bytes_of(shape, backward)
    chunked = kernel.startswith("backward_plain_chunked")
    multiprocessors = CARDS[0].multiprocessors
    short = shape.steps < 64
    case = Case(kernel, shape.neurons, shape.steps if short or chunked else 64, stream=moved > CACHE)
    segments = 16 if chunked else 1
    code = find(codes, case)
    warps = -(-shape.neurons // _width(kernel) // LANES) * segments
    few = warps < FEW_WARPS * multiprocessors
    latency = IN_CACHE if moved < CACHE else IDLE if few else BUSY
    if short or chunked:
        instructions, cycles = _whole(program, code, case, latency)
    else:
        taken = cost(program, code, case, latency)
        instructions = taken.fixed + taken.instructions * shape.steps
        cycles = taken.cycles * shape.steps + taken.startup
    scheduler = max(1.0, warps / (multiprocessors * SCHEDULERS))
    if chunked:  # the warps of a block share a multiprocessor
        scheduler = max(segments / SCHEDULERS, scheduler)
    generations = max(1.0, warps / (resident[kernel] * multiprocessors))
    return [
        Prediction(
            shape, backward, kernel, card, scheduler * instructions / ISSUE / CLOCK, generations * cycles / CLOCK,
            moved / card.copy,
        )
        for card in CARDS
    ]  # fmt: skip


def _width(kernel: str) -> int:
    return int(kernel.split(", ")[2].rstrip(">"))


def _whole(program: Path, code: Code, case: Case, latency: int) -> tuple[float, float]:
    """Instructions and cycles of all steps; where warps share out the time, of one in the middle."""
    thread = 5 * LANES + 3 if case.kernel.startswith("backward_plain_chunked") else 3
    done = run(code, arguments(program, [case])[0], latency, thread)
    return done.instructions, done.time


def rows(predictions: Sequence[Prediction]) -> list[list[str]]:
    """A heading, and a row for each shape and pass, and one for both passes."""
    lines = [["predicted, float32", "pass", *(f"{c.name} {what}" for c in CARDS for what in ("us", "of copy", "by"))]]
    for shape in SHAPES:
        here = [p for p in predictions if p.shape is shape]
        for backward in (False, True):
            cells = []
            for p in (p for p in here if p.backward == backward):
                parts = {"issue": p.issue, "latency": p.latency, "memory": p.copy}
                cells += [f"{p.time * 1e6:.1f}", f"{p.share:.0%}", max(parts, key=lambda k: parts[k])]
            lines.append([shape.name, "backward" if backward else "forward", *cells])
        cells = []
        for card in CARDS:
            both = [p for p in here if p.card is card]
            total = sum(p.time for p in both)
            cells += [f"{total * 1e6:.1f}", f"{sum(p.copy for p in both) / total:.0%}", ""]
        lines.append([shape.name, "both", *cells])
    return lines
