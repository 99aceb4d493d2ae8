"""Equal calls become one: the same index, the same Linear of the same input at every step.

::

    linear = linear(x, W)             linear = linear(x, W)
    y = add(linear, a)                y = add(linear, a)
    linear_1 = linear(x, W)           y_1 = add(linear, b)
    y_1 = add(linear_1, b)
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfast.compiler.graph.memory import Memory, take_place
from snnfast.compiler.graph.nodes import as_leaf, has_effect, is_random, is_step, literal, module_of, value


def run(graph: Graph) -> None:
    memory = Memory(graph)
    shown = {s for n in graph.output_node().all_input_nodes for s in memory.storage[n]}
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        found = value(node)
        key: Any
        held = module_of(node)
        if isinstance(held, Tensor) and held.numel() == 1 and not memory.is_written(node):
            key = "number", held.dtype, held.shape, held.device, repr(held.item())
        elif isinstance(found, int | torch.Size):
            key = "size", str(found)
        elif has_effect(node) or is_random(node) or is_step(node.target) or node.target is as_leaf:
            continue  # each leaf has a gradient of its own
        elif any(map(memory.is_written, (node, *node.all_input_nodes))):
            continue  # the two may see different numbers
        elif node.op != "get_attr" and any(s in shown for s in memory.storage[node]) and not _is_view(node, memory):
            continue  # the caller may change one of the results in place
        else:
            key = node.op, node.target, literal((node.args, node.kwargs)), node.meta["context"]
        first = seen.setdefault(key, node)
        if first is not node:
            take_place(node, first)


def _is_view(node: Node, memory: Memory) -> bool:
    """Whether a node has the memory of an argument: two such nodes share it anyway."""
    given = {s for a in node.all_input_nodes for s in memory.storage[a]}
    return all(s in given for s in memory.storage[node])
