"""Elementwise calls of T copies of a tensor become calls of the tensor itself, which is copied behind them.

``snntorch.spikegen.rate`` computes on copies of an image::

    repeat = repeat(x, [25, 1])       clamp = clamp(x, 0, 1)
    clamp = clamp(repeat, 0, 1)       repeat = repeat(clamp, [25, 1])
"""

from typing import Any

from torch import Tensor
from torch.fx import Graph, map_arg

from snnfast.compiler.graph.memory import erase_unread
from snnfast.compiler.graph.nodes import aten, has_effect, insert_call, is_pointwise, is_random, same_context, value


def run(graph: Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=aten.repeat.default):
        while len(node.users) == 1:
            (reader,) = node.users
            if not is_pointwise(reader.target) or reader.all_input_nodes != [node] or has_effect(reader):
                break
            if is_random(reader) or not same_context(node, reader) or not isinstance(value(reader), Tensor):
                break
            args, kwargs = map_arg((reader.args, reader.kwargs), {node: node.args[0]}.get)
            target: Any = reader.target
            early = insert_call(node, target, args, kwargs, like=node)
            reader.target, reader.args, reader.kwargs = node.target, (early, *node.args[1:]), node.kwargs
            erase_unread(node)
            node = reader
