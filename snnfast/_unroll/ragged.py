"""Ragged batches: samples that differ in their number of steps, side by side in one tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snnfast._core.ops import SEQUENCE
from snnfast._core.pytorch import transforms_are_active
from snnfast._unroll.call import Request
from snnfast._unroll.checks import check_dense, out_of_inference

__all__ = [
    "RaggedMask",
    "batch_outermost",
    "check_lengths",
    "check_steps",
    "has_values",
    "valid_steps",
]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_lengths(lengths: object, current: Tensor, request: Request) -> Tensor | None:
    """The steps of each sample, int64 ``[B]`` on the device of ``current``; ``None`` where all samples have all."""
    if lengths is None:
        return None
    shape = current.shape[1:] if request.time == SEQUENCE else current.shape
    if len(shape) == 0:
        raise ValueError("lengths: needs steps with a batch dimension, [B, *]")
    return check_steps(lengths, current, "current", request.steps, shape[0])


def check_steps(lengths: object, like: Tensor, name: str, steps: int, samples: int, least: int = 0) -> Tensor | None:
    """Check the lengths of samples in a tensor of so many ``steps``. Each sample has ``least`` steps or more.

    Returns them as :func:`check_lengths`.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a torch.Tensor or None, got {type(lengths).__name__}")
    if lengths.dtype not in _INTEGERS:
        raise TypeError(f"lengths: expected integers, got {str(lengths.dtype).removeprefix('torch.')}")
    check_dense("lengths", lengths)
    if lengths.shape != (samples,):
        raise ValueError(f"lengths: expected shape ({samples},), the steps of each sample, got {tuple(lengths.shape)}")
    if lengths.device != like.device and lengths.device.type != "cpu":
        raise ValueError(f"lengths is on {lengths.device}, but {name} is on {like.device}")
    if lengths.device.type == "cpu" and has_values(lengths):
        given = lengths.tolist()
        if any(not least <= n <= steps for n in given):
            wrong = next(n for n in given if not least <= n <= steps)
            raise ValueError(f"lengths: expected {least} to {steps}, the number of steps of {name}, got {wrong}")
        if all(n == steps for n in given):
            return None
    return out_of_inference(lengths.to(like.device, torch.int64).contiguous())


def has_values(t: Tensor) -> bool:
    """Whether they can be looked at without waiting for a device, and without making constants of them."""
    return not torch.compiler.is_compiling() and not isinstance(t, FakeTensor) and not transforms_are_active()


def valid_steps(lengths: Tensor, steps: int, dims: int) -> Tensor:
    """Whether a sample has a step: ``[T, B, 1, ..., 1]`` for steps of so many dimensions."""
    each = torch.arange(steps, device=lengths.device).view(-1, *(1,) * dims)
    return each < lengths.view(-1, *(1,) * (dims - 1))


class RaggedMask:
    """The samples of a ragged batch that have a step, for a loop over the steps."""

    def __init__(self, lengths: Tensor, steps: int, dims: int) -> None:
        self.lengths = lengths
        lengths = lengths.clamp(0, steps)
        self._valid = valid_steps(lengths, steps, dims)
        self._padding = ~self._valid
        self._number = lengths.view(-1, *(1,) * (dims - 1))

    def without_padding(self, t: int, values: Tensor) -> Tensor:
        """``values`` of the samples that have step ``t``, and 0 of the others."""
        return torch.where(self._valid[t], values, 0)

    def kept(self, t: int, after: Sequence[Tensor], before: Sequence[Tensor | None]) -> list[Tensor]:
        """The states ``after`` step ``t`` of the samples that have it, of the others those ``before`` it."""
        pairs = zip(after, before, strict=True)
        return [torch.where(self._valid[t], a, 0 if b is None else b) for a, b in pairs]

    def freeze(self, t: int, after: Sequence[Tensor], before: Sequence[Tensor | None]) -> None:
        """Write the states ``before`` step ``t`` over those ``after`` it, for the samples that lack the step."""
        for a, b in zip(after, before, strict=True):
            if b is None:
                a.masked_fill_(self._padding[t], 0)
            else:
                torch.where(self._valid[t], a, b, out=a)

    def at_last(self, t: int, values: Tensor) -> Tensor:
        """``values`` of the samples whose last step is ``t``, and 0 of the others; -1: of those without steps."""
        return torch.where(self._number == t + 1, values, 0)

    @staticmethod
    def sums(*tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The sums of several lists, element by element; ``None`` counts as 0."""
        made: list[Tensor | None] = []
        for given in zip(*tensors, strict=True):
            there: Any = [t for t in given if t is not None]
            made.append(sum(there[1:], start=there[0]) if there else None)
        return made


def batch_outermost(x: Tensor, request: Request) -> Tensor:
    """``x``, or a copy of it, in which the samples of a step lie in memory one after the other."""
    lead = 1 if request.time == SEQUENCE else 0
    if x.is_contiguous() or x.shape[lead] <= 1:
        return x
    of_samples, *others = x.stride()[lead:]
    inside = all(n <= 1 or stride < of_samples for n, stride in zip(x.shape[lead + 1 :], others, strict=True))
    return x if inside else x.contiguous()
