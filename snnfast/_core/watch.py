"""Calls of all time steps, told to those who watch them: the hooks of a module see none of these.

A layer's ``unroll``, and a :class:`snnfast.MultiStep`, run all steps of a neuron layer without ``nn.Module.__call__``.
Its spikes may go on to a linear layer as bits, which no program sees.
"""

from typing import Any, Protocol

from torch import Tensor

__all__ = ["Watcher"]


class Watcher(Protocol):
    """The methods that layers call while one is among :data:`watchers`."""

    def taken_by(self, layer: Any) -> None:
        """Tell that the layer of neurons that runs next hands its spikes on to this linear layer."""

    def handed_on(self, spk: Tensor, steps: int | None) -> None:
        """Spikes ``[T, B, *]`` go to a linear layer; with ``steps``, bits ``[rows of eight steps, B, *]``."""

    def unrolled(self, layer: Any, found: tuple[Tensor, ...], request: Any, lengths: Tensor | None, on: bool) -> None:
        """A layer has run all steps. ``on``: its spikes were handed on, and a linear layer's output is in their place.

        ``request`` is a :class:`snnfast._unroll.call.Request`.
        """


watchers: tuple[Watcher, ...] = ()
"""It is replaced as a whole, so that each thread reads one or the other."""
