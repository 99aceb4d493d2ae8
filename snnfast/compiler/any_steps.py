"""One graph for any number of steps.

A graph that was emitted with the numbers of steps as inputs runs for all graphs that roll up to the same form:
:func:`form_of` is equal for two graphs that differ by the numbers of steps alone.
"""

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast.compiler.calls import (
    LEAST,
    aten,
    index_of,
    literal,
    module_of,
    name_of,
    signature_of,
    size_of,
    storage_of,
    tensors_of,
    value,
)
from snnfast.compiler.emit import numbers_as, span
from snnfast.compiler.functions import body_key
from snnfast.compiler.loop import Argument, Each, Of, Same, Statement
from snnfast.compiler.roll import Rolled

_FEW = 64
"""Constants of so many elements are compared by their values."""


def form_of(rolled: Rolled, numbers: list[int]) -> Any:
    """A key that two rolled graphs share if one graph runs for both, given the numbers that follow from the steps."""
    return _Form(rolled, numbers).key()


class _Form:
    def __init__(self, rolled: Rolled, of_steps: list[int]) -> None:
        self._rolled, self._of_steps = rolled, of_steps
        self._statements = {s: i for i, s in enumerate(s for loop in rolled.loops for s in loop.statements)}
        self._singles = [n for n in rolled.facts.nodes if n not in rolled.at]
        self._numbers = {n: i for i, n in enumerate(self._singles)}

    def key(self) -> Any:
        loops = [[self._statement(s) for s in loop.statements] for loop in self._rolled.loops]
        return tuple(map(self._single, self._singles)), tuple(map(tuple, loops))

    def _single(self, node: Node) -> Any:
        found = module_of(node)
        what: Any = _target(node) if node.op.startswith("call") else node.op
        if node.op == "placeholder":
            what = node.op, *(self._input(t) for t in [value(node)] if isinstance(t, Tensor))
        elif node.op == "output":
            # Results without a gradient are detached. Rows of one statement have one alike.
            needs = dict(zip(node.args[0], node.meta["needs_grad"], strict=True))  # type: ignore[arg-type]
            what = node.op, *(needs[run[0]] for run in runs_of(list(needs), self._rolled))
        elif isinstance(found, GraphModule):
            what = body_key(found)
        elif isinstance(found, Tensor):
            what = literal(found.tolist()) if found.numel() <= _FEW else id(found)
        args, kwargs = numbers_as(self._number, (node.args, node.kwargs))
        return what, self._spelled(args), self._spelled(kwargs), node.meta.get("context")

    def _number(self, number: int) -> Any:
        return ("steps", self._of_steps.index(number)) if number in self._of_steps else number

    def _input(self, t: Tensor) -> Any:
        strides = t.stride()
        order = tuple(sorted(range(t.dim()), key=lambda dim: -strides[dim]))
        sizes = tuple(str(self._number(size) if isinstance(size, int) else size) for size in t.shape)
        return sizes, order, t.is_contiguous(), t.dtype, t.device, t.requires_grad

    def _statement(self, s: Statement) -> Any:
        assert s.loop is not None
        ends = s.steps[0], s.loop.length - s.steps[-1], len(s.steps) == s.steps[-1] - s.steps[0] + 1
        what = _target(s.node), s.is_index, signature_of(s.node), s.node.meta["context"], s.reason is None
        return what, ends, self._left(s), tuple(self._argument(a, s) for a in s.args)

    def _left(self, s: Statement) -> int | None:
        """How many rows are behind those that an index reads, if they are few."""
        index = index_of(s.node)
        size = None if index is None else size_of(value(index[0]), index[1])
        left = LEAST if size is None else size - 1 - max(index_of(n)[2] for n in s.calls)  # type: ignore[index]
        return left if left < LEAST else None

    def _argument(self, a: Argument, s: Statement) -> Any:
        if isinstance(a, Of):
            return "of", self._statements[a.statement], a.back, self._spelled(a.first)
        if isinstance(a, Each):
            return "each", self._spelled(a.rows)
        if isinstance(a, Same):
            return "same", self._spelled(a.value)
        last = a.start + a.stride * (len(s.calls) - 1)  # rows in reverse are told from the end
        return "count", literal(a.stride), literal(a.start if a.stride > 0 else last)

    def _spelled(self, tree: Any) -> Any:
        if isinstance(tree, Node):
            place = self._rolled.at.get(tree)
            if place is None:
                return "node", self._numbers[tree]
            (statement, row), length = place, place[0].part.length(place[0])
            return "row", self._statements[statement], row if 2 * row < length else row - length
        if isinstance(tree, list | tuple):
            return "list", *(self._run(run) for run in runs_of(list(tree), self._rolled))
        if isinstance(tree, dict):
            return "dict", *((k, self._spelled(v)) for k, v in sorted(tree.items()))
        return literal(tree)

    def _run(self, run: list[Any]) -> Any:
        return self._spelled(run[0]) if len(run) == 1 else ("rows", self._spelled(run[0]), self._spelled(run[-1]))


