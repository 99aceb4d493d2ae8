"""Counts of spikes in one pass over a tensor, a piece at a time, so that no copy of a record is ever made."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast._core import ops

__all__ = ["Counts", "count_bits", "count_steps", "has_only_spikes", "pieces", "total"]

_PIECE = 1 << 18
"""So many elements are counted at a time: a megabyte of float32, which stays in the cache."""


class Counts(NamedTuple):
    """The spikes of a layer in one call.

    Attributes:
        steps: In each step ``[T]``.
        neurons: Of each neuron, over steps and samples, ``[*]``.
    """

    steps: Tensor
    neurons: Tensor


def pieces(x: Tensor) -> Iterator[Tensor]:
    """``x`` in parts along its first dimension."""
    return iter(torch.split(x, max(1, _PIECE * len(x) // max(1, x.numel()))) if x.dim() and len(x) else (x,))


def has_only_spikes(x: Tensor) -> bool:
    """Whether all numbers are 0 or 1."""
    if x.dtype == torch.bool:
        return True
    if not x.is_floating_point():
        return bool(((x == 0) | (x == 1)).all())
    return all(not torch.count_nonzero((part - 1).mul_(part)) for part in pieces(x))  # NaN and inf are not zero either


def total(x: Tensor) -> Tensor:
    """The sum of whole numbers, exact."""
    return x.sum(dtype=_exact(x))


def count_steps(x: Tensor, spikes: bool) -> Counts:
    """Count the spikes of ``[T, B, *]``. ``spikes``: all numbers are 0 or 1; else each that is not 0 counts."""
    steps, neurons = [], None
    for part in pieces(x):
        if not spikes:
            part = part.ne(0)
        # Exact: float32 rounds no sum of less than 2 ** 24 ones.
        rows = part.sum(1, dtype=torch.float64 if part.dtype == torch.float64 else torch.float32)
        steps.append(rows.flatten(1).sum(1, dtype=_exact(x)))
        found = rows.sum(0, dtype=_exact(x))
        neurons = found if neurons is None else neurons.add_(found)
    assert neurons is not None
    return Counts(torch.cat(steps), neurons)


def count_bits(bits: Tensor, steps: int) -> Counts:
    """Count the spikes in bits ``[rows of eight steps, B, *]``, by the kernels that multiply them."""
    rows = bits.flatten(2)  # [rows, B, N]
    one = torch.ones((), device=bits.device)
    every = torch.ones(1, rows.shape[2], device=bits.device)
    of_samples = ops.spikes_linear(rows, every, None, one, steps)  # [T, B, 1]
    of_neurons = ops.spikes_linear_weight(rows, torch.ones_like(of_samples), one)  # [1, N]
    exact = _exact(bits)
    return Counts(of_samples.flatten(1).sum(1, dtype=exact), of_neurons.view(bits.shape[2:]).to(exact))


def _exact(x: Tensor) -> torch.dtype:
    """A dtype that sums of spikes do not round in: Apple's GPUs have no float64, and PyTorch sums it sooner."""
    return torch.int64 if x.device.type == "mps" else torch.float64
