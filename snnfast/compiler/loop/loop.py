"""The rolled form of a loop over time: each call of its body once.

A :class:`Statement` is one call of the body. Its arguments say where a step finds them: at a statement of this step or
of an earlier one (:class:`Of`), in another row at every step (:class:`Each`), in the same place at all steps
(:class:`Same`), or in a number that grows with the step (:class:`Count`). What a first step reads in place of an
earlier one is the initial value. ``print(loop)`` reads as the body of the user's loop.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.graph.nodes import LEAST, index_of, is_number, is_step, literal
from snnfast.compiler.printing import Names, place_of, text_of


class Of(NamedTuple):
    """The result of a statement, ``back`` steps before this one.

    ``first`` holds what the first steps read instead: nodes outside of the statement, numbers, or ``None``, which is a
    state of zeros.
    """

    statement: Statement
    back: int
    first: tuple[Any, ...] = ()


class Each(NamedTuple):
    """Another node or number at every step."""

    rows: tuple[Any, ...]


class Same(NamedTuple):
    """One node or constant for all steps."""

    value: Any


class Count(NamedTuple):
    """The number ``start + stride * row``, where ``row`` counts the calls of the statement."""

    start: int | float
    stride: int | float


Argument = Of | Each | Same | Count


@dataclass(eq=False)
class Statement:
    """One call of the body of a loop.

    Attributes:
        calls: The call of each step that has one, in order. The first one may be another operator, which a program has
            taken in.
        steps: The steps of the loop at which they are. Steps at the ends may lack a call, as may a few others.
        args: The arguments, as leaves of ``(args, kwargs)``. An index has its tensor, its dimension and its place.
        reason: Why the calls are made one by one; ``None`` if they need not be.
    """

    calls: list[Node]
    steps: list[int] = field(default_factory=list)
    args: list[Argument] = field(default_factory=list)
    reason: str | None = None
    loop: Loop | None = None
    part: Any = None

    @property
    def node(self) -> Node:
        """A call that stands for all of them."""
        return self.calls[-1]

    def alike(self) -> list[tuple[int, Node]]:
        """The calls that are this very call of the body, with their steps."""
        every, last = list(zip(self.steps, self.calls, strict=True)), self.calls[-1]
        spec = pytree.tree_structure((last.args, last.kwargs))
        return [
            (step, n)
            for step, n in every
            if self.is_index or (n.target is last.target and pytree.tree_structure((n.args, n.kwargs)) == spec)
        ]

    def columns(self) -> list[tuple[Any, ...]]:
        """Each argument of all calls."""
        return list(zip(*(leaves_of(n) for _, n in self.alike()), strict=True))

    @property
    def is_merged(self) -> bool:
        """Whether one call of the new graph has all results."""
        return self.reason is None or (self.part is not None and self.part.kind == "Repeat")

    @property
    def is_index(self) -> bool:
        return index_of(self.node) is not None

    def at(self, step: int) -> Node | None:
        """The call at a step of the loop."""
        row = step - self.steps[0]
        if 0 <= row < len(self.calls) and self.steps[row] == step:
            return self.calls[row]
        return dict(zip(self.steps, self.calls, strict=True)).get(step)


@dataclass(eq=False)
class Loop:
    """Statements in the order of one step, each of which has a call at nearly all of ``length`` steps."""

    length: int
    statements: list[Statement] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(_Printed(self).lines())

    def unrolled(self) -> Iterator[tuple[Node, Any, list[Any]]]:
        """Each call of the graph that was rolled up, its target, and its arguments as this form tells them."""
        for statement in self.statements:
            for row, (step, node) in enumerate(statement.alike()):
                yield node, statement.node.target, [argument_at(a, step, row) for a in statement.args]


def argument_at(a: Argument, step: int, row: int) -> Any:
    """The argument in the call of a statement at a step."""
    if isinstance(a, Same):
        return a.value
    if isinstance(a, Each):
        return a.rows[row]
    if isinstance(a, Count):
        return a.start + a.stride * row
    return a.first[row] if row < len(a.first) else a.statement.at(step - a.back)


def leaves_of(node: Node) -> list[Any]:
    """The arguments of a call. An index has its tensor, its dimension and its place."""
    index = index_of(node)
    return list(index) if index is not None else pytree.tree_leaves((node.args, node.kwargs))


def argument_of(
    column: list[Any], steps: list[int], loop: Loop | None, found: dict[Node, tuple[Statement, int]]
) -> Argument:
    """The rolled form of an argument of a statement.

    Args:
        column: The argument of each call.
        steps: The steps of the calls.
        loop: That of the statement.
        found: The statement of each node that is in one.
    """
    first = column[0]
    if all(is_same(a, first) for a in column):
        return Same(first)
    if all(map(is_number, column)):
        stride = column[1] - first
        regular = all(is_same(a, first + stride * row) for row, a in enumerate(column))  # 0.0 and -0.0 differ
        return Count(first, stride) if regular else Each(tuple(column))
    source = found.get(column[-1]) if isinstance(column[-1], Node) else None
    if source is not None and source[0].loop is loop:
        other = source[0]
        back = steps[-1] - other.steps[other.calls.index(column[-1])]
        rows = [a is not None and a is other.at(step - back) for step, a in zip(steps, column, strict=True)]
        begin = rows.index(True)
        if all(rows[begin:]) and begin < LEAST and back >= 0:
            return Of(other, back, tuple(column[:begin]))
    return Each(tuple(column))


def is_same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same node, or constants of one type and value."""
    return a is b if isinstance(a, Node) or isinstance(b, Node) else literal(a) == literal(b)


