"""Functions, operators and classes as users define them, for the random programs of ``tests/compiler/loop_fuzz.py``."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass
class Results:
    first: Any
    rest: Any


class Named(NamedTuple):
    first: Any
    rest: Any


@torch.library.custom_op("random_programs::doubled", mutates_args=())
def doubled(v: Tensor) -> Tensor:
    return v * 2


@doubled.register_fake
def _(v: Tensor) -> Tensor:
    return torch.empty_like(v)


doubled.register_autograd(lambda ctx, grad: grad * 2)


@torch.library.custom_op("random_programs::noise", mutates_args=(), tags=[torch.Tag.nondeterministic_seeded])
def noise(v: Tensor) -> Tensor:
    return torch.rand_like(v)


@noise.register_fake
def _(v: Tensor) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("random_programs::scaled_", mutates_args=("v",))
def scaled_(v: Tensor, factor: float) -> None:
    v.mul_(factor)


@scaled_.register_fake
def _(v: Tensor, factor: float) -> None:
    pass


# ---- surrogates as public code writes them


class Masked(torch.autograd.Function):
    """Written into a tensor of zeros, with an attribute of ``ctx``, and ``None`` for a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: float = 1.0) -> Tensor:
        ctx.save_for_backward(x)
        ctx.width = width
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * torch.clamp(ctx.width - x.abs(), min=0), None


class Saved(torch.autograd.Function):
    """Three saved tensors; a gradient that is set by a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        spk = (x > threshold).to(x.dtype)
        ctx.save_for_backward(x, threshold, spk)
        return spk

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, threshold, spk = ctx.saved_tensors
        made = grad.clone()
        made[(x - threshold).abs() > 0.75] = 0
        return made * (1 + 0.5 * spk), -made


class Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0).type_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad / (4 * x.abs() + 1.0) ** 2


class Summed(torch.autograd.Function):
    """Its derivative is not elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x.abs().mean()


def through(x: Tensor) -> Tensor:
    soft = F.hardtanh(x, -0.5, 0.5) + 0.5
    return soft + ((x > 0).to(x.dtype) - soft).detach()
