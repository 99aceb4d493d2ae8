"""The fan-out of a convolution: how many outputs an input reaches, which depends on its position only."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["fan_out"]


@lru_cache(maxsize=256)
def _along(size: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int, transposed: bool) -> Tensor:
    """Pairs of an output and a tap that read each input of one dimension, int64 ``[size]``."""
    fan = torch.zeros(size, dtype=torch.int64, device="cpu")
    if transposed:  # the input is where the output of a convolution would be
        at = torch.arange(size) * stride - padding
        for tap in range(kernel):
            reached = at + tap * dilation
            fan += (reached >= 0) & (reached < outputs)
        return fan
    for tap in range(kernel):
        read = torch.arange(outputs) * stride - padding + tap * dilation
        read = read[(read >= 0) & (read < size)]
        fan.index_add_(0, read, torch.ones_like(read))
    return fan


def fan_out(
    inputs: Sequence[int],
    weight: Sequence[int],
    outputs: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> Tensor:
    """The outputs that one spike reaches by its position, over all output channels, int64 ``[*spatial]``.

    Args:
        inputs, outputs: The spatial sizes of the input and of the output.
        weight: The shape of the weight. Its groups are in it: ``[O, C / groups, *]``, or ``[C, O / groups, *]`` of a
            transposed convolution.
        stride, padding, dilation: One number for each spatial dimension, or one for all.
        transposed: Whether it is a transposed convolution.
    """
    dims = len(inputs)
    stride, padding, dilation = (list(n) * (dims if len(n) == 1 else 1) for n in (stride, padding, dilation))
    fan = torch.ones((), dtype=torch.int64)
    for sizes in zip(inputs, weight[2:], stride, padding, dilation, outputs, strict=True):
        fan = fan.unsqueeze(-1) * _along(*sizes, transposed)
    return fan
