"""Functions, operators and classes as users define them, for the random programs of ``tests/loop_fuzz.py``."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Results:
    first: Any
    rest: Any


class Named(NamedTuple):
    first: Any
    rest: Any


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v * 0.5

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 0.25


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


@torch.library.custom_op("random_programs::all_scaled_", mutates_args=("some",))
def all_scaled_(some: list[Tensor], factor: float) -> None:
    for v in some:
        v.mul_(factor)


@scaled_.register_fake
@all_scaled_.register_fake
def _(v: Any, factor: float) -> None:
    pass
