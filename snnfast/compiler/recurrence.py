"""Recurrences: elementwise calls that wait for themselves over the steps, such as a neuron that the user wrote.

The calls of one step are a step function. ``snnfast._program`` makes a program of it, which runs for all steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.linear import Linear
from snnfast._program.between import Between, Product, unroll
from snnfast._program.run import Program
from snnfast.compiler.calls import name_of, product_of, run_call, tensors_of, value
from snnfast.compiler.errors import UnmergedError

if TYPE_CHECKING:
    from snnfast.compiler.series import Group

Row = dict["Group", Node]
"""The calls of one step, by their statements."""


@dataclass(frozen=True)
class Slot:
    """An argument of a statement: a place among the series, states or constants, or what a statement returned."""

    kind: str
    number: int


@dataclass(eq=False)
class Recurrence:
    """Statements of a loop, each a call of every step, and what they read from outside.

    Attributes:
        statements: In the order in which they run, and of each the call of some step. Of the first and the last step,
            those that nobody reads may be missing.
        rows: The calls of each step.
        series, constants: What is given, for each step or for all.
        between: Statements that are products of a state and a weight, and run before the program of the others.
        states: Statements whose result the next step reads, and what the first step reads in its place, or a number.
    """

    statements: list[Group]
    calls: list[Node]
    rows: list[Row]
    series: list[list[Node]] = field(default_factory=list)
    constants: list[Node] = field(default_factory=list)
    states: list[tuple[Group, Node | float]] = field(default_factory=list)
    slots: dict[Group, Any] = field(default_factory=dict)
    between: set[Group] = field(default_factory=set)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """Of what the program computes."""
        return next(tensor_of(n).shape for s, n in self._calls() if s not in self.between)

    @property
    def dtype(self) -> torch.dtype:
        calls = (n for s, n in self._calls() if s not in self.between)
        return next(t.dtype for n in calls for t in tensors_of(n) if t.dtype != torch.bool)

    @property
    def device(self) -> torch.device:
        return tensor_of(self.calls[0]).device

    @property
    def context(self) -> Any:
        contexts = [n.meta["context"] for s, n in self._calls() if s not in self.between]
        return next((c for c in contexts if c.records), contexts[0])

    def _calls(self) -> Iterator[tuple[Group, Node]]:
        return zip(self.statements, self.calls, strict=True)

    def outputs(self) -> list[Group]:
        """The statements whose results may be read outside. Calls that return several are taken apart."""
        shape = self.shape
        return [s for s, n in self._calls() if isinstance(value(n), Tensor) and value(n).shape == shape]

    def nodes(self) -> list[Node]:
        """All calls that it stands for."""
        return [n for row in self.rows for n in row.values()]

    def inputs(self) -> list[Node]:
        """All that it takes."""
        begin = [n for _, n in self.states if isinstance(n, Node)]
        return [*itertools.chain.from_iterable(self.series), *begin, *self.constants]

    def number_of(self, statement: Group) -> dict[Node, int]:
        """The calls of a statement, with their steps from 0 on."""
        return {row[statement]: t for t, row in enumerate(self.rows) if statement in row}

    def program(self, outputs: Sequence[Group]) -> Program:
        """The program that returns the results of some statements."""
        results = [Slot("statement", self.statements.index(s)) for s in (*outputs, *(s for s, _ in self.states))]
        series, made, constants = self.inputs_of_program()

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            env = self.run(given, [*series, *made, *self.slots_of("state"), *constants])
            return tuple(env[slot].to(self.dtype) for slot in results)

        return Program(step, len(series) + len(made), len(self.states), len(constants), len(outputs))

    def inputs_of_program(self) -> tuple[list[Slot], list[Slot], list[Slot]]:
        """What the program reads beside the states: series, products, and constants. It reads all series."""
        read = {a for s in self.statements if s not in self.between for a in self.slots[s][0] if isinstance(a, Slot)}
        made = [Slot("statement", i) for i, s in enumerate(self.statements) if s in self.between]
        return self.slots_of("series"), made, [slot for slot in self.slots_of("constant") if slot in read]

    def between_steps(self) -> Between:
        """What is computed before each step of the program."""
        _, made, constants = self.inputs_of_program()
        products = tuple(self.product(self.statements[slot.number]) for slot in made)
        counts = len(self.series), len(self.states), len(self.constants)
        return Between(products, counts, tuple(slot.number for slot in constants))

    def product(self, statement: Group) -> Product:
        """The product that a statement is.

        Raises:
            UnmergedError: It is none of a state and a weight that is the same at every step.
        """
        node = self.calls[self.statements.index(statement)]
        found = product_of(node)
        if found is None or value(node).shape != self.shape or self.device.type != "cpu":
            raise UnmergedError(f"{name_of(node.target)} is not elementwise")
        if value(node).dtype != self.dtype or node.meta["context"] != self.context:
            raise UnmergedError(f"{name_of(node.target)} runs under no_grad or autocast, unlike the rest of the step")
        name, *operands = found
        places = dict(zip(pytree.tree_leaves((node.args, node.kwargs)), self.slots[statement][0], strict=True))
        state, weight, *bias = (places[a] for a in operands)
        if state.kind != "state" or any(slot.kind != "constant" for slot in (weight, *bias)):
            raise UnmergedError(f"{name_of(node.target)} is not elementwise, and takes no result of the step before")
        return Product(name, *(slot.number for slot in (state, weight, *bias)))

    def slots_of(self, kind: str) -> list[Slot]:
        counts = {"series": len(self.series), "state": len(self.states), "constant": len(self.constants)}
        return [Slot(kind, i) for i in range(counts[kind])]

    def _node(self, slot: Slot) -> Node:
        """Some node that has the place of a slot."""
        if slot.kind == "series":
            return self.series[slot.number][0]
        if slot.kind == "constant":
            return self.constants[slot.number]
        statement = self.statements.index(self.states[slot.number][0]) if slot.kind == "state" else slot.number
        return self.calls[statement]

    def run(self, given: Sequence[Tensor], slots: Sequence[Slot]) -> dict[Slot, Any]:
        """What each statement returns in a step, from what is given for some slots."""
        env: dict[Slot, Any] = {slot: as_of(self._node(slot), t) for slot, t in zip(slots, given, strict=True)}
        for number, (statement, node) in enumerate(self._calls()):
            if statement not in self.between:
                leaves, spec = self.slots[statement]
                args, kwargs = pytree.tree_unflatten([env[a] if isinstance(a, Slot) else a for a in leaves], spec)
                env[Slot("statement", number)] = run_call(node, args, kwargs)
        return env


class Unrolled:
    """All steps of a recurrence as a function of the inputs, the first states and what is constant.

    Attributes:
        output: The one that a linear layer alone reads. Its weight and bias are then the last arguments.
        dims: How many dimensions of a step, from the last, are the inputs of this layer; 0 where there is none.
    """

    __name__ = __qualname__ = "recurrence"

    def __init__(self, recurrence: Recurrence, outputs: Sequence[Group]) -> None:
        self.program, self.steps, self.shape = recurrence.program(outputs), recurrence.steps, recurrence.shape
        self.between = recurrence.between_steps() if recurrence.between else None
        self.output = self.dims = 0

    def series(self, node: Node) -> list[Any]:
        """The inputs of a node that calls it, without those that have fewer dimensions than a step."""
        found: Any = node.args[: (self.between or self.program).counts[0]]
        return [n for n in found if value(n).shape[1:] == self.shape]

    def __call__(self, *tensors: Any) -> tuple[Tensor, ...]:
        if self.between is not None:
            return unroll(self.program, self.between, tensors, self.steps)
        if not self.dims:
            return self.program.unroll(*tensors, steps=self.steps)
        *given, weight, bias = tensors
        return self.program.unroll(*given, steps=self.steps, output=self.output, linear=Linear(weight, bias, self.dims))


def as_of(node: Node, t: Tensor) -> Tensor:
    """A tensor of a program, in which truth values are numbers, as what a node takes."""
    return t.to(torch.bool) if tensor_of(node).dtype == torch.bool else t


def tensor_of(node: Node) -> Tensor:
    return tensors_of(node)[0]
