"""Width of the memory accesses in the loop over time, and accesses to local memory."""

from dataclasses import dataclass

from .sass import Kernel

_GLOBAL = {"LDG": "loads", "LD": "loads", "STG": "stores", "ST": "stores"}
_LOCAL = ("LDL", "STL")
# A step also stores a bfloat16 or a byte for each neuron, which is less than 16 bytes for few neurons.
_STORED_BYTES = (2, 1)


@dataclass
class Accesses:
    """Instructions of one kernel that access memory."""

    loads: int = 0  # in the loop over time
    stores: int = 0
    narrow: tuple[str, ...] = ()  # opcodes of those loads and stores that are under ``least`` bytes
    local: int = 0  # anywhere
    spilled: int = 0  # bytes of these
    least: int = 16

    def problems(self, neurons: int) -> list[str]:
        """Why this is no kernel of so many neurons to a thread that accesses ``least`` bytes at a time."""
        wrong = [opcode for opcode in self.narrow if _bytes(opcode) not in [size * neurons for size in _STORED_BYTES]]
        found = []
        if wrong:
            kinds = ", ".join(f"{wrong.count(opcode)} {opcode}" for opcode in sorted(set(wrong)))
            found.append(f"accesses under {self.least} bytes in the loop over time: {kinds}")
        for kind in ("loads", "stores"):
            if getattr(self, kind) == sum(_GLOBAL[opcode.split(".")[0]] == kind for opcode in self.narrow):
                found.append(f"no {kind} of {self.least} bytes in a loop over time")
        return found


def _bytes(opcode: str) -> int:
    """How much one access takes; 4 where no modifier says otherwise."""
    for modifier in opcode.split(".")[1:]:
        if modifier.lstrip("US") in ("8", "16", "64", "128"):
            return int(modifier.lstrip("US")) // 8
    return 4


def accesses(kernel: Kernel, depths: list[int], least: int = 16, time_loop: int = 2) -> Accesses:
    """Count the accesses. ``time_loop``: in how many loops an instruction of the loop over time lies."""
    found = Accesses(least=least)
    for instruction, depth in zip(kernel.instructions, depths, strict=True):
        name = instruction.opcode.split(".")[0]
        if name in _LOCAL:
            found.local += 1
            found.spilled += _bytes(instruction.opcode)
        elif name in _GLOBAL and depth >= time_loop:
            setattr(found, _GLOBAL[name], getattr(found, _GLOBAL[name]) + 1)
            if _bytes(instruction.opcode) < least:
                found.narrow += (instruction.opcode,)
    return found
