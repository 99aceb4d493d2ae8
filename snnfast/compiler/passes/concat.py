"""A product of concatenated tensors becomes a sum of products, where one tensor waits for the step before.

The product of the input needs no step before it, and is one product for all steps. The product of the last spikes runs
between the steps of a program (see ``parts/program.py``)::

    cat = cat([x, spk], -1)           W_x = slice(W, 1, 0, 4)
    linear = linear(cat, W, b)        W_spk = slice(W, 1, 4, 6)
                                      linear = linear(x, W_x, b)
                                      linear_1 = linear(spk, W_spk)
                                      add = add(linear, linear_1)
"""

from collections import defaultdict
from typing import Any

import torch
from torch.fx import Graph, Node

from snnfast.compiler.graph.dependence import reads
from snnfast.compiler.graph.memory import Memory, erase_unread, replace
from snnfast.compiler.graph.nodes import LEAST, aten, insert_call, same_context, signature_of, site_of, value


def run(graph: Graph) -> None:
    products: dict[Any, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target is aten.linear.default and _parts(node) is not None:
            products[node.args[1:], site_of(node).of_any_module, node.meta["context"]].append(node)
    found = [nodes for nodes in products.values() if len(nodes) >= LEAST]
    if found:
        order, memory = {node: i for i, node in enumerate(graph.nodes)}, Memory(graph)
        for nodes in [nodes for nodes in found if _wait_for_themselves(nodes, order, memory)]:
            weights = _split_weight(nodes[0])
            for node in nodes:
                _sum_of_products(node, weights)


def _wait_for_themselves(nodes: list[Node], order: dict[Node, int], memory: Memory) -> bool:
    parts = [_parts(node) or [] for node in nodes]
    read = {a for node in nodes for a in node.all_input_nodes}.union(*parts)
    if len({tuple(map(signature_of, of)) for of in parts}) > 1 or any(map(memory.is_written, read)):
        return False
    before, later = nodes[1:3]
    waits = [part for part in parts[2] if reads(part, before, order)]
    return bool(waits) and all(signature_of(part) == signature_of(later) for part in waits)


def _parts(node: Node) -> list[Node] | None:
    """The parts that are concatenated along the last dimension, on a CPU, for a product alone; else ``None``."""
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


def _split_weight(node: Node) -> list[Node]:
    """The columns of the weight for each part."""
    found, at = [], 0
    for part in _parts(node) or ():
        width = value(part).shape[-1]
        found.append(insert_call(node, aten.slice.Tensor, (node.args[1], 1, at, at + width), like=node))
        at += width
    return found


def _sum_of_products(node: Node, weights: list[Node]) -> None:
    concatenated: Any = node.args[0]
    modules, total = node.meta["modules"], None
    for i, (part, weight) in enumerate(zip(_parts(node) or (), weights, strict=True)):
        bias = () if i else node.args[2:]
        product = insert_call(node, aten.linear.default, (part, weight, *bias), like=node)
        product.meta["modules"] = (*modules, f"part {i}")  # each part is a site of its own
        if total is not None:
            product = insert_call(node, aten.add.Tensor, (total, product), like=node)
            product.meta["modules"] = (*modules, f"sum {i}")
        total = product
    assert total is not None
    replace(node, total)
    erase_unread(concatenated)
