"""What the kernels for 9.0 issue for each neuron and step, counted by executing a thread of their machine code."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import kernels
from .cases import Case, arguments
from .interpret import Run
from .sass import Kernel

ARCHITECTURE = "9.0"
_ARGUMENTS = 0x210  # where they lie in the first bank of constants
_BLOCKS = 1 << 20  # that the grid is said to have
_REGION = 33  # bits of the part of memory that arguments.cpp gives to each tensor; the first is that of the currents
LATENCY = 500  # cycles of a load, where no shape says more


@dataclass(frozen=True)
class Code:
    """A kernel, and the constants that the compiler put beside it."""

    kernel: Kernel
    constants: bytes
    threads: int  # of a block


@dataclass(frozen=True)
class Cost:
    """Of one launch, per thread."""

    steps: int
    neurons: int  # of a thread
    instructions: float  # of a step
    fixed: float  # instructions before and after
    cycles: float  # of a step, if its warp is alone
    startup: int  # cycles before the first load of a current
    loads: int  # of currents or gradients, in flight at once
    unknown: int  # branches of which a run could not tell the way

    @property
    def per_neuron_step(self) -> float:
        return self.instructions / self.neurons


def run(code: Code, given: bytes, latency: int, thread: int = 3) -> Run:
    """One thread of the first block, with the arguments of a launch."""
    bank = bytearray(_ARGUMENTS + len(given) + 64)
    struct.pack_into("<IIIIII", bank, 0, code.threads, 1, 1, _BLOCKS, 1, 1)
    bank[_ARGUMENTS : _ARGUMENTS + len(given)] = given
    return Run(code.kernel, {0: bytes(bank), 2: code.constants}, 0, thread, code.threads, latency)


def cost(program: Path, code: Code, case: Case, latency: int = LATENCY) -> Cost:
    """From two runs, one of twice as many steps; the difference is what the steps take."""
    steps = case.steps
    first, second = (run(code, given, latency) for given in arguments(program, [case, case.with_steps(2 * steps)]))
    per_step = (second.instructions - first.instructions) / steps
    currents = [load for load in first.loads() if load.address is not None and load.address >> _REGION == 1]
    if not currents:  # their addresses could not be told: those of the largest size stand for them
        widest = max((load.size for load in first.loads()), default=0)
        currents = [load for load in first.loads() if load.size == widest]
    if not currents:
        raise ValueError(f"{case.kernel}: no load")
    return Cost(
        steps, kernels.width(case.kernel + ", "), per_step, first.instructions - per_step * steps,
        (second.time - first.time) / steps, currents[0].at, first.most_loads_in_flight(currents[0].size),
        len(second.unknown_branches),
    )  # fmt: skip


def find(codes: dict[str, Code], case: Case) -> Code:
    """The kernel whose name begins as the case says; there must be one."""
    found = [code for name, code in codes.items() if name.startswith(case.kernel)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels are called {case.kernel}")
    return found[0]


def rows(costs: Mapping[str, Cost]) -> list[list[str]]:
    """A heading, and a row for each kernel."""
    lines = [["an ordinary launch on 9.0", "instructions", "fixed", "cycles", "start", "loads", "unknown"]]
    for name in sorted(costs):
        c = costs[name]
        lines.append([name, f"{c.per_neuron_step:.1f}", f"{c.fixed:.0f}", f"{c.cycles:.0f}", str(c.startup)])
        lines[-1] += [str(c.loads), str(c.unknown)]
    return lines


def ordinary_cases(names: Sequence[str]) -> list[Case]:
    """A launch of every kernel that there is, by its name, as a layer in training makes it."""
    return [case for name in names if (case := _ordinary(name)) is not None]


def _ordinary(name: str) -> Case | None:
    pass_, rest = name.split("<", 1)
    words = rest.rstrip(">").split(", ")
    many = 1 << 20
    if pass_ == "forward_plain":
        reset = ["subtract", "zero"][int(words[3].removeprefix("(Reset)"))]
        recorded = words[4] == "true"
        return Case(name, many, record=recorded, saved="nothing" if recorded else "checkpoints", reset=reset)
    if pass_ == "backward_plain":
        reset = ["subtract", "zero"][int(words[3].removeprefix("(Reset)"))]
        return Case(name, many, reset=reset)
    if pass_ == "forward":
        return Case(name, many, place="device")
    if pass_ == "backward":
        recorded = words[3] == "true"
        if recorded and words[1] in ("Half", "BFloat16"):
            return Case(name, many, saved="membrane")
        return Case(name, many, saved="nothing" if recorded else "checkpoints", record=recorded)
    return None
