"""Dense convolutions of 3x3 by Winograd's method: where it pays, and the calls of its kernels.

F(2x2, 3x3) takes 16 products for 2x2 outputs, and F(4x4, 3x3) takes 36 for 4x4. Tap by tap, it is 36 and 144.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast._core import ops
from snnfast._images.choice import takes_kernels

__all__ = ["gradient", "output", "pays"]


class _Kind(NamedTuple):
    """A kind of tiles, and where it pays: measured against PyTorch with AVX-512 and one thread."""

    side: int
    """The rows and columns of outputs in a tile."""
    channels: int
    """The fewest that are added up. With fewer, F(4x4) is less exact than PyTorch."""
    tiles: int
    """The fewest. With fewer, the weights take longer to transform than their products."""
    share: float
    """The largest share of the products tap by tap, where whole tiles and groups of channels are computed."""


_KINDS = (_Kind(4, 128, 64, 0.33), _Kind(2, 32, 128, 0.5))
"""The first one that pays is taken."""

_GROUP = 16
"""Channels are computed in groups of so many. With fewer outputs, the transforms take longer than the products."""

_MOST_TO_ONE = 4
"""The most channels that are added up for each channel of the output. They are all transformed for these few."""

_LEAST_WORK = 1 << 23
"""The fewest products tap by tap: about 0.1 ms of one thread."""


def _side(images: int, channels: int, outputs: int, rows: int, columns: int) -> int:
    """The side of the tiles for so many outputs, or 0 where PyTorch is to compute them.

    It depends on the shape alone, so that no bit of a result depends on anything else.
    """
    work = 9 * channels * outputs * images * rows * columns
    if work < _LEAST_WORK or outputs < _GROUP or channels > _MOST_TO_ONE * outputs:
        return 0
    for kind in _KINDS:
        tiles = images * -(-rows // kind.side) * -(-columns // kind.side)
        whole = (kind.side + 2) ** 2 * tiles * (-(-channels // _GROUP) * -(-outputs // _GROUP) * _GROUP**2)
        if channels >= kind.channels and tiles >= kind.tiles and whole <= kind.share * work:
            return kind.side
    return 0


def pays(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    """Whether the output, or a gradient of the input that is asked for, is faster than PyTorch's."""
    if not _takes(x, weight, stride, padding):
        return False
    asked = x.requires_grad and torch.is_grad_enabled()
    return _of_output(x, weight, padding) > 0 or (asked and _of_gradient(x.shape, weight) > 0)


def takes_large_tiles(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    """Whether the output is computed with a quarter of the products."""
    return _takes(x, weight, stride, padding) and _of_output(x, weight, padding) == _KINDS[0].side


def output(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor | None:
    """The convolution of an input, or None where PyTorch is to compute it."""
    fits = bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype and bias.is_contiguous())
    if not fits or not _takes(x, weight, stride, padding):
        return None
    return _finite(x, weight, bias, padding, _of_output(x, weight, padding), turned=False)


def gradient(grad: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor | None:
    """The gradient of the input from that of the output, or None where PyTorch is to compute it."""
    if not _takes(grad, weight, stride, padding, of_output=True):
        return None
    turned = [2 - p for p in padding]
    size = [n + 2 * p - 2 for n, p in zip(grad.shape[2:], turned, strict=True)]
    return _finite(grad, weight, None, turned, _of_gradient([len(grad), weight.shape[1], *size], weight), turned=True)


def _takes(image: Tensor, weight: Tensor, stride: list[int], padding: list[int], of_output: bool = False) -> bool:
    return (
        weight.shape[2:] == (3, 3)
        and stride == [1, 1]
        and max(padding) <= 2
        and takes_kernels(image)
        and image.shape[1] == weight.shape[0 if of_output else 1]
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.is_autocast_enabled("cpu")
        and ops.extension is not None
        and ops.extension.isa() != "baseline"  # PyTorch is more exact there
    )


def _of_output(x: Tensor, weight: Tensor, padding: list[int]) -> int:
    """The side of the tiles of the output."""
    rows, columns = (n + 2 * p - 2 for n, p in zip(x.shape[2:], padding, strict=True))
    return _side(len(x), weight.shape[1], weight.shape[0], rows, columns)


def _of_gradient(shape: Sequence[int], weight: Tensor) -> int:
    """That of the tiles of the gradient of an input of such a shape."""
    return _side(shape[0], weight.shape[0], weight.shape[1], *shape[2:])


def _finite(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], side: int, turned: bool
) -> Tensor | None:
    """The result, or None without tiles, and where it is not finite: one such value spreads over a whole tile."""
    if side == 0:
        return None
    y, finite = torch.ops.snnfast.winograd_conv2d(x, weight, bias, *padding, side, turned)
    return y if finite else None
