"""A batch normalisation in training that only an unroll reads becomes a part of it, if there are kernels for both.

So does the pooling that alone reads the spikes of the two.
"""

from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.ops import has_cpu_kernels, has_norm
from snnfast._images.batch_norm import batch_norm, update_averages
from snnfast._images.pool2d import avg_pool2d, max_pool2d, windows
from snnfast._unroll.call import Norm, Pool
from snnfast._unroll.graph import unroll_steps
from snnfast.compiler.calls import arguments, name_of, value
from snnfast.compiler.writer import Writer


def normed_unroll_steps(
    x: Tensor, norm: tuple[Any, ...], neuron: str, *asked: Any, pool: tuple[int, ...] | None = None
) -> list[Tensor | None]:
    """``unroll_steps(neuron, batch_norm(x, *norm), *asked)``, and a pooling of its spikes by windows."""
    weight, bias, *running, eps = norm
    update = partial(update_averages, tuple(running))
    pooled = None if pool is None else Pool(pool, partial(_pool, pool))
    of_both = Norm(weight, bias, eps, False, update, lambda x: batch_norm(x, *norm), pooled)
    return unroll_steps(neuron, x, *asked, norm=of_both)  # type: ignore[misc]


def _pool(windows: tuple[int, ...], spk: Tensor) -> Tensor:
    mean, *sides = windows
    pooled = (avg_pool2d if mean else max_pool2d)(spk.flatten(0, 1), sides[:2], sides[2:])
    return pooled.view(len(spk), -1, *pooled.shape[1:])


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
    averages = {a for a in pytree.tree_leaves(norm.args[3:5]) if isinstance(a, Node)}  # which the call changes
    node = norm.next
    while node is not unroll:
        if node in writer.effects or averages.intersection(node.all_input_nodes):
            return False
        node = node.next
    x, *others = norm.args
    unroll.args = (x, tuple(others), unroll.args[0], *unroll.args[2:])
    unroll.target = normed_unroll_steps
    writer.effects.discard(norm)
    writer.effects.add(unroll)
    writer.graph.erase_node(norm)
    return True


def fuse_pool(writer: Writer, unroll: Node, spk: Node) -> bool:
    """Let the pooling that alone reads the spikes of an unroll behind a batch normalisation become a part of it.

    Returns whether it did. It stands between ``flatten`` and ``unflatten``, for which time is a part of the batch.
    """
    calls: list[Node] = [spk]
    for name in ("flatten", "pool2d", "unflatten"):
        (reader, *others) = calls[-1].users
        if others or not name_of(reader.target).endswith(name) or reader.meta["context"] != unroll.meta["context"]:
            return False
        calls.append(reader)
    _, flat, pool, back = calls
    given, t = arguments(pool), value(spk)
    name, is_max = name_of(pool.target), name_of(pool.target) == "max_pool2d"
    if name not in ("max_pool2d", "avg_pool2d") or t.dim() != 5 or flat.args != (spk, 0, 1) or back.args[1] != 0:
        return False
    if value(back).shape[:2] != t.shape[:2] or not all(isinstance(n, int) for n in t.shape[2:]):
        return False
    _, *how = given.values()
    kernel, stride, padding = how[:3]
    dilation, ceil_mode = (how[3], how[4]) if is_max else (1, how[3])
    if not is_max and given["divisor_override"] is not None:
        return False
    found = windows(not is_max, t.shape[3:], kernel, stride, padding, dilation, ceil_mode)
    if found is None:
        return False
    unroll.kwargs = {"pool": found}
    spk.meta["example_value"] = value(back)
    back.replace_all_uses_with(spk)
    for node in (back, pool, flat):
        writer.graph.erase_node(node)
    return True
