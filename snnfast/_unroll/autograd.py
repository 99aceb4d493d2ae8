"""The gradient of an unroll: what is saved for the backward op, and what is handed to it."""

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from snnfast._core.backend import exporting
from snnfast._core.ops import (
    CLAMP_CLOSED,
    CLAMP_CLOSED_AT,
    NEEDS_AT,
    NEURONS,
    RECORD_AT,
    RESET_AT,
    RESET_DELAY_AT,
    RESET_MECHANISMS,
    SAVE_CHECKPOINTS,
    SAVE_NOTHING,
    SAVE_SPIKES,
    SAVED_AT,
    STEP,
    SURROGATE_AT,
    Neuron,
)
from snnfast._unroll import state_gradients
from snnfast._unroll.checks import ONE_STEP, Call, Options
from snnfast.surrogate import DISABLED, has_derivative, straight_through_estimator
from snnfast.surrogate.examine import SpikeGrad


class Unroll(torch.autograd.Function):
    """A neuron's forward op with its backward op as the gradient.

    Beyond inputs and outputs it saves nothing if the gradient can be computed from the recorded membrane. Otherwise it
    saves the states before every 16th step, from which the backward kernel recomputes the others. In place of the
    current it may save the membrane of every step in bfloat16, if the user asks for that, or the spikes as bits, if the
    gradient depends on nothing else.

    In the backward pass, a callable ``spike_grad`` is asked for its derivative at all membranes that decided a spike,
    in one call. The gradient reaches these membranes only, not parameters of the callable.
    """

    @staticmethod
    def forward(ctx: Any, how: tuple[Neuron, Options, Call], x: Tensor, *tensors: Any) -> Any:
        neuron, options, call = how  # in one tuple: Function.apply looks at each of its arguments
        tensors, lengths = split(neuron, tensors)
        needs, given = ctx.needs_input_grad[: 2 + len(tensors)], options.kernels_do_all
        saved, asked = SAVE_CHECKPOINTS, options.packed | call.packed
        if not given:
            asked |= neuron.deciding << RECORD_AT
        elif call.time != STEP:
            saved = what_to_save(neuron, options, call, x.dtype, needs[1:])
        forward = neuron.forward_ragged if lengths else neuron.forward
        found = forward(x, *tensors, call.steps, asked | saved << SAVED_AT, *lengths)
        source: Tensor | None = x  # backward computes the membranes from it
        rows = None
        if saved == SAVE_NOTHING:
            source = found[count(neuron, call.record)]  # the recorded membrane
        elif call.time != STEP:
            *found, rows = found  # not pop: torch.compile traces no change of what an op returned
            source = x if saved == SAVE_CHECKPOINTS else None
        if given:
            ctx.save_for_backward(source, rows, *tensors, *lengths)
        else:
            records = 1 + count(neuron, call.record)
            deciding, found = found[records], found[:records] + found[records + 1 :]
            ctx.save_for_backward(source, rows, *tensors, *lengths, deciding)
        ctx.how = neuron, options, call, saved, x.dtype
        ctx.set_materialize_grads(False)
        if options.spike_grad is DISABLED and not needs[-1]:
            ctx.mark_non_differentiable(found[0])
        if call.time == STEP:
            ctx.results = () if torch.compiler.is_compiling() else [ref(t) for t in found]
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        neuron, options, call, saved, dtype = ctx.how
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        if call.time == STEP:
            for made in ctx.results:
                if (result := made()) is not None and result.retains_grad:
                    state_gradients.tell(ctx, result)
        source, rows, *tensors = ctx.saved_tensors
        refuses = torch.is_grad_enabled()  # create_graph=True: a second derivative, instead of losing terms of it
        grad_states = of_states(neuron, call, grads[1:])
        derivative = None
        if not options.kernels_do_all:  # then options.derivative is that of no surrogate: no gradient through a spike
            *tensors, deciding = tensors
            if grads[0] is not None or neuron.fed_back or RESET_MECHANISMS[options.reset] != "none":
                with torch.no_grad():
                    derivative = _derivative_of(options.spike_grad, deciding - split(neuron, tensors)[0][-2])
        tensors, lengths = split(neuron, tensors)
        x, mem_rec = (None, source) if saved == SAVE_NOTHING else (source, None)
        needs, bits = ctx.needs_input_grad, 0  # as bits: the inputs whose gradient is wanted
        for needed in reversed(needs):
            bits = bits << 1 | needed
        bits >>= 1  # the first one is no tensor
        surrogate, p0, p1 = options.derivative
        asked = options.packed | call.backward_packed | saved << SAVED_AT | bits << NEEDS_AT | surrogate | CLAMP
        backward = neuron.backward_ragged if lengths else neuron.backward
        found = backward(
            grads[0], None, *grad_states, x, mem_rec, rows, derivative, *tensors, call.steps, asked, p0, p1, *lengths
        )
        if bits & 1 and found[0].dtype != dtype:  # of last states alone, without a current to tell its dtype
            found[0] = found[0].to(dtype)
        if bits == 1 and not refuses:  # nearly always
            return None, found[0], *neuron.no_others, *no_gradient(lengths)
        gradients = [None, *by_input(neuron, found, needs[1 : 2 + len(tensors)], tensors), *no_gradient(lengths)]
        return refusing(gradients, *grads, source, *tensors) if refuses else tuple(gradients)


