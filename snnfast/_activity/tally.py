"""Running sums of one layer: spikes of its neurons, and products of its weights.

Steps come one by one, so that each call enters a row and computes nothing. Some rows are added up at a time.
"""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from snnfast._activity.counts import Counts, exact
from snnfast._activity.fan_out import FanOut
from snnfast._core.linear import numbers_of

__all__ = ["Bits", "Neurons", "Product", "Record"]

_ROWS, _NUMBERS = 32, 1 << 15
"""So many rows are added up at a time, or fewer that have so many numbers."""


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
        self._rows: list[Tensor] = []  # [*]
        self._samples = 0  # of each of them
        self._now: list[tuple[Tensor, int | Tensor]] = []  # of this call: spikes [T], neurons times samples

    def add_step(self, row: Tensor, samples: int) -> None:
        """Add a step: the spikes of each neuron ``[*]``."""
        rows = self._rows
        if rows and (samples != self._samples or not _go_together(rows, row)):
            self._add_rows()
        self._samples = samples
        self.steps_of_call += 1
        rows.append(row)

    def add(self, counts: Counts, samples: int | Tensor, steps: int, seen: int) -> None:
        """Add some steps. ``samples``: those that have each step. ``seen``: the sum of the steps of all samples."""
        self._add_rows()
        self.steps_of_call += steps
        self._add(counts, samples, seen)

    @property
    def counts(self) -> list[tuple[Tensor, int]]:
        """The spikes of each neuron ``[*]``, and how often each was asked. Steps of other shapes are other neurons."""
        self._add_rows()
        return [(counts, self._seen[shape]) for shape, counts in self._counts.items()]

    def end_call(self) -> None:
        """Enter the steps of a call of the network."""
        self._add_rows()
        if not self._now:
            return
        spikes = torch.cat([found.to("cpu", torch.float64) for found, _ in self._now])
        sizes = torch.cat([torch.zeros(found.shape, dtype=torch.float64) + size for found, size in self._now])
        self._now.clear()
        self.steps_of_call = 0
        found = torch.stack((spikes, sizes))
        length = max(found.shape[1], self.steps.shape[1])
        self.steps = _padded(self.steps, length) + _padded(found, length)

    def _add_rows(self) -> None:
        if self._rows:
            rows = torch.stack(self._rows)
            self._rows.clear()
            sums = rows.flatten(1).sum(1, dtype=exact(rows)), rows.sum(0, dtype=exact(rows))
            self._add(Counts(*sums), self._samples, self._samples * len(rows))

    def _add(self, counts: Counts, samples: int | Tensor, seen: int) -> None:
        shape = counts.neurons.shape
        if shape in self._counts:
            self._counts[shape] = self._counts[shape] + counts.neurons  # in place, inference mode forbids some
            self._seen[shape] += seen
        else:
            self._counts[shape], self._seen[shape] = counts.neurons, seen
        if counts.steps.numel():
            self._now.append((counts.steps, samples * shape.numel()))


def _go_together(rows: Sequence[Tensor], row: Tensor) -> bool:
    """Whether a row can be added up with others."""
    return row.shape == rows[0].shape and len(rows) < _ROWS and len(rows) * row.numel() < _NUMBERS


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
        self._rows: list[Tensor] = []  # spikes by position
        self._fan_out: int | FanOut = 0  # of each of them
        self._events: Tensor | None = None  # spikes times fan-out
        self._maps: dict[FanOut, Tensor] = {}  # spikes by position

    def add(self, row: Tensor, fan_out: int | FanOut) -> None:
        """Add spikes: some sums of them, of any shape, or those of each position ``[C, *]``, and their fan-out."""
        rows, before = self._rows, self._fan_out
        if rows and (fan_out != before or not _go_together(rows, row)):
            self._add_rows()
        self._fan_out = fan_out
        rows.append(row)

    @property
    def synops(self) -> int:
        """The synaptic operations."""
        if self.is_analog:
            return 0
        self._add_rows()
        events = 0 if self._events is None else int(self._events)
        for fan_out, spikes in self._maps.items():
            events += int((spikes.sum(0).to("cpu", torch.int64) * fan_out.by_position()).sum())
        return events

    @property
    def macs(self) -> int:
        """The multiplications."""
        return self.dense if self.is_analog else 0

    def become_analog(self) -> None:
        """Count no spikes any more."""
        self.is_analog, self._events = True, None
        self._rows.clear()
        self._maps.clear()

    def _add_rows(self) -> None:
        if not self._rows:
            return
        rows, fan_out = torch.stack(self._rows), self._fan_out
        self._rows.clear()
        if not isinstance(fan_out, FanOut):
            found = rows.sum(dtype=exact(rows)) * fan_out
            self._events = found if self._events is None else self._events + found
        else:
            found = rows.sum(0, dtype=exact(rows))
            self._maps[fan_out] = self._maps[fan_out] + found if fan_out in self._maps else found


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
