"""Counts of spikes in one pass over a tensor, a piece at a time, so that no copy of a record is ever made."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast._core import ops

__all__ = ["Counts", "count_bits", "count_steps", "exact", "has_only_spikes"]

_PIECE = 1 << 16
"""So many elements are counted at a time: a quarter of a megabyte of float32, which stays in the cache."""


class Counts(NamedTuple):
    """The spikes of a layer in one call of all steps.

    Attributes:
        steps: In each step ``[T]``.
        neurons: Of each neuron, over steps and samples, ``[*]``.
    """

    steps: Tensor
    neurons: Tensor


def has_only_spikes(x: Tensor) -> bool:
    """Whether all numbers are 0 or 1."""
    if x.dtype == torch.bool:
        return True
    if not x.is_floating_point():
        return bool(((x == 0) | (x == 1)).all())
    return all(not torch.count_nonzero((part - 1).mul_(part)) for part in _pieces(x))  # neither NaN nor inf becomes 0


def count_steps(x: Tensor, only_spikes: bool = True) -> Counts:
    """Count the spikes of ``[T, B, *]``, or its numbers that are not 0."""
    x, back = _in_order(x)
    steps, neurons = [], None
    for part in _pieces(x, _PIECE * x.shape[1] if only_spikes else _PIECE):  # so many numbers are made
        rows = (part if only_spikes else part.ne(0)).sum(1, dtype=_accumulates(x))
        steps.append(rows.flatten(1).sum(1, dtype=exact(x)))
        found = rows.sum(0, dtype=exact(x))
        neurons = found if neurons is None else neurons.add_(found)
    assert neurons is not None
    return Counts(torch.cat(steps), neurons.permute(back))


def count_bits(bits: Tensor, steps: int) -> Counts:
    """Count the spikes in bits ``[rows of eight steps, B, *]``, by the kernels that multiply them."""
    rows = bits.flatten(2)  # [rows, B, N]
    one = torch.ones((), device=bits.device)
    every = torch.ones(1, rows.shape[2], device=bits.device)
    of_samples = ops.spikes_linear(rows, every, None, one, steps)  # [T, B, 1]
    of_neurons = ops.spikes_linear_weight(rows, torch.ones_like(of_samples), one)  # [1, N]
    return Counts(of_samples.flatten(1).sum(1, dtype=exact(bits)), of_neurons.view(bits.shape[2:]).to(exact(bits)))


def exact(x: Tensor) -> torch.dtype:
    """A dtype that sums of spikes do not round in. PyTorch sums float64 faster; Apple's GPUs have only int64."""
    return torch.int64 if x.device.type == "mps" else torch.float64


def _accumulates(x: Tensor) -> torch.dtype:
    """A dtype that a sum over samples does not round in: float32 rounds no sum of less than 2 ** 24 ones."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _pieces(x: Tensor, size: int = _PIECE) -> Sequence[Tensor]:
    """Parts of ``x`` along its first dimension."""
    return torch.split(x, max(1, size * len(x) // max(1, x.numel()))) if x.dim() and len(x) else (x,)


def _in_order(x: Tensor) -> tuple[Tensor, list[int]]:
    """``[T, B, *]`` with the latter dimensions in their order in memory, which is that of a fast sum.

    With it come the places of these dimensions, by which ``permute`` puts them back.
    """
    order = sorted(range(2, x.dim()), key=x.stride().__getitem__, reverse=True)
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.permute(0, 1, *order), back
