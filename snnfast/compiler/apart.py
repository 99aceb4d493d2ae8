"""Products of what is concatenated: ``linear(torch.cat((x[t], spk), -1))`` becomes a sum of two products.

That of the input needs no step before it, and is one product for all steps. That of the spikes of the step before runs
between the steps of a recurrence (see ``recurrence.py``).
"""

from collections import defaultdict
from typing import Any

import torch
from torch.fx import Graph, Node

from snnfast.compiler.align import LEAST
from snnfast.compiler.functionalize import Memory
from snnfast.compiler.nodes import aten, fake_call, same_context, signature_of, value


def take_products_apart(graph: Graph) -> None:
    """Take those products apart that wait for themselves by a part of what they read."""
    products: dict[Any, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target is aten.linear.default and _parts(node) is not None:
            products[node.args[1:], node.stack_trace, node.meta["context"]].append(node)
    found = [nodes for nodes in products.values() if len(nodes) >= LEAST]
    if found:
        order, memory = {node: i for i, node in enumerate(graph.nodes)}, Memory(graph)
        for nodes in [nodes for nodes in found if _wait_for_themselves(nodes, order, memory)]:
            weights = _split_weight(nodes[0])
            for node in nodes:
                _take_apart(node, weights)


def _wait_for_themselves(nodes: list[Node], order: dict[Node, int], memory: Memory) -> bool:
    parts = [_parts(node) or [] for node in nodes]
    read = {a for node in nodes for a in node.all_input_nodes}.union(*parts)
    if len({tuple(map(signature_of, of)) for of in parts}) > 1 or any(map(memory.is_written, read)):
        return False
    before, later = nodes[1:3]
    waits = [part for part in parts[2] if _reads(part, before, order)]
    return bool(waits) and all(signature_of(part) == signature_of(later) for part in waits)


def _parts(node: Node) -> list[Node] | None:
    """What is concatenated along the last dimension, on a CPU, and read by a product alone."""
    made: Any = node.args[0]
    if made.target is not aten.cat.default or len(made.users) > 1 or node.meta["context"].blocks:
        return None
    if not same_context(made, node):  # under no_grad, what is concatenated has no gradient
        return None
    parts, dim, whole = made.args[0], made.args[1] if len(made.args) > 1 else 0, value(made)
    rank = whole.dim()
    fits = rank > 1 and dim % rank == rank - 1 and whole.is_cpu and whole.dtype in (torch.float32, torch.float64)
    fits = fits and len(set(parts)) == len(parts) > 1
    alike = all(value(part).dim() == rank and isinstance(value(part).shape[-1], int) for part in parts)
    return list(parts) if fits and alike else None


def _reads(node: Node, wanted: Node, order: dict[Node, int]) -> bool:
    """Whether a node needs the result of another one."""
    seen, rest = {node}, [node]
    while rest:
        found = rest.pop()
        if found is wanted:
            return True
        new = [a for a in found.all_input_nodes if order[a] >= order[wanted] and a not in seen]
        seen.update(new)
        rest += new
    return False


def _call(before: Node, target: Any, *args: Any, like: Node, modules: Any = ()) -> Node:
    with before.graph.inserting_before(before):
        made = before.graph.call_function(target, args)
    made.meta = {**like.meta, "example_value": fake_call(target, args, {})}
    made.meta["modules"] = (*like.meta["modules"], *modules)
    made.meta.pop("storage", None)
    return made


def _split_weight(node: Node) -> list[Node]:
    """The columns of the weight for each part."""
    found, at = [], 0
    for part in _parts(node) or ():
        width = value(part).shape[-1]
        found.append(_call(node, aten.slice.Tensor, node.args[1], 1, at, at + width, like=node))
        at += width
    return found


def _take_apart(node: Node, weights: list[Node]) -> None:
    made: Any = node.args[0]
    parts, bias = _parts(node) or [], node.args[2:]
    total: Node | None = None
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        # Each part is a place of its own in the user's code.
        added = () if i else bias
        product = _call(node, aten.linear.default, part, weight, *added, like=node, modules=[f"part {i}"])
        if total is not None:
            product = _call(node, aten.add.Tensor, total, product, like=node, modules=[f"sum {i}"])
        total = product
    assert total is not None
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)
    node.graph.erase_node(made)
