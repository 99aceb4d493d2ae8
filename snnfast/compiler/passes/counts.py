"""Counts become one, where nobody reads them in between: batch normalisation in training counts its calls.

::

    add_ = add_(count, 1)             add_ = add_(count, 2)
    add__1 = add_(add_, 1)
"""

from torch.fx import Graph, Node

from snnfast.compiler.graph.memory import Memory, take_place
from snnfast.compiler.graph.nodes import aten, same_context, value


def run(graph: Graph) -> None:
    memory = Memory(graph)
    for node in graph.nodes:
        seen = [n for s in memory.storage[node] for n in memory.sharing[s] if n.op != "placeholder"]
        before = node.args[0] if _counts(node) and all(map(_counts, seen)) else None  # nothing else has its memory
        while isinstance(before, Node) and _counts(before) and len(before.users) == 1 and same_context(before, node):
            node.args = before.args[0], before.args[1] + node.args[1]
            take_place(before, node)
            before = node.args[0]


def _counts(node: Node) -> bool:
    """Whether a call adds a whole number to a tensor of whole numbers in place. Its result is that tensor."""
    simple = node.target is aten.add_.Tensor and len(node.args) == 2 and not node.kwargs
    return simple and type(node.args[1]) is int and not value(node).is_floating_point()
