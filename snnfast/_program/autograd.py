"""The gradient of a program: what is saved for the kernels of the backward pass, and what they are given."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast._core import ops
from snnfast._core.autograd import differentiable
from snnfast._core.linear import FEW_OUTPUTS, Linear, flat_bits, weight_gradient
from snnfast._core.norm import currents
from snnfast._core.products import linear, mm
from snnfast._core.pytorch import not_compiled_alone
from snnfast._program.call import Call, flat_parameters, rows_of, split, summed
from snnfast._program.code import Codes
from snnfast._program.engines import ENGINES, say_step_by_step
from snnfast._program.nvrtc import NoKernelError

Again = Callable[[Call, Sequence[Tensor]], tuple[Tensor, ...]]
"""All steps as a loop, which defines the results of the kernels."""


class Run(torch.autograd.Function):
    """All steps by the kernels, with what alone gives a series, or alone reads an output.

    Arguments are the numbers, the weight and the bias of a batch normalisation before a series; the weight and the bias
    of a linear layer behind an output; then the series, the states and the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        again: Again,
        codes: Codes,
        call: Call,
        numbers: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        code, engine = codes.forward, ENGINES[call.device.type]
        series, states, parameters = split(tensors, codes.counts)
        neurons = call.shape.numel()
        needs = ctx.needs_input_grad
        keep = bool(codes.trace.gradients) and any((*needs[4:6], *needs[_TENSORS:]))  # not under no_grad
        found = engine.forward(
            code,
            call.like(),
            [rows_of(x, call) for x in series],
            [s if s.dim() == 0 else call.flat(s) for s in states],
            flat_parameters(engine.parameters(code, parameters), call),
            call.steps,
            neurons,
            call.samples,
            keep,
            call.output if call.bits else -1,
            call.of_channels(numbers),
        )
        checkpoints = found.pop() if keep else None
        read = None
        if weight is not None:
            if call.bits:
                read = _bits(found[call.output], call)
                found[call.output] = ops.spikes_linear(read, weight, bias, _ONE, call.steps)
            else:
                read = found[call.output].view(call.steps, -1, weight.shape[1])
                found[call.output] = linear(read, weight, bias)
            if not needs[6]:
                read = None  # only the gradient of the weight reads it
        ctx.again, ctx.codes, ctx.call = again, codes, call
        ctx.set_materialize_grads(False)
        if keep:  # A buffer may change before the backward pass: where no gradient needs it, a loop has not saved it.
            buffers = [p if p.requires_grad else p.clone() for p in parameters]
            tensors = (*series, *states, *buffers)
        ctx.save_for_backward(numbers, norm_weight, norm_bias, weight, bias, *tensors, read, checkpoints)
        results = tuple(t if i == call.output else call.shaped(t) for i, t in enumerate(found))
        have_gradients = enumerate(codes.trace.differentiable)
        ctx.mark_non_differentiable(*(results[i] for i, has in have_gradients if not has and i != call.output))
        return results

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        codes, call = ctx.codes, ctx.call
        needs = ctx.needs_input_grad[_TENSORS:]
        if all(g is None for g in grads):
            return (None,) * (_TENSORS + len(needs))
        numbers, *saved, read, checkpoints = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, None, *_second(ctx, saved, grads)
        norm_weight, norm_bias, weight, _, *tensors = saved
        behind: list[Tensor | None] = [None, None]
        few = -1  # the output whose gradient the kernels make from that of a linear layer
        if weight is not None and grads[call.output] is not None:
            of_output, behind = _through_linear(ctx, grads[call.output], read, weight)
            few = call.output if of_output is not None and weight.shape[0] <= FEW_OUTPUTS else -1
            grads = (*grads[: call.output], of_output, *grads[call.output + 1 :])
        if checkpoints is None:
            return (None,) * 6 + (*behind, *(None for _ in tensors))
        series, states, parameters = split(tensors, codes.counts)
        needs_series, _, needs_parameters = split(needs, codes.counts)
        if call.normed is not None:
            needs_series = [need or i == call.normed.number for i, need in enumerate(needs_series)]
        first = len(grads) - len(states)
        given = tuple(i for i in range(first) if grads[i] is not None)
        code = codes.backward(given, (*needs_series, *needs_parameters))
        engine, neurons = ENGINES[call.device.type], call.shape.numel()
        none = torch.zeros((), dtype=call.opmath, device=call.device)
        try:
            found = engine.backward(
                code,
                call.like(),
                [rows_of(x, call) for x in series],
                flat_parameters(engine.parameters(code, parameters), call),
                checkpoints,
                [g if i == few else rows_of(g, call) for i, g in enumerate(grads[:first]) if g is not None],
                [none if g is None else call.flat(g) for g in grads[first:]],
                weight.contiguous() if few >= 0 else None,
                call.steps,
                neurons,
                call.samples,
                call.of_channels(numbers),
            )
        except NoKernelError as error:
            say_step_by_step(f"backward on {call.device.type}: {error}")
            return None, None, None, None, *_second(ctx, saved, grads)
        before: list[Tensor | None] = [None, None]
        if call.normed is not None and call.normed.number in code.gradients:
            of_bias, of_weight = found.pop().view(2, -1, numbers.shape[1]).sum(1)
            of_both = (of_weight, norm_weight), (of_bias, norm_bias)
            asked = ctx.needs_input_grad[4:6]
            before = [of.to(t.dtype) if need else None for (of, t), need in zip(of_both, asked, strict=True)]
        made: list[Tensor | None] = []
        for i, t in enumerate(tensors):
            if len(series) <= i < len(series) + len(states):
                gradient = found.pop(0)
                made.append(call.shaped(gradient) if needs[i] else None)
            elif i not in code.gradients:
                made.append(None)
            elif i < len(series):
                made.append(call.shaped(found.pop(0)))
            else:
                made.append(summed(found.pop(0), t, call))
        return None, None, None, None, *before, *behind, *made


