"""Recurrences: elementwise calls that wait for themselves over the steps, such as a neuron that the user wrote.

The calls of one step are a step function. ``snnfast._program`` makes a program of it, which runs for all steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.linear import Linear
from snnfast._program.run import Program
from snnfast._program.trace import NotElementwiseError
from snnfast._unroll.graph import elementwise_step
from snnfast.compiler.nodes import is_step, name_of, tensors_of, value

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
        states: Statements whose result the next step reads, and what the first step reads in its place, or a number.
    """

    statements: list[Group]
    calls: list[Node]
    rows: list[Row]
    series: list[list[Node]] = field(default_factory=list)
    constants: list[Node] = field(default_factory=list)
    states: list[tuple[Group, Node | float]] = field(default_factory=list)
    slots: dict[Group, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return tensor_of(self.calls[0]).shape

    @property
    def dtype(self) -> torch.dtype:
        return next(t.dtype for n in self.calls for t in tensors_of(n) if t.dtype != torch.bool)

    @property
    def device(self) -> torch.device:
        return tensor_of(self.calls[0]).device

    @property
    def context(self) -> Any:
        contexts = [n.meta["context"] for n in self.calls]
        return next((c for c in contexts if c.records), contexts[0])

    def outputs(self) -> list[Group]:
        """The statements whose results may be read outside. Calls that return several are taken apart."""
        return [s for s, n in zip(self.statements, self.calls, strict=True) if isinstance(value(n), Tensor)]

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
        places = [self.statements.index(s) for s in (*outputs, *(s for s, _ in self.states))]

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            env = self.run(given)
            return tuple(env[i].to(self.dtype) for i in places)

        return Program(step, len(self.series), len(self.states), len(self.constants))

    def run(self, given: Sequence[Tensor]) -> list[Any]:
        """What each statement returns in a step, from series, states and constants."""
        kinds = {
            "series": [nodes[0] for nodes in self.series],
            "state": [self.calls[self.statements.index(s)] for s, _ in self.states],
            "constant": self.constants,
        }
        rest, env = iter(given), {}
        for kind, nodes in kinds.items():
            for i, node in enumerate(nodes):
                env[Slot(kind, i)] = as_of(node, next(rest))
        for number, (statement, node) in enumerate(zip(self.statements, self.calls, strict=True)):
            leaves, spec = self.slots[statement]
            args, kwargs = pytree.tree_unflatten([env[a] if isinstance(a, Slot) else a for a in leaves], spec)
            env[Slot("statement", number)] = call(node, args, kwargs)
        return [env[Slot("statement", number)] for number in range(len(self.calls))]


def call(node: Node, args: Any, kwargs: Any) -> Any:
    """Make the call of a node, under its grad mode."""
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled() and node.meta["context"].records):
            target: Any = elementwise_step if is_step(node.target) else node.target
            return target(*args, **kwargs)
    except NotElementwiseError as error:
        raise NotElementwiseError(f"{name_of(node.target)} is no operator of programs: {error.problem}") from None


class Unrolled:
    """All steps of a recurrence as a function of the inputs, the first states and what is constant.

    Attributes:
        output: The one that a linear layer alone reads. Its weight and bias are then the last arguments.
        dims: How many dimensions of a step, from the last, are the inputs of this layer; 0 where there is none.
    """

    __name__ = __qualname__ = "recurrence"

    def __init__(self, recurrence: Recurrence, outputs: Sequence[Group]) -> None:
        self.program, self.steps, self.shape = recurrence.program(outputs), recurrence.steps, recurrence.shape
        self.output = self.dims = 0

    def series(self, node: Node) -> list[Any]:
        """The inputs of a node that calls it, without those that have fewer dimensions than a step."""
        found: Any = node.args[: self.program.counts[0]]
        return [n for n in found if value(n).shape[1:] == self.shape]

    def __call__(self, *tensors: Any) -> tuple[Tensor, ...]:
        if not self.dims:
            return self.program.unroll(*tensors, steps=self.steps)
        *given, weight, bias = tensors
        return self.program.unroll(*given, steps=self.steps, output=self.output, linear=Linear(weight, bias, self.dims))


def as_of(node: Node, t: Tensor) -> Tensor:
    """A tensor of a program, in which truth values are numbers, as what a node takes."""
    return t.to(torch.bool) if tensor_of(node).dtype == torch.bool else t


def tensor_of(node: Node) -> Tensor:
    return tensors_of(node)[0]
