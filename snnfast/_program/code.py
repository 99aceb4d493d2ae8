"""From a traced step to what the kernels read: dead code goes, pairs of instructions fuse, registers are shared."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from snnfast._program.instructions import APPLY, COMPARES, FIRSTS, NUMBERS, SECONDS
from snnfast._program.trace import Graph, Trace

__all__ = ["Code", "Codes", "Counts"]

Counts = tuple[int, int, int]
"""How many series, states and parameters a step has."""

# The derivative computes a value of the forward pass again, if that takes at most so many instructions; any other is
# kept for each step. Some instructions count as several.
_RECOMPUTED = 2
_ROUNDED = ("fma", "exp", "log", "sigmoid", "tanh", "pow")
_LONG = dict.fromkeys(("div", "sqrt", "exp", "log", "sigmoid", "tanh", "pow"), 9)


@dataclass(frozen=True)
class Code:
    """A program as the kernels read it.

    Attributes:
        words: int32, as ``csrc/op/program.cpp`` describes them.
        constants: float64.
        fixed: Values that follow from parameters alone, which no step computes. They are parameters to the kernels,
            behind the others.
        graph: The graph of these values.
        outputs: How many there are, in backward those that have a gradient.
        binary: Which outputs are certainly 0 or 1, in forward.
        gradients: Which series and parameters have one, by their numbers among series, states and parameters.
        kernels: The kernels that were compiled of the code alone, by the sizes that they were compiled for.
    """

    words: Tensor
    constants: Tensor
    fixed: list[int]
    graph: Graph
    outputs: int
    binary: tuple[bool, ...] = ()
    gradients: frozenset[int] = frozenset()
    kernels: dict[Any, Any] = field(default_factory=dict)

    @functools.cached_property
    def functions(self) -> list[int]:
        """The values on the way to ``fixed`` that PyTorch rounds in its own way, such as ``exp``.

        A kernel that is given these computes the others itself, with the same bits.
        """
        found: dict[int, None] = {}
        stack = [*self.fixed]
        while stack:
            value = stack.pop()
            if self.graph.nodes[value][0] in _ROUNDED:
                found[value] = None
            else:
                stack += self.graph.operands(value)
        return sorted(found)

    def parameters(self, given: Sequence[Tensor], values: Sequence[int]) -> list[Tensor]:
        """The parameters of the step, and some values that follow from them: ``fixed`` or ``functions``."""
        known: dict[int, Tensor] = {}

        def compute(value: int) -> Tensor:
            if value not in known:
                op, *operands = self.graph.nodes[value]
                if op == "parameter":
                    known[value] = given[operands[0]]
                elif op == "constant":
                    known[value] = torch.tensor(operands[0], dtype=self.graph.dtype, device="cpu")
                else:
                    known[value] = APPLY[op](*map(compute, operands))
            return known[value]

        return [*given, *map(compute, values)]


class Codes:
    """The codes that come from one trace: of the forward pass, and of its derivative."""

    def __init__(self, trace: Trace, counts: Counts) -> None:
        self.trace, self.counts = trace, counts
        self.forward = forward_code(trace, counts)
        self._backward: dict[Any, Code] = {}

    def backward(self, given: tuple[int, ...], needs: tuple[bool, ...]) -> Code:
        """The derivative, for outputs ``given`` a gradient, and the ``needs`` of series and parameters."""
        key = given, needs
        if key not in self._backward:
            self._backward[key] = backward_code(self.trace, self.counts, given, needs)
        return self._backward[key]


def forward_code(trace: Trace, counts: Counts) -> Code:
    """The code of all steps: header, registers of the outputs and of the new states, instructions."""
    trace = trace.copy()
    program = _Program(trace.graph, counts, given=None)
    states = program.distinct(trace.states)
    results = [*trace.outputs, *states]
    step = program.section(results)
    program.settle([step], results)
    code = program.code([len(trace.outputs)], program.registers(results), [step])
    return replace(code, binary=tuple(map(trace.graph.is_binary, trace.outputs)))


def backward_code(trace: Trace, counts: Counts, given: Sequence[int], needs: Sequence[bool]) -> Code:
    """The code of the derivative, in two sections.

    The first computes the states again, and the values that are kept for each step; the second is the derivative of a
    step. ``given`` are the outputs that have a gradient. ``needs`` says which gradients of series and parameters are
    wanted; those of the states always are.
    """
    series, states, _ = counts
    trace, gradients = trace.copy(), trace.gradients
    gradients = trace.graph.without([i for i in range(len(trace.outputs)) if i not in given], gradients)
    program = _Program(trace.graph, counts, given)
    zero = trace.graph.constant(0)
    carries = [zero if v is None else v for v in gradients[series : series + states]]
    others = gradients[:series] + gradients[series + states :]
    others = [value if need else None for value, need in zip(others, needs, strict=True)]
    news = program.distinct(trace.states)
    kept, saved = program.keep([v for v in [*carries, *others] if v is not None], trace.states, news)
    held = [*(news[i] for i in kept), *saved]
    # A state that is computed again is at hand in the derivative, as the value that it was in the step.
    program.names = {trace.states[i]: news[i] for i in reversed(kept) if not program.is_free(trace.states[i])}
    carries = program.distinct(carries)
    results = [v for v in [*others, *carries] if v is not None]
    again = program.section(held)
    back = program.section(results, at_hand=[*program.names, *held])
    program.settle([again, back], results, held)
    others += [None] * len(program.fixed)
    tables = [news[i] if i in kept else None for i in range(states)], saved, carries, others
    registers = [r for table in tables for r in program.registers(table)]
    code = program.code([len(given), len(saved)], registers, [again, back])
    found = [i if i < series else i + states for i, value in enumerate(others) if value is not None]
    return replace(code, gradients=frozenset(found))


@dataclass
class _Instruction:
    name: str
    to: int
    operands: list[int]


class _Program:
    """Registers of a program: series, states, parameters, constants, gradients of outputs, carries, temporaries."""

    def __init__(self, graph: Graph, counts: Counts, given: Sequence[int] | None) -> None:
        self.graph = graph
        self.counts = counts
        self.given = given
        self.names: dict[int, int] = {}  # of values of the second section: the values whose registers they are in
        self._fixed: list[bool] = []
        self._backward: list[bool] = []

    # ---- values

    def _classify(self) -> None:
        for value in range(len(self._fixed), len(self.graph.nodes)):
            kind, operands = self.graph.nodes[value][0], self.graph.operands(value)
            leaf = not operands
            fixed = kind in ("parameter", "constant") if leaf else all(self._fixed[v] for v in operands)
            self._fixed.append(fixed and kind != "move")  # which is what makes a register
            self._backward.append(kind in ("grad", "carry") if leaf else any(self._backward[v] for v in operands))

    def is_fixed(self, value: int) -> bool:
        """Whether a value follows from parameters and constants alone."""
        self._classify()
        return self._fixed[value]

    def is_free(self, value: int) -> bool:
        """Whether no instruction of a step computes it."""
        return self.graph.is_leaf(value) or self.is_fixed(value)

    def distinct(self, values: Sequence[int]) -> list[int]:
        """Values for the next step, each in a register of its own."""
        made: list[int] = []
        for value in values:
            free = self.is_free(value) or value in made or value in self.names
            # A key of its own for each: the same value may be that of a state and of a carry.
            made.append(self.graph.enter(("move", value), ("move", len(self.graph.nodes))) if free else value)
        return made

    def section(self, results: Iterable[int], at_hand: Iterable[int] = ()) -> list[_Instruction]:
        """The instructions that lead to some values, in order."""
        known, found = set(at_hand), set()
        stack = list(results)
        while stack:
            value = stack.pop()
            if value not in found and value not in known and not self.is_free(value):
                found.add(value)
                stack += self.graph.operands(value)
        return [_Instruction(self.graph.nodes[v][0], v, list(self.graph.operands(v))) for v in sorted(found)]

    def keep(self, results: list[int], states: Sequence[int], news: Sequence[int]) -> tuple[list[int], list[int]]:
        """The numbers of the states that are computed again before a derivative, and the values that are kept."""
        kept: set[int] = set()
        while True:
            again = {i.to for i in self.section([news[i] for i in kept])}
            saved, derivative = self._saved(results, again, {states[i] for i in kept})
            leaves = {
                self.graph.nodes[v]
                for value in again | saved | derivative
                for v in (value, *self.graph.operands(value))
            }
            more = {i for i in range(len(states)) if ("state", i) in leaves} - kept
            if not more:
                return sorted(kept), sorted(saved)
            kept |= more

    def _saved(self, results: list[int], again: set[int], at_hand: set[int]) -> tuple[set[int], set[int]]:
        """Which values that are computed ``again`` are kept for the derivative, and what the derivative computes."""
        self._classify()
        saved: set[int] = set()
        derivative: set[int] = set()

        def ready(value: int) -> bool:
            return self.is_free(value) or value in at_hand or value in saved

        def is_cheap(value: int) -> bool:
            price, stack, seen = 0, [value], set()
            while stack and price <= _RECOMPUTED:
                v = stack.pop()
                if v not in seen and not ready(v):
                    seen.add(v)
                    price += _LONG.get(self.graph.nodes[v][0], 1)
                    stack += self.graph.operands(v)
            return price <= _RECOMPUTED

        stack = list(results)
        while stack:
            value = stack.pop()
            if ready(value) or value in derivative:
                continue
            if not self._backward[value] and value in again and not is_cheap(value):
                saved.add(value)
                continue
            derivative.add(value)
            stack += self.graph.operands(value)
        return saved, derivative

    # ---- registers

    def settle(self, sections: list[list[_Instruction]], results: Sequence[int], held: Sequence[int] = ()) -> None:
        """Fuse pairs, and give each value a register. ``held``: what the first of two sections makes for the second."""
        ends = {*results, *held, *self.names}
        for number, section in enumerate(sections):
            for instruction in section if number > 0 else []:
                instruction.operands = [self.names.get(v, v) for v in instruction.operands]
            _fuse(section, ends)
        used = [*results, *held, *(v for section in sections for i in section for v in i.operands)]
        used = list(dict.fromkeys(used))
        self.constants = [v for v in used if self.graph.nodes[v][0] == "constant"]
        self.fixed = [v for v in used if self.is_fixed(v) and not self.graph.is_leaf(v)]
        series, states, parameters = self.counts
        order = [self.graph.leaf("series", i) for i in range(series)]
        order += [self.graph.leaf("state", i) for i in range(states)]
        order += [self.graph.leaf("parameter", i) for i in range(parameters)]
        order += [*self.fixed, *self.constants]
        if self.given is not None:
            order += [self.graph.leaf("grad", i) for i in self.given]
            order += [self.graph.leaf("carry", i) for i in range(states)]
        self._places = {value: place for place, value in enumerate(order)}
        self._first = self._next = len(order)
        self._free: list[int] = []
        self._words: list[int] = []
        for value in held:
            self._take(value)
        lasting = {*self._places}
        for section in sections:
            self._places = {value: place for value, place in self._places.items() if value in lasting}
            self._free = list(range(self._first + len(held), self._next))
            last = {v: k for k, instruction in enumerate(section) for v in instruction.operands}
            for k, instruction in enumerate(section):
                operands = [self._places[v] for v in instruction.operands]
                for value in dict.fromkeys(instruction.operands):
                    if last[value] == k and value not in lasting and value not in ends:
                        self._free.append(self._places[value])
                if instruction.to not in self._places:
                    self._take(instruction.to)
                operands += operands[:1] * (4 - len(operands))  # the same again where there is none
                self._words += [NUMBERS[instruction.name], self._places[instruction.to], *operands]

    def _take(self, value: int) -> None:
        self._places[value] = self._free.pop() if self._free else self._next
        self._next = max(self._next, self._places[value] + 1)

    def registers(self, values: Iterable[int | None]) -> list[int]:
        return [-1 if v is None else self._places[self.names.get(v, v)] for v in values]

    def code(self, counts: list[int], tables: list[int], sections: list[list[_Instruction]]) -> Code:
        series, states, parameters = self.counts
        words = [series, states, parameters + len(self.fixed), len(self.constants), *counts]
        words += [self._next - self._first, *map(len, sections), *tables, *self._words]
        constants = torch.tensor([self.graph.nodes[v][1] for v in self.constants], dtype=torch.float64, device="cpu")
        return Code(torch.tensor(words, dtype=torch.int32, device="cpu"), constants, self.fixed, self.graph, counts[0])


def _fuse(section: list[_Instruction], kept: set[int]) -> None:
    """Make one instruction of two, where the second alone reads what the first makes."""
    uses: dict[int, int] = {}
    for instruction in section:
        for value in instruction.operands:
            uses[value] = uses.get(value, 0) + 1
    makers = {instruction.to: instruction for instruction in section}
    reverse = {"add": "add", "mul": "mul", "sub": "rsub", "div": "rdiv"}
    gone: set[int] = set()

    def first(value: int, names: Sequence[str]) -> _Instruction | None:
        maker = makers.get(value)
        return maker if maker and maker.name in names and uses[value] == 1 and value not in kept else None

    for second in section:
        places: list[tuple[int, str, Sequence[str]]]
        if second.name == "where":
            places = [(0, "where", COMPARES)]
        else:
            places = [(0, second.name, FIRSTS)] if second.name in SECONDS else []
            places += [(1, reverse[second.name], FIRSTS)] if second.name in reverse else []
        for place, name, firsts in places:
            if maker := first(second.operands[place], firsts):
                others = second.operands[:place] + second.operands[place + 1 :]
                second.name, second.operands = f"{maker.name} {name}", [*maker.operands, *others]
                gone.add(maker.to)
                break
    section[:] = [instruction for instruction in section if instruction.to not in gone]
