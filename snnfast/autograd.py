"""The fused unroll as a differentiable function: what is saved for backward and what is returned."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snnfast import _ops
from snnfast._arguments import RESET_MECHANISMS, LIFArguments
from snnfast.surrogate import Surrogate


def fused_lif(args: LIFArguments, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Run the kernels on checked arguments; through autograd only where a gradient is asked for."""
    current, mem = args.current, args.mem
    if args.acc == torch.float64:
        current = current.to(torch.float64)
    step_shape = args.step_shape
    beta = _one_block(args.beta, step_shape)
    threshold = _one_block(args.threshold, step_shape)
    graded = _one_block(args.graded_spikes_factor, step_shape)
    reset = RESET_MECHANISMS.index(args.reset_mechanism)
    tensors = (current, mem, beta, threshold, graded)
    differentiable = torch.is_grad_enabled() and (
        current.requires_grad
        or (mem is not None and mem.requires_grad)
        or beta.requires_grad
        or threshold.requires_grad
        or graded.requires_grad
    )
    # Forward-mode AD needs neither: autograd must see the call in order to refuse it.
    if differentiable or getattr(forward_ad, "_current_level", -1) >= 0:
        spk, mem = LIFFunction.apply(*tensors, args.num_steps, reset, args.reset_delay, args.record_mem, surrogate)  # type: ignore[no-untyped-call]
    else:
        spk, mem, _ = _ops.lif_forward(*tensors, args.num_steps, reset, args.reset_delay, args.record_mem, False)
    return (spk if spk.dtype == args.current.dtype else spk.to(args.current.dtype)), mem


class LIFFunction(torch.autograd.Function):
    """``lif_forward`` with ``lif_backward`` as its gradient.

    Saved beyond inputs and outputs: nothing where the recorded membrane tells the whole trajectory; else one membrane
    in ``_ops.checkpoint_stride()`` steps, from which the backward kernel recomputes the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,  # [T, *], or [*] with num_steps
        mem0: Tensor | None,  # [*]
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        num_steps: int | None,
        reset: int,
        reset_delay: bool,
        record_mem: bool,
        surrogate: Surrogate,
    ) -> tuple[Tensor, Tensor]:
        # The recorded membrane is the trajectory itself if nothing was rounded or reset before it was written.
        from_mem = record_mem and reset_delay and current.dtype in (torch.float32, torch.float64)
        spk, mem, checkpoints = _ops.lif_forward(
            current, mem0, beta, threshold, graded, num_steps, reset, reset_delay, record_mem, not from_mem
        )
        saved = (None, mem, None) if from_mem else (current, None, checkpoints)
        ctx.save_for_backward(*saved, mem0, beta, threshold, graded)
        ctx.options = (num_steps, reset, reset_delay, surrogate)
        ctx.set_materialize_grads(False)
        return spk, mem

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem = grads
        if grad_spk is None and grad_mem is None:
            return (None,) * 10
        current, mem_rec, checkpoints, mem0, beta, threshold, graded = ctx.saved_tensors
        num_steps, reset, reset_delay, surrogate = ctx.options
        needs = list(ctx.needs_input_grad[:5])
        found = _ops.lif_backward(
            grad_spk, grad_mem, current, mem_rec, checkpoints, mem0, beta, threshold, graded,
            num_steps, reset, reset_delay, surrogate.kernel_id, *surrogate.parameters(), needs,
        )  # fmt: skip
        inputs: list[Tensor | None] = [g if need else None for g, need in zip(found, needs, strict=True)]
        for i, parameter in ((2, beta), (3, threshold), (4, graded)):
            partial = inputs[i]
            if partial is not None:
                inputs[i] = _sum_to(partial, parameter.shape).to(parameter.device)
        if torch.is_grad_enabled():  # create_graph=True: refuse a second derivative instead of losing terms of it
            sources = [
                t for t in (grad_spk, grad_mem, current, mem_rec, mem0, beta, threshold, graded) if t is not None
            ]
            inputs = [g if g is None else _NoDoubleBackward.apply(g, *sources) for g in inputs]  # type: ignore[no-untyped-call]
        return (*inputs, None, None, None, None, None)


class _NoDoubleBackward(torch.autograd.Function):
    """The identity on ``grad``, whose own gradient (with respect to anything) is an error."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            "snnfast's fused unroll has no second derivative (double backward). "
            "Run this part under snnfast.use_backend('reference') to differentiate the surrogate twice."
        )


def _one_block(parameter: Tensor, step_shape: torch.Size) -> Tensor:
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


def _sum_to(partial: Tensor, shape: torch.Size) -> Tensor:
    """Sum per-neuron partial gradients to a parameter's shape, the same way for any number of threads.

    torch splits only the reduction to a single number by thread; here that one goes through fixed pieces.
    """
    total = partial.to(torch.float64)
    if shape.numel() > 1 or partial.numel() == 0:
        total = total.sum_to_size(shape)
    else:
        total = total.flatten()
        while total.numel() > 1:
            pieces = -(-total.numel() // 1024)
            total = torch.nn.functional.pad(total, (0, pieces * 1024 - total.numel())).view(pieces, 1024).sum(1)
        total = total.view(shape)
    return total.to(partial.dtype)
