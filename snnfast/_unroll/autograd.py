"""The gradient of an unroll: what is saved for the backward op, and what is handed to it."""

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from snnfast._core import backend, ops
from snnfast._core.autograd import differentiable
from snnfast._core.linear import FEW_OUTPUTS, Linear, flat_bits, heights_of, numbers_of, product, weight_gradient
from snnfast._core.ops import (
    BITS_AT,
    CLAMP_CLOSED,
    CLAMP_CLOSED_AT,
    CONSTANT,
    NEEDS_AT,
    RECORD_AT,
    RESET_MECHANISMS,
    SAVE_CHECKPOINTS,
    SAVE_NOTHING,
    SAVE_SPIKES,
    SAVED_AT,
    SEQUENCE,
    STEP,
    Neuron,
    opmath_dtype,
)
from snnfast._core.products import is_faster, mm
from snnfast._core.pytorch import not_compiled_alone
from snnfast._unroll import reference, state_gradients
from snnfast._unroll.call import Options, Request, UnrollCall, count_states, make_request
from snnfast.surrogate import DISABLED, has_derivative, straight_through_estimator
from snnfast.surrogate.examine import SpikeGrad


class Unroll(torch.autograd.Function):
    """A neuron's forward op with its backward op as the gradient, and the linear layer behind it if there is one.

    Beyond inputs and outputs it saves nothing if the gradient can be computed from the recorded membrane. Otherwise it
    saves the states before every 16th step, from which the backward kernel recomputes the others. In place of the
    current it may save the spikes as bits, if the gradient depends on nothing else.

    A linear layer takes the spikes as bits, which are saved for the gradient of its weight. The neuron's backward op
    computes the gradient of the spikes, block by block, from that of the layer's outputs.

    In the backward pass, a callable ``spike_grad`` is asked for its derivative at all membranes that decided a spike,
    in one call. The gradient reaches these membranes only, not parameters of the callable.

    A second derivative is that of the reference, which computes all steps once more.
    """

    @staticmethod
    def forward(ctx: Any, how: tuple[Neuron, Options, Request, int], x: Tensor, *tensors: Any) -> Any:
        """``tensors`` are the states and parameters. A weight, a bias and lengths may follow, each of them or None."""
        neuron, options, request, dims = how  # in one tuple: Function.apply looks at each of its arguments
        inputs, needs = len(neuron.no_others), ctx.needs_input_grad
        needs_others: tuple[bool, ...] = ()
        weight = bias = lengths = None
        if len(tensors) > inputs:
            weight, bias, lengths = tensors[inputs:]
            tensors, needs, needs_others = tensors[:inputs], needs[: 2 + inputs], needs[2 + inputs :]
        asks = weight is None or any(needs)  # else for the gradients of the linear layer alone
        given = options.kernels_do_all
        saved, asked = SAVE_CHECKPOINTS, options.packed | request.packed
        if not given:
            asked |= neuron.pre_reset_membrane << RECORD_AT
        elif request.time != STEP:
            saved = what_to_save(neuron, options, request, x, needs[1:]) if asks else SAVE_NOTHING
        if weight is None or saved != SAVE_SPIKES:  # else the first result has them
            asked |= saved << SAVED_AT
        if weight is not None:
            asked |= 1 << BITS_AT
        found = neuron.forward(x, *tensors, request.steps, asked, lengths)
        source: Tensor | None = x  # backward computes the membranes from it
        rows = deciding = bits = shape = None
        if saved == SAVE_NOTHING:
            source = found[count_states(neuron, request.record)] if asks else None  # the recorded membrane
        elif request.time != STEP:
            if weight is None or saved != SAVE_SPIKES:
                *found, rows = found  # not pop: torch.compile traces no change of what an op returned
            else:
                rows = found[0]
            source = x if saved == SAVE_CHECKPOINTS else None
        if not given:
            records = 1 + count_states(neuron, request.record)
            deciding, found = found[records], found[:records] + found[records + 1 :]
        if weight is not None:
            bits, shape = found[0], x.shape[1:] if request.time == SEQUENCE else x.shape
            found = [product(bits, weight, bias, tensors[-1], shape[-dims:], request.steps), *found[1:]]
            if asks and saved == SAVE_SPIKES and needs_others[0]:
                # The gradient of the weight depends on the current. A record of the membranes leads back to it, of
                # which nobody reads the numbers.
                source = x.new_zeros(()).expand(request.steps, *shape)
                found.append(source)
        *tensors, threshold, graded = tensors  # type: ignore[assignment]
        tensors = *tensors, unmoved(threshold), graded
        if given and not needs_others:
            ctx.save_for_backward(source, rows, *tensors)
        else:
            kept = bits if weight is not None and needs_others[0] else None, weight if asks else None
            ctx.save_for_backward(source, rows, *tensors, deciding, lengths, *kept)
        ctx.how = neuron, options, request, saved, x.dtype, shape, dims
        ctx.set_materialize_grads(False)
        if options.spike_grad is DISABLED and not needs[-1] and not any(needs_others):
            ctx.mark_non_differentiable(found[0])
        elif not asks:
            ctx.mark_non_differentiable(*found[1:])
        if request.time == STEP:
            ctx.results = () if torch.compiler.is_compiling() else [ref(t) for t in found]
        return tuple(found)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> Any:
        neuron, options, request, saved, dtype, shape, _ = ctx.how
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        if request.time == STEP:
            for made in ctx.results:
                if (result := made()) is not None and result.retains_grad:
                    state_gradients.tell(ctx, result)
        source, rows, *tensors = ctx.saved_tensors
        if saved == SAVE_SPIKES and source is not None:
            request, grads = _with_unread_record(neuron, request, grads)
        inputs, needs, grad_spk = len(neuron.no_others), ctx.needs_input_grad, grads[0]
        deciding = lengths = spike_bits = weight = None
        if len(tensors) > inputs:
            deciding, lengths, spike_bits, weight = tensors[inputs:]
            tensors = tensors[:inputs]
        others: tuple[Tensor | None, ...] = ()  # the gradients of the weight, the bias and the lengths
        if len(needs) > 2 + inputs:
            needs, others = needs[: 2 + inputs], (None, None, None)
        bits = 0  # the inputs whose gradient is wanted
        for needed in reversed(needs):
            bits = bits << 1 | needed
        bits >>= 1  # the first one is no tensor
        if bits and torch.is_grad_enabled():  # create_graph=True
            return None, *_second(ctx, request, grads, source, rows, tensors, lengths, weight)
        if shape is not None:
            grad_spk, others = _through_linear(ctx, grad_spk, spike_bits, tensors[-1])
            if bits and weight is not None and grad_spk is not None and weight.shape[0] > FEW_OUTPUTS:
                of_outputs = grad_spk.flatten(0, 1)
                if is_faster(of_outputs, weight):  # else the kernels multiply, block by block
                    grad_spk, weight = mm(of_outputs, weight).view(request.steps, *shape), None
        derivative = None
        if deciding is not None:
            # options.derivative is that of no surrogate: it lets no gradient through a spike.
            no_reset = RESET_MECHANISMS[options.reset] == "none"
            if grad_spk is not None or neuron.has_spike_feedback or not no_reset:
                with torch.no_grad():
                    derivative = _derivative_of(options.spike_grad, deciding - tensors[-2])
        gradients: list[Tensor | None] = [None] * (1 + inputs)
        if bits and (grad_spk is not None or any(grad is not None for grad in grads[1:])):
            x, mem_rec = source if saved == SAVE_CHECKPOINTS else None, source if saved == SAVE_NOTHING else None
            surrogate, p0, p1 = options.derivative
            asked = options.packed | request.backward_packed | saved << SAVED_AT | bits << NEEDS_AT | surrogate | CLAMP
            found = neuron.backward(
                grad_spk, weight if grad_spk is not None else None, *of_states(neuron, request, grads[1:]), x, mem_rec,
                rows, derivative, *tensors, request.steps, asked, p0, p1, lengths,
            )  # fmt: skip
            if bits & 1 and found[0].dtype != dtype:  # of last states alone, without a current to tell its dtype
                found[0] = found[0].to(dtype)
            if bits == 1:  # nearly always
                return None, found[0], *neuron.no_others, *others
            gradients = by_input(neuron, found, needs[1:], tensors)
        return None, *gradients, *others


