"""Machine code as nvdisasm prints it: the instructions of each kernel, and which of them are the loop over time."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import networkx  # comes with torch

_SECTION = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_TARGETS = re.compile(r"""`\(([^)]+)\)|"BRANCH_TARGETS ([^"]+)\"""")
_PREDICATE = re.compile(r"!?U?P\d\b")


class Instruction(NamedTuple):
    opcode: str  # with its modifiers
    operands: str
    guard: str  # the predicate without which it does nothing, as ``@!P0``; or empty


@dataclass
class Kernel:
    """One kernel, with the subroutines that it calls behind it."""

    symbol: str
    instructions: list[Instruction]
    labels: dict[str, int]  # to the index of the instruction that follows

    def successors(self) -> list[list[int]]:
        """Where each instruction may lead. A call leads to what follows it; the subroutine is not followed."""
        found = []
        for i, (opcode, operands, guard) in enumerate(self.instructions):
            name = opcode.split(".")[0]
            following = [i + 1] if i + 1 < len(self.instructions) else []
            # A call of a label never returns: it is a jump.
            if name in ("BRA", "BRX", "BRXU") or (name == "CALL" and "`(.L_" in operands):
                targets = _TARGETS.search(operands)
                if targets is None:
                    raise ValueError(f"{self.symbol}: no target of {opcode} {operands}")
                conditional = name in ("BRA", "CALL") and (guard or _PREDICATE.match(operands))
                labels = (targets[1] or targets[2]).split(",")
                found.append([*(self.labels[label] for label in labels), *(following if conditional else ())])
            else:
                found.append([] if name in ("EXIT", "RET") and not guard else following)
        return found

    def longest_loop(self) -> set[int]:
        """The instructions of the longest loop, which is the loop over time. Shorter ones sum over neurons."""
        graph = networkx.DiGraph((i, target) for i, targets in enumerate(self.successors()) for target in targets)
        longest = max(networkx.strongly_connected_components(graph), key=len, default=set())
        # The branch to itself behind the end of every kernel is no loop.
        return longest if len(longest) > 1 else set()


def parse(text: str) -> list[Kernel]:
    """The kernels in what ``nvdisasm -c`` printed."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if section := _SECTION.match(line):
            kernels.append(Kernel(section[1], [], {}))
        elif not kernels:
            continue
        elif label := _LABEL.match(line):
            kernels[-1].labels[label[1]] = len(kernels[-1].instructions)
        elif found := _INSTRUCTION.match(line):
            kernels[-1].instructions.append(Instruction(found[2], found[3], (found[1] or "").strip()))
    return kernels
