"""Small rewrites around merged calls: a ``Linear`` behind an unroll, sums that grew, the order of images in memory."""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import Graph, Node

from snnfast._images import conv2d as _convolution
from snnfast._images import max_pool2d as _max_pooling
from snnfast._images.batch_norm import batch_norm, over_input
from snnfast._images.channels_last import OPS_THAT_KEEP_ORDER, profits, to_channels_last
from snnfast._images.conv2d import conv2d
from snnfast._images.max_pool2d import max_pool2d
from snnfast._unroll.graph import unroll_steps
from snnfast.compiler.draws import bernoulli
from snnfast.compiler.nodes import arguments, aten, is_pointwise, name_of, size_of, value

# ---- a linear layer that alone reads the spikes of an unroll, as a part of it


def fuse_linear(graph: Graph, unroll: Node, spk: Node, effects: set[Node], call: Any) -> tuple[Any, Any, int] | None:
    """Let the linear layer behind an unroll become a part of it, if it is certain that no number changes.

    Args:
        graph: The graph of all nodes here.
        unroll: The call of the unroll.
        spk: Its result, the spikes ``[T, *]``.
        effects: Calls that must keep their place among the others.
        call: Appends a call to the graph and returns its node.

    Returns:
        The weight, the bias, and how many dimensions of a step are the inputs, which the unroll is to be given.
    """
    between: list[Node] = []
    node = spk
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.target is aten.linear.default and reader.args[0] is node:
            break
        if not _passes_on(reader, node):
            return None
        between.append(reader)
        node = reader
    else:
        return None
    dims = _inputs(spk, node)
    weight, bias = arguments(reader)["weight"], arguments(reader)["bias"]
    if (
        dims is None
        or reader.meta["context"] != unroll.meta["context"]
        or not _come_before(unroll, reader, [weight, bias], effects)
    ):
        return None
    made, wanted = value(reader), value(spk).dim() - dims + 1
    spk.meta["example_value"] = made.new_empty((*value(spk).shape[: wanted - 1], made.shape[-1]))
    after = spk
    if made.dim() != wanted:
        with graph.inserting_after(spk):
            after = call(aten.flatten.using_ints, spk, 0, -2)
    reader.replace_all_uses_with(after)
    for old in (reader, *reversed(between)):
        graph.erase_node(old)
    return weight, bias, dims


def _passes_on(reader: Node, node: Node) -> bool:
    """Whether a call returns the same numbers in the same order."""
    if not reader.args or reader.args[0] is not node:
        return False
    # A view may also take numbers for those of another dtype.
    shapes = ("flatten", "reshape", "unflatten", "view", "_unsafe_view")
    return name_of(reader.target) in shapes and value(reader).dtype == value(node).dtype


def _inputs(spk: Node, node: Node) -> int | None:
    """How many last dimensions of a step are merged into the last one of ``node``, which has the same elements."""
    found, given = value(spk), value(node)
    if given.dim() < 2:
        return None
    count: int | None = 1
    wanted = size_of(given, -1)
    for dims in range(1, found.dim()):
        size = size_of(found, -dims)
        if wanted is None or size is None or count is None:
            return None
        count *= size
        if count == wanted:
            rows = found.shape[:-dims]
            same = given.dim() == 2 or list(map(str, given.shape[:-1])) == list(map(str, rows))
            return dims if same else None
    return None


def _come_before(unroll: Node, reader: Node, given: list[Any], effects: set[Node]) -> bool:
    """Whether the unroll can take its reader's arguments, and no call in between matters to either."""
    nodes = [n for n in given if n is not None]
    if not nodes or not all(isinstance(n, Node) for n in nodes):
        return False
    node = unroll.next
    while node is not reader:
        if node in effects or node in nodes:
            return False
        node = node.next
    return True


# ---- sums that grow in a loop: ``out = out + spk``, ``loss += ...``, ``sum(rec)``


