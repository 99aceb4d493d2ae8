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
