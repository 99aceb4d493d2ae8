"""The call of a program: how its tensors lie before the kernels, which take neurons as they lie in memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._core.order import in_order, order_of, strides_of
from snnfast._program.code import Counts


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

    def like(self) -> Tensor:
        """An empty tensor, which tells the kernels dtype and device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def _dims(self, t: Tensor) -> list[int]:
        """The dimensions of a step, or of several, as they lie in memory."""
        lead = t.dim() - len(self.shape)
        return [*range(lead), *(lead + d for d in self.order or range(len(self.shape)))]

    def flat(self, t: Tensor) -> Tensor:
        """``[N]`` of a step, or ``[T, N]`` of several: the neurons as they lie in memory."""
        if self.order is not None:
            t = t.permute(self._dims(t))
        return t.reshape(*t.shape[: t.dim() - len(self.shape)], self.shape.numel()).contiguous()

    def shaped(self, t: Tensor) -> Tensor:
        """The reverse of ``flat``. It is no view: autograd forbids changes of those that a function has made."""
        strides = strides_of(self.shape, self.order or range(len(self.shape)))
        lead = t.dim() - 1
        size, stride = (*t.shape[:lead], *self.shape), (*t.stride()[:lead], *strides)
        return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), size, stride)

    def ordered(self, t: Tensor) -> Tensor:
        """A tensor with its dimensions in memory in the order of ``shaped``."""
        return in_order(t, self._dims(t))


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
