"""The gates of a cell become calls of their own size, so that a step of it is products and elementwise calls.

A cell of PyTorch is spelled out, and what is cut into gates is cut before it is computed. The products then run between
the steps of a program (see ``parts/program.py``)::

    linear = linear(x, W)             linear = linear(x, W)
    linear_1 = linear(h, V)           linear_1 = linear(h, V)
    add = add(linear, linear_1)       slice = slice(linear, -1, 0, 2)
    chunk = chunk(add, 2, -1)         slice_1 = slice(linear_1, -1, 0, 2)
    getitem = chunk[0]                add = add(slice, slice_1)
    ...                               ...
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg

from snnfast.compiler.graph.dependence import reads
from snnfast.compiler.graph.memory import Memory, erase_unread, replace, take_place
from snnfast.compiler.graph.nodes import (
    LEAST,
    arguments,
    aten,
    insert_call,
    is_pointwise,
    name_of,
    same_context,
    tensors_of,
    value,
)

_IN_PIECES = ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
_PRODUCTS = ("linear", "mm", "matmul")
_Cut = tuple[Node, Node, int]
"""A call that cuts a tensor, one of the pieces, and where it begins."""


def run(graph: Graph) -> None:
    products = _that_wait(graph)
    if not products:
        return
    for node in [n for n in products if name_of(n.target) in _CELLS]:
        products.discard(node)
        products.add(_spell_out(node))
    memory, results = Memory(graph), set(graph.output_node().all_input_nodes)
    for node in reversed(_computed_of(products, graph)):  # before what they are computed of
        cuts = _cuts(node)
        if cuts and not any(n in results or memory.is_written(n) for n in (node, *(piece for _, piece, _ in cuts))):
            _cut(node, cuts)


def _that_wait(graph: Graph) -> set[Node]:
    """The products and cells with one weight of which each needs the one before; on the CPU, in a dtype of programs."""
    of_weights: dict[Any, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        name = name_of(node.target)
        if (name in _CELLS or name in _PRODUCTS) and _is_usual(node):
            of_weights[node.target, node.args[2 if name in _CELLS else 1 :]].append(node)
    several = [nodes for nodes in of_weights.values() if len(nodes) >= LEAST]
    order = {node: i for i, node in enumerate(graph.nodes)} if several else {}
    return {node for nodes in several if reads(nodes[2], nodes[1], order) for node in nodes}


def _is_usual(node: Node) -> bool:
    tensors = [t for a in node.all_input_nodes for t in tensors_of(a)]
    usual = all(t.is_cpu and t.dtype in (torch.float32, torch.float64) for t in tensors)
    return usual and not node.meta["context"].blocks and isinstance(tensors[0].shape[-1], int)


# ---- cells


def _spell_out(node: Node) -> Node:
    """Write a cell as the calls that PyTorch makes of it on the CPU. Returns the product of its state."""
    count = itertools.count()

    def call(target: Any, *args: Any) -> Node:
        made = insert_call(node, target, args, like=node)
        made.meta["modules"] = (*node.meta["modules"], f"call {next(count)}")  # each is a site of its own
        return made

    given = arguments(node)
    states: Any = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
    x = call(aten.linear.default, given["input"], given["w_ih"], *_bias(given["b_ih"]))
    h = call(aten.linear.default, states[0], given["w_hh"], *_bias(given["b_hh"]))
    width, wide = value(states[0]).shape[-1], value(x).shape[-1]
    gates = [[x, h]]
    if wide > width:
        begins = range(0, wide, width)
        gates = [[call(aten.slice.Tensor, t, 1, begin, begin + width) for t in (x, h)] for begin in begins]
    results = _CELLS[name_of(node.target)](call, gates, *states)
    for user in list(node.users) if isinstance(results, tuple) else []:
        number: Any = user.args[1]
        replace(user, results[number])
    if isinstance(results, Node):
        replace(node, results)
    else:
        erase_unread(node)
    return h


def _bias(bias: Node | None) -> tuple[Node, ...]:
    return () if bias is None else (bias,)


def _lstm(call: Any, gates: list[list[Node]], _: Node, c: Node) -> tuple[Node, Node]:
    i, f, g, o = (call(aten.add.Tensor, h, x) for x, h in gates)
    i, f, o = (call(aten.sigmoid.default, gate) for gate in (i, f, o))
    kept = call(aten.mul.Tensor, f, c)
    c = call(aten.add.Tensor, kept, call(aten.mul.Tensor, i, call(aten.tanh.default, g)))
    return call(aten.mul.Tensor, o, call(aten.tanh.default, c)), c


def _gru(call: Any, gates: list[list[Node]], h: Node) -> Node:
    (r_x, r_h), (z_x, z_h), (n_x, n_h) = gates
    r = call(aten.sigmoid.default, call(aten.add.Tensor, r_h, r_x))
    z = call(aten.sigmoid.default, call(aten.add.Tensor, z_h, z_x))
    new = call(aten.tanh.default, call(aten.add.Tensor, n_x, call(aten.mul.Tensor, n_h, r)))
    return call(aten.add.Tensor, call(aten.mul.Tensor, call(aten.sub.Tensor, h, new), z), new)  # type: ignore[no-any-return]


def _rnn(function: Any, call: Any, gates: list[list[Node]], _: Node) -> Node:
    ((x, h),) = gates
    return call(function, call(aten.add.Tensor, h, x))  # type: ignore[no-any-return]


_CELLS: dict[str, Callable[..., Any]] = {
    "lstm_cell": _lstm,
    "gru_cell": _gru,
    "rnn_tanh_cell": partial(_rnn, aten.tanh.default),
    "rnn_relu_cell": partial(_rnn, aten.relu.default),
}


# ---- what is cut into gates


def _cuts(node: Node) -> list[_Cut]:
    """The pieces of a result of products along its last dimension, if nothing else is read of it."""
    found: list[_Cut] = []
    for user in node.users:
        if user.target is aten.slice.Tensor and same_context(user, node):
            given = arguments(user)
            width, rank = value(node).shape[-1], value(node).dim()
            begin, end = given["start"] or 0, width if given["end"] is None else min(given["end"], width)
            if given["dim"] % rank != rank - 1 or given["step"] != 1 or begin < 0 or end <= begin:
                return []
            found.append((user, user, begin))
        elif name_of(user.target) in _IN_PIECES and same_context(user, node):
            begin, shapes = 0, [t.shape for t in tensors_of(user)]
            if any(shape[:-1] != value(node).shape[:-1] for shape in shapes):
                return []
            at = [0, *itertools.accumulate(shape[-1] for shape in shapes)]
            found += [(user, piece, at[piece.args[1]]) for piece in user.users]  # type: ignore[index]
        else:
            return []
    return found


def _computed_of(products: set[Node], graph: Graph) -> list[Node]:
    """The products, and elementwise calls of them, in order."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        given = [a for a in node.all_input_nodes if a in found] if _is_elementwise(node) else []
        if node in products or any(value(a).shape == value(node).shape for a in given):
            found[node] = None
    return list(found)


