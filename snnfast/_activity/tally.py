"""Running sums of one layer: spikes of its neurons, and products of its weights."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from snnfast._activity.counts import Counts, exact
from snnfast._core.linear import numbers_of

__all__ = ["Bits", "Neurons", "Product", "Record"]


class Neurons:
    """The spikes of a layer of neurons, over all calls.

    Attributes:
        steps: Spikes and neurons of each step of a call of the network, over all calls, float64 ``[2, T]``.
        steps_of_call: The number of steps in this call.
    """

    def __init__(self) -> None:
        self.steps = torch.zeros(2, 0, dtype=torch.float64)
        self.steps_of_call = 0
        self._counts: dict[Size, Tensor] = {}  # of each neuron [*], by the shape of a step without the batch
        self._seen: dict[Size, int] = {}  # samples times steps
        self._now: list[tuple[Tensor, int | Tensor]] = []  # of this call: spikes [T], neurons times samples

    def add(self, counts: Counts, samples: int | Tensor, steps: int, seen: int) -> None:
        """Add some steps. ``samples``: those that have each step. ``seen``: the sum of the steps of all samples."""
        self.steps_of_call += steps
        shape = counts.neurons.shape
        if shape in self._counts:
            self._counts[shape] = self._counts[shape] + counts.neurons  # in place, inference mode forbids some
            self._seen[shape] += seen
        else:
            self._counts[shape], self._seen[shape] = counts.neurons, seen
        if counts.steps.numel():
            self._now.append((counts.steps, samples * shape.numel()))

    @property
    def counts(self) -> list[tuple[Tensor, int]]:
        """The spikes of each neuron ``[*]``, and how often each was asked. Steps of other shapes are other neurons."""
        return [(counts, self._seen[shape]) for shape, counts in self._counts.items()]

    def end_call(self) -> None:
        """Enter the steps of a call of the network."""
        if not self._now:
            return
        spikes = torch.cat([found.to("cpu", torch.float64) for found, _ in self._now])
        sizes = torch.cat([torch.zeros(found.shape, dtype=torch.float64) + size for found, size in self._now])
        self._now.clear()
        self.steps_of_call = 0
        found = torch.stack((spikes, sizes))
        length = max(found.shape[1], self.steps.shape[1])
        self.steps = _padded(self.steps, length) + _padded(found, length)


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, length - x.shape[1]))


class Product:
    """A product of one weight with what it is given, over all calls.

    It is synaptic operations, one for each spike and output that it reaches, if all that it was ever given are spikes,
    which are 0 or 1. So the same network has the same counts however its steps are called.

    Attributes:
        dense: The products of all numbers, zeros as well.
        is_analog: It was given another number than 0 or 1.
    """

    def __init__(self) -> None:
        self.dense, self.is_analog = 0, False
        self._events: Tensor | float = 0.0  # spikes times fan-out

    def add(self, spikes: Tensor, fan_out: int | Tensor) -> None:
        """Add counts of spikes, of any shape, or of each position ``[C, *]``, and their fan-out."""
        if isinstance(fan_out, int):
            self._events = self._events + spikes.sum(dtype=exact(spikes)) * fan_out
        else:
            self._events = self._events + (spikes * fan_out.to(spikes.device, exact(spikes))).sum()

    @property
    def synops(self) -> int:
        """The synaptic operations."""
        return 0 if self.is_analog else int(self._events)

    @property
    def macs(self) -> int:
        """The multiplications."""
        return self.dense if self.is_analog else 0


class Bits:
    """Spikes of all steps, eight steps to a byte.

    Attributes:
        bytes: uint8 ``[rows of eight steps, B, *]``. The first step of a row is its lowest bit.
        steps: The number of steps.
    """

    def __init__(self, rows: Sequence[Tensor], steps: int) -> None:
        self.bytes, self.steps = torch.stack(list(rows)), steps

    def unpack(self, dtype: torch.dtype = torch.bool) -> Tensor:
        """The spikes ``[T, B, *]``.

        Args:
            dtype: Their dtype.
        """
        return numbers_of(self.bytes, self.steps).to(dtype)

    def __repr__(self) -> str:
        return f"Bits(steps={self.steps}, shape={(self.steps, *self.bytes.shape[1:])})"


class Record:
    """The spikes of a layer in the last call of the network, as they come."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._steps = 0

    def add_bits(self, bits: Tensor, steps: int) -> None:
        """Add all steps of a call, as bits ``[rows of eight steps, B, *]``."""
        self._rows, self._steps = list(bits), steps

    def add(self, spk: Tensor) -> None:
        """Add the spikes of some steps ``[T, B, *]``."""
        for step in spk:
            at = self._steps % 8
            bit = step.ne(0).to(torch.uint8).bitwise_left_shift_(at)
            if at == 0:
                self._rows.append(bit)
            else:
                self._rows[-1] = self._rows[-1] | bit
            self._steps += 1

    @property
    def bits(self) -> Bits | None:
        return Bits(self._rows, self._steps) if self._rows else None