_TENSORS = 8
"""Arguments of ``Run`` before the series, the states and the parameters."""


def _through_linear(ctx: Any, grad: Tensor, read: Any, weight: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of the output ``[T, *]``, and of weight and bias, from that of the linear layer behind it.

    Where the layer has few outputs, the kernels make the first of these themselves, and ``grad`` is in its place.
    """
    call, (*needs, needs_weight, needs_bias) = ctx.call, ctx.needs_input_grad[4:_TENSORS]
    reaches = any((*needs, *ctx.needs_input_grad[_TENSORS:]))
    grad = grad.reshape(call.steps, -1, grad.shape[-1]).contiguous()
    of_output = None
    if reaches and grad.shape[-1] <= FEW_OUTPUTS:
        of_output = grad
    elif reaches:
        of_output = mm(grad.flatten(0, 1), weight).view(call.steps, *call.shape)
    of_weight = None
    if needs_weight and call.bits:
        of_weight = weight_gradient(read, grad, _ONE, again=False)
    elif needs_weight:
        of_weight = mm(grad.flatten(0, 1).t(), read.flatten(0, 1))
    return of_output, [of_weight, grad.sum((0, 1)) if needs_bias else None]


def _bits(found: Tensor, call: Call) -> Tensor:
    """``[rows of eight steps, R, N]`` of the spikes of all neurons of a step."""
    return flat_bits(found.view(-1, *call.shape), call.shape[-call.dims :])


_ONE = torch.ones((), device="cpu", dtype=torch.float32)  # the height of a spike


def _second(ctx: Any, saved: Sequence[Any], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients by autograd through the loop, which can be differentiated again."""
    call = ctx.call

    def loop(saved: Sequence[Any]) -> list[Tensor]:
        norm_weight, norm_bias, weight, bias, *tensors = saved
        if call.normed is not None:
            number, eps, over_time = call.normed
            tensors[number] = currents(tensors[number], norm_weight, norm_bias, eps, over_time)
        results = list(ctx.again(call, tensors))
        if weight is not None:
            y = Linear(weight, bias, call.dims).of_spikes(results[call.output])
            results[call.output] = y.reshape(call.steps, -1, y.shape[-1])
        return results

    return differentiable(loop, saved, ctx.needs_input_grad[4:], grads)