Unroll._backward_cls._register_hook_dict = state_gradients.register_hook_dict  # type: ignore[attr-defined]


class Fire(Unroll):
    """The spikes of a membrane as a function of their own: those of a leaky neuron that the membrane is all input of.

    The kernel that made the membrane has computed them already.
    """

    @staticmethod
    def forward(ctx: Any, how: Any, mem: Tensor, *tensors: Any) -> Any:
        options, spk = how
        deciding = () if options.kernels_do_all else (mem,)
        ctx.save_for_backward(mem, None, *tensors, *deciding)
        ctx.how = NEURONS["leaky"], options, ONE_STEP, SAVE_CHECKPOINTS, mem.dtype
        ctx.results = ()
        ctx.set_materialize_grads(False)
        return spk

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return Unroll.backward(ctx, *grads, None)


def step_in_parts(
    neuron: Neuron,
    options: Options,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """One step as a function for the states and one for the spikes of the membrane, as in snnTorch.

    A synaptic current is the membrane of a leaky neuron without a reset, and the current of another one.
    """
    if neuron.synapse is not None and RESET_MECHANISMS[options.reset] in neuron.membrane_of_states:
        quiet = Options(DISABLED, _NONE, True, False, None, True, _PACKED, _NO_DERIVATIVE)
        _, syn = Unroll.apply((neuron.synapse, quiet, ONE_STEP), x, *states[:-1], *parameters[:-3], _ZERO, _ZERO)
        spk, mem = step_in_parts(NEURONS["leaky"], options, syn, states[-1:], parameters[-3:])
        return spk, syn, mem
    silent = Options(DISABLED, options.reset, options.reset_delay, False, None, True, options.packed, _NO_DERIVATIVE)
    threshold, graded = parameters[-2:]
    spk, *after = Unroll.apply((neuron, silent, ONE_STEP), x, *states, *parameters[:-1], graded.detach())
    fires = Options(options.spike_grad, _NONE, True, False, None, options.kernels_do_all, _PACKED, options.derivative)
    return Fire.apply((fires, spk), after[-1], None, _ZERO, threshold, graded), *after


_NONE = RESET_MECHANISMS.index("none")
_PACKED = _NONE << RESET_AT | 1 << RESET_DELAY_AT
_NO_DERIVATIVE = DISABLED.kernel_id << SURROGATE_AT, *DISABLED.parameters()
_ZERO = torch.zeros((), device="cpu", dtype=torch.float32)  # a parameter that has no effect


def split(neuron: Neuron, tensors: Any) -> tuple[Any, Any]:
    """The states and parameters, and behind them the steps of each sample, if these are given."""
    n = len(neuron.no_others)
    return tensors[:n], tensors[n:]


def no_gradient(lengths: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(lengths)


def records(asks: bool) -> bool:
    """Whether autograd records a call. ``asks``: a tensor of it asks for a gradient. An exported program has none."""
    return asks and torch.is_grad_enabled() and not exporting()


def of_states(neuron: Neuron, call: Call, grads: tuple[Any, ...]) -> tuple[Any, ...]:
    """The gradients of all states of every step, then of all last states; ``None`` for states not returned."""
    if call.record == 0:
        grads = neuron.no_states + grads
    elif call.record != neuron.every_state or neuron.fed_back:
        rest = iter(grads)
        grads = tuple([next(rest) if call.record >> i & 1 else None for i in range(len(neuron.states))]) + tuple(rest)
    if call.time == STEP and neuron.fed_back:
        grads = (*neuron.no_states, None, *grads[len(neuron.states) :])  # the spike is not returned again
    return grads if call.last else grads + neuron.no_states


def by_input(
    neuron: Neuron, found: Sequence[Tensor], needs: Sequence[bool], tensors: Sequence[Tensor]
) -> list[Tensor | None]:
    """The results of a backward op by current, state and parameter. ``needs`` says which of them exist."""
    rest = iter(found)
    gradients = [next(rest) if needed else None for needed in needs]
    for i in range(1 + len(neuron.states), len(needs)):
        if needs[i]:
            gradients[i] = sum_to(gradients[i], tensors[i - 1])  # type: ignore[arg-type]
    return gradients


def refusing(gradients: Sequence[Tensor | None], *sources: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same gradients, which raise an error when they are differentiated again."""
    given = [t for t in sources if t is not None]
    return tuple([g if g is None else _NoDoubleBackward.apply(g, *given) for g in gradients])


def what_to_save(neuron: Neuron, options: Options, call: Call, dtype: torch.dtype, needs: Sequence[bool]) -> int:
    """What forward saves, one of ``SAVE_*``.

    With ``SAVE_NOTHING``, backward uses the recorded membrane. ``SAVE_CHECKPOINTS`` goes with the current. ``needs``:
    whether the current, each state and each parameter asks for its gradient.
    """
    if not neuron.record_tells or not options.reset_delay:
        return SAVE_CHECKPOINTS
    # Only where the membrane after a step is the one that decided its spike, and was not rounded since.
    if call.record & neuron.membrane and (dtype == torch.float32 or dtype == torch.float64):
        return SAVE_NOTHING
    from_spikes = options.spike_grad.kernel_id in _FROM_SPIKES  # type: ignore[attr-defined]
    if from_spikes and not _needs_membrane(neuron, needs) and not needs[-1]:
        return SAVE_SPIKES
    return SAVE_CHECKPOINTS


def _needs_membrane(neuron: Neuron, needs: Sequence[bool]) -> bool:
    """Whether a parameter other than the last two asks for its gradient, which takes the membrane itself."""
    return any(needs[1 + len(neuron.states) : -2])


def count(neuron: Neuron, record: int) -> int:
    """How many states are recorded. (torch.compile does not trace ``bin`` with torch 2.11.)"""
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

CLAMP = CLAMP_CLOSED << CLAMP_CLOSED_AT

NO_SECOND_DERIVATIVE = (
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
        raise NotImplementedError(NO_SECOND_DERIVATIVE)


def sum_to(partial: Tensor, parameter: Tensor) -> Tensor:
    """Sum per-neuron partial gradients to a parameter's shape, the same way for any number of threads.

    On CUDA the kernel has done so for a parameter of one number.

    torch splits a reduction by thread only if it is long and gives a single number. That one goes through fixed pieces.
    """
    shape = parameter.shape
    partial = partial.contiguous()  # the order of the sum must not depend on the layout
    if partial.numel() == shape.numel():
        total = partial if partial.shape == shape else partial.reshape(shape)
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
