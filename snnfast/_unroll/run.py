"""The path from a layer, or from a function of :mod:`snnfast.functional`, to autograd and the kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from snnfast._core import backend, settings
from snnfast._core.linear import Linear
from snnfast._core.norm import Norm
from snnfast._core.ops import STEP, Neuron, opmath_dtype
from snnfast._core.pytorch import becomes_node, current_recorder, transforms_are_active
from snnfast._unroll import connected, kernels, node, normed, reference, state_gradients
from snnfast._unroll.call import (
    ONE_STEP,
    Connections,
    Options,
    UnrollCall,
    count_states,
    make_request,
    needs_graph,
    step_shape,
)
from snnfast._unroll.checks import check_current, check_request, prepare, varies
from snnfast._unroll.linear import check_linear, takes_bits
from snnfast._unroll.ragged import check_lengths, valid_steps
from snnfast._unroll.steps import over_steps
from snnfast.surrogate import DISABLED, has_derivative, is_elementwise
from snnfast.surrogate.examine import examine

Results = tuple[Tensor, ...]
Engine = Callable[[UnrollCall], Results]


def run(call: UnrollCall, in_unroll: bool = False) -> Results:
    """Compute all time steps of a call, or one; ``in_unroll``: one of a call of all steps.

    While torch.compile traces, a call becomes one node of the graph.

    Returns:
        The spikes of every step, or their sum, or the output of ``call.linear``. Then the states of every step that
        ``call.request.record`` names. Then, with ``call.request.last``, all states after the last step; of one step, no
        spike a second time.
    """
    if call.norm is not None:
        return _normed(call, call.norm)
    if _is_connected(call):
        if call.request.time != STEP:
            return _finish(_connected(call), call.current.dtype, call.linear)
        call = connected.one_step(call)
        chosen = node.backend_of_step(call.options, call.parameters) if becomes_node() else None
        if chosen is not None:
            step = node.step if is_dynamo_compiling() else current_recorder().step
            return step(call.neuron, call.options, call.current, call.states, (None, *call.parameters), chosen)
        call = call._replace(parameters=(connected.one(call.current), *call.parameters))
    prepared = prepare(call)
    unroll, prepared = engine(prepared, in_unroll)
    found = unroll(prepared)
    if prepared is call:  # nearly always
        return found
    return _finish(found, call.current.dtype, call.linear if prepared.linear is None else None)


def _is_connected(call: UnrollCall) -> bool:
    """Whether the neurons are connected to one another by weights."""
    return call.neuron.has_spike_feedback and isinstance(call.parameters[0], Connections)


def _finish(found: Results, dtype: torch.dtype, linear: Linear | None) -> Results:
    """The results, with the spikes in a dtype and through the linear layer. The states stay in the opmath dtype."""
    if found[0].dtype != dtype:
        found = found[0].to(dtype), *found[1:]
    return found if linear is None else (linear.of_spikes(found[0]), *found[1:])


def engine(call: UnrollCall, in_unroll: bool = False) -> tuple[Engine, UnrollCall]:
    """The engine of a prepared call, and the call that it takes: without the linear layer where that comes afterwards.

    The questions are independent of one another, and asked in this order.
    """
    linear = call.linear
    if linear is not None:
        call = call._replace(linear=None)
    if (
        not backend.use_fused(call.current)
        or ((call.lengths is not None or not call.options.kernels_do_all) and refuses_kernels(call))
        or (state_gradients.setting.value and not in_unroll and _wants_state_gradients(call))
        or (becomes_node() and _becomes_program(call))
    ):
        return reference.unroll, call
    if call.varies:
        return varying_parameters, call
    if not call.options.kernels_do_all:
        if not call.options.inhibition and not torch.is_grad_enabled():
            # The surrogate's value is the step, and nobody asks for its derivative.
            call = call._replace(options=_without_gradient(call.options))
        elif not _spikes_go_on(call):
            return spikes_afterwards, call
    if becomes_node() and node.takes(call):
        takes_linear = linear is not None and settings.events.value  # a global, which torch.compile guards
        return node.node, (call._replace(linear=linear) if takes_linear else call)
    if linear is not None and takes_bits(call, linear):
        return kernels.unroll_linear, call._replace(linear=linear)
    return kernels.unroll, call


def refuses_kernels(call: UnrollCall) -> bool:
    """Whether a call can't go to the kernels, though they are there; warns or raises, and says why.

    Where parameters vary, each step is asked by itself.
    """
    if call.varies:
        return False
    reason = why_not_fused(call)
    if reason is None:
        return False
    if backend.current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available for this layer, because {reason}")
    backend.warn_once(
        f"snnfast: a layer runs step by step on the slow reference path, because {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return True


def why_not_fused(call: UnrollCall) -> str | None:
    """Why the kernels can't unroll a ragged batch, or the membrane of a layer whose spikes they do not compute."""
    options, traced = call.options, torch.compiler.is_compiling()
    transformed = not traced and transforms_are_active()
    if call.lengths is not None and transformed:
        return "they have no rule of a torch.func transform for lengths"
    if options.kernels_do_all:
        return None
    if options.state_quant is not None:
        return "state_quant is called on the states of every step before the next one"
    goes_on, feedback = _spikes_go_on(call), call.neuron.has_spike_feedback
    if not is_elementwise(options.spike_grad):
        if transformed:
            return "of its spike_grad: it can't be tried out under a torch.func transform"
        x, shape = call.current, _of_known_sizes(step_shape(call))
        unfit = examine(options.spike_grad, shape, opmath_dtype(x.dtype), x.device)
        reason = unfit.immediate if goes_on else unfit.delayed
        if reason is None and goes_on and traced and not has_derivative(options.spike_grad):
            of = "spikes that come back" if feedback else "an immediate reset"
            reason = f"torch.compile can't trace how its derivative is taken in the backward pass of {of}"
        if reason is not None:
            return f"of its spike_grad: {reason}"
    if options.inhibition and goes_on:
        why = f"in a {call.neuron.name} layer" if feedback else "with reset_delay=False"
        return f"inhibition {why} makes each neuron wait for all others"
    return None


