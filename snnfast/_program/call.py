"""The call of a program: how its tensors lie before the kernels, which take neurons as they lie in memory."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._core.order import in_order, order_of, strides_of
from snnfast._program.code import Counts


class Normed(NamedTuple):
    """How a series ``[T, B, C, *]`` is normalised where the kernels read it."""

    number: int
    eps: float
    over_time: bool  # all steps together have the statistics


class Call(NamedTuple):
    steps: int
    shape: torch.Size  # of a step
    dtype: torch.dtype  # of inputs and outputs
    opmath: torch.dtype  # of the arithmetic
    device: torch.device
    output: int = -1  # that a linear layer alone reads
    dims: int = 0  # of a step, from the last, that are the inputs of this layer
    bits: bool = False  # whether the layer takes it as bits
    order: Sequence[int] | None = None  # of the dimensions of a step in memory, if it is not the usual one
    samples: int = 1  # whose steps lie together: of all steps, memory is [samples, T, *]
    normed: Normed | None = None

    def like(self) -> Tensor:
        """An empty tensor, which tells the kernels dtype and device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def of_channels(self, numbers: Tensor | None) -> tuple[Tensor | None, int, int]:
        """The numbers of the channels, the series, and how many neurons of a channel lie side by side."""
        if self.normed is None:
            return None, -1, 1
        order = list(self.order or range(len(self.shape)))
        return numbers, self.normed.number, math.prod(self.shape[d] for d in order[order.index(1) + 1 :])

    def _by_sample(self, rows: Sequence[int]) -> bool:
        return self.samples > 1 and len(rows) > 0 and rows[0] == self.steps

    def _dims(self, rows: Sequence[int]) -> list[int]:
        """The dimensions of a step, ``rows`` ``[]``, or of several, ``[T]``, as they lie in memory."""
        return _in_memory(self.order or range(len(self.shape)), len(rows), self._by_sample(rows))

    def flat(self, t: Tensor) -> Tensor:
        """``[N]`` of a step, or ``[T, N]`` of several: the neurons as they lie in memory.

        Where the steps of a sample lie together, ``[samples * T, N / samples]`` of all steps.
        """
        rows = t.shape[: t.dim() - len(self.shape)]
        samples = self.samples if self._by_sample(rows) else 1
        if self.order is not None or samples > 1:
            t = t.permute(self._dims(rows))
        return t.reshape(*(samples * n for n in rows), self.shape.numel() // samples).contiguous()

    def shaped(self, t: Tensor) -> Tensor:
        """The reverse of ``flat``. It is no view: autograd forbids changes of those that a function has made."""
        rows = t.shape[:-1]
        size = (*rows, *self.shape)
        return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), size, strides_of(size, self._dims(rows)))

    def ordered(self, t: Tensor) -> Tensor:
        """A tensor with its dimensions in memory in the order of ``shaped``."""
        return in_order(t, self._dims(t.shape[: t.dim() - len(self.shape)]))


def split(tensors: Sequence[Any], counts: Counts) -> tuple[Sequence[Any], ...]:
    first, second = counts[0], counts[0] + counts[1]
    return tensors[:first], tensors[first:second], tensors[second:]


def needs_of(tensors: Sequence[Tensor]) -> tuple[bool, ...] | None:
    """Which tensors ask for a gradient; ``None``: the grad mode is off."""
    return tuple(t.requires_grad for t in tensors) if torch.is_grad_enabled() else None


def expanded(t: Tensor, shape: torch.Size) -> Tensor:
    # A call that does nothing has sizes, with which a compiled loop is no program.
    return t if t.shape == shape else t.expand(shape)


def broadcast(shapes: Sequence[torch.Size]) -> torch.Size:
    longest = max(shapes, key=len)
    if all(s == longest[len(longest) - len(s) :] for s in shapes):
        return longest
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call, no-any-return]  # ten times slower


def rows_of(x: Tensor, call: Call) -> Tensor:
    """A series as the kernels take it: ``[T, N]``, or ``[1, N]`` of one that was expanded over time.

    Numbers of each step stay as they are.
    """
    if x.dim() == 1 and call.shape:
        return x
    one = call.steps > 1 and x.stride(0) == 0
    return call.flat(x[:1] if one else x)


def flat_parameters(parameters: Sequence[Tensor], call: Call) -> list[Tensor]:
    """Parameters as the engines take them: a number, ``[N]``, or the last dimensions of a step as one."""
    found = []
    for p in parameters:
        if p.numel() == 1:
            found.append(p.reshape(()))
        elif call.order is None and p.dim() > 0 and p.shape == call.shape[-p.dim() :]:
            found.append(p.reshape(-1).contiguous())
        else:
            found.append(call.flat(p.expand(call.shape)))
    return found


def summed(gradient: Tensor, parameter: Tensor, call: Call) -> Tensor:
    """The gradient of a parameter, float64 until it is summed."""
    if gradient.dim() > 0:
        gradient = call.shaped(gradient).sum_to_size(parameter.shape)
    return gradient.to(parameter.dtype).view(parameter.shape)


def _in_memory(step: Sequence[int], lead: int, by_sample: bool) -> list[int]:
    """The dimensions of a tensor as they lie in memory, by those of a step, with ``lead`` before them."""
    dims = [*range(lead), *(lead + d for d in step)]
    if by_sample:
        dims[:2] = 1, 0
    return dims


def orders_of(x: Tensor | None, shape: torch.Size) -> tuple[list[int], list[int]]:
    """The dimensions of a step, and of all steps, as the results of a call lie in memory; ``x``: its first series."""
    step = range(len(shape)) if x is None else order_of_steps(x, shape) or range(len(shape))
    return list(step), _in_memory(step, 1, x is not None and samples_of(x, shape) > 1)


def order_of_steps(x: Tensor, shape: torch.Size) -> list[int] | None:
    """The dimensions of a step from the outermost in memory to the innermost; ``None``: as usual, or with gaps.

    Gaps in the outermost dimension do not count. The samples of a step of ``[B, T, *]`` have them.
    """
    if x.is_contiguous() or x.shape[1:] != shape or x.numel() == 0:
        return None
    order = order_of(x.stride()[1:])
    step = x[0]
    usual = step.is_contiguous() or (order[0] == 0 and step[0].is_contiguous())
    return order if not usual and step.permute(order)[0].is_contiguous() else None


_LEAST_OF_SAMPLE = 64
"""Fewer neurons of a sample are copied sooner than computed apart."""


def samples_of(x: Tensor, shape: torch.Size) -> int:
    """How many samples of ``x`` ``[T, B, *]`` have their steps together in memory: B, or 1 where the steps lie apart.

    Only the kernels of the CPU take them as they are.
    """
    if x.device.type != "cpu" or x.shape[1:] != shape or len(shape) < 2 or x.shape[0] < 2 or x.shape[1] < 2:
        return 1
    neurons = shape.numel() // shape[0]
    if neurons < _LEAST_OF_SAMPLE or x.stride(0) != neurons or x.stride(1) != x.shape[0] * neurons:
        return 1
    sample = x[0, 0]
    dense = sample.is_contiguous() or sample.permute(order_of(sample.stride())).is_contiguous()
    return x.shape[1] if dense else 1
