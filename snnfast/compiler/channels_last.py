"""Convolutions of a merged graph in channels_last order on the CPU: what ``MultiStep`` does with layers."""

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import Graph, Node

from snnfast._images import conv2d as _convolution
from snnfast._images import max_pool2d as _max_pooling
from snnfast._images.channels_last import profits, turned
from snnfast._images.conv2d import conv2d
from snnfast._images.max_pool2d import max_pool2d
from snnfast._unroll.graph import unroll_steps
from snnfast.compiler.nodes import arguments, aten, name_of, value

_OURS: dict[Any, Any] = dict.fromkeys((torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding), conv2d)
_OURS |= dict.fromkeys((F.max_pool2d, aten.max_pool2d.default), max_pool2d)
for _op, _function in (_convolution.NODES | _max_pooling.NODES).items():
    _OURS |= {_op: _function, _op.default: _function}
_KEEPING = (
    "conv2d", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
    "batch_norm", "relu", "relu_", "dropout", "feature_dropout",
)  # fmt: skip


def use_channels_last(graph: Graph) -> None:
    """Turn what convolutions are given, and turn back what anything else is given."""
    found: set[Node] = set()  # what may be in channels_last order
    back: dict[Node, Node] = {}
    for node in list(graph.nodes):
        given = [n for n in node.all_input_nodes if n in found]
        if _takes_images(node) and not given and profits(value(node.args[0]), value(node.args[1])):
            with graph.inserting_before(node):
                made = graph.call_function(turned, node.args[:1])
            made.meta["example_value"] = value(node.args[0])
            node.update_arg(0, made)
            found.add(made)
            given = [made]
        if given and _keeps(node, found):
            found.add(node)
            continue
        for n in given:
            if isinstance(value(n), Tensor):
                node.replace_input_with(n, _in_order(graph, n, back))


def use_kernels(graph: Graph) -> None:
    """Let convolutions and poolings choose their kernels at each call."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OURS.get(node.target, node.target)


def _is_convolution(node: Node) -> bool:
    return name_of(node.target) == "conv2d"


def _takes_images(node: Node) -> bool:
    """Whether a node is the one convolution of its weight, with a batch; of several, each is one of a time step."""
    if not _is_convolution(node):
        return False
    x, weight = node.args[:2]
    if not isinstance(x, Node) or not isinstance(weight, Node) or value(x).dim() != 4:
        return False
    return sum(_is_convolution(user) for user in weight.users) == 1


def _keeps(node: Node, found: set[Node]) -> bool:
    """Whether a call returns the order that it is given, of ``[T, B, C, H, W]`` or ``[T * B, C, H, W]``."""
    if node.target is unroll_steps:
        return node.args[1] in found  # the currents
    source = node.args[0]
    if not isinstance(source, Node) or source not in found:
        return False
    if node.target is operator.getitem:
        return not isinstance(value(source), Tensor)
    if node.target is aten.flatten.using_ints:
        given = arguments(node)
        return (given["start_dim"], given["end_dim"]) == (0, 1)
    if node.target is aten.unflatten.int:
        return bool(arguments(node)["dim"] == 0)
    return name_of(node.target) in _KEEPING and bool(value(source).dim() == 4)


def _in_order(graph: Graph, node: Node, back: dict[Node, Node]) -> Node:
    if node not in back:
        with graph.inserting_after(node):
            back[node] = graph.call_function(aten.contiguous.default, (node,))
        back[node].meta["example_value"] = value(node)
    return back[node]