def terms_of(node: Node, may_be_inside: Callable[[Node], bool]) -> tuple[list[Any], list[Node]]:
    """The terms of a sum of sums in their order, and the additions. Empty for any other node.

    Nothing else may read the sums in between. A part of a larger sum has no terms of its own: it is not needed.
    """
    if not _is_add(node) or not may_be_inside(node) or any(_is_part(node, user) for user in node.users):
        return [], []
    terms: list[Any] = []
    parts: list[Node] = []
    rest: list[Any] = [node]
    while rest:
        term = rest.pop()
        if term is node or (_is_part(term, node) and may_be_inside(term)):
            parts.append(term)
            rest += reversed(term.args)
        else:
            terms.append(term)
    return terms, parts


def _is_add(node: Any) -> bool:
    """Whether a node is an addition of tensors without a factor."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return False
    return isinstance(value(node), Tensor)


def _is_part(term: Any, whole: Node) -> bool:
    if not _is_add(term) or not _is_add(whole) or len(term.users) != 1:
        return False
    part, total = value(term), value(whole)
    same = part.dtype == total.dtype and part.shape == total.shape
    return bool(same and term.meta["context"] == whole.meta["context"])


def is_sum(node: Node) -> bool:
    """Whether a node is the sum over the first dimension, and nothing else."""
    if node.target is not aten.sum.dim_IntList:
        return False
    given = arguments(node)
    return given["dim"] in ([0], (0,)) and not given["keepdim"] and given["dtype"] is None


# ---- calls that we do faster on the CPU

_OURS: dict[Any, Any] = dict.fromkeys((torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding), conv2d)
_OURS |= dict.fromkeys((F.max_pool2d, aten.max_pool2d.default), max_pool2d)
_OURS |= dict.fromkeys((torch.bernoulli, aten.bernoulli.default), bernoulli)
for _op, _function in (_convolution.NODES | _max_pooling.NODES).items():
    _OURS |= {_op: _function, _op.default: _function}


def use_channels_last(graph: Graph) -> None:
    """Give convolutions their input in channels_last order, as ``MultiStep`` does, and other calls theirs as it was."""
    found: set[Node] = set()  # what may be in channels_last order
    back: dict[Node, Node] = {}
    for node in list(graph.nodes):
        given = [n for n in node.all_input_nodes if n in found]
        if _takes_images(node) and not given and profits(value(node.args[0]), value(node.args[1])):
            with graph.inserting_before(node):
                made = graph.call_function(to_channels_last, node.args[:1])
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
    """Let convolutions, poolings, normalisations and draws choose their kernels at each call."""
    for node in graph.nodes:
        if node.target is aten.batch_norm.default and _is_of_a_convolution_alone(node.args[0]):
            node.target = over_input
        elif node.op == "call_function":
            node.target = _OURS.get(node.target, node.target)


def _is_of_a_convolution_alone(node: Node) -> bool:
    """Whether a node is the output of a convolution, and its one user the last one that sees this memory."""
    while node.target in (aten.flatten.using_ints, aten.unflatten.int) and len(node.users) == 1:
        node = cast(Node, node.args[0])
    return node.target is conv2d and len(node.users) == 1


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
    if node.target is batch_norm:
        return node.args[0] in found
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
    if node.target is aten.expand.default:  # over time
        return bool(value(node).dim() == value(source).dim() + 1)
    if is_pointwise(node.target) or name_of(node.target) == "dropout":
        return all(n in found for n in node.all_input_nodes if value(n).dim() >= value(source).dim())
    return name_of(node.target) in OPS_THAT_KEEP_ORDER and bool(value(source).dim() == 4)


def _in_order(graph: Graph, node: Node, back: dict[Node, Node]) -> Node:
    if node not in back:
        with graph.inserting_after(node):
            back[node] = graph.call_function(aten.contiguous.default, (node,))
        back[node].meta["example_value"] = value(node)
    return back[node]
