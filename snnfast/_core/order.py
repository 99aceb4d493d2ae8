"""The order in which the dimensions of a tensor lie in memory: the twin of ``csrc/op/layout.h``.

An order names dimensions from the outermost in memory to the innermost.
"""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["LEAST_CHANNELS", "dense_steps", "in_order", "order_of", "strides_of"]

LEAST_CHANNELS = 4
"""Fewer channels that lie side by side do not fill a vector."""


def order_of(strides: Sequence[int]) -> list[int]:
    return sorted(range(len(strides)), key=strides.__getitem__, reverse=True)  # a stable sort


def strides_of(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """The strides of a tensor without gaps."""
    strides, stride = [1] * len(shape), 1
    for d in reversed(order):
        strides[d] = stride
        stride = stride * (shape[d] if shape[d] > 1 else 1)
    return strides


def in_order(t: Tensor, order: list[int]) -> Tensor:
    """``t`` without gaps, with its dimensions in memory in this order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return t.permute(order).contiguous().permute(back)


def dense_steps(x: Tensor) -> Tensor:
    """``x`` ``[T, B, C, *]``, or a copy: its steps have the usual order, or the channels of a pixel side by side."""
    return x if x.movedim(2, -1).is_contiguous() else x.contiguous()
