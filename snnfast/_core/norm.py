"""A batch normalisation in training whose result only neurons read, and a pooling that alone reads their spikes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from snnfast._core import ops
from snnfast._core.pytorch import becomes_node, is_transformed


class Pool(NamedTuple):
    """A pooling of the spikes ``[T, B, C, H, W]`` of neurons, which nobody else reads."""

    windows: tuple[int, ...]  # see ``windows`` in ``_images/pool2d.py``
    by_itself: Callable[[Tensor], Tensor]  # called with the spikes, where the kernels do not take them


class Averages(NamedTuple):
    """Running averages that the kernels of CUDA update with the statistics, which saves a dozen small launches."""

    mean: Tensor | None  # [C], in float32
    variance: Tensor | None  # [C], in float32
    tracked: Tensor | None  # how many steps there were; ``None``: the caller counts them
    momentum: float

    @classmethod
    def of(cls, mean: Any, variance: Any, tracked: Tensor | None, momentum: Any) -> "Averages | None":
        """The averages of a batch normalisation; ``None``: the kernels do not take them."""
        if mean is None and variance is None:
            return cls(None, None, None, 0.0)
        if not isinstance(momentum, float | int):
            return None
        if any(type(t) is not Tensor or t.dtype != torch.float32 or not t.is_contiguous() for t in (mean, variance)):
            return None
        if tracked is not None and (tracked.dtype != torch.int64 or tracked.device != mean.device):
            return None
        return cls(mean, variance, tracked, float(momentum))

    def tell_autograd(self) -> None:
        """Tell autograd what the kernels changed, as PyTorch's own layer does: the count, and not the averages.

        PyTorch saves these for its backward pass and does not read them there. It would take a change for an error.
        """
        if self.tracked is not None:
            increment_version(self.tracked)


class Norm(NamedTuple):
    """A batch normalisation in training of ``x`` ``[T, B, C, *]``, whose result only neurons read."""

    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    eps: float
    over_time: bool  # all steps together have the statistics, in place of each its own
    update: Callable[[Tensor, Tensor], None]  # is told the mean and the unbiased variance, both [T, C] or [1, C]
    by_itself: Callable[[Tensor], Tensor]  # called with ``x``, where the kernels do not take the neurons
    pool: Pool | None = None  # its result then takes the place of the spikes
    averages: Averages | None = None  # on CUDA, the kernels update these, and nothing calls ``update``


_LEAST = 1 << 17
"""The fewest elements of a batch without time. With fewer, calls from Python cost more than the kernels save."""


def is_small(x: Tensor, channels: int) -> bool:
    """Whether PyTorch normalises a batch without time, or all steps as one, on the CPU."""
    return x.numel() < max(_LEAST, 2 * channels)


def fits(norm: Norm, x: Tensor) -> bool:
    """Whether there are kernels that normalise ``x`` where neurons read it."""
    if not ops.has_norm(x.device) or x.dim() < 3 or x.numel() == 0:
        return False
    if x.stride(0) == 0 and len(x) > 1:  # of a constant, the normalisation is one step's
        return False
    if samples(x, norm.over_time) < 2 or becomes_node() or is_transformed():
        return False
    given, dtypes = (norm.weight, norm.bias), (x.dtype, torch.float32)
    return all(t is None or (t.dim() == 1 and t.device == x.device and t.dtype in dtypes) for t in given)


def samples(x: Tensor, over_time: bool) -> int:
    """How many numbers the statistics of a channel are of."""
    return x[0].numel() // x.shape[2] * (len(x) if over_time else 1)


def numbers_of(norm: Norm, x: Tensor) -> Tensor:
    """The numbers of the channels, of each step or over time ``[T, C, 4]``; the running averages are told."""
    with torch.no_grad():
        wide = (None if t is None else t.float().contiguous() for t in (norm.weight, norm.bias))
        given = x, *wide, norm.eps, norm.over_time
        if norm.averages is None or ops.has_cpu_kernels(x.device):
            numbers, variance = ops.norm_ops.norm_statistics(*given)
            n = samples(x, norm.over_time)
            norm.update(numbers[..., 2], variance * (n / (n - 1)))
        else:
            numbers, _ = ops.norm_ops.norm_statistics(*given, *norm.averages)
            norm.averages.tell_autograd()
    return numbers  # type: ignore[no-any-return]


# ---- the definition


def currents(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over_time: bool) -> Tensor:
    """The currents of the neurons, in float32, by operators of which autograd makes the gradients."""
    scale, shift, mean = affine(x, weight, bias, eps, over_time)
    if not ops.has_cpu_kernels(x.device):
        return scale * x.float() + shift
    y = (x.float() - mean) * scale
    if bias is not None:
        y = y + bias.float().view(1, 1, -1, *(1,) * (x.dim() - 3))
    return y.to(x.dtype).float()


def affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over_time: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The scale, the shift and the mean of each channel, and of each step or over time, as they broadcast to ``x``."""
    wide = x.to(torch.float64)
    dims = [d for d in range(x.dim()) if d != 2 and (d != 0 or over_time)]
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    shape = (1, 1, -1, *(1,) * (x.dim() - 3))
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.view(shape)
    shift = -mean * scale
    if bias is not None:
        shift = bias.view(shape) + shift
    return scale.float(), shift.float(), mean.float()
