"""Pooling of images over windows that do not overlap: PyTorch's bits, in memory that is kept between calls.

Max pooling saves one byte for each output, where PyTorch saves the image, and eight bytes for each output. The kernels
take channels_last order. For max pooling, an image in contiguous order is, plane by plane, one with one channel, and
windows of two by two fill vectors there as well.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core import ops
from snnfast._core.order import LEAST_CHANNELS
from snnfast._core.pytorch import not_compiled_alone
from snnfast._images.choice import define_node, pair, takes_kernels

__all__ = ["averaged", "avg_pool2d", "max_pool2d", "max_pool2d_node", "pooled", "windows"]

_MOST_PLACES = 256

_pytorchs_max: Any = F.max_pool2d
_pytorchs_avg: Any = F.avg_pool2d


def pooled(layer: nn.MaxPool2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``."""
    how = layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices
    return max_pool2d(x, layer.kernel_size, layer.stride, *how)


def averaged(layer: nn.AvgPool2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``."""
    how = layer.padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return avg_pool2d(x, layer.kernel_size, layer.stride, *how)


def max_pool2d(
    input: Tensor,  # [N, C, H, W]; the names of torch.nn.functional.max_pool2d
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """``torch.nn.functional.max_pool2d``, with its numbers; by the kernels here where windows do not overlap."""
    kernel, by = _windows(kernel_size, stride)
    pairs, as_it_is = kernel == by == [2, 2], takes_kernels(input)
    fits = (
        ((as_it_is and input.shape[1] >= LEAST_CHANNELS) or (pairs and takes_kernels(input, of_planes=True)))
        and pair(dilation) == [1, 1]
        and not return_indices
        and _are_apart(input.shape[2:], kernel, by, padding, ceil_mode)
    )
    if not fits:
        given = input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return cast(Tensor, _pytorchs_max(*given))
    if as_it_is:
        return _largest(input, kernel, by)
    N, C, H, W = input.shape
    planes = _largest(input.view(N * C, H, W, 1).movedim(-1, 1), kernel, by)
    return planes.view(N, C, *planes.shape[2:])


def avg_pool2d(
    input: Tensor,  # [N, C, H, W]; the names of torch.nn.functional.avg_pool2d
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """``torch.nn.functional.avg_pool2d``, with its numbers; by the kernels here where windows do not overlap."""
    kernel, by = _windows(kernel_size, stride)
    fits = (
        takes_kernels(input)
        and input.shape[1] >= LEAST_CHANNELS
        and divisor_override is None
        and _are_apart(input.shape[2:], kernel, by, padding, ceil_mode)
        and not torch.compiler.is_compiling()  # a function would be traced, and be a new class at each call
    )
    if fits:
        return cast(Tensor, _AvgPooling.apply(input, kernel, by))
    given = input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return cast(Tensor, _pytorchs_avg(*given))


def _windows(kernel_size: Any, stride: Any) -> tuple[list[int], list[int]]:
    """The sides of a window, and from one window to the next."""
    kernel = pair(kernel_size)
    return kernel, ([] if stride is None else pair(stride)) or kernel


def windows(
    mean: bool,  # of a window, or its maximum
    image: Sequence[int],  # [H, W]
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[int, ...] | None:
    """The windows of a pooling that other kernels may take in: ``(mean, rows, columns, *strides)``; ``None``: none."""
    kernel, by = _windows(kernel_size, stride)
    whole = all(type(n) is int for n in (*kernel, *by))  # else PyTorch says what is wrong
    fits = whole and pair(dilation) == [1, 1] and _are_apart(image, kernel, by, padding, ceil_mode)
    return (int(mean), *kernel, *by) if fits else None


def _are_apart(image: Sequence[int], kernel: list[int], by: list[int], padding: Any, ceil_mode: bool) -> bool:
    """Whether windows of so many places lie in the image, and none over another."""
    return (
        pair(padding) == [0, 0]
        and not ceil_mode
        and len(kernel) == len(by) == 2  # else PyTorch says what is wrong
        and all(1 <= k <= min(n, s) for n, k, s in zip(image, kernel, by, strict=True))
        and kernel[0] * kernel[1] <= _MOST_PLACES
    )


def _largest(x: Tensor, kernel: list[int], by: list[int]) -> Tensor:
    call = torch.ops.snnfast.max_pool2d if torch.compiler.is_compiling() else _MaxPooling.apply
    return cast(Tensor, call(x, kernel, by))


def max_pool2d_node(input: Tensor, kernel_size: list[int], stride: list[int]) -> Tensor:
    """The call of a graph, whose windows are known to be apart. Its input may have another order by now."""
    call = _MaxPooling.apply if takes_kernels(input) else _pytorchs_max
    return cast(Tensor, call(input, kernel_size, stride))


class _MaxPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: list[int], by: list[int]) -> Tensor:
        largest, places = torch.ops.snnfast.max_pooling(x, *kernel, *by)
        ctx.save_for_backward(places)
        ctx.how = x.shape, kernel, by
        return largest  # type: ignore[no-any-return]

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> Any:
        (places,), (shape, kernel, by) = ctx.saved_tensors, ctx.how
        if torch.is_grad_enabled():  # a second derivative is PyTorch's
            indices = _indices(places, shape, kernel, by)
            how = grad.new_empty(1).expand(shape), kernel, by, [0, 0], [1, 1], False, indices
            made = torch.ops.aten.max_pool2d_with_indices_backward(grad, *how)
        else:
            grad = grad.contiguous(memory_format=torch.channels_last)
            made = torch.ops.snnfast.max_pooling_backward(grad, places, *shape[2:], *kernel, *by)
        return made, None, None


def _indices(places: Tensor, shape: torch.Size, kernel: list[int], by: list[int]) -> Tensor:
    """Places in their windows as indices in an image of this shape, as PyTorch counts them."""
    in_window = places.long()
    y, x = (torch.arange(n, device=places.device) for n in places.shape[2:])
    rows = y.unsqueeze(1) * by[0] + in_window // kernel[1]
    return rows * shape[3] + x * by[1] + in_window % kernel[1]


class _AvgPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: list[int], by: list[int]) -> Tensor:
        ctx.how = x.shape, kernel, by
        return torch.ops.snnfast.average_pooling(x, *kernel, *by)  # type: ignore[no-any-return]

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> Any:
        shape, kernel, by = ctx.how
        if torch.is_grad_enabled():  # a second derivative is PyTorch's
            images = grad.new_empty(1).expand(shape)
            made = torch.ops.aten.avg_pool2d_backward(grad, images, kernel, by, [0, 0], False, True, None)
        else:
            grad = grad.contiguous(memory_format=torch.channels_last)
            made = torch.ops.snnfast.average_pooling_backward(grad, *shape[2:], *kernel, *by)
        return made, None, None


def _like_largest(x: Tensor, *how: int) -> tuple[Tensor, Tensor]:
    largest = F.max_pool2d(x, how[:2], how[2:])
    return largest, torch.empty_like(largest, dtype=torch.uint8)


def _like_images(grad: Tensor, height: int, width: int, *_: int) -> Tensor:
    images = grad.new_empty(*grad.shape[:2], height, width)
    return images.contiguous(memory_format=torch.channels_last)


if ops.extension is not None:
    torch.library.register_fake("snnfast::max_pooling", _like_largest)
    torch.library.register_fake("snnfast::max_pooling_backward", lambda grad, _, *how: _like_images(grad, *how))
    torch.library.register_fake("snnfast::average_pooling", lambda x, *how: F.avg_pool2d(x, how[:2], how[2:]))
    torch.library.register_fake("snnfast::average_pooling_backward", _like_images)
define_node("max_pool2d", "(Tensor input, int[] kernel_size, int[] stride)", max_pool2d_node, _MaxPooling.apply)
