"""Recurrences: elementwise calls that wait for themselves over the steps, such as a neuron that the user wrote.

The calls of one step are a step function. ``snnfast._program`` makes a program of it, which runs for all steps.
"""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast._core.linear import Linear
from snnfast._program.run import ENGINES, Program
from snnfast._program.trace import NotElementwiseError, trace
from snnfast._unroll.graph import elementwise_step
from snnfast.compiler.nodes import index_of, is_number, is_step, module_of, name_of, signature_of, tensors_of, value
from snnfast.compiler.rules import UnmergedError

if TYPE_CHECKING:
    from snnfast.compiler.series import Group

LEAST = 3
"""So many steps are worth a program."""

_STARTS = 64
"""So many combinations of numbers are tried as first states."""

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
        first: The number of the first step, in the alignment that ``rows`` has.
        series, constants: What is given, for each step or for all.
        states: Statements whose result the next step reads, and what the first step reads in its place, or a number.
    """

    statements: list[Group]
    calls: list[Node]
    rows: dict[int, Row]
    first: int
    steps: int
    series: list[list[Node]] = field(default_factory=list)
    constants: list[Node] = field(default_factory=list)
    states: list[tuple[Group, Node | float]] = field(default_factory=list)
    slots: dict[Group, Any] = field(default_factory=dict)

    @property
    def shape(self) -> torch.Size:
        return _tensor(self.calls[0]).shape

    @property
    def dtype(self) -> torch.dtype:
        return next(t.dtype for n in self.calls for t in tensors_of(n) if t.dtype != torch.bool)

    @property
    def device(self) -> torch.device:
        return _tensor(self.calls[0]).device

    @property
    def context(self) -> Any:
        contexts = [n.meta["context"] for n in self.calls]
        return next((c for c in contexts if c.records), contexts[0])

    def outputs(self) -> list[Group]:
        """The statements whose results may be read outside. Calls that return several are taken apart."""
        return [s for s, n in zip(self.statements, self.calls, strict=True) if isinstance(value(n), Tensor)]

    def nodes(self) -> list[Node]:
        """All calls that it stands for."""
        return [n for t in range(self.first, self.first + self.steps) for n in self.rows[t].values()]

    def inputs(self) -> list[Node]:
        """All that it takes."""
        begin = [n for _, n in self.states if isinstance(n, Node)]
        return [*itertools.chain.from_iterable(self.series), *begin, *self.constants]

    def number_of(self, statement: Group) -> dict[Node, int]:
        """The calls of a statement, with their steps from 0 on."""
        steps = range(self.first, self.first + self.steps)
        return {self.rows[t][statement]: t - self.first for t in steps if statement in self.rows[t]}

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
                env[Slot(kind, i)] = _as_of(node, next(rest))
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
        self.program, self.steps = recurrence.program(outputs), recurrence.steps
        self.output = self.dims = 0

    def __call__(self, *tensors: Any) -> tuple[Tensor, ...]:
        if not self.dims:
            return self.program.unroll(*tensors, steps=self.steps)
        *given, weight, bias = tensors
        return self.program.unroll(*given, steps=self.steps, output=self.output, linear=Linear(weight, bias, self.dims))


def recurrence_of(statements: Sequence[Group], order: dict[Node, int], is_free: Callable[[Node], bool]) -> Recurrence:
    """What statements that wait for one another are, as a recurrence.

    ``is_free`` says whether it may take a node that belongs to none of the statements.

    Raises:
        UnmergedError: They are none. The message is the reason.
    """
    if not statements:
        raise UnmergedError(f"it has fewer than {LEAST} steps that are alike")
    _check(statements)
    # Where a step begins is free. With some beginnings fewer states go from step to step, or more calls are alike.
    aligned: list[tuple[_Steps, Recurrence]] = []
    reason = "its steps are not all alike"
    for anchor in statements:
        try:
            steps = _with_anchor(statements, anchor, order)
            aligned.append((steps, steps.recurrence()))
        except UnmergedError as error:
            reason = str(error)
    calls = sum(len(s.nodes) for s in statements)
    found: Recurrence | None = None
    for steps, made in sorted(aligned, key=lambda a: (len(a[1].states), -a[1].steps, -len(a[1].nodes()))):
        steps.take_in_first(made, is_free)
        if found is None or (made.steps, len(made.nodes())) > (found.steps, len(found.nodes())):
            found = made
        if len(found.nodes()) >= calls:
            break
    if found is None:
        raise UnmergedError(reason)
    _check_program(found)
    return found


def _check(statements: Sequence[Group]) -> None:
    shape = _tensor(statements[0].first).shape
    dtypes, devices = set(), set()
    for node in (s.first for s in statements):
        for t in tensors_of(node):
            if t.device.type not in ENGINES:
                raise UnmergedError(f"it is on {t.device.type}, for which there are no kernels of programs")
            devices.add(t.device)
            if list(map(str, t.shape)) != list(map(str, shape)):
                raise UnmergedError("they have other shapes")
            dtypes.add(t.dtype)
        if node.meta["context"].blocks:
            raise UnmergedError("it runs under autocast or inference mode")
    if len(devices) != 1:
        raise UnmergedError("they are on several devices")
    dtypes -= {torch.bool}
    if len(dtypes) != 1 or not dtypes < {torch.float32, torch.float64}:
        raise UnmergedError("a program has one dtype, float32 or float64")


def _check_program(found: Recurrence) -> None:
    try:
        found.program(found.outputs()).check(found.dtype, len(found.shape), found.context.records)
    except NotElementwiseError as error:
        raise UnmergedError(error.problem) from None
    except RuntimeError as error:  # of an operator: a program is traced with tensors of other sizes
        raise UnmergedError(f"an operator takes tensors of its own sizes alone: {str(error).splitlines()[0]}") from None


def _with_anchor(statements: Sequence[Group], anchor: Group, order: dict[Node, int]) -> _Steps:
    """The calls by steps, each of which begins with a call of one of the statements."""
    begin = [order[n] for n in anchor.nodes]
    rows: dict[int, Row] = {t: {} for t in range(-1, len(begin))}
    place: dict[Node, tuple[Group, int]] = {}
    for statement in statements:
        for node in statement.nodes:
            t = bisect_right(begin, order[node]) - 1
            if statement in rows[t]:
                raise UnmergedError("a step makes several")
            rows[t][statement] = node
            place[node] = statement, t
    return _Steps(statements, rows, place, order)


class _Steps:
    """The calls of statements by steps, and what each step reads."""

    def __init__(
        self,
        statements: Sequence[Group],
        rows: dict[int, Row],
        place: dict[Node, tuple[Group, int]],
        order: dict[Node, int],
    ) -> None:
        self.rows, self.place = rows, place
        complete = [t for t in rows if len(rows[t]) == len(statements)]
        middle = [t for t in complete if t - 1 in complete]
        if len(middle) < LEAST - 1:
            raise UnmergedError("its steps are not all alike")
        self.model = middle[len(middle) // 2]
        self.statements = sorted(statements, key=lambda s: order[rows[self.model][s]])
        self.sources = {s: [self.source(a, self.model) for a in _leaves(rows[self.model][s])] for s in self.statements}
        if any(s is not None and s[1] not in (0, 1) for found in self.sources.values() for s in found):
            raise UnmergedError("it reads a result of more than one step before")

    def source(self, a: Any, t: int) -> tuple[Group, int] | None:
        """The statement that returned an argument of step ``t``, and how many steps before."""
        found = self.place.get(a) if isinstance(a, Node) else None
        return (found[0], t - found[1]) if found is not None else None

    def is_alike(self, t: int, first: bool = False) -> bool:
        """Whether a step reads what the others read; of the first one, what it reads of the step before may differ."""
        row = self.rows.get(t)
        if row is None:
            return False
        for statement, node in row.items():
            for a, source in zip(_leaves(node), self.sources[statement], strict=True):
                if source is None:
                    if self.source(a, t) is not None:
                        return False
                elif first and source[1] == 1:
                    if not isinstance(a, Node) and a is not None:
                        return False
                elif self.source(a, t) != source:
                    return False
        return True

    def recurrence(self) -> Recurrence:
        every = len(self.statements)
        last = first = self.model
        while len(self.rows.get(last + 1, ())) == every and self.is_alike(last + 1):
            last += 1
        while len(self.rows.get(first - 1, ())) == every and self.is_alike(first - 1):
            first -= 1
        if len(self.rows.get(first - 1, ())) == every and self.is_alike(first - 1, first=True):
            first -= 1
        # Nobody reads some results of the last step.
        if self.rows.get(last + 1) and self.is_alike(last + 1):
            with contextlib.suppress(UnmergedError):
                return self.between(first, last + 1)
        return self.between(first, last)

    def between(self, first: int, last: int) -> Recurrence:
        if last - first + 1 < LEAST:
            raise UnmergedError("its steps are not all alike")
        calls = [self.rows[self.model][s] for s in self.statements]
        made = Recurrence(
            self.statements, calls, {t: self.rows[t] for t in range(first, last + 1)}, first, last - first + 1
        )
        number = {s: i for i, s in enumerate(self.statements)}
        for statement in self.statements:
            rows = [self.rows[t].get(statement) for t in range(first, last + 1)]
            spec = pytree.tree_structure((rows[0].args, rows[0].kwargs))  # type: ignore[union-attr]
            columns = zip(*(_leaves(n) for n in rows if n is not None), strict=True)
            slots = []
            for column, source in zip(columns, self.sources[statement], strict=True):
                if source is None:
                    slots.append(self.given(made, list(column)))
                elif source[1] == 0:
                    slots.append(Slot("statement", number[source[0]]))
                else:
                    begin = 0.0 if column[0] is None else column[0]  # as a step of a neuron without a state begins
                    slots.append(Slot("state", _enter(made.states, (source[0], begin))))
            made.slots[statement] = slots, spec
        for _, begin in made.states:
            if isinstance(begin, Node):
                _check_given(made, begin)
        return made

    # ---- a first step that differs

    def take_in_first(self, made: Recurrence, is_free: Callable[[Node], bool]) -> None:
        """Enter the step before the first one, if it is the same step of states that were numbers.

        dynamo computes with numbers itself: of ``mem = 0``, the first ``mem * 0.9 + x`` is a call ``0.0 + x``.
        """
        row = self.rows.get(made.first - 1, {})
        begin = [n for _, n in made.states if isinstance(n, Node)]
        if not row and not begin:
            return
        places = {_place(n) for n in made.calls}
        series: list[Node | None] = [None] * len(made.series)
        peeled: dict[Node, None] = {}  # each behind what it reads
        members = set(row.values())

        def visit(node: Node) -> bool:
            """Find out what a call of the step reads. Returns whether all of it is known."""
            if len(peeled) > 2 * len(made.statements):
                return False
            if node in peeled or node in made.constants or isinstance(module_of(node), GraphModule):
                return True
            for i, nodes in enumerate(made.series):
                if node not in members and series[i] in (None, node) and _is_before(node, nodes[0]):
                    series[i] = node
                    return True
            known = node in members or (node.op == "call_function" and _place(node) in places)
            if not known or not all(map(visit, node.all_input_nodes)):
                return False
            peeled[node] = None
            return True

        if not all(map(visit, (*row.values(), *begin))) or None in series or not all(n in peeled for n in begin):
            return
        leaves = [a for n in peeled for a in _leaves(n) if is_number(a)]
        numbers = list(dict.fromkeys([0.0, *map(float, leaves)]))
        starts = itertools.product(numbers, repeat=len(made.states))
        for start in itertools.islice(starts, _STARTS):
            values = self._values_of_first(made, series, list(peeled), start)
            if values is None:
                return
            of_body, of_calls = values
            if all(of_body[s] == of_calls[n] for s, n in (*row.items(), *made.states)):  # type: ignore[index]
                break
        else:
            return
        for statement, found in of_body.items():
            same = [n for n, v in of_calls.items() if v == found and n not in members and is_free(n)]
            call = made.calls[made.statements.index(statement)]
            same = [n for n in same if signature_of(n) == signature_of(call)]
            if statement not in row and found is not None and same:
                row[statement] = same[0]
                members.add(same[0])
        made.first, made.steps = made.first - 1, made.steps + 1
        made.rows[made.first] = row
        made.series = [[n, *nodes] for n, nodes in zip(series, made.series, strict=True)]  # type: ignore[list-item]
        made.states = [(s, c) for (s, _), c in zip(made.states, start, strict=True)]

    def _values_of_first(
        self, made: Recurrence, series: Sequence[Node | None], peeled: list[Node], start: Sequence[float]
    ) -> tuple[dict[Group, Any], dict[Node, Any]] | None:
        """What the statements of a step compute of some first states, and what the first calls compute.

        Equal instructions of equal operands are equal numbers; of what is no tensor, there is none.
        """
        kept = [s for s in made.statements if s in made.outputs()]
        tensors = [n for n in peeled if isinstance(value(n), Tensor)]

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            states = [torch.full_like(given[0], number) for number in start]
            results = made.run([*given[: len(series)], *states, *given[len(series) :]])
            nodes: list[Any] = [*series, *made.constants]
            env: dict[Any, Any] = {node: _as_of(node, t) for node, t in zip(nodes, given, strict=True)}
            for node in peeled:
                args, kwargs = pytree.tree_map_only(Node, lambda a: env.get(a, module_of(a)), (node.args, node.kwargs))
                env[node] = call(node, args, kwargs)
            found = [*(results[made.statements.index(s)] for s in kept), *(env[n] for n in tensors)]
            return tuple(t.to(made.dtype).expand_as(given[0]) for t in found)

        try:
            found = trace(step, (len(series) + len(made.constants), 0, 0), made.dtype, len(made.shape)).outputs
        except NotElementwiseError:
            return None
        of_body = dict.fromkeys(made.statements) | dict(zip(kept, found))  # noqa: B905
        of_calls = dict.fromkeys(peeled) | dict(zip(tensors, found[len(kept) :], strict=True))
        return of_body, of_calls

    def given(self, made: Recurrence, column: list[Any]) -> Any:
        """The argument of a statement that comes from outside."""
        if not isinstance(column[0], Node):
            if any(a != column[0] for a in column):
                raise UnmergedError("a number differs from step to step")
            return column[0]
        if all(a is column[0] for a in column) and isinstance(body := module_of(column[0]), GraphModule):
            return body
        _check_given(made, *column)
        if all(a is column[0] for a in column):
            return Slot("constant", _enter(made.constants, column[0]))
        if len(column) < made.steps:
            column = next((nodes for nodes in made.series if nodes[:-1] == column), column)
        if len(column) < made.steps:
            raise UnmergedError("its steps are not all alike")
        return Slot("series", _enter(made.series, column))


def _check_given(made: Recurrence, *nodes: Any) -> None:
    for n in nodes:
        t = value(n) if isinstance(n, Node) else None
        if not isinstance(t, Tensor) or t.dtype not in (made.dtype, torch.bool) or t.device != made.device:
            raise UnmergedError("takes tensors of another dtype or device")
        if signature_of(n) != signature_of(nodes[0]):
            raise UnmergedError("its inputs have other shapes at other steps")


def _place(node: Node) -> Any:
    """What two calls of one place in the user's code have in common, whose arguments may be numbers or tensors."""
    return node.stack_trace, name_of(node.target), node.meta["context"]


def _is_before(node: Node, first: Node) -> bool:
    """Whether a node may be the one before the first of a series."""
    if node.op != "call_function" or node.target is not first.target or signature_of(node) != signature_of(first):
        return False
    part, other = index_of(node), index_of(first)
    alike = part[:2] == other[:2] if part and other else node.stack_trace == first.stack_trace
    return alike and bool(node.meta["context"] == first.meta["context"])


def _enter(found: list[Any], entry: Any) -> int:
    if entry not in found:
        found.append(entry)
    return found.index(entry)


def _leaves(node: Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))


def _as_of(node: Node, t: Tensor) -> Tensor:
    """A tensor of a program, in which truth values are numbers, as what a node takes."""
    return t.to(torch.bool) if _tensor(node).dtype == torch.bool else t


def _tensor(node: Node) -> Tensor:
    return tensors_of(node)[0]
