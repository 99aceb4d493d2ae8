"""A change in place that changes nothing when it is made again is made once.

Such as ``threshold.data.clamp_(min=0)`` at every step::

    clamp_ = clamp_(thr, 0)           clamp_ = clamp_(thr, 0)
    y = mul(x, clamp_)                y = mul(x, clamp_)
    clamp__1 = clamp_(thr, 0)         y_1 = mul(x_1, clamp_)
    y_1 = mul(x_1, clamp__1)
"""

from typing import Any

from torch._ops import OpOverload
from torch.fx import Graph, Node

from snnfast.compiler.graph.memory import Memory, take_place, takes_data
from snnfast.compiler.graph.nodes import changed, literal, name_of

_IDEMPOTENT = ("clamp_", "clamp_min_", "clamp_max_", "relu_", "abs_", "fill_", "zero_", "copy_")


def run(graph: Graph) -> None:
    memory = Memory(graph)
    for writes in memory.writes.values():
        last: Node | None = None
        for node in [n for n in writes if not takes_data(n)]:
            if last is None or not _repeats(node, last, memory):
                last = node
                continue
            taken = node.args[0]
            take_place(node, last)
            while isinstance(taken, Node) and takes_data(taken) and not taken.users:
                source: Any = taken.args[0]
                take_place(taken, source)
                taken = source


def _repeats(node: Node, last: Node, memory: Memory) -> bool:
    """Whether a change is the ``last`` one of its memory once more, and then changes nothing."""
    given, before = (tuple(map(_with_data, n.args)) for n in (node, last))
    others = [a for a in node.all_input_nodes if a is not node.args[0]]
    return (
        node.target is last.target
        and isinstance(node.target, OpOverload)
        and name_of(node.target) in _IDEMPOTENT
        and changed(node) == [node.args[0]]
        and len(memory.storage[changed(node)[0]]) == 1
        and node.meta["context"] == last.meta["context"]
        and literal((given, node.kwargs)) == literal((before, last.kwargs))
        and not any(map(memory.is_written, others))
    )


def _with_data(a: Any) -> Any:
    """The tensor that has the memory of ``x.data``; anything else as it is."""
    while isinstance(a, Node) and takes_data(a):
        a = a.args[0]
    return a
