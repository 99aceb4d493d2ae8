"""The one way from a layer, or a function of :mod:`snnfast.functional`, to the kernels, and through autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snnfast import _backend, _op_rules, reference  # noqa: F401 - the rules are registered by their import
from snnfast._arguments import Call, Options, Parameters, States, made_call, prepare
from snnfast._ops import (
    CLAMP_CLOSED,
    CLAMP_CLOSED_AT,
    NEEDS_AT,
    RECORD_AT,
    RESET_MECHANISMS,
    SAVE_CHECKPOINTS,
    SAVE_MEMBRANE,
    SAVE_NOTHING,
    SAVE_SPIKES,
    SAVED_AT,
    SEQUENCE,
    STEP,
    Neuron,
    arithmetic_dtype,
)  # fmt: skip
from snnfast._spike_grad import SpikeGrad, examine
from snnfast.surrogate import DISABLED, has_derivative, heaviside, known_to_kernels, straight_through_estimator


def run(
    neuron: Neuron,
    options: Options,
    call: Call,
    current: Tensor,  # [T, *], or [*] of a constant current or of one step; checked
    states: States,  # [*] each
    parameters: Parameters,  # broadcastable to [*] each
    as_node: bool = True,
) -> tuple[Tensor, ...]:
    """Compute all time steps of a call, or one.

    While torch.compile traces it, one step becomes one node of the graph; ``as_node=False`` is what the node does.

    Returns:
        The spikes (of every step, or their sum), the states of every step that ``call.record`` asks for, and with
        ``call.last`` all states after the last step.
    """
    if as_node and call.time == STEP and torch.compiler.is_compiling() and options.kernels_do_all:
        backend = _backend.current_backend()
        if backend != "reference":
            asked = options.packed, *options.derivative, backend
            return tuple(torch.ops.snnfast.step(neuron.name, current, (*states, *parameters), *asked))
    x, states, parameters, asks = prepare(neuron, options, call.time, current, states, parameters)
    if not _backend.use_fused(x.device) or (not options.kernels_do_all and not _can_follow(options, call, x, neuron)):
        found = reference.unroll(neuron, options, call, x, states, parameters)
    elif options.reset_delay and not options.kernels_do_all:
        found = _fire_afterwards(neuron, options, call, x, states, parameters)
    elif (asks and torch.is_grad_enabled()) or getattr(forward_ad, "_current_level", -1) >= 0:
        # In forward mode autograd must see the call in order to refuse it.
        found = Unroll.apply((neuron, options, call), x, *states, *parameters)
    else:
        found = tuple(neuron.forward(x, *states, *parameters, call.steps, options.packed | call.packed))
    if x is current or x.dtype == current.dtype:
        return found
    return found[0].to(current.dtype), *found[1:]  # the states stay as wide as the arithmetic


def _can_follow(options: Options, call: Call, x: Tensor, neuron: Neuron) -> bool:
    """Whether the kernels can compute the membrane of a layer whose spikes, or their derivative, are not theirs."""
    reason = None
    if options.state_quant is not None:
        reason = "state_quant is called on the states of every step before the next one"
    elif not known_to_kernels(options.spike_grad):
        step_shape = x.shape[1:] if call.time == SEQUENCE else x.shape
        unfit = examine(options.spike_grad, step_shape, arithmetic_dtype(x.dtype), x.device)
        found = unfit.delayed if options.reset_delay else unfit.immediate
        compiling = torch.compiler.is_compiling() and not options.reset_delay
        if found is None and compiling and not has_derivative(options.spike_grad):
            found = "torch.compile can't trace how its derivative is taken in the backward pass of an immediate reset"
        reason = found if found is None else f"of its spike_grad: {found}"
    if reason is None and options.inhibition and not options.reset_delay:
        reason = "inhibition with reset_delay=False makes each neuron wait for all others"
    if reason is None:
        return True
    if _backend.current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available for this layer, because {reason}")
    _backend.warn_once(
        f"snnfast: a layer runs step by step on the slow reference path, because {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return False


def _fire_afterwards(
    neuron: Neuron, options: Options, call: Call, x: Tensor, states: States, parameters: Parameters
) -> tuple[Tensor, ...]:
    """Any callable as surrogate, or inhibition: the kernel computes the states, the spikes come from all of it at once.

    With a delayed reset no gradient of a spike enters the recurrence, and every neuron above the threshold is reset.
    """
    # The membrane in the dtype of the arithmetic: a rounded one could fall on the other side of the threshold. The
    # kernel's own spikes are not used: as a sum they are at least not written.
    acc = arithmetic_dtype(x.dtype)
    given = _plain(options)
    if call.time == STEP:
        _, *found = run(neuron, given, call, x.to(acc), states, parameters)
        mem = found[-1]
    else:
        whole = made_call(call.time, call.steps, call.record | neuron.membrane, call.last, reduce=True)
        _, *found = run(neuron, given, whole, x.to(acc), states, parameters)
        recorded = _count(neuron, whole.record)
        mem = found[recorded - 1]
        records = found[:recorded] if call.record & neuron.membrane else found[: recorded - 1]
        found = [t.to(x.dtype) for t in records] + found[recorded:]
    threshold, graded = parameters[-2:]
    distance = mem - threshold
    if options.inhibition:
        spk = options.spike_grad(distance) * reference.winners(distance)
    else:
        spk = options.spike_grad(distance) * graded
    if call.reduce:
        spk = spk.sum(0, dtype=acc)
    return spk.to(x.dtype), *found


def _plain(options: Options) -> Options:
    """The same neurons where no gradient passes through the spikes, which are not used."""
    return options._replace(spike_grad=heaviside(), inhibition=False, kernels_do_all=True)


class Unroll(torch.autograd.Function):
    """A neuron's forward op with its backward op as the gradient.

    Saved beyond inputs and outputs: nothing where the recorded membrane tells all; else the states before every 16th
    step, from which the backward kernel recomputes the others. Or, in place of the current: the membrane of every step
    in bfloat16, if that was asked for; the spikes as bits, if they tell all that the gradient depends on. A callable
    ``spike_grad`` is asked for its derivative at the membranes that decided the spikes, all at once, in the backward
    pass; the gradient goes to these membranes only, not to anything else that the callable holds.
    """

    @staticmethod
    def forward(ctx: Any, how: tuple[Neuron, Options, Call], x: Tensor, *tensors: Any) -> Any:
        neuron, options, call = how  # in one tuple: Function.apply looks at each of its arguments
        needs, given = ctx.needs_input_grad, options.kernels_do_all
        saved, asked = SAVE_CHECKPOINTS, options.packed | call.packed
        if not given:
            asked |= neuron.deciding << RECORD_AT
        elif call.time != STEP:
            saved = _what_to_save(neuron, options, call, x.dtype, needs)
        found = neuron.forward(x, *tensors, call.steps, asked | saved << SAVED_AT)
        source: Tensor | None = x  # of what backward learns the membranes
        rows = None
        if saved == SAVE_NOTHING:
            source = found[_count(neuron, call.record)]  # the recorded membrane
        elif call.time != STEP:
            *found, rows = found  # not pop: torch.compile traces no change of what an op returned
            source = x if saved == SAVE_CHECKPOINTS else None
        if given:
            ctx.save_for_backward(source, rows, *tensors)
        else:
            records = 1 + _count(neuron, call.record)
            deciding, found = found[records], found[:records] + found[records + 1 :]
            ctx.save_for_backward(source, rows, *tensors, deciding)
        ctx.how = neuron, options, call, saved, x.dtype
        ctx.set_materialize_grads(False)
        if options.spike_grad is DISABLED and not needs[-1]:
            ctx.mark_non_differentiable(found[0])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        neuron, options, call, saved, dtype = ctx.how
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        source, rows, *tensors = ctx.saved_tensors
        refuses = torch.is_grad_enabled()  # create_graph=True: a second derivative, instead of losing terms of it
        if refuses and saved == SAVE_MEMBRANE:
            raise NotImplementedError(_NO_SECOND_DERIVATIVE)  # nothing that is saved leads back to the current
        grad_states = grads[1:]
        if call.record == 0:
            grad_states = neuron.no_states + grad_states
        elif call.record != neuron.every_state:
            rest = iter(grads[1:])
            grad_states = tuple([next(rest) if call.record >> i & 1 else None for i in range(len(neuron.states))])
            grad_states += tuple(rest)
        if not call.last:
            grad_states += neuron.no_states
        derivative = None
        if not options.kernels_do_all:  # then options.derivative is that of no surrogate: no gradient through a spike
            *tensors, deciding = tensors
            if grads[0] is not None or RESET_MECHANISMS[options.reset] != "none":
                with torch.no_grad():
                    derivative = _derivative_of(options.spike_grad, deciding - tensors[-2])
        x, mem_rec = (None, source) if saved == SAVE_NOTHING else (source, None)
        needs, bits = ctx.needs_input_grad, 0  # as bits: the inputs whose gradient is wanted
        for needed in reversed(needs):
            bits = bits << 1 | needed
        bits >>= 1  # the first one is no tensor
        surrogate, p0, p1 = options.derivative
        asked = options.packed | call.backward_packed | saved << SAVED_AT | bits << NEEDS_AT | surrogate | _CLAMP
        found = neuron.backward(
            grads[0], *grad_states, x, mem_rec, rows, derivative, *tensors, call.steps, asked, p0, p1
        )  # fmt: skip
        if bits & 1 and found[0].dtype != dtype:  # of last states alone, without a current to tell its dtype
            found[0] = found[0].to(dtype)
        if bits == 1 and not refuses:  # nearly always
            return None, found[0], *neuron.no_others
        rest = iter(found)
        gradients = [next(rest) if needed else None for needed in needs]
        for i in range(2 + len(neuron.states), len(needs)):
            if needs[i]:
                gradients[i] = _sum_to(gradients[i], tensors[i - 2])  # type: ignore[arg-type]
        if refuses:
            sources = [t for t in (*grads, source, *tensors) if t is not None]
            gradients = [g if g is None else _NoDoubleBackward.apply(g, *sources) for g in gradients]
        return tuple(gradients)


def _what_to_save(neuron: Neuron, options: Options, call: Call, dtype: torch.dtype, needs: Sequence[bool]) -> int:
    """One of ``SAVE_*``. ``SAVE_NOTHING``: the recorded membrane tells all; ``SAVE_CHECKPOINTS``: with the current."""
    if not neuron.record_tells or not options.reset_delay:
        return SAVE_CHECKPOINTS
    if call.rounded and not _needs_membrane(neuron, needs):
        return SAVE_MEMBRANE
    # Where the membrane after a step is the one that decided its spike: not rounded since.
    if call.record & neuron.membrane and (dtype == torch.float32 or dtype == torch.float64):
        return SAVE_NOTHING
    from_spikes = options.spike_grad.kernel_id in _FROM_SPIKES  # type: ignore[attr-defined]
    if from_spikes and not _needs_membrane(neuron, needs) and not needs[-1]:
        return SAVE_SPIKES
    return SAVE_CHECKPOINTS


def _needs_membrane(neuron: Neuron, needs: Sequence[bool]) -> bool:
    """Whether a parameter but the last two asks for its gradient, which takes the membrane itself."""
    return any(needs[2 + len(neuron.states) : -2])


def _count(neuron: Neuron, record: int) -> int:
    """How many states are recorded; not by ``bin``, which torch.compile does not trace with torch 2.11."""
    return sum([record >> i & 1 for i in range(len(neuron.states))])


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

_CLAMP = CLAMP_CLOSED << CLAMP_CLOSED_AT

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
    partial = partial.contiguous()  # the order of the sum must not depend on the layout
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
