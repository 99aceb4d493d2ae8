"""A batch normalisation in training that only an unroll reads becomes a part of it, if there are kernels for both."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import Node

from snnfast._core.ops import has_cpu_kernels, has_norm
from snnfast._images.batch_norm import batch_norm, update_averages
from snnfast._unroll.graph import unroll_steps
from snnfast._unroll.normed import Norm
from snnfast.compiler.calls import value
from snnfast.compiler.writer import Writer


def normed_unroll_steps(x: Tensor, norm: tuple[Any, ...], neuron: str, *asked: Any) -> list[Tensor | None]:
    """``unroll_steps(neuron, batch_norm(x, *norm), *asked)``."""
    weight, bias, *running, eps = norm
    update = partial(update_averages, tuple(running))
    of_both = Norm(weight, bias, eps, False, update, lambda x: batch_norm(x, *norm))
    return unroll_steps(neuron, x, *asked, norm=of_both)  # type: ignore[misc]


def fuse_norm(writer: Writer, unroll: Node) -> bool:
    """Let the batch normalisation before an unroll become a part of it, and return whether it did."""
    _, norm, _, *_, steps, record, reduce = unroll.args[:11]
    has_linear = len(unroll.args) > 11
    if not isinstance(norm, Node) or norm.target is not batch_norm or len(norm.users) > 1:
        return False
    alike = norm.meta["context"] == unroll.meta["context"]
    device = value(norm).device
    if not alike or steps is not None or record or reduce or not has_norm(device):
        return False
    if has_linear and has_cpu_kernels(device):  # it takes the spikes as bits
        return False
    changed, node = _averages(norm), norm.next
    while node is not unroll:
        if node in writer.effects or changed.intersection(node.all_input_nodes):
            return False
        node = node.next
    x, *others = norm.args
    unroll.args = (x, tuple(others), unroll.args[0], *unroll.args[2:])
    unroll.target = normed_unroll_steps
    writer.effects.discard(norm)
    writer.effects.add(unroll)
    writer.graph.erase_node(norm)
    return True


def _averages(norm: Node) -> set[Node]:
    """The running averages, which the call changes."""
    every: list[Any] = []
    for given in norm.args[3:5]:
        every += given if isinstance(given, list | tuple) else [given]
    return {node for node in every if isinstance(node, Node)}
