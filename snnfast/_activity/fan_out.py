"""The fan-out of a convolution: how many outputs an input reaches, which depends on its position only."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FanOut"]


class FanOut(NamedTuple):
    """The sizes of a convolution, which say how many outputs each input reaches.

    Attributes:
        inputs, kernel, outputs: Their spatial sizes.
        channels: The output channels that an input channel reaches, those of its group.
        stride, padding, dilation: One number for each spatial dimension, or one for all.
        transposed: Whether it is a transposed convolution.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    channels: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool

    def by_position(self) -> Tensor:
        """The outputs that an input reaches at each position, int64 ``[*spatial]``."""
        dims = len(self.inputs)
        how = [n * (dims if len(n) == 1 else 1) for n in (self.stride, self.padding, self.dilation)]
        fan = torch.full((), self.channels, dtype=torch.int64, device="cpu")
        for sizes in zip(self.inputs, self.kernel, *how, self.outputs, strict=True):
            fan = fan.unsqueeze(-1) * _along(*sizes, self.transposed)
        return fan


@lru_cache(maxsize=256)
def _along(size: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int, transposed: bool) -> Tensor:
    """Pairs of a tap and an output that an input reaches by it, in one dimension, int64 ``[size]``."""
    inputs, taps = torch.arange(size, device="cpu"), torch.arange(kernel, device="cpu").unsqueeze(1)
    if transposed:
        reached = inputs * stride - padding + taps * dilation
        reaches = (reached >= 0) & (reached < outputs)
    else:
        first = inputs + padding - taps * dilation  # the place of the kernel in the input, where this tap is here
        reaches = (first >= 0) & (first % stride == 0) & (first // stride < outputs)
    return reaches.sum(0)
