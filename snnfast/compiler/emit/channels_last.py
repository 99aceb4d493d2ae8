"""The memory order of images: convolutions are given channels_last order, other calls the order of the loop."""

import operator
from collections import Counter
from typing import Any, cast

from torch import Tensor
from torch.fx import Graph, Node

from snnfast._images.batch_norm import batch_norm, batch_norm_of_constant
from snnfast._images.channels_last import OPS_THAT_KEEP_ORDER, in_usual_order, profits, to_channels_last
from snnfast._unroll.graph import unroll, unroll_steps
from snnfast.compiler.emit.norm import normed_unroll, normed_unroll_steps
from snnfast.compiler.graph.nodes import aten, is_pointwise, may_alias, name_of, storage_of, tensors_of, value
from snnfast.compiler.parts.program import Unrolled

_RESHAPING = (aten.flatten.using_ints, aten.unflatten.int, aten.reshape.default, aten.view.default)
_MOVING = (aten.movedim.int, aten.transpose.int)


def use_channels_last(graph: Graph) -> int:
    """Give convolutions their input in channels_last order, as ``MultiStep`` does, and other calls theirs as it was.

    Returns how many of them have it.
    """
    convolutions = 0
    found: set[Node] = set()  # what may be in channels_last order
    back: dict[Node, Node] = {}
    results = Counter(storage_of(t) for n in graph.output_node().all_input_nodes for t in tensors_of(n))
    shared = {storage for storage, views in results.items() if views > 1}
    for node in list(graph.nodes):
        given = [n for n in node.all_input_nodes if n in found]
        if _takes_images(node) and not given and profits(value(node.args[0]), value(node.args[1])):
            with graph.inserting_before(node):
                made = graph.call_function(to_channels_last, node.args[:1])
            made.meta = {"example_value": value(node.args[0]), "context": node.meta["context"]}
            node.update_arg(0, made)
            found.add(made)
            given = [made]
        convolutions += _is_convolution(node) and bool(given)
        # Results that share memory are views of one tensor, which goes back as a whole.
        is_view = may_alias(node.target) and isinstance(value(node), Tensor) and storage_of(value(node)) in shared
        if given and not is_view and _keeps(node, found):
            found.add(_reshaped_in_order(graph, node) if node.target in _RESHAPING else node)
            continue
        for n in given:
            if isinstance(value(n), Tensor):
                node.replace_input_with(n, _in_order(graph, n, back))
    return convolutions


def _is_convolution(node: Node) -> bool:
    return name_of(node.target) == "conv2d"


def _takes_images(node: Node) -> bool:
    """Whether a node is a convolution of a batch, and the only one of its weight. Of several, each is a time step."""
    if not _is_convolution(node):
        return False
    x, weight = node.args[:2]
    if not isinstance(x, Node) or not isinstance(weight, Node) or value(x).dim() != 4:
        return False
    return sum(_is_convolution(user) for user in weight.users) == 1


def _keeps(node: Node, found: set[Node]) -> bool:
    """Whether a call returns the order that it is given, of ``[T, B, C, H, W]`` or ``[T * B, C, H, W]``."""
    if node.target in (unroll_steps, unroll, normed_unroll):
        return node.args[1] in found  # the currents
    if node.target in (batch_norm, batch_norm_of_constant, normed_unroll_steps):
        return node.args[0] in found
    if isinstance(node.target, Unrolled):
        return not node.target.dims and all(n in found for n in node.target.series(node))
    source = node.args[0]
    if not isinstance(source, Node) or source not in found:
        return False
    if node.target is operator.getitem:
        return not isinstance(value(source), Tensor)
    if node.target in _RESHAPING or node.target in _MOVING:  # of what is before the channels
        both = value(source).shape, value(node).shape
        return all(len(shape) >= 4 for shape in both) and both[0][-3:] == both[1][-3:]
    if node.target is aten.expand.default:  # over time
        return bool(value(node).dim() == value(source).dim() + 1)
    if is_pointwise(node.target) or name_of(node.target) == "dropout":
        others = (n for n in node.all_input_nodes if isinstance(value(n), Tensor))  # a size is a number
        return all(n in found for n in others if value(n).dim() >= value(source).dim())
    if name_of(node.target) in ("sum", "mean"):  # whose result is read in any order, as what it is of
        return True
    return name_of(node.target) in OPS_THAT_KEEP_ORDER and bool(value(source).dim() == 4)


def _reshaped_in_order(graph: Graph, node: Node) -> Node:
    """The result of a call that gives images other dimensions before the channels.

    Where it, or its backward pass, copies, the channels of a pixel stay side by side.
    """
    source, others = cast(Node, node.args[0]), node.args[1:]
    if node.target in (aten.reshape.default, aten.view.default):
        sizes = cast(list[Any], others[0])
        node.target, others = aten.reshape.default, ([*sizes[:-3], *sizes[-2:], sizes[-3]],)
    with graph.inserting_before(node):
        moved = graph.call_function(aten.movedim.int, (source, -3, -1))
    with graph.inserting_after(node):
        found = graph.call_function(aten.movedim.int, (node, -1, -3))
    node.replace_all_uses_with(found, lambda user: user is not found)
    node.args = moved, *others
    found.meta = dict(node.meta)
    moved.meta = {"example_value": value(source).movedim(-3, -1), "context": node.meta["context"]}
    node.meta["example_value"] = value(node).movedim(-3, -1)
    return found


def _in_order(graph: Graph, node: Node, back: dict[Node, Node]) -> Node:
    if node not in back:
        with graph.inserting_after(node):
            back[node] = graph.call_function(in_usual_order, (node,))
        back[node].meta = {"example_value": value(node), "context": node.meta["context"]}
    return back[node]