Unroll._backward_cls._register_hook_dict = state_gradients.register_hook_dict  # type: ignore[attr-defined]


def _through_linear(
    ctx: Any, grad: Tensor | None, spike_bits: Tensor | None, graded: Tensor
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """The gradient of a linear layer's outputs ``[T, R, O]``, if it reaches the neurons; those of weight and bias."""
    _, options, request, _, dtype, shape, dims = ctx.how
    *needs, needs_weight, needs_bias, _ = ctx.needs_input_grad[1:]
    if grad is None:
        return None, (None, None, None)
    grad_weight = grad_bias = None
    grad = grad.reshape(request.steps, -1, grad.shape[-1]).contiguous()
    if needs_weight:
        inputs = shape[-dims:]
        rows, heights = flat_bits(spike_bits, inputs), heights_of(graded, inputs, dtype)  # type: ignore[arg-type]
        # Where no spike is differentiated, this can be once more.
        grad_weight = weight_gradient(rows, grad, heights, again=torch.is_grad_enabled() and not any(needs))
    if needs_bias:
        grad_bias = grad.sum((0, 1))
    passes = options.spike_grad is not DISABLED or needs[-1]  # through a spike
    return (grad if passes else None), (grad_weight, grad_bias, None)


def of_states(neuron: Neuron, request: Request, grads: tuple[Any, ...]) -> tuple[Any, ...]:
    """The gradients of all states of every step, then of all last states; ``None`` for states not returned."""
    if request.record == 0:
        grads = neuron.no_states + grads
    elif request.record != neuron.every_state or neuron.has_spike_feedback:
        rest = iter(grads)
        records = [next(rest) if request.record >> i & 1 else None for i in range(len(neuron.states))]
        grads = *records, *rest
    if request.time == STEP and neuron.has_spike_feedback:
        grads = (*neuron.no_states, None, *grads[len(neuron.states) :])  # the spike is not returned again
    return grads if request.last else grads + neuron.no_states


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


def unmoved(threshold: Tensor) -> Tensor:
    """A threshold as it is saved. It may move before the backward pass, because snnTorch's loop does not save it."""
    return threshold if threshold.requires_grad else threshold.clone()


def what_to_save(neuron: Neuron, options: Options, request: Request, x: Tensor, needs: Sequence[bool]) -> int:
    """Choose the tensors that forward saves: one of ``SAVE_*``.

    With ``SAVE_NOTHING``, backward uses the recorded membrane. ``SAVE_CHECKPOINTS`` goes with the current. ``needs``:
    whether the current, each state and each parameter asks for its gradient.
    """
    if not neuron.recorded_membrane_suffices or not options.reset_delay:
        return SAVE_CHECKPOINTS
    # Only where the membrane after a step is the one that decided its spike, and was not rounded since.
    if request.record & neuron.membrane and (x.dtype == torch.float32 or x.dtype == torch.float64):
        return SAVE_NOTHING
    from_spikes = options.spike_grad.kernel_id in _FROM_SPIKES  # type: ignore[attr-defined]
    # Only the threshold's gradient takes no membrane.
    told = from_spikes and not any(needs[1 + len(neuron.states) : -2]) and not needs[-1]
    if told and ops.has_cpu_kernels(x.device):
        return SAVE_SPIKES
    return SAVE_CHECKPOINTS


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


# ---- the second derivative


def say_slow_second_derivative() -> None:
    """Warn that a backward pass with ``create_graph=True`` makes the steps of the reference; raise if it must not."""
    if backend.current_backend() == "fused":
        raise RuntimeError("backend 'fused' has no second derivative (create_graph=True); 'auto' takes the reference's")
    backend.warn_once(
        "snnfast: a backward pass with create_graph=True runs step by step on the slow reference path, because the "
        "kernels have no second derivative. use_backend('reference') chooses it without this warning."
    )


def _second(
    ctx: Any,
    request: Request,
    grads: Sequence[Any],
    source: Tensor | None,
    rows: Tensor | None,
    tensors: Sequence[Any],
    lengths: Tensor | None,
    weight: Tensor | None,
) -> list[Tensor | None]:
    """The gradients by autograd through the reference, which can be differentiated again."""
    neuron, options, _, saved, dtype, _, dims = ctx.how
    say_slow_second_derivative()
    needs, inputs, n = ctx.needs_input_grad[1:], len(neuron.no_others), len(neuron.states)
    x, decided = source, None  # ``decided``: what each membrane is above the threshold
    if saved == SAVE_NOTHING:
        assert source is not None
        decided = (source - tensors[-2]).detach()
    elif saved == SAVE_SPIKES:  # the derivative depends on no membrane
        assert rows is not None
        decided = 2 * numbers_of(rows, request.steps).to(opmath_dtype(dtype)) - 1
        if source is None:
            x = torch.zeros(decided.shape, dtype=dtype, device=decided.device, requires_grad=True)
    if decided is not None and source is not None:
        x = _currents_of(source, neuron, options, tensors, decided)
    is_sum = decided is not None and request.time == CONSTANT
    if is_sum:
        request = make_request(SEQUENCE, request.steps, request.record, request.last, request.reduce)
    has_linear, learned = weight is not None, [x, *tensors]
    if weight is not None:  # no gradient depends on the bias, which was not saved
        learned += weight, weight.new_zeros(len(weight), requires_grad=True) if needs[inputs + 2] else None

    def loop(given: Sequence[Any]) -> list[Tensor]:
        x, *tensors = given
        fire = options.spike_grad if decided is None else _Decided(options.spike_grad, decided.unbind(0))
        states, parameters = tuple(tensors[:n]), tuple(tensors[n:inputs])
        asked = options._replace(spike_grad=fire)
        spk, *found = reference.unroll(UnrollCall(neuron, asked, request, x, states, parameters, lengths=lengths))
        if has_linear:
            *_, weight, bias = tensors
            spk = Linear(weight, bias, dims).of_spikes(spk)
            spk = spk.reshape(request.steps, -1, spk.shape[-1])
        return [spk, *found]

    made = differentiable(loop, learned, needs[: len(learned)], grads)
    if is_sum and made[0] is not None:
        made[0] = made[0].sum(0)
    return made + [None] * (len(needs) - len(made))


def _with_unread_record(
    neuron: Neuron, request: Request, grads: tuple[Tensor | None, ...]
) -> tuple[Request, tuple[Tensor | None, ...]]:
    """A request with a record of the membranes, whose gradient is the sum of those of the two records."""
    of_spk, *rest, of_unread = grads
    of_record = rest.pop(0) if request.record else None
    both = [t for t in (of_record, of_unread) if t is not None]
    request = make_request(request.time, request.steps, neuron.membrane, request.last, request.reduce)
    return request, (of_spk, sum(both[1:], start=both[0]) if both else None, *rest)


def _currents_of(mem_rec: Tensor, neuron: Neuron, options: Options, tensors: Sequence[Any], decided: Tensor) -> Tensor:
    """The current of every step, of a neuron that adds it to what becomes of the membrane.

    The recorded membranes lead back to the current in autograd's graph. So do these currents, which were not saved.
    """
    n = len(neuron.states)
    (mem,), parameters = tensors[:n], tuple(p.to(mem_rec.dtype) for p in tensors[n:])
    mem = torch.zeros_like(mem_rec[:1]) if mem is None else mem.unsqueeze(0).to(mem_rec.dtype)
    before = torch.cat([mem, mem_rec])[: len(mem_rec)]
    reset = torch.cat([(mem - parameters[-2]).detach(), decided])[: len(mem_rec)] > 0
    mechanism = RESET_MECHANISMS[options.reset]
    (after,) = neuron.step(torch.zeros_like(before), [before], parameters, reset.to(before.dtype), mechanism)
    return mem_rec - after


class _Decided:
    """A surrogate at the recorded distances from the threshold, with the gradient at those that it is given.

    Computed once more, a membrane may be rounded to the other side of the threshold. The first distance, before the
    first step, was not recorded.
    """

    def __init__(self, spike_grad: SpikeGrad, distances: Sequence[Tensor]) -> None:
        # A step asks for the spikes before it, which reset the membrane, and for its own.
        self._spike_grad, self._distances = spike_grad, iter([None, *(d for d in distances for _ in (0, 1))])

    def __call__(self, z: Tensor) -> Tensor:
        distance = next(self._distances)
        return self._spike_grad(z if distance is None else distance + (z - z.detach()))
