"""A batch normalisation in training that only an unroll or a program reads becomes a part of it, if kernels take both.

So does the pooling that alone reads the spikes of the two.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.norm import Norm, Pool
from snnfast._core.ops import has_cpu_kernels, has_norm
from snnfast._images.batch_norm import batch_norm, in_any_order, update_averages
from snnfast._images.pool2d import avg_pool2d, max_pool2d, windows
from snnfast._unroll.graph import unroll_steps
from snnfast.compiler.calls import arguments, aten, name_of, value
from snnfast.compiler.memory import take_place
from snnfast.compiler.writer import Writer


def normed_unroll_steps(
    x: Tensor, norm: tuple[Any, ...], neuron: str, *asked: Any, pool: tuple[int, ...] | None = None
) -> list[Tensor | None]:
    """``unroll_steps(neuron, batch_norm(x, *norm), *asked)``, and a pooling of its spikes by windows."""
    pooled = None if pool is None else Pool(pool, partial(_pool, pool))
    of_both = _of_each_step(*norm)._replace(pool=pooled)
    return unroll_steps(neuron, x, *asked, norm=of_both)  # type: ignore[misc]


def _of_each_step(weight: Tensor | None, bias: Tensor | None, *averages: Any) -> Norm:
    """``batch_norm`` of these arguments behind its first."""
    *running, eps = averages
    update = partial(update_averages, tuple(running))
    return Norm(weight, bias, eps, False, update, lambda x: batch_norm(x, weight, bias, *averages))


def _of_all_steps(weight: Tensor | None, bias: Tensor | None, *others: Any) -> Norm:
    """``aten.batch_norm`` in training of these arguments behind its first, of all steps as one batch."""
    mean, variance, _, momentum, eps, _ = others
    update = partial(update_averages, (mean, variance, momentum))

    def by_itself(x: Tensor) -> Tensor:
        turned = x.stride(0) < x.stride(1)  # the samples are outermost in memory
        batches = x.transpose(0, 1) if turned else x
        y = in_any_order(batches.flatten(0, 1), weight, bias, *others)
        y = y.reshape(*batches.shape)
        return y.transpose(0, 1) if turned else y

    return Norm(weight, bias, eps, True, update, by_itself)


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
    if not _can_wait(writer, norm, unroll):
        return False
    x, *others = norm.args
    unroll.args = (x, tuple(others), unroll.args[0], *unroll.args[2:])
    unroll.target = normed_unroll_steps
    writer.effects.discard(norm)
    writer.effects.add(unroll)
    take_place(norm, unroll)
    return True


def _can_wait(writer: Writer, norm: Node, reader: Node) -> bool:
    """Whether a batch normalisation changes its running averages as well where its result is read."""
    averages = {a for a in pytree.tree_leaves(norm.args[3:5]) if isinstance(a, Node)}
    node = norm.next
    while node is not reader:
        if node in writer.effects or averages.intersection(node.all_input_nodes):
            return False
        node = node.next
    return True


def fuse_norm_of_series(writer: Writer, node: Node, every: Sequence[Node]) -> tuple[int, Callable[..., Norm]] | None:
    """Let the batch normalisation before one of the series of a program become a part of it.

    Returns the number of the series, and what makes a ``Norm`` of the arguments that the program is given more; or
    ``None``, if no normalisation fits.
    """
    for series in every:
        norm = _norm_before(series)
        if norm is None or norm.meta["context"] != node.meta["context"] or not has_cpu_kernels(value(norm).device):
            continue
        if value(norm).dtype != torch.float32 or not _can_wait(writer, norm, node):
            continue
        x: Any = norm.args[0]
        number = node.args.index(series)
        node.args = (*node.args, *norm.args[1:])
        writer.effects.discard(norm)
        writer.effects.add(node)
        take_place(norm, x)  # the calls between the two are views
        return number, _of_each_step if norm is series else _of_all_steps
    return None


def _norm_before(series: Node) -> Node | None:
    """The batch normalisation whose result a series ``[T, B, C, *]`` is: of each step, or of all of them as one batch.

    Nobody else reads it.
    """
    calls = [series]
    if series.target in (aten.movedim.int, aten.transpose.int) and set(series.args[1:]) == {0, 1}:
        calls.append(cast(Node, series.args[0]))
    if name_of(calls[-1].target) in ("view", "reshape", "unflatten"):
        calls.append(cast(Node, calls[-1].args[0]))
    norm = calls[-1]
    if any(len(node.users) > 1 for node in calls):
        return None
    if norm.target is batch_norm:
        return norm if norm is series else None
    given = arguments(norm) if norm.target is aten.batch_norm.default else {"training": False}
    of_all = given["training"] is True and isinstance(given["momentum"], float)
    return norm if of_all and value(series).shape[2:] == value(norm).shape[1:] else None


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
    for node in (back, pool, flat):
        take_place(node, spk)
    return True
