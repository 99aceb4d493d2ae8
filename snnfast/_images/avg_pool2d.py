"""Average pooling of images over windows that do not overlap: PyTorch's bits, in memory that is kept between calls."""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core import ops
from snnfast._core.pytorch import not_compiled_alone
from snnfast._images.conv2d import pair, takes_kernels
from snnfast._images.max_pool2d import LEAST_CHANNELS, are_apart, like_images

__all__ = ["averaged", "avg_pool2d"]

_pytorchs: Any = F.avg_pool2d


def averaged(layer: nn.AvgPool2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``."""
    how = layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding, *how)


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
    kernel = pair(kernel_size)
    by = ([] if stride is None else pair(stride)) or kernel
    fits = (
        takes_kernels(input)
        and input.shape[1] >= LEAST_CHANNELS
        and pair(padding) == [0, 0]
        and not ceil_mode
        and divisor_override is None
        and are_apart(input, kernel, by)
        and not torch.compiler.is_compiling()  # a function would be traced, and be a new class at each call
    )
    if fits:
        return cast(Tensor, _AvgPooling.apply(input, kernel, by))
    return cast(Tensor, _pytorchs(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override))


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


if ops.extension is not None:
    torch.library.register_fake("snnfast::average_pooling", lambda x, *how: F.avg_pool2d(x, how[:2], how[2:]))
    torch.library.register_fake(
        "snnfast::average_pooling_backward", lambda grad, height, width, *how: like_images(grad, height, width)
    )