def _wants_state_gradients(call: UnrollCall) -> bool:
    """Whether the setting is about a call: autograd is to see its results apart, which the reference does."""
    lacks = len(state_gradients.lacking(call.neuron, call.options)) > 0
    wants = call.request.time == STEP and lacks and needs_graph(call)
    if wants and backend.current_backend() == "fused":
        raise RuntimeError("backend 'fused' is not available for steps under use_state_gradients(True)")
    return wants


def _becomes_program(call: UnrollCall) -> bool:
    """Whether the operators of a step become a program, in a loop that is compiled.

    The kernels do not have its surrogate, so that the step is no node of the graph; its operators are all elementwise.
    """
    is_plain = call.request.time == STEP and call.current.dtype == opmath_dtype(call.current.dtype)
    return is_plain and not call.options.kernels_do_all and is_elementwise(call.options.spike_grad)


def _of_known_sizes(shape: torch.Size) -> torch.Size:
    """A shape to try a callable on: 2 for each size that torch.compile keeps open, such as that of the batch."""
    if not torch.compiler.is_compiling():
        return shape
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes long to import

    return torch.Size([n if has_static_value(n) else 2 for n in shape])


def _spikes_go_on(call: UnrollCall) -> bool:
    """Whether the states after a step depend on its spikes: a gradient of these then enters the recurrence."""
    return call.neuron.has_spike_feedback or not call.options.reset_delay


def _without_gradient(options: Options) -> Options:
    """Options without a gradient through the spikes."""
    return options._replace(spike_grad=DISABLED, inhibition=False, kernels_do_all=True)


# ---- engines that are made of others


def _normed(call: UnrollCall, norm: Norm) -> Results:
    """Behind a batch normalisation of the current ``[T, B, C, *]``: in one, or one after the other."""
    found = None
    if not _is_connected(call):
        prepared = prepare(call)
        found = normed.unroll(prepared, norm) if prepared.current is call.current else None
    if found is None:
        found = run(call._replace(current=norm.by_itself(call.current), norm=None))
        return found if norm.pool is None else (norm.pool.by_itself(found[0]), *found[1:])
    return _finish(found, call.current.dtype, call.linear)


