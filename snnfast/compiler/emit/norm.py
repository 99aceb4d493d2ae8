"""A batch normalisation in training that only an unroll or a program reads becomes a part of it, if kernels take both.

So does the pooling that alone reads the spikes of the two.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node, map_arg
from torch.utils import _pytree as pytree

from snnfast._core.norm import Averages, Norm, Pool
from snnfast._core.ops import NEURONS, has_cpu_kernels, has_norm
from snnfast._images.batch_norm import batch_norm, in_any_order, update_averages
from snnfast._images.pool2d import avg_pool2d, max_pool2d, windows
from snnfast._unroll.graph import unroll, unroll_steps
from snnfast.compiler.emit.writer import Writer
from snnfast.compiler.graph.memory import take_place
from snnfast.compiler.graph.nodes import arguments, aten, name_of, storage_of, value
from snnfast.compiler.parts.base import steps_of


def normed_unroll_steps(
    x: Tensor, norm: tuple[Any, ...], neuron: str, *asked: Any, pool: tuple[int, ...] | None = None
) -> list[Tensor | None]:
    """``unroll_steps(neuron, batch_norm(x, *norm), *asked)``, and a pooling of its spikes by windows."""
    of_both = _of_each_step(*norm)._replace(pool=_pool_of(pool))
    return unroll_steps(neuron, x, *asked, norm=of_both)  # type: ignore[misc]


def normed_unroll(
    neuron: str,
    x: Tensor,  # [T, B, *]
    tensors: list[Tensor | None],  # states, then parameters
    *asked: Any,
    norm: tuple[Any, ...],
    channels: int,
    pool: tuple[int, ...] | None = None,
) -> list[Tensor]:
    """``unroll(neuron, y, tensors, *asked)``, where ``y`` is ``aten.batch_norm(x, *norm)`` of all steps as one batch.

    ``channels`` is the dimension of ``x`` that is normalised.
    """
    of_both = _of_all_steps(*norm)._replace(pool=_pool_of(pool))
    if channels == 2:
        return unroll(neuron, x, tensors, *asked, norm=of_both)  # type: ignore[misc]
    moved = [t if t is None or not t.dim() else t.movedim(channels - 1, 1) for t in tensors]
    found = unroll(neuron, x.movedim(channels, 2), moved, *asked, norm=of_both)  # type: ignore[misc]
    return [found[0].movedim(2, channels), *(state.movedim(1, channels - 1) for state in found[1:])]


def _pool_of(windows: tuple[int, ...] | None) -> Pool | None:
    return None if windows is None else Pool(windows, partial(_pool, windows))


def _of_each_step(weight: Tensor | None, bias: Tensor | None, *averages: Any) -> Norm:
    """``batch_norm`` of these arguments behind its first."""
    mean, variance, momentum, eps = averages
    update = partial(update_averages, (mean, variance, momentum))
    of_kernels = Averages.of(mean, variance, None, momentum)
    return Norm(weight, bias, eps, False, update, lambda x: batch_norm(x, weight, bias, *averages), averages=of_kernels)


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

    averages = Averages.of(mean, variance, None, momentum)
    return Norm(weight, bias, eps, True, update, by_itself, averages=averages)


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
        before = _norm_before(series)
        if before is None or not before.keeps_dims or not has_cpu_kernels(value(series).device):
            continue
        if value(series).dtype != torch.float32 or not before.can_move(writer, node):
            continue
        number = node.args.index(series)
        node.args = (*node.args, *before.norm.args[1:])
        before.move(writer, node)
        return number, _of_each_step if before.norm is series else _of_all_steps
    return None


def fuse_norms_of_unrolls(writer: Writer) -> Iterator[str]:
    """Let batch normalisations before the unrolls that the program itself makes become parts of these.

    A network in SpikingJelly's step mode "m" has such unrolls, and a ``MultiStep``. Yields what is told of each.
    """
    for node in [n for n in writer.graph.nodes if n.target is unroll]:
        neuron, series, tensors, *_, steps, record, _, reduce = node.args[:12]
        before = _norm_before(series) if isinstance(series, Node) else None
        if before is None or before.norm is series or steps is not None or record or reduce:
            continue
        device = value(series).device
        if not has_norm(device) or (len(node.args) > 12 and has_cpu_kernels(device)):  # it takes the spikes as bits
            continue
        parameters: Any = tensors[len(NEURONS[neuron].states) :]
        if before.channels != 2 and any(value(p).dim() for p in parameters if p is not None):
            continue
        if not before.can_move(writer, node):
            continue
        node.target = normed_unroll
        node.kwargs = {"norm": before.norm.args[1:], "channels": before.channels}
        before.move(writer, node)
        spk = next((n for n in node.users if n.args[1] == 0), None)
        pool = ", with the pooling behind it" * (
            before.channels == 2 and spk is not None and fuse_pool(writer, node, spk)
        )
        yield f"{steps_of(len(value(series)), neuron)}: one call with the batch normalisation before it{pool}"


class _Before(NamedTuple):
    """The batch normalisation whose result a series ``[T, B, *]`` is: of each step, or of all of them as one batch.

    Nobody else reads it.

    Attributes:
        norm: Its node.
        views: What leads from its result to the series, the last one first.
        channels: The dimension of the series that is normalised.
        keeps_dims: Whether the series has the dimensions of a sample in their order.
    """

    norm: Node
    views: list[Node]
    channels: int
    keeps_dims: bool

    def can_move(self, writer: Writer, reader: Node) -> bool:
        """Whether it may be computed where its result is read."""
        return self.norm.meta["context"] == reader.meta["context"] and _can_wait(writer, self.norm, reader)

    def move(self, writer: Writer, reader: Node) -> None:
        """Leave it out. The reader has its arguments, and gets what it normalised, by the same views."""
        x: Any = self.norm.args[0]
        for node in self.views:
            if node.target is aten.view.default:  # what was normalised may lie otherwise in memory
                node.target = aten.reshape.default
        writer.effects.discard(self.norm)
        writer.effects.add(reader)
        take_place(self.norm, x)


_VIEWS = ("view", "reshape", "unflatten", "movedim", "transpose", "permute", "contiguous")


def _norm_before(series: Node) -> _Before | None:
    views: list[Node] = []
    norm: Any = series
    while name_of(norm.target) in _VIEWS and isinstance(norm.args[0], Node):
        views.append(norm)
        norm = norm.args[0]
    if any(len(node.users) > 1 for node in (norm, *views)):
        return None
    if norm.target is batch_norm:
        return _Before(norm, views, 2, True) if norm is series else None
    given = arguments(norm) if norm.target is aten.batch_norm.default else {"training": False}
    if given["training"] is not True or not isinstance(given["momentum"], float) or value(series).dim() < 3:
        return None
    # Where each dimension of the series comes from is told by its stride.
    of_norm = of_series = torch.empty(value(norm).shape, device="meta")
    for node in reversed(views):
        if name_of(node.target) != "contiguous":
            _, *args = map_arg(node.args, value)
            of_series = node.target(of_series, *args, **node.kwargs)  # type: ignore[operator]
    before, now = (list(zip(t.shape, t.stride(), strict=True)) for t in (of_norm, of_series))
    if storage_of(of_series) != storage_of(of_norm) or sorted(before[1:]) != sorted(now[2:]):
        return None
    return _Before(norm, views, now.index(before[1], 2), before[1:] == now[2:])


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
    unroll.kwargs = {**unroll.kwargs, "pool": found}
    spk.meta["example_value"] = value(back)
    for node in (back, pool, flat):
        take_place(node, spk)
    return True
