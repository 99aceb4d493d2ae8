"""The order in memory of what convolutions of ``MultiStep`` are given and return.

On the CPU, PyTorch's convolutions, and above all its pooling, are faster where the channels of a pixel lie side by side
(``torch.channels_last``), and the kernels here take any order. So a signal goes into that order at the first
convolution. It stays in it through layers that keep the order, and goes back before any other layer. The compiled loop
does the same with a graph (``snnfast/compiler/emit/channels_last.py``).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from snnfast._core.modules import is_only_called
from snnfast._core.products import linear
from snnfast._images.batch_norm import is_pytorchs, of_batch
from snnfast._images.conv2d import convolved
from snnfast._images.pool2d import averaged, pooled

__all__ = ["OPS_THAT_KEEP_ORDER", "Order", "in_usual_order", "keeps_order", "profits", "to_call", "to_channels_last"]

_MEASURED = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]

_THAT_KEEP_ORDER: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("conv2d",),
    nn.MaxPool2d: ("max_pool2d", "max_pool2d_with_indices"),
    nn.AvgPool2d: ("avg_pool2d",),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d",),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d",),
    nn.BatchNorm2d: ("batch_norm",),
    nn.ReLU: ("relu", "relu_"),
    nn.Dropout: ("dropout",),
    nn.Dropout2d: ("feature_dropout",),
    nn.Identity: (),
}
"""Layers that take any order and return the one that they are given, and the ATen operators that they call."""

OPS_THAT_KEEP_ORDER = frozenset(name for names in _THAT_KEEP_ORDER.values() for name in names)


def keeps_order(layer: nn.Module) -> bool:
    """Whether a layer takes any order and returns the one that it is given. A subclass or a hook may not."""
    return type(layer) in _THAT_KEEP_ORDER and is_only_called(layer)


def profits(
    x: Tensor,  # [B, C, H, W] or [T, B, C, H, W]
    weight: Tensor,
) -> bool:
    """Whether a convolution gains by channels_last order: measured for float32. An order that a user chose stays."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and _MEASURED
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def to_channels_last(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` with the channels of a pixel side by side, also if there is but one. ``torch.vmap`` takes it."""
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def in_usual_order(x: Tensor) -> Tensor:
    """The reverse, of any dimensions, as a call of a graph."""
    return x.contiguous()


def to_call(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function that runs a layer without a state on a batch."""
    if isinstance(layer, nn.MaxPool2d) and keeps_order(layer):
        return partial(pooled, layer)
    if isinstance(layer, nn.AvgPool2d) and keeps_order(layer):
        return partial(averaged, layer)
    if type(layer) is nn.Linear and is_only_called(layer):
        return lambda x: linear(x, layer.weight, layer.bias)
    return partial(of_batch, layer) if is_pytorchs(layer) else layer


class Order:
    """The order of a signal on its way through layers. While ``is_channels_last``, its steps may be in that order."""

    def __init__(self) -> None:
        self.is_channels_last = False

    def usual(self, x: Tensor) -> Tensor:
        """The signal in the order of its dimensions."""
        if self.is_channels_last:
            x, self.is_channels_last = in_usual_order(x), False
        return x

    def shown(self, x: Tensor) -> Tensor:
        """A tensor beside the signal as the user is to see it."""
        return x.contiguous() if self.is_channels_last else x

    def to_call(
        self,
        layer: nn.Module,
        x: Tensor,  # [T, B, *], or [B, *] if it is constant
        constant: bool,
    ) -> Callable[[Tensor], Tensor]:
        """The function that runs a stateless layer on all steps at once."""
        if not isinstance(layer, nn.Conv2d) or not keeps_order(layer) or x.dim() != (4 if constant else 5):
            return to_call(layer)
        if not profits(x, layer.weight):
            return lambda x: convolved(layer, x)
        self.is_channels_last = True
        return lambda x: convolved(layer, to_channels_last(x))
