"""A ``Linear`` that alone reads the spikes of an unroll becomes a part of it."""

from typing import Any

from torch.fx import Node

from snnfast.compiler.emit.writer import Writer
from snnfast.compiler.graph.memory import take_place
from snnfast.compiler.graph.nodes import arguments, aten, name_of, size_of, value


def fuse_linear(writer: Writer, unroll: Node, spk: Node) -> tuple[Any, Any, int] | None:
    """Let the linear layer behind an unroll become a part of it, if it is certain that no number changes.

    Args:
        writer: Has the graph of all nodes here.
        unroll: The call of the unroll.
        spk: Its result, the spikes ``[T, *]``.

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
        or not _come_before(unroll, reader, [weight, bias], writer.effects)
    ):
        return None
    made, wanted = value(reader), value(spk).dim() - dims + 1
    spk.meta["example_value"] = made.new_empty((*value(spk).shape[: wanted - 1], made.shape[-1]))
    after = spk
    if made.dim() != wanted:
        with writer.graph.inserting_after(spk):
            after = writer.call(aten.flatten.using_ints, spk, 0, -2)
    for old in (reader, *reversed(between)):
        take_place(old, after)
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
    wanted, count = size_of(given, -1), 1
    for dims in range(1, found.dim() if given.dim() > 1 else 0):
        size = size_of(found, -dims)
        if wanted is None or size is None:
            return None
        count *= size
        if count == wanted:
            rows = found.shape[:-dims]
            same = given.dim() == 2 or list(map(str, given.shape[:-1])) == list(map(str, rows))
            return dims if same else None
    return None


def _come_before(unroll: Node, reader: Node, given: list[Any], effects: set[Node]) -> bool:
    """Whether the unroll can take the arguments of its reader, and no call with an effect is in between."""
    nodes = [n for n in given if n is not None]
    if not nodes or not all(isinstance(n, Node) for n in nodes):
        return False
    node = unroll.next
    while node is not reader:
        if node in effects or node in nodes:
            return False
        node = node.next
    return True