def _target(node: Node) -> str:
    """The operator with its overload, or the name of another function."""
    return str(node.target) if isinstance(node.target, OpOverload) else name_of(node.target)


def runs_of(leaves: list[Any], rolled: Rolled) -> list[list[Any]]:
    """Leaves, of which consecutive rows of one statement are together."""
    found: list[list[Any]] = []
    for a in leaves:
        place = rolled.at.get(a) if isinstance(a, Node) else None
        before = rolled.at.get(found[-1][-1]) if found and isinstance(found[-1][-1], Node) else None
        if place is not None and before is not None and place[0] is before[0] and place[1] == before[1] + 1:
            found[-1].append(a)
        else:
            found.append([a])
    return found


def with_rows_together(graph: Graph) -> int:
    """Let a graph return rows of one tensor that follow one another as one tuple, which is of any length.

    Returns how many results there are then.
    """
    output = graph.output_node()
    leaves: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    found: list[Any] = []
    for _, run in groupby(enumerate(leaves), lambda entry: _of_unbind(entry[1], entry[0])):
        nodes = [a for _, a in run]
        source, first = _of_unbind(nodes[0], 0) or (None, 0)
        if source is None or len(nodes) < LEAST:
            found += [_own(a, leaves) for a in nodes]
            continue
        length = len(value(source))
        rows = span(first, first + len(nodes), length)
        with graph.inserting_before(output):
            together = graph.call_function(operator.getitem, (source, rows))
        together.meta |= {"example_value": value(source)[rows], "context": output.meta.get("context")}
        found.append(together)
    output.args = (tuple(found),)
    for node in dict.fromkeys(leaves):
        if isinstance(node, Node) and not node.users:
            graph.erase_node(node)  # a row that shorter loops may not have
    return len(found)


def _own(node: Any, returned: list[Any]) -> Any:
    """A row in memory of its own, unless another result is a view of it."""
    rows = _of_unbind(node, 0)
    if rows is None:
        return node
    others = [
        a for a in returned if isinstance(a, Node) and a is not node and (_of_unbind(a, 0) or (None,))[0] is not rows[0]
    ]
    others += node.graph.find_nodes(op="placeholder")
    storage = storage_of(value(node))
    if any(storage_of(t) == storage for a in others for t in tensors_of(a)):
        return node
    with node.graph.inserting_after(node):
        made: Node = node.graph.call_function(aten.clone.default, (node,))
    made.meta |= node.meta
    return made


def _of_unbind(node: Any, number: int) -> tuple[Node, int] | None:
    """The rows that a node is one of, and its own number less another one."""
    if not isinstance(node, Node) or node.target is not operator.getitem:
        return None
    rows, row = node.args
    if not isinstance(rows, Node) or rows.target is not aten.unbind.int or not isinstance(row, int):
        return None
    return rows, row % len(value(rows)) - number


@dataclass(frozen=True)
class _Place:
    """A node, by its number."""

    number: int


class AnySteps:
    """A graph with the numbers of steps as its first inputs.

    Args:
        graph: It returns a flat tuple, of which some entries may be tuples of rows.
    """

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        returned: Any = graph.graph.output_node().args[0]
        held = [n for n in [*graph.graph.find_nodes(op="placeholder"), *returned] if isinstance(n, Node)]
        times = Counter(storage for n in held for storage in {storage_of(t) for t in tensors_of(n)})
        self._shared = [isinstance(n, Node) and any(times[storage_of(t)] > 1 for t in tensors_of(n)) for n in returned]

    def is_like(self, other: "AnySteps") -> bool:
        """Whether another graph makes the same calls, with the same constants. Their forms must be equal."""
        ours, others = list(self._graph.graph.nodes), list(other._graph.graph.nodes)
        places = [{node: i for i, node in enumerate(nodes)} for nodes in (ours, others)]

        def told(node: Node, place: dict[Node, int]) -> Any:
            args = pytree.tree_map_only(Node, lambda a: _Place(place[a]), (node.args, node.kwargs))
            return node.op, _target(node), literal(args)

        return len(ours) == len(others) and all(
            told(a, places[0]) == told(b, places[1]) for a, b in zip(ours, others, strict=True)
        )

    def __call__(self, steps: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for entry, is_shared in zip(self._graph(*steps, *inputs), self._shared, strict=True):
            rows = entry if isinstance(entry, list | tuple) else [entry]
            # The caller may change a row in place, which autograd does not allow of the results of ``unbind``.
            found += [row.clone() for row in rows] if rows is entry and not is_shared else rows
        return found
