"""Width of the memory accesses in the loop over time, and accesses to local memory."""

from dataclasses import dataclass

from .sass import Kernel

_GLOBAL = {"LDG": "loads", "LD": "loads", "STG": "stores", "ST": "stores"}
_LOCAL = ("LDL", "STL")
# The outer loop takes a thread from one group of neurons to the next; the loops over time lie in it.
TIME_LOOP = 2


@dataclass
class Accesses:
    """Of one kernel, counted as instructions."""

    loads: int = 0  # in the loop over time
    stores: int = 0
    narrow: tuple[str, ...] = ()  # of these, the opcodes of those under 16 bytes
    local: int = 0  # anywhere

    def problems(self) -> list[str]:
        """Why this is no kernel that takes 16 bytes at a time."""
        found = []
        if self.narrow:
            kinds = ", ".join(f"{self.narrow.count(kind)} {kind}" for kind in sorted(set(self.narrow)))
            found.append(f"accesses under 16 bytes in the loop over time: {kinds}")
        found += [f"no {kind} in a loop over time" for kind in ("loads", "stores") if not getattr(self, kind)]
        return found


def accesses(kernel: Kernel) -> Accesses:
    found = Accesses()
    for instruction, depth in zip(kernel.instructions, kernel.depths(), strict=True):
        name, *modifiers = instruction.opcode.split(".")
        if name in _LOCAL:
            found.local += 1
        elif name in _GLOBAL and depth >= TIME_LOOP:
            setattr(found, _GLOBAL[name], getattr(found, _GLOBAL[name]) + 1)
            if "128" not in modifiers:
                found.narrow += (instruction.opcode,)
    return found
