"""Second derivatives of functions over all steps: by the loop that defines them, or an error."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast._core.pytorch import not_compiled_alone

__all__ = ["differentiable", "refusing"]


def differentiable(
    loop: Callable[[Sequence[Any]], Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients that are needed of tensors, by autograd through a loop of them, for those of its results."""
    with torch.enable_grad():
        # A tensor may have been computed from another one. A gradient stops at these views, and so is not added twice.
        tensors = [None if t is None else t.view_as(t) for t in tensors]
        results = loop(tensors)
        given = [i for i, g in enumerate(grads) if g is not None and results[i].requires_grad]
        wanted = [t for t, need in zip(tensors, needs, strict=True) if t is not None and need]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if given:
            outputs, seeds = [results[i] for i in given], [grads[i] for i in given]
            found = torch.autograd.grad(outputs, wanted, seeds, create_graph=True, allow_unused=True)
    made = iter(found)
    return [next(made) if need else None for need in needs]


def refusing(
    error: type[Exception], message: str, tensors: Sequence[Tensor | None], *sources: Tensor | None
) -> list[Any]:
    """The tensors, whose gradients with respect to themselves and to any source raise an error."""
    return [t if t is None else _Refusing.apply(error, message, t, *sources) for t in tensors]


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, error: type[Exception], message: str, t: Tensor, *sources: Tensor | None) -> Tensor:
        ctx.error = error, message
        return t.view_as(t)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> Any:
        error, message = ctx.error
        raise error(message)