def _is_elementwise(node: Node) -> bool:
    return is_pointwise(node.target) and isinstance(value(node), Tensor)


def _cut(node: Node, cuts: list[_Cut]) -> None:
    """Cut the tensors that an elementwise call takes, in place of its result; the result of a product itself."""
    width = value(node).shape[-1]
    for _, piece, begin in cuts:
        end, count = begin + value(piece).shape[-1], itertools.count()

        def call(
            target: Any, args: Any, kwargs: Any = None, piece: Node = piece, begin: int = begin, count: Any = count
        ) -> Node:
            made = insert_call(piece, target, args, kwargs, like=piece)
            made.meta["modules"] = (*piece.meta["modules"], f"piece {next(count)} at {begin}")
            return made

        def of_piece(a: Node, call: Any = call, begin: int = begin, end: int = end) -> Node:
            t = value(a)
            if not isinstance(t, Tensor) or t.dim() == 0 or t.shape[-1] != width:
                return a
            return call(aten.slice.Tensor, (a, t.dim() - 1, begin, end))  # type: ignore[no-any-return]

        if _is_elementwise(node):
            args, kwargs = map_arg((node.args, node.kwargs), of_piece)
            made = call(node.target, args, kwargs)
        elif piece.target is aten.slice.Tensor:
            continue
        else:
            made = of_piece(node)
        take_place(piece, made)
    for user in dict.fromkeys(user for user, *_ in cuts):
        if not user._erased:
            erase_unread(user)
    erase_unread(node)
