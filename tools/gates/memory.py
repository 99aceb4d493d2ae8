"""Width of the memory accesses in the loop over time, and accesses to local memory."""

from dataclasses import dataclass

from .sass import Kernel

_GLOBAL = {"LDG": "loads", "LD": "loads", "STG": "stores", "ST": "stores"}
_LOCAL = ("LDL", "STL")
# A step also stores a bfloat16 or a byte for each neuron, which is less than 16 bytes for few neurons.
_STORED_BYTES = (2, 1)


@dataclass
class Accesses:
    """Opcodes of the instructions of one kernel that access memory."""

    looped: tuple[str, ...] = ()  # loads and stores in the loop over time
    local: tuple[str, ...] = ()  # accesses to local memory, anywhere
    least: int = 16
    once: bool = False  # there is no such loop, but each step by itself, and what comes before and after beside them

    @property
    def narrow(self) -> tuple[str, ...]:
        """Loads and stores in the loop over time that are under ``least`` bytes."""
        return tuple(opcode for opcode in self.looped if _bytes(opcode) < self.least)

    @property
    def spilled(self) -> int:
        """Bytes of the accesses to local memory."""
        return sum(map(_bytes, self.local))

    def problems(self, neurons: int) -> list[str]:
        """Why this is no kernel of so many neurons to a thread that accesses ``least`` bytes at a time."""
        if neurons == 1:  # which has no vectors
            return []
        allowed = [size * neurons for size in _STORED_BYTES]
        wrong = [opcode for opcode in self.narrow if not self.once and _bytes(opcode) not in allowed]
        found = []
        if wrong:
            kinds = ", ".join(f"{wrong.count(opcode)} {opcode}" for opcode in sorted(set(wrong)))
            found.append(f"accesses under {self.least} bytes in the loop over time: {kinds}")
        wide = {_GLOBAL[opcode.split(".")[0]] for opcode in self.looped if _bytes(opcode) >= self.least}
        # Without a loop, a kernel may only sum.
        missing = [kind for kind in ("loads",) + ("stores",) * (not self.once) if kind not in wide]
        return found + [f"no {kind} of {self.least} bytes in a loop over time" for kind in missing]


def _bytes(opcode: str) -> int:
    """How much one access takes; 4 where no modifier says otherwise."""
    for modifier in opcode.split(".")[1:]:
        if modifier.lstrip("US") in ("8", "16", "64", "128"):
            return int(modifier.lstrip("US")) // 8
    return 4


def accesses(kernel: Kernel, looped: set[int], least: int = 16, once: bool = False) -> Accesses:
    """Find the accesses. ``looped``: the instructions of the loop over time; or all, if there is none (``once``)."""
    pairs = [(at in looped, i.opcode.split(".")[0], i.opcode) for at, i in enumerate(kernel.instructions)]
    over_time = [opcode for inside, name, opcode in pairs if name in _GLOBAL and inside]
    local = [opcode for _, name, opcode in pairs if name in _LOCAL]
    return Accesses(tuple(over_time), tuple(local), least, once)
