"""One graph for any number of steps.

A graph that was emitted with the numbers of steps as inputs runs for any others if it is emitted alike for two of them.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast._core.pytorch import compiling
from snnfast.compiler.emit.emitter import span
from snnfast.compiler.graph.memory import erase_unread
from snnfast.compiler.graph.nodes import (
    LEAST,
    aten,
    literal,
    module_of,
    name_of,
    overlaps,
    storage_of,
    tensors_of,
    value,
)

_FEW = 64
"""Constants of so many elements are compared by their values."""


def _target(node: Node) -> Any:
    """The operator with its overload, or the name of another function and the constants that it holds."""
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return name_of(node.target), literal(getattr(node.target, "constants", None))


def with_rows_together(graph: Graph) -> None:
    """Let a graph return rows of one tensor that follow one another as one tuple, which is of any length."""
    output = graph.output_node()
    leaves: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    found: list[Any] = []
    for _, run in groupby(enumerate(leaves), lambda entry: _of_unbind(entry[1], entry[0])):
        nodes = [a for _, a in run]
        source, first = _of_unbind(nodes[0], 0) or (None, 0)
        if source is None or len(nodes) < LEAST:
            found += [_own_row(a, leaves) for a in nodes]
            continue
        length = len(value(source))
        rows = span(first, first + len(nodes), length)
        with graph.inserting_before(output):
            together = graph.call_function(operator.getitem, (source, rows))
        together.meta |= {"example_value": value(source)[rows], "context": output.meta.get("context")}
        found.append(together)
    output.args = (tuple(found),)
    for node in dict.fromkeys(leaves):
        if isinstance(node, Node):
            erase_unread(node)  # a row that shorter loops may not have


def _own_row(node: Any, returned: list[Any]) -> Any:
    """A row in memory of its own, unless another result is a view of it."""
    rows = _of_unbind(node, 0)
    if rows is None or overlaps(value(node)) or sum(a is node for a in returned) > 1:
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
    # A loss of the graph has the gradient of the row that is returned.
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def _of_unbind(node: Any, number: int) -> tuple[Node, int] | None:
    """The rows that a node is one of, and its own number less another one."""
    if not isinstance(node, Node) or node.target is not operator.getitem:
        return None
    rows, row = node.args
    if not isinstance(rows, Node) or rows.target is not aten.unbind.int or not isinstance(row, int):
        return None
    return rows, row % len(value(rows)) - number


def _constant(node: Node) -> Any:
    found = module_of(node)
    return literal(found.tolist()) if isinstance(found, Tensor) and found.numel() <= _FEW else id(found)


class AnySteps:
    """A graph with the numbers of steps as its first inputs.

    Args:
        graph: It returns a flat tuple, of which some entries may be tuples of rows.

    Attributes:
        graph: Its calls.
    """

    def __init__(self, graph: GraphModule) -> None:
        self._module, self._run = graph, cast(Callable[..., Any], graph)
        self.graph = graph.graph
        returned: Any = graph.graph.output_node().args[0]
        held = [n for n in [*graph.graph.find_nodes(op="placeholder"), *returned] if isinstance(n, Node)]
        times = Counter(storage for n in held for storage in {storage_of(t) for t in tensors_of(n)})
        self._shared = [isinstance(n, Node) and any(times[storage_of(t)] > 1 for t in tensors_of(n)) for n in returned]

    def is_like(self, other: "AnySteps") -> bool:
        """Whether another graph makes the same calls, with the same constants."""
        ours, others = list(self.graph.nodes), list(other.graph.nodes)
        places = [{node: i for i, node in enumerate(nodes)} for nodes in (ours, others)]

        def told(node: Node, place: dict[Node, int]) -> Any:
            args = pytree.tree_map_only(Node, lambda a: ("node", place[a]), (node.args, node.kwargs))
            return node.op, _constant(node) if node.op == "get_attr" else _target(node), literal(args)

        return len(ours) == len(others) and all(
            told(a, places[0]) == told(b, places[1]) for a, b in zip(ours, others, strict=True)
        )

    def by(self, backend: Callable[..., Any], steps: Sequence[int], inputs: Sequence[Any]) -> "AnySteps":
        """The graph as another backend of ``torch.compile`` compiles it, for these steps and inputs like these."""
        made = copy.copy(self)
        with compiling():
            made._run = backend(self._module, [*steps, *inputs])
        return made

    def __call__(self, steps: Sequence[int], inputs: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for entry, is_shared in zip(self._run(*steps, *inputs), self._shared, strict=True):
            rows = entry if isinstance(entry, list | tuple) else [entry]
            # The caller may change a row in place, which autograd does not allow of the results of ``unbind``.
            found += (
                [row if overlaps(row) else row.clone() for row in rows] if rows is entry and not is_shared else rows
            )
        return found


class ForItsSteps:
    """A graph with the numbers of steps of a call."""

    def __init__(self, graph: AnySteps, steps: Sequence[int]) -> None:
        self._graph, self._steps = graph, steps

    def by(self, backend: Callable[..., Any], inputs: Sequence[Any]) -> "ForItsSteps":
        """The graph as another backend of ``torch.compile`` compiles it, for inputs like these."""
        return ForItsSteps(self._graph.by(backend, self._steps, inputs), self._steps)

    def __call__(self, *inputs: Any) -> list[Any]:
        return self._graph(self._steps, inputs)
