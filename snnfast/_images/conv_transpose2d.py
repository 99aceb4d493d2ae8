"""Transposed convolutions to few channels, such as the last one of a decoder, as a convolution to more channels.

PyTorch's kernels compute a whole vector of output channels, however few there are. With strides of two by two, the
pixels of the output fall into four classes, by whether their row and column are even. The pixels of a class are the
output of a convolution by a quarter of the weights. So all classes are channels of one convolution and fill the vector.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._images.conv2d import pair, takes_kernels

__all__ = ["conv_transpose2d", "transposed"]

_MOST_CHANNELS = 16
"""A vector of output channels: so many are computed where fewer are asked for."""

_pytorchs: Any = F.conv_transpose2d


def transposed(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``."""
    how = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return conv_transpose2d(x, layer.weight, layer.bias, *how)


def conv_transpose2d(
    input: Tensor,  # [N, C, H, W]; the names of torch.conv_transpose2d
    weight: Tensor,  # [C, O, kH, kW]
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """``torch.conv_transpose2d``, with its numbers up to the order of the sums."""
    by, around, more = pair(stride), pair(padding), pair(output_padding)
    if not _gains(input, weight, bias, by, around, more) or groups != 1 or pair(dilation) != [1, 1]:
        return cast(Tensor, _pytorchs(input, weight, bias, stride, padding, output_padding, groups, dilation))
    return cast(Tensor, _ByClasses.apply(input, weight, bias, by, around, more))


def _gains(x: Tensor, weight: Tensor, bias: Tensor | None, by: list[int], around: list[int], more: list[int]) -> bool:
    return (
        not torch.compiler.is_compiling()
        and (takes_kernels(x) or takes_kernels(x, of_planes=True))
        and x.shape[0] > 1  # PyTorch's other kernels take a single image
        and all(t is None or (t.device == x.device and t.dtype == x.dtype) for t in (weight, bias))
        and weight.dim() == 4
        and weight.shape[0] == x.shape[1]
        and weight.numel() > 0
        and (bias is None or bias.shape == weight.shape[1:2])
        and len(by) == len(around) == len(more) == 2  # else PyTorch says what is wrong
        and min(by) >= 1
        and by[0] * by[1] > 1
        and weight.shape[1] * by[0] * by[1] <= _MOST_CHANNELS
        and min(around) >= 0
        and min(more) >= 0
        and all(  # no pixel lies beyond the windows of the classes
            k + m - p <= -(-k // s) * s for k, s, p, m in zip(weight.shape[2:], by, around, more, strict=True)
        )
        and min(_sizes(x, weight, by, around, more)) >= 1
        and not torch.is_autocast_enabled("cpu")
    )


def _sizes(x: Tensor, weight: Tensor, by: list[int], around: list[int], more: list[int]) -> list[int]:
    """Height and width of the output."""
    each = zip(x.shape[2:], weight.shape[2:], by, around, more, strict=True)
    return [(n - 1) * s - 2 * p + k + m for n, k, s, p, m in each]


class _ByClasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, by: list[int], around: list[int], more: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = None if bias is None else list(bias.shape), by, around, more
        (C, O), (sy, sx) = weight.shape[:2], by  # noqa: E741 - PyTorch's name
        ky, kx = (-(-k // s) for k, s in zip(weight.shape[2:], by, strict=True))  # weights of a class
        padded = F.pad(weight, (0, kx * sx - weight.shape[3], 0, ky * sy - weight.shape[2]))
        of_classes = padded.view(C, O, ky, sy, kx, sx).flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, C, ky, kx)
        biases = None if bias is None else bias.repeat_interleave(sy * sx)
        classes = torch.conv2d(x, of_classes, biases, 1, (ky - 1, kx - 1))
        N, _, H, W = classes.shape
        pixels = classes.view(N, O, sy, sx, H, W).permute(0, 4, 2, 5, 3, 1).reshape(N, H * sy, W * sx, O)
        height, width = _sizes(x, weight, by, around, more)
        pixels = pixels[:, around[0] : around[0] + height, around[1] : around[1] + width]
        if not takes_kernels(x):
            return pixels.movedim(-1, 1).clone(memory_format=torch.contiguous_format)
        return pixels.clone(memory_format=torch.contiguous_format).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        biases, by, around, more = ctx.how
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, biases, by, around, [1, 1], True, more, 1, list(ctx.needs_input_grad[:3])
        )
        return *found, None, None, None
