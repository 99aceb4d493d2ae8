"""See :class:`RecurrentLayer`."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from snnfast._core.settings import check_flag
from snnfast._unroll.connected import connections_of
from snnfast.neurons.base import SpikingLayer

__all__ = ["RecurrentLayer", "RecurrentOneToOne"]


class RecurrentOneToOne(nn.Module):
    """``V`` of a layer without connections between its neurons, where snnTorch and its exporters look for it."""

    def __init__(self, V: Tensor) -> None:
        super().__init__()
        self.V = V  # a parameter is the layer's own, under two names

    def forward(self, spk: Tensor) -> Tensor:
        """The recurrent input of each neuron, ``[B, *]``."""
        return spk * self.V


class RecurrentLayer(SpikingLayer):
    """The base of the layers whose spikes come back to their neurons.

    Attributes:
        recurrent: The module that computes the recurrent input from the last spikes: ``nn.Linear``, ``nn.Conv2d``, or
            the product with ``V``.
        V: Weight of a neuron's own last spike; only with ``all_to_all=False``.
    """

    V: Tensor
    spk: Tensor
    recurrent: nn.Module

    def _add_recurrence(
        self,
        V: float | Tensor,
        all_to_all: bool,
        linear_features: int | None,
        conv2d_channels: int | None,
        kernel_size: int | tuple[int, int] | None,
        learn_recurrent: bool,
    ) -> None:
        self.all_to_all = check_flag("all_to_all", all_to_all, optional=True)
        self.learn_recurrent = check_flag("learn_recurrent", learn_recurrent, optional=True)
        self.linear_features, self.conv2d_channels = linear_features, conv2d_channels
        self.kernel_size = kernel_size
        names = ("linear_features", "conv2d_channels", "kernel_size")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        if not self.all_to_all:
            if given:
                raise TypeError(f"{next(iter(given))}: must not be given with all_to_all=False, which has V instead")
            self._add("V", V, self.learn_recurrent)
            self.recurrent = RecurrentOneToOne(self.V)
            return
        if list(given) not in (["linear_features"], ["conv2d_channels", "kernel_size"]):
            raise TypeError(
                "linear_features, conv2d_channels, kernel_size: expected the first, or the other two, with "
                f"all_to_all=True, got {', '.join(given) or 'none of them'}"
            )
        if linear_features:
            self.recurrent = nn.Linear(linear_features, linear_features)
        else:
            sizes: Any = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            if not all(n % 2 for n in sizes):
                raise ValueError(f"kernel_size: expected odd sizes, which keep that of the input, got {kernel_size}")
            self.padding = tuple(n // 2 for n in sizes)
            channels: Any = conv2d_channels
            self.recurrent = nn.Conv2d(channels, channels, sizes, padding=self.padding)
        self.recurrent.requires_grad_(self.learn_recurrent)

    def _values(self) -> tuple[Any, ...]:
        if not self.all_to_all:
            return super()._values()
        others = [getattr(self, name) for name in self.neuron.parameters[1:]]
        return connections_of(self.recurrent), *others

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not self.all_to_all and "V" in self._buffers:
            self.recurrent.V = self.V  # which is no buffer of it
        return self
