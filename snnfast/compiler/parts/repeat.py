"""Statements that are called one by one: a loop of the new graph, whose body is a graph of one step."""

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.nn import Module
from torch.utils import _pytree as pytree

from snnfast._unroll.graph import as_function
from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.emit.kernels import use_kernels
from snnfast.compiler.graph.nodes import are_alike, aten, is_step, value
from snnfast.compiler.loop.facts import Facts
from snnfast.compiler.loop.loop import Argument, Count, Each, Of, Same, Statement
from snnfast.compiler.parts.base import Part


class Repeat(Part):
    """Statements that make all calls of a step before those of the next one."""

    kind = "Repeat"

    def __init__(self, statements: Sequence[Statement], order: dict[Node, int]) -> None:
        super().__init__(sorted(statements, key=lambda s: order[s.node]))
        self._call: Any = None
        self._body = Graph()

    def reads(self) -> list[Node]:
        own = set(self.calls())
        return [a for a in super().reads() if a not in own]

    def emit(self, to: Emitter) -> None:
        inputs: dict[Argument, Node] = {}
        made: dict[Statement, Node] = {}
        inside = set(self.statements)

        def given(a: Argument, row: tuple[Any, ...]) -> Any:
            if isinstance(a, Of) and a.statement in inside and a.back == 0:
                return made[a.statement]
            if isinstance(a, Same) and not isinstance(to.with_numbers(a.value), Node):
                return a.value
            # Rows of other statements are told by the nodes themselves.
            a = Each(row) if isinstance(a, Of) and a.statement not in inside else a
            if a not in inputs:
                inputs[a] = self._body.placeholder(f"input_{len(inputs)}")
            return inputs[a]

        for s in self.statements:
            node = s.node
            leaves = [given(a, row) for a, row in zip(s.args, s.columns(), strict=True)]
            args, kwargs = pytree.tree_unflatten(leaves, pytree.tree_structure((node.args, node.kwargs)))
            made[s] = self._body.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
            made[s].meta = {**node.meta}
            as_function(made[s])
        self._body.output(tuple(made.values()))
        results = {s: i for i, s in enumerate(self.statements)}
        sources = [a._replace(statement=results[a.statement]) if isinstance(a, Of) else a for a in inputs]  # type: ignore[arg-type]
        filled = [self._input(a, to) for a in inputs]
        repeated = Repeated(GraphModule(Module(), self._body), sources)
        self._call = to.call(repeated, *filled, steps=to.times(self.statements[0]))

    def _input(self, a: Argument, to: Emitter) -> Any:
        """The input of the loop for an argument of its body."""
        if isinstance(a, Same):
            return to.get(a.value) if isinstance(a.value, Node) else to.with_numbers(a.value)
        if isinstance(a, Of):
            return [to.get(n) if isinstance(n, Node) else n for n in a.first]
        if isinstance(a, Each) and isinstance(a.rows[0], Node):
            rows = list(a.rows)
            whole = all(isinstance(value(n), Tensor) for n in rows) and are_alike(rows) and any(map(to.place, rows))
            return to.over_time(rows) if whole else [to.get(n) for n in rows]
        return None

    def each(self, statement: Statement, to: Emitter) -> Any:
        return to.result_of(self._call, self.statements.index(statement))

    def whole(self, statement: Statement, to: Emitter) -> Node:
        rows = self.each(statement, to)
        return to.behind(rows, aten.stack.default, rows)

    def finish(self, to: Emitter) -> None:
        use_kernels(self._body)
        self._call.target.body.recompile()


def repeat(statement: Statement, reason: str, to: Emitter) -> None:
    """Write a statement that can't be merged: as a loop, or as the calls themselves."""
    statement.reason = reason
    if can_repeat([statement], to.facts):
        Repeat([statement], to.facts.order).emit(to)
    else:
        to.new |= {node: to.copy(node) for node in statement.calls}


def can_repeat(statements: Sequence[Statement], facts: Facts) -> bool:
    """Whether a loop can make the calls: all statements are at the same steps, and do nothing but compute."""
    first, own = statements[0], {n for s in statements for n in s.calls}
    given = [a for s in statements for a in s.args if isinstance(a, Each)]
    return not any(own.intersection(a.rows) for a in given) and all(
        s.steps == first.steps
        and len(s.steps) == s.steps[-1] - s.steps[0] + 1
        and not s.is_index
        and s.node.meta["context"] == first.node.meta["context"]
        and (isinstance(s.node.target, OpOverload) or s.node.target is operator.getitem or is_step(s.node.target))
        and not facts.effects.intersection(s.calls)
        and not facts.written_untracked.intersection(a for n in s.calls for a in n.all_input_nodes)
        and len(s.alike()) == len(s.calls)
        and all(len(a.first) == a.back for a in s.args if isinstance(a, Of) and a.statement in statements)
        and own.isdisjoint(n for a in s.args if isinstance(a, Of) for n in a.first if isinstance(n, Node))
        for s in statements
    )


class Repeated:
    """A loop over the steps as a function of what its body takes.

    Args:
        body: A step. It returns a tuple of results.
        sources: Where it finds each input: ``Of`` has the number of a result in place of the statement.
    """

    __name__ = __qualname__ = "repeated"

    def __init__(self, body: GraphModule, sources: Sequence[Any]) -> None:
        self.body, self.sources = body, sources

    @property
    def constants(self) -> Any:
        """The calls of its body, and the constants of its sources, to compare it with others."""
        places = {node: i for i, node in enumerate(self.body.graph.nodes)}
        calls = [(n.op, str(n.target), *pytree.tree_map_only(Node, places.get, (n.args, n.kwargs))) for n in places]
        return calls, [_own_of(a) for a in self.sources]

    def __call__(self, *inputs: Any, steps: int) -> tuple[list[Any], ...]:
        rows = [_rows(a, x, steps) for a, x in zip(self.sources, inputs, strict=True)]
        states = [(rows[i], a.statement) for i, a in enumerate(self.sources) if isinstance(a, Of)]
        step, results = self.body.forward, []
        for t in range(steps):
            found = step(*[every[t] for every in rows])
            for every, number in states:
                every.append(found[number])
            results.append(found)
        return tuple(map(list, zip(*results, strict=True)))


def _own_of(a: Any) -> Any:
    """The constants of a source, which are no nodes of the graph."""
    if isinstance(a, Of):
        return a.statement, a.back
    return [b for b in (a.rows if isinstance(a, Each) else a) if not isinstance(b, Node)]


def _rows(a: Any, x: Any, steps: int) -> Any:
    """An input of each step. Those of a state grow with the steps."""
    if isinstance(a, Same):
        return [x] * steps
    if isinstance(a, Count):
        return [a.start + a.stride * t for t in range(steps)]
    if isinstance(a, Of):
        return list(x)
    return a.rows if x is None else x.unbind(0) if isinstance(x, Tensor) else x