class _Printed:
    """A loop as lines of text: its statements have letters, and what is outside of it the names of a graph."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._outside = loop, Names(first=1)
        self._at = {n: (s, step) for s in loop.statements for n, step in zip(s.calls, s.steps, strict=True)}
        results: dict[Statement, dict[int, Statement]] = defaultdict(dict)
        for s in loop.statements:
            if s.node.target is operator.getitem and not s.is_index:
                source, number = s.args
                if isinstance(source, Of) and isinstance(number, Same) and source.statement in loop.statements:
                    results[source.statement][number.value] = s
        parts = {s for found in results.values() for s in found.values()}
        self._made = [s for s in loop.statements if s not in parts]
        self._names: dict[Statement, str] = {}
        letters = map(_letters, count())
        for s in self._made:
            found = results.get(s, {})
            self._names |= {found[i]: next(letters) for i in sorted(found)}
            of_results = [self._names[found[i]] if i in found else "_" for i in range(max(found, default=-1) + 1)]
            self._names[s] = ", ".join(of_results) or next(letters)

    def lines(self) -> list[str]:
        where = next((place for s in self._made if (place := place_of(s.node))), "")
        return [f"loop of {self._loop.length} steps{where}", *map(self._line, self._made)]

    def _line(self, statement: Statement) -> str:
        """``b = linear(a, W, b)  # net.py:16``, and what the first steps read and lack."""
        start, stop = statement.steps[0], statement.steps[-1] + 1
        notes = []
        if statement.part is not None:
            notes = [statement.part.kind if statement.reason is None else f"Repeat: {statement.reason}"]
        if start > 0:
            notes.append(f"from step {start}")
        if stop < self._loop.length:
            notes.append(f"until step {stop - 1}")
        if len(statement.steps) < stop - start:
            notes.append("not at every step")
        args = statement.args if statement.part is None else statement.part.arguments(statement)
        states = [a for a in args if isinstance(a, Of) and a.first]
        notes += dict.fromkeys(f"first {self._of(a)}: {', '.join(map(self._first, a.first))}" for a in states)
        told = f"  {'; '.join(notes)}" * bool(notes)
        return f"  {self._names[statement]} = {self._call(statement)}{told}{place_of(statement.node)}"

    def _call(self, statement: Statement) -> str:
        words = [_Word(partial(self._argument, a, statement)) for a in statement.args]
        if statement.is_index:
            base, _, place = words
            return f"{base}[{':, ' * statement.args[1].value}{place}]"  # type: ignore[union-attr]
        node = statement.node
        args, kwargs = pytree.tree_unflatten(words, pytree.tree_structure((node.args, node.kwargs)))
        if is_step(node.target):
            args = [node.args[0], *args[1:]]
        return text_of(node, args, kwargs, self._outside.spelled)

    def _argument(self, a: Argument, statement: Statement) -> str:
        if isinstance(a, Of):
            return self._of(a)
        if isinstance(a, Same):
            return self._value(a.value)
        first, *others = (step for step, _ in statement.alike())
        if isinstance(a, Count) and others == list(range(first + 1, first + 1 + len(others))):
            return _affine(a.start - a.stride * first, a.stride)
        rows = [argument_at(a, step, row) for row, step in enumerate([first, *others])]
        return f"{{{', '.join(map(self._value, rows[:2]))}, ...}}"

    def _of(self, a: Of) -> str:
        return self._names[a.statement] + f"[-{a.back}]" * bool(a.back)

    def _first(self, a: Any) -> str:
        return "zeros" if a is None else self._value(a)

    def _value(self, a: Any) -> str:
        statement, step = self._at.get(a, (None, 0)) if isinstance(a, Node) else (None, 0)
        if statement is None:
            return self._outside.spelled(a)
        return f"{self._names[statement]} of step {step}"


@dataclass(repr=False)
class _Word:
    """An argument whose text is made if it is printed: what is outside of the loop has its number from then on."""

    text: Callable[[], str]

    def __repr__(self) -> str:
        return self.text()


def _affine(start: float, stride: float) -> str:
    """The number ``start + stride * t``."""
    if stride < 0:
        return f"{start} - {'' if stride == -1 else f'{-stride} * '}t"
    grown = "t" if stride == 1 else f"{stride} * t"
    return grown if start == 0 else f"{grown} {'+' if start > 0 else '-'} {abs(start)}"


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)
