"""See :class:`MultiStep`."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from snnfast._arguments import check_flag, check_num_steps, check_reduce
from snnfast.leaky import Leaky

__all__ = ["MultiStep"]


class MultiStep(nn.Module):
    """Layers in sequence, applied to all time steps at once instead of one step after the other.

    Each :class:`Leaky` is unrolled over time in one kernel. Every other layer has no state and is applied once to all
    steps together, ``[T * B, *]``; as long as the signal is still the same at every step, once to ``[B, *]``. The
    result is that of the loop over time, up to the order of floating-point sums inside matrix products. (Layers with
    statistics over the batch, such as batch normalisation, see all steps of it together, and dropout before the first
    ``Leaky`` of a constant input draws one mask for all steps.)

    Args:
        *layers: Modules in order of application; nested ``nn.Sequential`` are opened (their own hooks do not run).

    Raises:
        TypeError: Something that is not a module, or a module that contains a ``Leaky`` where it can't be unrolled.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(nn.Linear(784, 1000), snnfast.Leaky(0.95), nn.Linear(1000, 10), snnfast.Leaky(0.95))
        >>> spk_rec, mem_rec = net(torch.rand(128, 784), num_steps=25)  # a constant input: the first layer runs once
        >>> spk_rec.shape
        torch.Size([25, 128, 10])
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_flatten(layers))
        if not len(self.layers):
            raise ValueError("layers: expected at least one module")

    def forward(
        self,
        x: Tensor,
        num_steps: int | None = None,
        *,
        record_mem: bool = True,
        reduce: str | None = None,
        membrane_dtype: torch.dtype | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Apply the layers to every time step.

        Args:
            x: Input of every step ``[T, B, *]``; with ``num_steps`` the same input ``[B, *]`` at each step.
            num_steps: Number of steps of a constant input.
            record_mem: Whether a final :class:`Leaky` returns its membrane at every step or only the last.
            reduce: ``"sum"``: a final :class:`Leaky`, which there must be, returns the sum of its spikes over time in
                place of those of every step, which are then never written. ``None``: the spikes.
            membrane_dtype: ``torch.bfloat16``: every :class:`Leaky` keeps its membranes for backward at half size,
                for gradients that are rounded (see :func:`snnfast.functional.lif`).

        Returns:
            ``(spk_rec, mem_rec)`` of a final :class:`Leaky`, both ``[T, B, *]`` (``mem [B, *]`` with
            ``record_mem=False``, the spike count ``[B, *]`` with ``reduce="sum"``); else the output of the last layer
            ``[T, B, *]``, which is ``[B, *]`` if no ``Leaky`` came before it and the input is constant.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`; ``x`` without time and batch dimensions;
                ``reduce`` where the last layer is no :class:`Leaky`.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        needed = 2 if num_steps is None else 1
        if x.dim() < needed:
            expected = "[T, B, *]" if num_steps is None else "[B, *]"
            raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")
        num_steps = None if num_steps is None else check_num_steps(num_steps)
        check_flag("record_mem", record_mem)
        if check_reduce(reduce) is not None and not isinstance(self.layers[-1], Leaky):
            raise ValueError(f"reduce: needs a Leaky as the last layer, got {type(self.layers[-1]).__name__}")
        mem_rec: Tensor | None = None
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if isinstance(layer, Leaky):
                final = i == last
                x, mem_rec = layer.unroll(
                    x, num_steps=num_steps, record_mem=record_mem and final, reduce=reduce if final else None,
                    membrane_dtype=membrane_dtype,
                )  # fmt: skip
                num_steps = None  # from here on the signal changes with time
            else:
                mem_rec = None
                x = layer(x) if num_steps is not None else _over_time(layer, x)
        return x if mem_rec is None else (x, mem_rec)


def _over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """A stateless layer on ``[T, B, *]``, as one batch of ``T * B``."""
    steps = x.shape[:2]
    y = layer(x.flatten(0, 1))
    return cast(Tensor, y.reshape(*steps, *y.shape[1:]))


def _is_snntorch_neuron(module: nn.Module) -> bool:
    """Told by name, so that snnTorch is never imported for it."""
    return any(c.__name__ == "SpikingNeuron" and c.__module__.startswith("snntorch.") for c in type(module).__mro__)


def _flatten(layers: tuple[nn.Module, ...] | nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layers: expected torch.nn.Module, got {type(layer).__name__}")
        if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
            yield from _flatten(layer)
        elif isinstance(layer, Leaky):
            yield layer
        elif any(_is_snntorch_neuron(m) and not isinstance(m, Leaky) for m in layer.modules()):
            raise TypeError(
                f"layers: {type(layer).__name__} is or has a neuron of snnTorch, whose state can't be carried over "
                "time; use snnfast.Leaky, or snnfast.snntorch.convert"
            )
        elif any(isinstance(m, Leaky) for m in layer.modules()):
            raise TypeError(
                f"layers: {type(layer).__name__} calls a Leaky in its forward, which can't be unrolled; "
                "pass its layers one by one or in an nn.Sequential"
            )
        else:
            yield layer
