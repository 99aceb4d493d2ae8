"""Machine code as nvdisasm prints it: the instructions of each kernel, and how deep each lies in loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_SECTION = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_TARGET = re.compile(r"`\(([^)]+)\)")
_TABLE = re.compile(r'"BRANCH_TARGETS ([^"]+)"')
_PREDICATE = re.compile(r"!?U?P\d\b")
_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")  # the second half of an instruction, with -hex


class Instruction(NamedTuple):
    opcode: str  # with its modifiers
    operands: str
    predicated: bool
    guard: str = ""  # its predicate, as "P0" or "!UP1"
    control: int = 0  # the half with the control bits, where the disassembly has it


@dataclass
class Kernel:
    """One kernel, with the subroutines that it calls behind it."""

    symbol: str
    instructions: list[Instruction]
    labels: dict[str, int]  # to the index of the instruction that follows

    def successors(self) -> list[list[int]]:
        """Where each instruction may lead. A call leads to what follows it; the subroutine is not followed."""
        found = []
        for i, (opcode, operands, predicated, *_) in enumerate(self.instructions):
            name = opcode.split(".")[0]
            following = [i + 1] if i + 1 < len(self.instructions) else []
            if name in ("BRX", "BRXU"):
                table = _TABLE.search(operands)
                if table is None:
                    raise ValueError(f"{self.symbol}: no targets of {opcode} {operands}")
                found.append([self.labels[label] for label in table[1].split(",")])
            elif name == "BRA" or (name == "CALL" and "`(.L_" in operands):  # a call of a label never returns: a jump
                conditional = predicated or _PREDICATE.match(operands) is not None
                target = _TARGET.search(operands)
                if target is None:
                    raise ValueError(f"{self.symbol}: no target of {opcode} {operands}")
                found.append([self.labels[target[1]], *(following if conditional else ())])
            elif name in ("EXIT", "RET"):
                found.append(following if predicated else [])
            else:
                found.append(following)
        return found

    def depths(self) -> list[int]:
        """In how many loops each instruction lies."""
        depths = [0] * len(self.instructions)
        successors = self.successors()
        entries = [set[int]() for _ in successors]
        for i, targets in enumerate(successors):
            for target in targets:
                entries[target].add(i)
        pending = [set(range(len(successors)))]
        while pending:
            for loop in _cycles(pending.pop(), successors):
                # Without its head, a loop falls apart into the loops inside it.
                heads = {i for i in loop if i == 0 or entries[i] - loop}
                for i in loop:
                    depths[i] += 1
                pending.append(loop - (heads or {min(loop)}))
        return depths


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
            guard = (found[1] or "").lstrip("@")
            kernels[-1].instructions.append(Instruction(found[2], found[3], guard != "", guard))
        elif (word := _WORD.match(line)) and kernels[-1].instructions:
            kernels[-1].instructions[-1] = kernels[-1].instructions[-1]._replace(control=int(word[1], 16))
    return kernels


def _cycles(nodes: set[int], successors: list[list[int]]) -> Iterator[set[int]]:
    """Strongly connected sets of more than a node, or of one that leads to itself: Tarjan's algorithm, unrecursed."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in sorted(nodes):
        if root in index:
            continue
        work = [(root, iter(successors[root]))]
        while work:
            node, rest = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
                on_stack.add(node)
            for target in rest:
                if target not in nodes:
                    continue
                if target not in index:
                    work.append((target, iter(successors[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    cycle = set()
                    while node not in cycle:
                        cycle.add(stack.pop())
                    on_stack -= cycle
                    if len(cycle) > 1 or node in successors[node]:
                        yield cycle
