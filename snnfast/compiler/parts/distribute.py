"""Distribute the statements of loops over parts (R. Allen and K. Kennedy, 1987).

Statements that wait for one another over the steps, which are the strongly connected parts of the graph of what waits
for what, must run step by step: as a program, if they are elementwise, or one call after the other. All others become
one call for all steps each.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from snnfast.compiler.emit.sums import is_running_sum
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.dependence import cycles, in_order, reached, reverse
from snnfast.compiler.graph.nodes import LEAST, is_pointwise, name_of, series_key, step_of, updates_statistics, value
from snnfast.compiler.loop.loop import Statement
from snnfast.compiler.loop.roll import Rolled, describe_arguments, may_roll
from snnfast.compiler.parts.base import Part
from snnfast.compiler.parts.call import Call
from snnfast.compiler.parts.index import Index
from snnfast.compiler.parts.program import Program
from snnfast.compiler.parts.program_of import program_of
from snnfast.compiler.parts.repeat import Repeat, can_repeat
from snnfast.compiler.parts.unroll import Unroll

WAITS = "each call needs the result of an earlier one"
SUMS = "each call takes its own result of the step before, as a running sum does"

_ODD_STEPS = 4
"""How many of the first and last steps may differ from the others."""


class Distributed:
    """All calls of a rolled graph, each as one of a part or by itself.

    Attributes:
        rolled: The loops. Their statements lose the calls that turn out to differ, or that nobody needs.
        parts: In the order of their first calls.
    """

    def __init__(self, rolled: Rolled) -> None:
        self.rolled, self.facts = rolled, rolled.facts
        for layer in rolled.layers:
            if layer.reason is None:
                Unroll([layer, *(rolled.at[u][0] for u in layer.node.users)])
        for statement in rolled.statements:
            if statement.part is None:
                Index([statement]) if statement.is_index else Call([statement])
        self._find_programs()
        self._give_up_cycles()
        if self._join():
            self._give_up_cycles()
        self._drop_dead()
        describe_arguments(rolled, rolled.statements)

    @property
    def parts(self) -> list[Part]:
        order = self.facts.order
        parts = dict.fromkeys(s.part for s in self.rolled.statements)
        return sorted(parts, key=lambda part: min(order[n] for n in part.calls()))

    # ---- what runs before what

    def vertex(self, node: Node) -> Any:
        """The part that a node is a call of, or the node itself."""
        found = self.rolled.at.get(node)
        return found[0].part if found is not None and found[0].is_merged else node

    def before(self, vertex: Any) -> Iterator[Any]:
        """The vertices that a vertex waits for; itself, if it does."""
        part = vertex if isinstance(vertex, Part) else None
        yield from map(self.vertex, vertex.all_input_nodes if part is None else part.reads())
        for node in [vertex] if part is None else part.calls():
            for a in self.facts.before.get(node, ()):
                # A merged batch normalisation updates its running averages in the order of its own calls.
                if not (updates_statistics(node) and self.vertex(a) is vertex):
                    yield self.vertex(a)

    def waits(self) -> dict[Any, set[Any]]:
        """Each vertex with those that it waits for."""
        return {vertex: set(self.before(vertex)) for vertex in dict.fromkeys(map(self.vertex, self.facts.nodes))}

    def in_order(self) -> list[Any]:
        """The vertices, each behind all that it waits for, otherwise in the order of the program.

        A part counts as its last call. So a weight that is computed in the first step is there before all parts.
        """
        order = self.facts.order
        return in_order(self.waits(), lambda v: max(order[n] for n in v.calls()) if isinstance(v, Part) else order[v])

    # ---- programs

    def _find_programs(self) -> None:
        for vertices in cycles(self.waits()):
            statements = [v.statements[0] for v in vertices if isinstance(v, Call)]
            if len(statements) < 2 or any(isinstance(v, Unroll) for v in vertices):
                continue
            # A statement with fewer calls belongs to steps that differ from the others.
            most = max(len(s.calls) for s in statements)
            try:
                self._become_program([s for s in statements if len(s.calls) >= max(LEAST, most - _ODD_STEPS)])
            except UnmergedError as error:
                self._repeat(vertices, f"{WAITS}: {error}")
        for statement in self.rolled.statements:
            # No rule merges these. A program of one statement does, if they are elementwise.
            target = statement.node.target
            alone = isinstance(statement.part, Call) and statement.reason is None
            if alone and (step_of(statement.node) or name_of(target).startswith("autograd_function")):
                try:
                    self._become_program([statement])
                except UnmergedError as error:
                    self._repeat([statement.part], str(error))

    def _become_program(self, statements: Sequence[Statement], instead: Iterable[Program] = ()) -> Program:
        """Let statements be a program, in place of others that had some of them.

        Raises:
            UnmergedError: They are none, or one that lacks a call of those that it is in place of.
        """
        statements = [*statements, *self._that_read_several(statements)]
        found = program_of(statements, self.facts.order, self._is_free)
        calls = set(found.calls())
        if instead and not calls.issuperset(n for s in statements for n in s.calls):
            raise UnmergedError("its steps are not those of the other")
        if found.context.records and any(n in self.facts.written_untracked for n in found.reads()):
            raise UnmergedError("its inputs are changed in place, through .data")
        found.take(self.rolled)
        return found

    def _is_free(self, node: Node) -> bool:
        return node not in self.rolled.at and may_roll(self.facts, node, self.rolled.loose)

    def _that_read_several(self, statements: Sequence[Statement]) -> list[Statement]:
        """The statements that take the results of a call, such as an ``autograd.Function``, apart.

        Raises:
            UnmergedError: Some steps have no call of theirs.
        """
        several = [s for s in statements if not isinstance(value(s.node), Tensor)]
        users = dict.fromkeys(u for s in several for n in s.calls for u in n.users)
        at = self.rolled.at
        for user in users:  # what only a record reads of the last step
            like = next((u for u in users if u.args[1:] == user.args[1:] and u in at), None)
            if like is not None and self._is_free(user) and series_key(user) == series_key(like):
                (statement, row), (source, first), (_, last) = (at[n] for n in (like, like.args[0], user.args[0]))  # type: ignore[index]
                step = source.steps[last] + statement.steps[row] - source.steps[first]
                if statement.at(step) is None:  # or it has one of another loop over the same lines
                    self.rolled.add(statement, user, step)
        if not all(u in at for u in users):
            raise UnmergedError("some of its results are read at some steps only")
        return [s for s in dict.fromkeys(at[u][0] for u in users) if s not in statements]

    def _give_up_cycles(self) -> None:
        """Let statements that still wait for themselves be called one by one."""
        for vertices in cycles(self.waits()):
            self._repeat(vertices, SUMS if len(vertices) == 1 and isinstance(vertices[0], Call) else WAITS)

    def _repeat(self, vertices: Sequence[Any], reason: str) -> None:
        """Let the statements of vertices that wait for one another be called one by one."""
        parts = [v for v in vertices if isinstance(v, Part) and not isinstance(v, Unroll)]
        statements = [s for part in parts for s in part.statements]
        for statement in statements:
            statement.reason, statement.part = reason, Call([statement])
        describe_arguments(self.rolled, statements)
        sums = len(statements) == 1 and is_running_sum(statements[0].calls)  # which the emitter makes one sum
        if statements and len(parts) == len(vertices) and not sums and can_repeat(statements, self.facts):
            Repeat(statements, self.facts.order)

    def _join(self) -> bool:
        """Let programs take in one another, and elementwise calls that are beside them. Returns whether any did.

        What is between two of them is then never written for all steps.
        """
        rest, joined = [p for p in self.parts if isinstance(p, Program) and p.statements[0].reason is None], False
        came_apart: set[frozenset[Statement]] = set()
        while rest:
            found = rest.pop()
            for other in self._beside(found) if found in self.parts else ():
                parts = [found, other] if isinstance(other, Program) else [found]
                statements = frozenset([*found.statements, *other.statements])
                if statements in came_apart:
                    continue
                try:
                    whole = self._become_program([*found.statements, *other.statements], parts)
                except UnmergedError:
                    continue
                apart = whole.apart()
                if len(apart) > 1:
                    came_apart.add(statements)
                    for part in apart:
                        part.take(self.rolled)
                rest += apart
                joined = True
                break
        return joined

    def _beside(self, found: Program) -> Iterator[Part]:
        """Programs and elementwise calls that read a program, or that it reads, with nothing between them."""
        before = self.waits()
        after = reverse(before)
        for other in [*dict.fromkeys(self.before(found)), *after[found]]:
            call = isinstance(other, Call) and is_pointwise(other.statements[0].node.target)
            if not (call and len(other.calls()) >= LEAST) and not isinstance(other, Program):
                continue
            first, second = (other, found) if other in before[found] else (found, other)
            if not any(second in reached(vertex, after) for vertex in after[first] if vertex is not second):
                yield other

    # ---- calls that nobody needs

    def _drop_dead(self) -> None:
        """Drop the calls of last steps that nobody reads. A program and a loop make them anyway."""
        needed: set[Node] = set()
        rest = [self.facts.nodes[-1], *self.facts.effects]
        while rest:
            node = rest.pop()
            if node not in needed:
                needed.add(node)
                part = self.vertex(node)
                rest += part.calls() if isinstance(part, Program | Repeat) else ()
                rest += node.all_input_nodes
        dead = [n for n in self.facts.nodes if n not in needed and n.op == "call_function" and not step_of(n)]
        self.rolled.release(dead)
        self.facts.drop(dead)
        self.rolled.release([s.node for s in self.rolled.statements if len(s.calls) == 1])
