"""Width of the memory accesses in the loop over time, and accesses to local memory."""

from dataclasses import dataclass

from .sass import Kernel

# Bytes of what a step also keeps of each neuron, a bfloat16 or a byte: under 16 in all for few neurons.
_KEPT = (2, 1)
_GLOBAL = {"LDG": "loads", "LD": "loads", "STG": "stores", "ST": "stores"}
_LOCAL = ("LDL", "STL")


@dataclass
class Accesses:
    """Of one kernel, counted as instructions."""

    loads: int = 0  # in the loop over time
    stores: int = 0
    narrow: tuple[str, ...] = ()  # of these, the opcodes of those under `least` bytes
    local: int = 0  # anywhere
    spilled: int = 0  # bytes of these
    least: int = 16

    def problems(self, neurons: int) -> list[str]:
        """Why this is no kernel of so many neurons to a thread, ``least`` bytes at a time or all that is kept."""
        wrong = [kind for kind in self.narrow if _bytes(kind) not in [size * neurons for size in _KEPT]]
        found = []
        if wrong:
            kinds = ", ".join(f"{wrong.count(kind)} {kind}" for kind in sorted(set(wrong)))
            found.append(f"accesses under {self.least} bytes in the loop over time: {kinds}")
        for kind in ("loads", "stores"):
            if not self._wide(kind):
                found.append(f"no {kind} of {self.least} bytes in a loop over time")
        return found

    def _wide(self, kind: str) -> int:
        """How many of the loads, or stores, are of that many bytes."""
        number: int = getattr(self, kind)
        return number - sum(_GLOBAL[opcode.split(".")[0]] == kind for opcode in self.narrow)


def _bytes(opcode: str) -> int:
    """Of one access; 4 where no modifier says otherwise."""
    for modifier in opcode.split(".")[1:]:
        if modifier.lstrip("US") in ("8", "16", "64", "128"):
            return int(modifier.lstrip("US")) // 8
    return 4


def accesses(kernel: Kernel, least: int = 16, time_loop: int = 2) -> Accesses:
    """Count them, by the loops that they lie in, and those under ``least`` bytes; the loop over time is in so many."""
    found = Accesses(least=least)
    for instruction, depth in zip(kernel.instructions, kernel.depths(), strict=True):
        name = instruction.opcode.split(".")[0]
        if name in _LOCAL:
            found.local += 1
            found.spilled += _bytes(instruction.opcode)
        elif name in _GLOBAL and depth >= time_loop:
            setattr(found, _GLOBAL[name], getattr(found, _GLOBAL[name]) + 1)
            if _bytes(instruction.opcode) < least:
                found.narrow += (instruction.opcode,)
    return found
