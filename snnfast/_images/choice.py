"""Which calls the kernels for images may take, and the nodes that graphs have for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend, ops
from snnfast._core.backend import has_numbers

__all__ = ["NODES", "define_node", "pair", "takes_kernels"]


def takes_kernels(x: Tensor, of_planes: bool = False) -> bool:
    """Whether the kernels for images may be given ``x``: a batch in float32 and in channels_last order on the CPU.

    Or in contiguous order, where a kernel takes each plane by itself.
    """
    return (
        has_numbers(x)
        and x.dim() == 4
        and x.dtype == torch.float32
        and (
            x.is_contiguous()
            if of_planes
            else x.is_contiguous(memory_format=torch.channels_last)
            and x.stride(1) == 1  # not one channel in the other order
        )
        and backend.use_fused(x)
    )


def pair(given: Any) -> list[int]:
    """One number, or two, as ``[rows, columns]``. PyTorch refuses more of them, or none."""
    numbers = list(given) if isinstance(given, Sequence) else [given]
    return numbers * 2 if len(numbers) == 1 else numbers


NODES: set[Any] = set()
"""The ops that calls are in a graph, if there are kernels. Each is named as PyTorch's function with its arguments."""


def define_node(name: str, arguments: str, eager: Callable[..., Tensor], traced: Callable[..., Tensor]) -> None:
    """Define the op as which ``torch.compile`` has a call in its graph.

    The op is composite: other compilers trace ``traced``, and find the kernels and their backward pass in it. An
    autograd function in its place would be a new class at each call.
    """
    if ops.extension is None:
        return

    def call(input: Tensor, *given: Any) -> Tensor:
        return (eager if type(input) is Tensor else traced)(input, *given)

    qualified = f"{ops.NAMESPACE}::{name}"
    torch.library.define(qualified, f"{arguments} -> Tensor")
    torch.library.impl(qualified, "CompositeImplicitAutograd", call)
    NODES.add(getattr(torch.ops.snnfast, name))
