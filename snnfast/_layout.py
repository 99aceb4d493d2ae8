"""Steps that lie in memory in another order of their dimensions, such as channels_last: read and written in place."""

from typing import Any

import torch
from torch import Tensor

from snnfast import _ops

StepOrder = tuple[int, ...]
"""Dimensions of one time step ``[*]``, from the outermost in memory to the innermost."""


def step_order(current: Tensor, has_time: bool) -> StepOrder | None:
    """The order in which ``current``, which is not contiguous, would be, with time first; ``None`` if in no order."""
    lead = 1 if has_time else 0
    strides = current.stride()[lead:]
    order: list[int] = []
    for d in range(len(strides)):  # a sort by insertion: torch.compile does not trace sorted() by a dynamic stride
        place = d
        while place > 0 and strides[order[place - 1]] < strides[d]:
            place -= 1
        order.insert(place, d)
    return tuple(order) if _moved(current, tuple(order)).is_contiguous() else None


class InOrder:
    """The ops of :mod:`snnfast._ops` on tensors with steps in another order, which the results then have as well.

    The neurons do not know of one another, so that the kernels may count them in any order. What is in another
    order than the current (a membrane, a gradient) is copied by the ops.
    """

    def __init__(self, order: StepOrder) -> None:
        self.order = order
        self.inverse = tuple(order.index(d) for d in range(len(order)))

    def lif_forward(
        self, x: Tensor, mem0: Tensor | None, beta: Tensor, threshold: Tensor, graded: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        parameters = self._parameters(x, beta, threshold, graded)
        spk, mem, kept = _ops.lif_forward(_moved(x, self.order), _moved(mem0, self.order), *parameters, *options)
        return self._back(spk), self._back(mem), self._back(kept)

    def lif_step_forward(
        self, x: Tensor, mem0: Tensor | None, beta: Tensor, threshold: Tensor, graded: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        parameters = self._parameters(x, beta, threshold, graded)
        spk, mem = _ops.lif_step_forward(_moved(x, self.order), _moved(mem0, self.order), *parameters, *options)
        return self._back(spk), self._back(mem)

    def lif_backward(
        self,
        grad_spk: Tensor | None,
        grad_mem: Tensor | None,
        x: Tensor | None,
        mem_rec: Tensor | None,
        kept: Tensor | None,
        mem0: Tensor | None,
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        derivative: Tensor | None,
        *options: Any,
    ) -> list[Tensor]:
        known = x if x is not None else mem_rec if mem_rec is not None else kept
        assert known is not None
        found = _ops.lif_backward(
            *(_moved(t, self.order) for t in (grad_spk, grad_mem, x, mem_rec, kept, mem0)),
            *self._parameters(known, beta, threshold, graded), _moved(derivative, self.order), *options,
        )  # fmt: skip
        return self._gradients(found, options[-1])

    def lif_step_backward(
        self,
        grad_spk: Tensor | None,
        grad_mem: Tensor | None,
        x: Tensor,
        mem0: Tensor | None,
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        *options: Any,
    ) -> list[Tensor]:
        found = _ops.lif_step_backward(
            *(_moved(t, self.order) for t in (grad_spk, grad_mem, x, mem0)),
            *self._parameters(x, beta, threshold, graded), *options,
        )  # fmt: skip
        return self._gradients(found, options[-1])

    def _parameters(self, like: Tensor, *parameters: Tensor) -> list[Tensor]:
        dims = len(self.order)
        shape = torch.Size([like.shape[like.dim() - dims + d] for d in self.order])
        return [
            p if p.dim() == 0 else one_block(_moved(p.reshape((1,) * (dims - p.dim()) + p.shape), self.order), shape)
            for p in parameters
        ]

    def _gradients(self, found: list[Tensor], needs: int) -> list[Tensor]:
        gradients = [self._back(t) for t in found]
        # Those of parameters are summed; the order of a sum must not depend on the layout.
        first = (needs & 1) + (needs >> 1 & 1)
        return gradients[:first] + [t.contiguous() for t in gradients[first:]]

    def _back(self, t: Tensor) -> Tensor:
        view: Tensor = _moved(t, self.inverse)
        if torch.compiler.is_compiling():
            return view
        # Not a view, which could not be detached in place.
        return t.as_strided_(view.shape, view.stride())


def one_block(parameter: Tensor, step_shape: torch.Size) -> Tensor:
    """``parameter``, expanded only if the dimensions along which it varies are not next to one another.

    The kernels find the value of neuron ``i`` of the flattened step at ``(i // inner) % size``, which covers a scalar
    and parameters per neuron, per channel, per sample or per element.
    """
    if parameter.dim() == 0:
        return parameter
    shape = (1,) * (len(step_shape) - parameter.dim()) + tuple(parameter.shape)
    varies = [d for d, n in enumerate(shape) if n != 1]
    if not varies or all(shape[d] == step_shape[d] for d in range(varies[0], varies[-1] + 1)):
        return parameter
    return parameter.expand(step_shape)


def _moved(t: Any, order: StepOrder) -> Any:
    """``[*]``, or ``[T, *]``, with the dimensions of a step in another order."""
    if t is None:
        return None
    lead = t.dim() - len(order)
    return t.permute(*range(lead), *(lead + d for d in order))