def varying_parameters(call: UnrollCall) -> Results:
    """Parameters that vary with time: each step is a call of its own, whose results are rounded at the end."""
    return one_by_one(call, call.current.to(opmath_dtype(call.current.dtype)))


def _connected(call: UnrollCall) -> Results:
    """All time steps of neurons that are connected to one another."""
    call = connected.separate(call)
    prepared = prepare(call)
    # A float64 state or parameter widens the membranes, and the product stays in the dtype of its weights.
    if prepared.current.dtype == call.current.dtype and connected.takes(prepared):
        return connected.unroll(prepared)
    return one_by_one(prepared, call.current)


def one_by_one(call: UnrollCall, current: Tensor) -> Results:
    """One call after the other, each with its own graph."""
    neuron, opmath = call.neuron, opmath_dtype(call.current.dtype)

    def step(x: Tensor, states: list[Tensor], parameters: Any) -> tuple[Tensor, list[Tensor]]:
        if call.connections is not None:
            parameters = call.connections, *parameters[1:]
        step_call = UnrollCall(neuron, call.options, ONE_STEP, x, tuple(states), parameters)
        spk, *after = run(step_call, in_unroll=True)
        return spk, [spk.to(opmath), *after] if neuron.has_spike_feedback else after

    return over_steps(call, current, step)


def spikes_afterwards(call: UnrollCall) -> Results:
    """Any callable as surrogate, or inhibition: the kernel unrolls the states, then all spikes are made in one call.

    This is possible with a delayed reset. Then no gradient of a spike enters the recurrence, and every neuron above the
    threshold is reset.
    """
    # The membrane is in the opmath dtype: a rounded one could fall on the other side of the threshold. The
    # kernel's own spikes are not used. As a sum they are not written for every step.
    neuron, options, request, dtype = call.neuron, call.options, call.request, call.current.dtype
    opmath = opmath_dtype(dtype)
    states = call._replace(options=_without_gradient(options), current=call.current.to(opmath))
    if request.time == STEP:
        _, *found = run(states)
        mem = found[-1]
    else:
        asked = make_request(request.time, request.steps, request.record | neuron.membrane, request.last, reduce=True)
        _, *found = run(states._replace(request=asked))
        recorded = count_states(neuron, asked.record)
        mem = found[recorded - 1]
        shown = found[:recorded] if request.record & neuron.membrane else found[: recorded - 1]
        found = [t.to(dtype) for t in shown] + found[recorded:]
    threshold, graded = call.parameters[-2:]
    distance = mem - threshold
    spk = options.spike_grad(distance)
    spk = spk * (reference.winners(distance) if options.inhibition else graded)
    if call.lengths is not None:
        spk = torch.where(valid_steps(call.lengths, request.steps, spk.dim() - 1), spk, 0)
    if request.reduce:
        spk = spk.sum(0, dtype=opmath)
    return spk.to(dtype), *found


def run_function(
    neuron: Neuron,
    options: Options,
    current: Tensor,
    states: tuple[Any, ...],
    parameters: tuple[Any, ...],
    num_steps: object,
    record_mem: object,
    reduce: object,
    weight: object,
    bias: object,
    lengths: object,
) -> Any:
    """The results of a function of :mod:`snnfast.functional`."""
    check_current("current", current)
    request = check_request(neuron, current, num_steps, record_mem, reduce)
    linear = check_linear(weight, bias, current, current.shape[1:] if num_steps is None else current.shape)
    steps = check_lengths(lengths, current, request)
    varying = varies(neuron, request, current, parameters)
    found = run(UnrollCall(neuron, options, request, current, states, parameters, linear, steps, varies=varying))
    # The last spike is no result of its own.
    return found[:1] + found[2:] if neuron.has_spike_feedback and not request.record else found
