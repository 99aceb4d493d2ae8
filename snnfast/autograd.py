"""The fused unroll and the fused step as differentiable functions: what is saved for backward and what is returned."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snnfast import _ops
from snnfast._arguments import LIFArguments
from snnfast._layout import InOrder, StepOrder, one_block, step_order
from snnfast._ops import RESET_MECHANISMS, arithmetic_dtype
from snnfast._spike_grad import SpikeGrad
from snnfast.surrogate import DISABLED, Surrogate, has_derivative, straight_through_estimator


def fused_lif(args: LIFArguments, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Run the kernels on checked arguments; through autograd only where a gradient is asked for."""
    current = args.current.to(torch.float64) if args.acc == torch.float64 else args.current
    spk, mem = fused_unroll(
        current, args.mem, args.beta, args.threshold, args.graded_spikes_factor, args.num_steps,
        RESET_MECHANISMS.index(args.reset_mechanism), args.reset_delay, args.record_mem, args.counts_spikes, surrogate,
        args.membrane_dtype is not None,
    )  # fmt: skip
    return (spk if spk.dtype == args.current.dtype else spk.to(args.current.dtype)), mem


def fused_unroll(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None,  # [*] acc, or the dtype of current
    beta: Tensor,  # broadcastable to [*]; as the next two
    threshold: Tensor,
    graded: Tensor,
    num_steps: int | None,
    reset: int,  # index into RESET_MECHANISMS
    reset_delay: bool,
    record_mem: bool,
    count: bool,
    surrogate: Surrogate,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_lif` on tensors that ``fits`` of ``_arguments`` lets through."""
    mem, beta, threshold, graded = _as_read(current, num_steps is None, mem, beta, threshold, graded)
    order = None if current.is_contiguous() else step_order(current, num_steps is None)
    if _needs_autograd(current, mem, beta, threshold, graded):
        # In one tuple: Function.apply looks at each of its arguments.
        options = (num_steps, reset, reset_delay, record_mem, count, surrogate, rounded, order)
        spk, mem = LIFFunction.apply(current, mem, beta, threshold, graded, options)
    else:
        spk, mem, _ = (_ops if order is None else InOrder(order)).lif_forward(
            current, mem, beta, threshold, graded, num_steps, reset, reset_delay, record_mem, count, _ops.KEEP_NOTHING
        )
    return spk, mem


def fused_lif_step(
    current: Tensor,  # [*]
    mem: Tensor | None,  # [*] acc, or the dtype of current
    beta: Tensor,  # broadcastable to [*]; as the next two
    threshold: Tensor,
    graded: Tensor,
    reset: int,  # index into RESET_MECHANISMS
    reset_delay: bool,
    surrogate: Surrogate,
) -> tuple[Tensor, Tensor]:
    """One time step on tensors that ``fits`` of ``_arguments`` lets through: spikes ``[*]``, membrane ``[*]`` acc."""
    mem, beta, threshold, graded = _as_read(current, False, mem, beta, threshold, graded)
    order = None if current.is_contiguous() else step_order(current, has_time=False)
    if _needs_autograd(current, mem, beta, threshold, graded):
        options = (reset, reset_delay, surrogate, order)
        spk, mem = LIFStepFunction.apply(current, mem, beta, threshold, graded, options)
    else:
        ops = _ops if order is None else InOrder(order)
        spk, mem = ops.lif_step_forward(current, mem, beta, threshold, graded, reset, reset_delay)
    return spk, mem


def fused_lif_of_callable(args: LIFArguments, spike_grad: SpikeGrad) -> tuple[Tensor, Tensor]:
    """Any differentiable element-wise callable as surrogate where the reset is immediate, on checked arguments.

    Its derivative then enters the recurrence: the backward pass asks for it once, at all steps together, and hands it
    to the kernel. The gradient goes to ``mem - threshold`` only, not to anything else that the callable holds.
    """
    # The membrane in the dtype of the arithmetic: from a rounded one the steps could not be told.
    current, has_time = args.current.to(args.acc), args.num_steps is None
    mem0, *parameters = _as_read(current, has_time, args.mem, args.beta, args.threshold, args.graded_spikes_factor)
    order = None if current.is_contiguous() else step_order(current, has_time)
    reset = RESET_MECHANISMS.index(args.reset_mechanism)
    if _needs_autograd(current, mem0, *parameters):
        spk, mem = LIFOfCallableFunction.apply(
            current, mem0, *parameters, args.num_steps, reset, args.record_mem, args.counts_spikes, spike_grad,
            order,
        )  # fmt: skip
    else:
        spk, mem, _ = (_ops if order is None else InOrder(order)).lif_forward(
            current, mem0, *parameters, args.num_steps, reset, False, args.record_mem, args.counts_spikes,
            _ops.KEEP_NOTHING,
        )  # fmt: skip
    return spk.to(args.current.dtype), mem.to(args.mem_dtype)


def _as_read(
    current: Tensor, has_time: bool, mem: Tensor | None, beta: Tensor, threshold: Tensor, graded: Tensor
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Membrane and parameters as the kernels read them: in the dtype of the arithmetic, but for single numbers."""
    acc = arithmetic_dtype(current.dtype)
    if mem is not None and mem.dtype != acc:
        mem = mem.to(acc)
    if not (beta.dim() or threshold.dim() or graded.dim()):
        return mem, beta, threshold, graded
    step_shape = current.shape[1:] if has_time else current.shape
    beta, threshold, graded = (
        p if p.dim() == 0 else one_block(p if p.dtype == acc else p.to(acc), step_shape)
        for p in (beta, threshold, graded)
    )
    return mem, beta, threshold, graded


def _needs_autograd(current: Tensor, mem: Tensor | None, beta: Tensor, threshold: Tensor, graded: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and (
            current.requires_grad
            or (mem is not None and mem.requires_grad)
            or beta.requires_grad
            or threshold.requires_grad
            or graded.requires_grad
        )
    ) or getattr(forward_ad, "_current_level", -1) >= 0  # autograd must see a forward-mode call in order to refuse it


class LIFFunction(torch.autograd.Function):
    """``lif_forward`` with ``lif_backward`` as its gradient.

    Saved beyond inputs and outputs: nothing where the recorded membrane tells the whole trajectory; else one membrane
    in ``_ops.checkpoint_stride()`` steps, from which the backward kernel recomputes the others. Or, in place of the
    current: the membrane of every step in bfloat16, if that was asked for; the spikes as bits, if they tell all that
    the gradient depends on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,  # [T, *], or [*] with num_steps
        mem0: Tensor | None,  # [*]
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        options: tuple[int | None, int, bool, bool, bool, Surrogate, bool, StepOrder | None],
    ) -> tuple[Tensor, Tensor]:
        num_steps, reset, reset_delay, record_mem, count, surrogate, rounded, order = options
        keep = _what_to_keep(ctx, current, reset_delay, record_mem, surrogate, rounded)
        spk, mem, kept = (_ops if order is None else InOrder(order)).lif_forward(
            current, mem0, beta, threshold, graded, num_steps, reset, reset_delay, record_mem, count, keep
        )
        recomputes, from_mem = keep == _ops.KEEP_CHECKPOINTS, keep == _ops.KEEP_NOTHING
        saved = (current if recomputes else None, mem if from_mem else None, None if from_mem else kept)
        ctx.save_for_backward(*saved, mem0, beta, threshold, graded)
        steps, constant = (current.shape[0], False) if num_steps is None else (num_steps, True)
        ctx.options = (steps, constant, reset, reset_delay, count, keep)
        ctx.surrogate, ctx.order, ctx.dtype = surrogate, order, current.dtype
        _mark_outputs(ctx, spk, surrogate)
        return spk, mem

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem = grads
        if grad_spk is None and grad_mem is None:
            return (None,) * 6
        current, mem_rec, kept, mem0, beta, threshold, graded = ctx.saved_tensors
        surrogate, needs = ctx.surrogate, ctx.needs_input_grad
        if torch.is_grad_enabled() and ctx.options[-1] == _ops.KEEP_ROUNDED:
            raise NotImplementedError(_NO_SECOND_DERIVATIVE)  # nothing that is saved leads back to the current
        found = (_ops if ctx.order is None else InOrder(ctx.order)).lif_backward(
            grad_spk, grad_mem, current, mem_rec, kept, mem0, beta, threshold, graded, None,
            *ctx.options, surrogate.kernel_id, *surrogate.parameters(), _as_bits(needs),
        )  # fmt: skip
        if needs[0] and found[0].dtype != ctx.dtype:  # of the last membrane alone, without a current to tell its dtype
            found = [found[0].to(ctx.dtype), *found[1:]]
        parameters = (beta, threshold, graded)
        return *_gradients(needs, found, parameters, grad_spk, grad_mem, current, mem_rec, mem0), None


class LIFStepFunction(torch.autograd.Function):
    """``lif_step_forward`` with ``lif_step_backward`` as its gradient. Nothing is saved beyond inputs and outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,  # [*]
        mem0: Tensor | None,  # [*]
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        options: tuple[int, bool, Surrogate, StepOrder | None],
    ) -> tuple[Tensor, Tensor]:
        reset, reset_delay, surrogate, order = ctx.options = options
        ops = _ops if order is None else InOrder(order)
        spk, mem = ops.lif_step_forward(current, mem0, beta, threshold, graded, reset, reset_delay)
        # Not the membrane, which the user may change in place before the next step.
        ctx.save_for_backward(current, mem0, beta, threshold, graded)
        _mark_outputs(ctx, spk, surrogate)
        return spk, mem

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem = grads
        if grad_spk is None and grad_mem is None:
            return (None,) * 6
        current, mem0, beta, threshold, graded = ctx.saved_tensors
        reset, reset_delay, surrogate, order = ctx.options
        needs = ctx.needs_input_grad
        found = (_ops if order is None else InOrder(order)).lif_step_backward(
            grad_spk, grad_mem, current, mem0, beta, threshold, graded,
            reset, reset_delay, surrogate.kernel_id, *surrogate.parameters(), _as_bits(needs),
        )  # fmt: skip
        return *_gradients(needs, found, (beta, threshold, graded), grad_spk, grad_mem, current, mem0), None


class LIFOfCallableFunction(torch.autograd.Function):
    """``lif_forward`` with an immediate reset, and ``lif_backward`` with the derivative of a callable.

    The recorded membrane is kept, returned or not, since the membranes that decided the spikes come from it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,  # [T, *], or [*] with num_steps; acc
        mem0: Tensor | None,  # [*]
        beta: Tensor,
        threshold: Tensor,
        graded: Tensor,
        num_steps: int | None,
        reset: int,
        record_mem: bool,
        count: bool,
        spike_grad: SpikeGrad,
        order: StepOrder | None,
    ) -> tuple[Tensor, Tensor]:
        steps = current.shape[0] if num_steps is None else num_steps
        record = record_mem or steps > 0  # without a step, the last membrane is in no record
        spk, mem, checkpoints = (_ops if order is None else InOrder(order)).lif_forward(
            current, mem0, beta, threshold, graded, num_steps, reset, False, record, count, _ops.KEEP_CHECKPOINTS
        )
        mem_rec = mem if record else checkpoints  # both [0, *] where there is no step
        ctx.save_for_backward(current, mem_rec, checkpoints, mem0, beta, threshold, graded)
        ctx.options = (steps, num_steps is not None, reset, count, spike_grad, order)
        ctx.set_materialize_grads(False)
        return spk, mem if record == record_mem else mem[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem = grads
        if grad_spk is None and grad_mem is None:
            return (None,) * 11
        current, mem_rec, checkpoints, mem0, beta, threshold, graded = ctx.saved_tensors
        steps, constant, reset, count, spike_grad, order = ctx.options
        derivative, needs = None, ctx.needs_input_grad
        if grad_spk is not None or RESET_MECHANISMS[reset] != "none":
            with torch.no_grad():
                v = _deciding_membrane(current, mem_rec, mem0, beta, threshold, reset)
                derivative = _derivative_of(spike_grad, v.sub_(threshold))
        # Without a derivative no gradient passes through a spike.
        found = (_ops if order is None else InOrder(order)).lif_backward(
            grad_spk, grad_mem, current, None, checkpoints, mem0, beta, threshold, graded, derivative,
            steps, constant, reset, False, count, _ops.KEEP_CHECKPOINTS, DISABLED.kernel_id, 0.0, 0.0, _as_bits(needs),
        )  # fmt: skip
        parameters = (beta, threshold, graded)
        return (
            *_gradients(needs, found, parameters, grad_spk, grad_mem, current, mem0),
            None, None, None, None, None, None,
        )  # fmt: skip


def _what_to_keep(
    ctx: Any, current: Tensor, reset_delay: bool, record_mem: bool, surrogate: Surrogate, rounded: bool
) -> int:
    """What the forward op is to keep, one of ``_ops.KEEP_*``. ``KEEP_NOTHING``: the recorded membrane tells all."""
    _, _, needs_beta, _, needs_graded, *_ = ctx.needs_input_grad
    if rounded and not needs_beta:
        return _ops.KEEP_ROUNDED
    # Where the membrane after a step is the one that decided its spike: not reset and not rounded since.
    if record_mem and reset_delay and current.dtype in (torch.float32, torch.float64):
        return _ops.KEEP_NOTHING
    if reset_delay and surrogate.kernel_id in _FROM_SPIKES and not needs_beta and not needs_graded:
        return _ops.KEEP_BITS
    return _ops.KEEP_CHECKPOINTS


def _mark_outputs(ctx: Any, spk: Tensor, surrogate: Surrogate) -> None:
    ctx.set_materialize_grads(False)
    if surrogate.kernel_id == DISABLED.kernel_id and not ctx.needs_input_grad[4]:
        ctx.mark_non_differentiable(spk)


def _as_bits(needs: Sequence[bool]) -> int:
    """The inputs whose gradient is wanted, as the backward ops take them."""
    return needs[0] | needs[1] << 1 | needs[2] << 2 | needs[3] << 3 | needs[4] << 4


def _gradients(
    needs: Sequence[bool], found: Sequence[Tensor], parameters: tuple[Tensor, Tensor, Tensor], *sources: Tensor | None
) -> tuple[Tensor | None, ...]:
    """One gradient, or ``None``, for each of the five tensors, from what a backward op returned.

    ``sources``: what they depend on beside ``parameters``.
    """
    if not (needs[2] or needs[3] or needs[4] or torch.is_grad_enabled()):  # nearly always
        return found[0] if needs[0] else None, found[-1] if needs[1] else None, None, None, None
    rest = iter(found)
    current = next(rest) if needs[0] else None
    mem0 = next(rest) if needs[1] else None
    beta = _sum_to(next(rest), parameters[0]) if needs[2] else None
    threshold = _sum_to(next(rest), parameters[1]) if needs[3] else None
    graded = _sum_to(next(rest), parameters[2]) if needs[4] else None
    grads = (current, mem0, beta, threshold, graded)
    if not torch.is_grad_enabled():
        return grads
    # create_graph=True: refuse a second derivative instead of losing terms of it
    given = [t for t in (*sources, *parameters) if t is not None]
    return tuple(g if g is None else _NoDoubleBackward.apply(g, *given) for g in grads)


def _deciding_membrane(
    current: Tensor,  # [T, *], or [*] the same at each step
    mem_rec: Tensor,  # [T, *]
    mem0: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    reset: int,
) -> Tensor:
    """The membrane ``[T, *]`` before each immediate reset: the kernel's own operations, so the same to the last bit."""
    if mem_rec.shape[0] == 0:
        return mem_rec.clone()
    first = torch.zeros_like(mem_rec[:1]) if mem0 is None else mem0.unsqueeze(0)
    v = torch.cat([first, mem_rec[:-1]])
    beta = beta.clamp(0, 1)
    if RESET_MECHANISMS[reset] == "subtract":
        taken = ((v - threshold) > 0).to(v.dtype).mul_(threshold)
        return v.mul_(beta).add_(current).sub_(taken)
    if RESET_MECHANISMS[reset] == "zero":
        v.mul_(1 - ((v - threshold) > 0).to(v.dtype))
    return v.mul_(beta).add_(current)


def _derivative_of(spike_grad: SpikeGrad, z: Tensor) -> Tensor | None:
    """The derivative of an element-wise callable at every element of ``z``; ``None`` where it has no gradient."""
    if has_derivative(spike_grad):
        return spike_grad.derivative(z)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        spk = spike_grad(z)
        if not spk.requires_grad:
            return None
        (derivative,) = torch.autograd.grad(spk, [z], torch.ones_like(spk), allow_unused=True)
    return derivative


_FROM_SPIKES = (straight_through_estimator().kernel_id, DISABLED.kernel_id)
"""Surrogates whose derivative does not depend on the membrane."""

_NO_SECOND_DERIVATIVE = (
    "snnfast's fused unroll has no second derivative (double backward). "
    "Run this part under snnfast.use_backend('reference') to differentiate the surrogate twice."
)


class _NoDoubleBackward(torch.autograd.Function):
    """The identity on ``grad``, whose own gradient (with respect to anything) is an error."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(_NO_SECOND_DERIVATIVE)


def _sum_to(partial: Tensor, parameter: Tensor) -> Tensor:
    """Sum per-neuron partial gradients to a parameter's shape, the same way for any number of threads.

    torch splits only a long reduction to a single number by thread; here that one goes through fixed pieces.
    """
    shape = parameter.shape
    if partial.numel() == shape.numel():
        total = partial.reshape(shape)
    elif shape.numel() > 1 or partial.numel() == 0:
        total = partial.to(torch.float64).sum_to_size(shape)
    else:
        total = partial
        while total.numel() > _PIECE:
            total = total.flatten()
            if total.numel() % _PIECE:
                total = torch.nn.functional.pad(total, (0, -total.numel() % _PIECE))
            total = total.view(-1, _PIECE).sum(1, dtype=torch.float64)
        total = total.sum(dtype=torch.float64)
        if shape:
            total = total.view(shape)
    return total.to(parameter.device, parameter.dtype)


_PIECE = 1024
