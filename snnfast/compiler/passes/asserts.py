"""The conditions of an ``assert`` at all steps are checked at once, behind the last one.

::

    assert = _assert_async(c, "message")        stack = stack([c, c_1])
    assert_1 = _assert_async(c_1, "message")    all = all(stack)
                                                assert = _assert_async(all, "message")
"""

from typing import Any

import torch
from torch.fx import Graph, Node

from snnfast.compiler.calls import aten, insert_call, is_assert, site_of, value
from snnfast.compiler.memory import take_place


def run(graph: Graph) -> None:
    found: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if is_assert(node) and value(node.args[0]).dtype == torch.bool and not value(node.args[0]).dim():
            site = site_of(node).of_any_module.of_line
            found.setdefault((site, node.args[1:], node.meta["context"]), []).append(node)
    for nodes in found.values():
        conditions, last = [node.args[0] for node in nodes], nodes[-1]
        if len(set(conditions)) < 2:
            continue
        stacked = insert_call(last, aten.stack.default, (conditions,), like=last)
        last.args = insert_call(last, aten.all.default, (stacked,), like=last), *last.args[1:]
        for node in nodes[:-1]:
            take_place(node, last)
