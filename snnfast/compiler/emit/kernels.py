"""Calls that have faster kernels than PyTorch's on the CPU: convolutions, poolings, normalisations, and draws."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import Graph

from snnfast._core.products import linear, matmul
from snnfast._core.pytorch import transforms_are_active
from snnfast._images.batch_norm import in_any_order
from snnfast._images.conv2d import conv2d
from snnfast._images.pool2d import avg_pool2d, max_pool2d
from snnfast.compiler.graph.nodes import aten


def bernoulli(p: Tensor, *, generator: Any = None) -> Tensor:
    """``torch.bernoulli(p)``: on the CPU, the same numbers of the same generator in a third of the time.

    PyTorch draws a uniform number for each element, and compares it with the probability, which it checks on the way.
    The three are faster one after the other.
    """
    fit = type(p) is Tensor and p.is_cpu and p.dtype in (torch.float32, torch.float64) and p.numel() > 0
    if fit and generator is None and not (p.requires_grad and torch.is_grad_enabled()) and not transforms_are_active():
        low, high = p.aminmax()
        if low >= 0 and high <= 1:
            return (torch.rand(p.shape, dtype=p.dtype) < p).to(p.dtype)
    return torch.bernoulli(p, generator=generator)


_OURS: dict[Any, Any] = dict.fromkeys((torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding), conv2d)
_OURS |= dict.fromkeys((F.max_pool2d, aten.max_pool2d.default), max_pool2d)
_OURS |= dict.fromkeys((F.avg_pool2d, aten.avg_pool2d.default), avg_pool2d)
_OURS |= dict.fromkeys((F.linear, aten.linear.default), linear)
_OURS |= dict.fromkeys((torch.matmul, torch.mm, aten.matmul.default, aten.mm.default), matmul)
_OURS |= dict.fromkeys((torch.bernoulli, aten.bernoulli.default), bernoulli)
_OURS[aten.batch_norm.default] = in_any_order


def use_kernels(graph: Graph) -> None:
    """Let convolutions, poolings, normalisations and draws choose their kernels at each call."""
    for node in graph.nodes:
        ours = _OURS.get(node.target) if node.op == "call_function" else None
        # Programs may name arguments as PyTorch does: ``F.linear(input=x, ...)``.
        if ours is not None and inspect.signature(ours).parameters.keys() >= node.kwargs.keys():
            node.target = ours
