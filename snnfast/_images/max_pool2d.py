"""Max pooling of images over windows that do not overlap: one byte is kept for each output.

PyTorch keeps the image, and eight bytes for each output. The kernels take channels_last order. An image in contiguous
order is, plane by plane, one with one channel, and windows of two by two fill vectors there as well.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core import ops
from snnfast._core.pytorch import not_compiled_alone
from snnfast._images.conv2d import pair, takes_kernels

__all__ = ["LEAST_CHANNELS", "NODES", "are_apart", "like_images", "max_pool2d", "node", "pooled"]

LEAST_CHANNELS = 4
"""Fewer do not fill a vector."""

_MOST_PLACES = 256

_pytorchs: Any = F.max_pool2d


def pooled(layer: nn.MaxPool2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``."""
    kernel, by = pair(layer.kernel_size), pair(layer.stride)
    if layer.return_indices or not _by_kernels(x, kernel, by, layer.padding, layer.dilation, layer.ceil_mode):
        return cast(Tensor, layer(x))
    return _largest(x, kernel, by)


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
    kernel = pair(kernel_size)
    by = ([] if stride is None else pair(stride)) or kernel
    if return_indices or not _by_kernels(input, kernel, by, padding, dilation, ceil_mode):
        return cast(Tensor, _pytorchs(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices))
    return _largest(input, kernel, by)


def _by_kernels(x: Tensor, kernel: list[int], by: list[int], padding: Any, dilation: Any, ceil_mode: bool) -> bool:
    pairs = kernel == by == [2, 2]
    return (
        ((takes_kernels(x) and x.shape[1] >= LEAST_CHANNELS) or (pairs and takes_kernels(x, of_planes=True)))
        and (pair(padding), pair(dilation)) == ([0, 0], [1, 1])
        and not ceil_mode
        and are_apart(x, kernel, by)
    )


def are_apart(x: Tensor, kernel: list[int], by: list[int]) -> bool:
    """Whether windows of so many places lie in the image, and none over another."""
    return (
        len(kernel) == len(by) == 2  # else PyTorch says what is wrong
        and all(1 <= k <= min(n, s) for n, k, s in zip(x.shape[2:], kernel, by, strict=True))
        and kernel[0] * kernel[1] <= _MOST_PLACES
    )


def _largest(x: Tensor, kernel: list[int], by: list[int]) -> Tensor:
    if not takes_kernels(x):
        N, C, H, W = x.shape
        planes = _largest(x.view(N * C, H, W, 1).movedim(-1, 1), kernel, by)
        return planes.view(N, C, *planes.shape[2:])
    if torch.compiler.is_compiling():  # a function would be traced, and be a new class at each call
        return cast(Tensor, torch.ops.snnfast.max_pool2d(x, kernel, by)[0])
    return cast(Tensor, _MaxPooling.apply(x, kernel, by))


def node(x: Tensor, kernel: list[int], by: list[int]) -> tuple[Tensor, None]:
    """The op of a graph where Python runs the graph, in which nothing takes the places."""
    return cast(Tensor, _MaxPooling.apply(x, kernel, by)), None


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
        return _of_images(grad, *ctx.saved_tensors, *ctx.how), None, None


def _of_images(grad: Tensor, places: Tensor, shape: torch.Size, kernel: list[int], by: list[int]) -> Tensor:
    if torch.is_grad_enabled():  # a second derivative is PyTorch's
        indices = _indices(places, shape, kernel, by)
        images = grad.new_empty(1).expand(shape)
        return cast(
            Tensor,
            torch.ops.aten.max_pool2d_with_indices_backward(grad, images, kernel, by, [0, 0], [1, 1], False, indices),
        )
    grad = grad.contiguous(memory_format=torch.channels_last)
    return cast(Tensor, torch.ops.snnfast.max_pooling_backward(grad, places, *shape[2:], *kernel, *by))


def _indices(places: Tensor, shape: torch.Size, kernel: list[int], by: list[int]) -> Tensor:
    """Places in their windows as indices in an image of this shape, as PyTorch counts them."""
    in_window = places.long()
    y, x = (torch.arange(n, device=places.device) for n in places.shape[2:])
    rows = y.unsqueeze(1) * by[0] + in_window // kernel[1]
    return rows * shape[3] + x * by[1] + in_window % kernel[1]


# ---- in a graph of torch.compile


def _max_pool2d(x: Tensor, kernel: list[int], by: list[int]) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.snnfast.max_pooling(x, *kernel, *by)
    return found


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, kernel, by = inputs
    ctx.save_for_backward(output[1])
    ctx.how = x.shape, kernel, by


@not_compiled_alone
def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    return _of_images(grad, *ctx.saved_tensors, *ctx.how), None, None


def _like_largest(x: Tensor, kernel_y: int, kernel_x: int, stride_y: int, stride_x: int) -> tuple[Tensor, Tensor]:
    largest = F.max_pool2d(x, (kernel_y, kernel_x), (stride_y, stride_x))
    return largest, torch.empty_like(largest, dtype=torch.uint8)


def like_images(grad: Tensor, height: int, width: int) -> Tensor:
    """An uninitialised gradient of images of this size."""
    images = grad.new_empty(*grad.shape[:2], height, width)
    return images.contiguous(memory_format=torch.channels_last)


NODES: dict[Any, Any] = {}
"""As in :mod:`snnfast._images.conv2d`."""

if ops.extension is not None:
    torch.library.register_fake("snnfast::max_pooling", _like_largest)
    torch.library.register_fake(
        "snnfast::max_pooling_backward", lambda grad, places, height, width, *how: like_images(grad, height, width)
    )
    _op = torch.library.custom_op("snnfast::max_pool2d", _max_pool2d, mutates_args=())
    _op.register_fake(lambda x, kernel, by: _like_largest(x, *kernel, *by))
    _op.register_autograd(_backward, setup_context=_save)
    NODES[torch.ops.snnfast.max_pool2d] = node
