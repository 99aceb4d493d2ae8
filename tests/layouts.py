"""Steps that lie in memory in another order than their dimensions."""

from collections.abc import Sequence

import torch
from helpers import Tensors
from torch import Tensor

# Dimensions of a step, from the outermost in memory to the innermost.
ORDERS = {
    "channels_last": (0, 2, 3, 1),
    "channels_last_3d": (0, 2, 3, 4, 1),
    "batch_last": (1, 2, 3, 0),
    "reversed": (2, 1, 0),
}
SHAPES = {3: (3, 5, 6), 4: (3, 4, 5, 6), 5: (2, 3, 2, 5, 4)}
CHANNELS_LAST = ORDERS["channels_last"]


def in_order(t: Tensor, order: Sequence[int]) -> Tensor:
    """The values of ``[*]`` or ``[T, *]`` with its step in this order in memory."""
    lead = t.dim() - len(order)
    dims = [*range(lead), *(lead + d for d in order)]
    return t.detach().permute(dims).contiguous().permute([dims.index(d) for d in range(t.dim())])


def moved(tensors: Tensors, order: Sequence[int], names: Sequence[str] = ("current", "syn", "mem")) -> Tensors:
    return {n: in_order(t, order) if t is not None and n in names else t for n, t in tensors.items()}


def strides_in(order: Sequence[int], t: Tensor) -> tuple[int, ...]:
    return in_order(torch.empty(t.shape), order).stride()


def in_place(tensors: Tensors, wrt: Sequence[str] | None = None) -> Tensors:
    """Asking for gradients, without a copy, which could have another layout."""
    return {n: t if t is None else t.detach().requires_grad_(wrt is None or n in wrt) for n, t in tensors.items()}
