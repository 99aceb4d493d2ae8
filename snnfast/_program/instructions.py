"""The instructions of a program: their numbers in the kernels, and what each computes, in PyTorch.

Registers hold numbers of one dtype. A truth value is 1 or 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["APPLY", "COMPARES", "FIRSTS", "NUMBERS", "SECONDS"]


def _truth(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: compare(a, b).to(a.dtype)


APPLY: dict[str, Callable[..., Tensor]] = {
    "move": lambda a: a,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "gt": _truth(torch.gt),
    "ge": _truth(torch.ge),
    "lt": _truth(torch.lt),
    "le": _truth(torch.le),
    "eq": _truth(torch.eq),
    "ne": _truth(torch.ne),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda c, a, b: torch.where(c != 0, a, b),
    "fma": lambda a, b, c: torch.add(c, a, alpha=float(b)),  # b is a constant
    "neg": torch.neg,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "exp": torch.exp,
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "pow": torch.pow,
}
"""In the order of ``csrc/cpu/program/instructions.h``."""

# Two instructions in one, where nothing else reads what the first one makes: `add` of what `mul` made is `mul add`. The
# other operand of the second comes behind; `rsub` and `rdiv` have it in front. `gt where` is a choice by a comparison.
FIRSTS = ("add", "sub", "mul", "div", "gt", "ge", "lt", "le")
SECONDS = ("add", "sub", "rsub", "mul", "div", "rdiv", "gt")
COMPARES = ("gt", "ge", "lt", "le")

_NAMES = [*APPLY, *(f"{a} {b}" for a in FIRSTS for b in SECONDS), *(f"{a} where" for a in COMPARES)]
NUMBERS = {name: number for number, name in enumerate(_NAMES)}
