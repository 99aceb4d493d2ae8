"""Running sums of one layer: spikes of its neurons, and products of its weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor

from snnfast._activity.counts import Counts

__all__ = ["Bits", "Neurons", "Product", "Record"]


class Neurons:
    """The spikes of a layer of neurons, over all calls.

    Attributes:
        counts: The spikes of each neuron ``[*]``, by the shape of a step without the batch.
        seen: How often each of these neurons was asked: samples times steps.
        steps: Spikes and neurons of each step of a call of the network, over all calls, float64 ``[2, T]``. A network
            that is called once a step goes on where it was.
    """

    def __init__(self) -> None:
        self.counts: dict[Size, Tensor] = {}
        self.seen: dict[Size, int] = {}
        self.steps = torch.zeros(2, 0, dtype=torch.float64)
        self._now: list[tuple[Tensor, int, int]] = []  # spikes [T], T, neurons of a step

    def add(self, counts: Counts, samples: int, steps: int, seen: int | None = None) -> None:
        """Add a call. ``seen``: samples times steps, where samples differ in their number of steps."""
        shape = counts.neurons.shape
        if shape in self.counts:
            self.counts[shape] += counts.neurons
            self.seen[shape] += samples * steps if seen is None else seen
        else:
            self.counts[shape], self.seen[shape] = counts.neurons.clone(), samples * steps if seen is None else seen
        if counts.steps.numel():
            self._now.append((counts.steps, steps, samples * shape.numel()))

    def end_call(self) -> None:
        """Enter the steps of a call of the network."""
        if not self._now:
            return
        spikes = torch.cat([found.reshape(-1).to("cpu", torch.float64) for found, _, _ in self._now])
        sizes = torch.cat([torch.full((steps,), float(size), dtype=torch.float64) for _, steps, size in self._now])
        self._now.clear()
        found = torch.stack((spikes, sizes))
        if found.shape[1] == 1:
            self.steps = torch.cat((self.steps, found), 1)
            return
        length = max(found.shape[1], self.steps.shape[1])
        self.steps = sum_of(self.steps, length) + sum_of(found, length)


def sum_of(x: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, length - x.shape[1]))


class Product:
    """A product of one weight with what it is given, over all calls.

    It is synaptic operations, one for each spike and output that it reaches, if all that it was ever given are spikes,
    which are 0 or 1. So the same network has the same counts however its steps are called.

    Attributes:
        dense: The products of all numbers, zeros as well.
        is_analog: It was given another number than 0 or 1.
        was_given: It was given any number but 0.
    """

    def __init__(self) -> None:
        self.dense, self.is_analog = 0, False
        self._events: Tensor | None = None  # spikes times fan-out
        self._maps: dict[object, tuple[Tensor, Callable[[], Tensor]]] = {}  # spikes by position, and the fan-out there

    def add(self, spikes: Tensor, fan_out: int) -> None:
        """Add so many spikes ``[]``, each of which reaches ``fan_out`` outputs."""
        found = spikes * fan_out
        self._events = found if self._events is None else self._events.add_(found)

    def add_map(self, key: object, spikes: Tensor, fan_out: Callable[[], Tensor]) -> None:
        """Add spikes ``[C, *]``, of which each reaches as many outputs as its position ``[*]`` says."""
        if key in self._maps:
            self._maps[key][0].add_(spikes)
        else:
            self._maps[key] = spikes.clone(), fan_out

    @property
    def synops(self) -> int:
        if self.is_analog:
            return 0
        events = 0 if self._events is None else int(self._events)
        for spikes, fan_out in self._maps.values():
            events += int((spikes.sum(0).to("cpu", torch.int64) * fan_out()).sum())
        return events

    @property
    def macs(self) -> int:
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
        places = torch.arange(8, dtype=torch.uint8, device=self.bytes.device).view(1, 8, *(1,) * (self.bytes.dim() - 1))
        numbers = self.bytes.unsqueeze(1).bitwise_right_shift(places).bitwise_and(1)
        return numbers.flatten(0, 1)[: self.steps].to(dtype)

    def __repr__(self) -> str:
        return f"Bits(steps={self.steps}, shape={(self.steps, *self.bytes.shape[1:])})"


class Record:
    """The spikes of a layer in the last call of the network, as they come."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._steps = 0

    def add(self, spk: Tensor) -> None:
        """Add the spikes of some steps ``[T, B, *]``."""
        for step in spk:
            at = self._steps % 8
            bit = step.ne(0).to(torch.uint8).bitwise_left_shift_(at)
            if at == 0:
                self._rows.append(bit)
            else:
                self._rows[-1].bitwise_or_(bit)
            self._steps += 1

    @property
    def bits(self) -> Bits | None:
        return Bits(self._rows, self._steps) if self._rows else None
