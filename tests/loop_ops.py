"""Functions, operators and classes as users define them, for the random programs of ``tests/compiler/loop_fuzz.py``."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


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


# ---- a neuron as Norse has them


class CellState(NamedTuple):
    z: Tensor
    v: Tensor
    i: Tensor


class CellParameters(NamedTuple):
    tau_mem_inv: float = 0.5
    tau_syn_inv: float = 0.5
    v_th: Any = 0.5
    v_reset: float = 0.0


class Cell(nn.Module):
    """A step returns spikes and a NamedTuple of states, which is ``None`` before the first one."""

    def __init__(self, size: int, spike: Any, recurs: bool = False, p: Any = None) -> None:
        super().__init__()
        self.spike, self.recurs, self.p = spike, recurs, p or CellParameters()
        self.weight = nn.Parameter(torch.rand(size, size)) if recurs else None

    def forward(self, x: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        if state is None:
            v = torch.full_like(x, self.p.v_reset).detach()
            state = CellState(torch.zeros_like(x), v, x.new_zeros(x.shape))
            state.v.requires_grad = True
        jump = F.linear(state.z, self.weight) + x if self.recurs else x
        v = state.v + self.p.tau_mem_inv * ((0.0 - state.v) + state.i)
        i = state.i + -self.p.tau_syn_inv * state.i
        z = self.spike(v - self.p.v_th)
        v = (1 - z.detach()) * v + z.detach() * self.p.v_reset
        return z, CellState(z, v=v, i=i + jump)
