"""One thread of a kernel, executed on its machine code for 9.0: what it issues, and when, if its warp is alone.

Integers, addresses and predicates are computed. Numbers in floating point, and what memory holds, are unknown; so is
what follows from them. A branch on something unknown goes on behind it, or where no subroutine is called.

Times come from the control bits of each instruction, which say for how many cycles the warp stalls and which barriers
the instruction sets and waits for, and from the assumed latencies below.
"""

from collections import Counter
from typing import NamedTuple

from .operands import MASK, Operands, signed, split
from .sass import Instruction, Kernel

# Cycles until a barrier opens. Those of instructions of fixed latency are in the stall counts.
LATENCIES = {
    "LDS": 29, "MUFU": 24, "LDC": 40, "ULDC": 12, "S2R": 30, "S2UR": 30, "F2F": 24, "I2F": 24, "F2I": 24, "FCHK": 24,
    "STS": 12, "STG": 12, "DADD": 8, "DMUL": 8, "DFMA": 8, "DSETP": 10, "R2UR": 12, "BAR": 20, "POPC": 14, "SHFL": 25,
}  # fmt: skip
TAKEN = 6  # cycles that a branch takes beyond its stall
LIMIT = 3_000_000  # instructions after which a thread counts as hanging
_LOADS, _STORES = ("LDG", "LD"), ("STG", "ST")
_IGNORED = ("NOP", "BSSY", "BSYNC", "BAR", "WARPSYNC", "STS", "STG", "ST", "DEPBAR", "ERRBAR", "BREAK", "MEMBAR")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "8": 1, "16": 2, "64": 8, "128": 16}


class Access(NamedTuple):
    """A load from global memory or a store to it."""

    store: bool
    at: int  # cycle of its issue
    size: int  # bytes of the thread
    address: int | None


class Run:
    """What one thread did: counts of instructions by opcode, accesses, and the time of its warp alone."""

    def __init__(
        self, kernel: Kernel, constants: dict[int, bytes], block: int, thread: int, threads: int, load_latency: int
    ) -> None:
        self.issued: Counter[str] = Counter()
        self.accesses: list[Access] = []
        self.unknown_branches: Counter[int] = Counter()
        self.time = 0
        self._kernel = kernel
        self._latency = load_latency
        special = {"SR_CTAID.X": block, "SR_TID.X": thread, "SR_NTID.X": threads}
        self._of = Operands(constants, special)
        self._barriers = [0] * 6
        self._run()

    @property
    def instructions(self) -> int:
        return self.issued.total()

    def loads(self) -> list[Access]:
        return [access for access in self.accesses if not access.store]

    def most_loads_in_flight(self, least_size: int) -> int:
        """Loads of at least so many bytes that are under way at once, were none of them to come back early."""
        times = sorted(load.at for load in self.loads() if load.size >= least_size)
        return max((sum(at <= t < at + self._latency for t in times) for at in times), default=0)

    def _run(self) -> None:
        instructions, at = self._kernel.instructions, 0
        for _ in range(LIMIT):
            following = self._step(at, instructions[at])
            if following is None:
                return
            at = following
        raise ValueError(f"{self._kernel.symbol}: more than {LIMIT} instructions")

    def _step(self, at: int, instruction: Instruction) -> int | None:
        """Issue one instruction; the index of the next, or None at the end."""
        name, *modifiers = instruction.opcode.split(".")
        stall, sets, reads, waits = _control(instruction.control)
        start = max([self.time, *(b for k, b in enumerate(self._barriers) if waits >> k & 1)])
        done = True if not instruction.guard else self._of.predicate(instruction.guard)
        self.issued[name] += 1
        latency = LATENCIES.get(name, 0)
        if name in _LOADS + _STORES and done is not False:
            size = next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)
            self.accesses.append(Access(name in _STORES, start, size, self._address(instruction.operands)))
        if name in _LOADS:
            latency = self._latency if done is not False else 1
        if sets < 6:
            self._barriers[sets] = max(self._barriers[sets], start + latency)
        if reads < 6:
            self._barriers[reads] = max(self._barriers[reads], start + min(latency, 12))
        self.time = start + max(stall, 1)
        if name == "EXIT" and done is not False:
            return None
        if name in ("BRA", "BRX", "BRXU", "CALL", "RET"):
            target = self._target(at, instruction, name, done)
            if target is not None:
                self.time += TAKEN
                return target
        elif name not in _IGNORED and done is not False:
            operands = split(instruction.operands)
            if done is None:
                self._of.forget(operands, instruction.opcode)
            else:
                self._of.execute(name, modifiers, operands, instruction.opcode)
        return at + 1

    def _target(self, at: int, instruction: Instruction, name: str, done: bool | None) -> int | None:
        """Where a branch leads; None: on to the next instruction."""
        operands = split(instruction.operands)
        if name == "BRA":
            for operand in operands:
                if operand.lstrip("!").startswith(("P", "UP")):
                    condition = self._of.predicate(operand)
                    done = None if None in (done, condition) else done and condition
        if done is False:
            return None
        if name in ("BRX", "BRXU"):
            register, offset = operands[0].split()[:2]
            base = self._of.value(register)
            if base is None:
                raise ValueError(f"{self._kernel.symbol}: {instruction.opcode} to an unknown place")
            return ((base + int(offset, 16) + 16 * (at + 1)) & MASK) // 16
        if name == "RET":
            back = self._of.value(operands[0].split()[0])
            if back is None:
                raise ValueError(f"{self._kernel.symbol}: a return to an unknown place")
            return back // 16
        label = instruction.operands.rsplit("`(", 1)[1].rstrip(") ")
        target = self._kernel.labels[label]
        if done is None:
            done = self._calls(at + 1, target) and not self._calls(target, target + 8)
            self.unknown_branches[at] += 1
        return target if done else None

    def _calls(self, first: int, end: int) -> bool:
        """Whether a subroutine is called in the next few instructions."""
        return any(i.opcode.startswith("CALL") for i in self._kernel.instructions[first : min(end, first + 12)])

    def _address(self, operands: str) -> int | None:
        place = next((word for word in split(operands) if word.startswith(("desc", "["))), "")
        inside = place[place.rindex("[") + 1 : place.rindex("]")]
        total = 0
        for part in inside.split("+"):
            value = self._of.value(part.removesuffix(".64"), 64 if part.endswith(".64") else 32)
            if value is None:
                return None
            total += signed(value) if part.startswith("-") else value
        return total


def _control(word: int) -> tuple[int, int, int, int]:
    """Cycles of stall, the barriers that a result and a read set (7: none), and a mask of those waited for."""
    return word >> 41 & 15, word >> 46 & 7, word >> 49 & 7, word >> 52 & 63
