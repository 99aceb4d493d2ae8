"""The path from a layer, or from a function of :mod:`snnfast.functional`, to autograd and the kernels."""

from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend, events
from snnfast._core.fake import NO_FORWARD_MODE, NO_TRANSFORM
from snnfast._core.ops import SEQUENCE, STEP, Neuron, arithmetic_dtype
from snnfast._core.pytorch import is_forward_mode, transforms_are_active
from snnfast._core.sources import digest
from snnfast._unroll import connected, reference, state_gradients, varying
from snnfast._unroll.autograd import Unroll, count, records, step_in_parts
from snnfast._unroll.checks import (
    Call,
    Options,
    Parameters,
    States,
    check_call,
    check_current,
    made_call,
    prepare,
)
from snnfast._unroll.connections import Connections
from snnfast._unroll.linear import Linear, by_events, check_linear, unroll_linear
from snnfast._unroll.ragged import batch_outermost, check_lengths, reason_against, valid_steps
from snnfast.surrogate import DISABLED, has_derivative, known_to_kernels
from snnfast.surrogate.examine import examine


def run(
    neuron: Neuron,
    options: Options,
    call: Call,
    current: Tensor,  # [T, *], or [*] of a constant current or of one step; checked
    states: States,  # [*] each
    parameters: Parameters,  # broadcastable to [*] each
    as_node: bool = True,
    linear: Linear | None = None,
    lengths: Tensor | None = None,  # [B], checked
) -> tuple[Tensor, ...]:
    """Compute all time steps of a call, or one.

    While torch.compile traces, a call becomes one node of the graph. ``as_node=False`` is what that node runs.

    Returns:
        The spikes of every step, or their sum, or the output of ``linear``. Then the states of every step that
        ``call.record`` names. Then, with ``call.last``, all states after the last step; of one step, no spike a second
        time.
    """
    if neuron.fed_back and isinstance(parameters[0], Connections):
        return connected.unroll(run, neuron, options, call, current, states, parameters, linear, lengths)
    compiling = torch.compiler.is_compiling()
    if (
        compiling
        and as_node
        and call.time == STEP
        and options.kernels_do_all
        and backend.current_backend() != "reference"
        and all(isinstance(p, Tensor) for p in parameters)
    ):  # before the checks, which would be traced at every step of a loop
        return _node(neuron, options, call, current, states, parameters, linear)[0]
    x, states, parameters, asks = prepare(neuron, options, call.time, current, states, parameters)
    plain = options.kernels_do_all and lengths is None  # nearly always
    apart: tuple[int, ...] = ()  # the results of a step that autograd is to see before the others
    if call.time == STEP and state_gradients.setting.value and records(asks):
        apart = state_gradients.lacking_of(neuron, options)
    if (
        not backend.use_fused(x.device)
        or (not plain and not _can_follow(options, call, x, neuron, lengths))
        or (apart and (compiling or not state_gradients.kernels_take(neuron, apart)))
    ):
        found = reference.unroll(neuron, options, call, x, states, parameters, lengths)
    elif not options.kernels_do_all and not options.inhibition and not torch.is_grad_enabled():
        # The surrogate's value is the step, and nobody asks for its derivative.
        return run(neuron, _plain(options), call, current, states, parameters, as_node, linear, lengths)
    elif not options.kernels_do_all and not _spikes_go_on(neuron, options):
        found = _fire_afterwards(neuron, options, call, x, states, parameters, lengths)
    elif compiling and as_node and plain and not backend.exporting():
        found, linear = _node(neuron, options, call, x, states, parameters, linear)
    elif apart:
        if x.dtype != arithmetic_dtype(x.dtype):
            x = x.to(arithmetic_dtype(x.dtype))
        _refuse_transforms(compiling)
        found = step_in_parts(neuron, options, x, states, parameters)
    elif linear is not None and by_events(options, call, x, parameters, linear):
        found, linear = unroll_linear(neuron, options, call, x, states, parameters, linear, asks, lengths), None
    elif records(asks) or is_forward_mode():
        # In forward mode autograd must see the call in order to refuse it.
        _refuse_transforms(compiling)
        if lengths is None:
            found = Unroll.apply((neuron, options, call), x, *states, *parameters)
        else:
            found = Unroll.apply((neuron, options, call), batch_outermost(x, call), *states, *parameters, lengths)
    elif lengths is not None:
        x, packed = batch_outermost(x, call), options.packed | call.packed
        found = tuple(neuron.forward_ragged(x, *states, *parameters, call.steps, packed, lengths))
    else:
        found = tuple(neuron.forward(x, *states, *parameters, call.steps, options.packed | call.packed))
    if x is not current and x.dtype != current.dtype:
        found = found[0].to(current.dtype), *found[1:]  # the states stay in the opmath dtype
    return found if linear is None else (linear.of_spikes(found[0]), *found[1:])


def _refuse_transforms(compiling: bool) -> None:
    if not compiling and transforms_are_active():
        raise RuntimeError(NO_FORWARD_MODE if is_forward_mode() else NO_TRANSFORM)


def _node(
    neuron: Neuron,
    options: Options,
    call: Call,
    x: Tensor,
    states: States,
    parameters: Parameters,
    linear: Linear | None,
) -> tuple[tuple[Tensor, ...], Linear | None]:
    """A call as one node of a graph, and the linear layer where the node does not include it."""
    tensors, asked = (*states, *parameters), (options.packed, *options.derivative, backend.current_backend())
    if call.time == STEP:
        named: Any = {"state_gradients": state_gradients.setting.value, "sources": digest()}
        return tuple(torch.ops.snnfast.step(neuron.name, x, tensors, *asked, **named)), linear
    weights = linear if linear is not None and events.setting.value else ()  # a global, which torch.compile guards
    found = torch.ops.snnfast.unroll(
        neuron.name, x, tensors, *asked, None if call.time == SEQUENCE else call.steps,
        call.record, call.last, call.reduce, *weights, sources=digest(),
    )  # fmt: skip
    return tuple(found), None if weights else linear


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
    """What a function of :mod:`snnfast.functional` returns."""
    check_current("current", current)
    call = check_call(neuron, current, num_steps, record_mem, reduce)
    linear = check_linear(weight, bias, current, current.shape[1:] if num_steps is None else current.shape)
    how: Any = {"linear": linear, "lengths": check_lengths(lengths, current, call)}
    if varying.vary(neuron, call, current, parameters):
        return varying.unroll(run, neuron, options, call, current, states, parameters, **how)
    found = run(neuron, options, call, current, states, parameters, **how)
    # The last spike is no result of its own.
    return found[:1] + found[2:] if neuron.fed_back and not call.record else found


def _can_follow(options: Options, call: Call, x: Tensor, neuron: Neuron, lengths: Tensor | None) -> bool:
    """Whether the kernels can unroll a ragged batch, and the membrane of a layer whose spikes they do not compute."""
    reason = reason_against(lengths)
    if reason is not None or options.kernels_do_all:
        pass
    elif options.state_quant is not None:
        reason = "state_quant is called on the states of every step before the next one"
    elif known_to_kernels(options.spike_grad):
        pass
    elif not torch.compiler.is_compiling() and transforms_are_active():
        reason = "of its spike_grad: it can't be tried out under a torch.func transform"
    else:
        step_shape = x.shape[1:] if call.time == SEQUENCE else x.shape
        unfit = examine(options.spike_grad, _of_known_sizes(step_shape), arithmetic_dtype(x.dtype), x.device)
        goes_on = _spikes_go_on(neuron, options)
        found = unfit.immediate if goes_on else unfit.delayed
        if found is None and goes_on and torch.compiler.is_compiling() and not has_derivative(options.spike_grad):
            of = "spikes that come back" if neuron.fed_back else "an immediate reset"
            found = f"torch.compile can't trace how its derivative is taken in the backward pass of {of}"
        reason = found if found is None else f"of its spike_grad: {found}"
    if reason is None and options.inhibition and _spikes_go_on(neuron, options):
        why = f"in a {neuron.name} layer" if neuron.fed_back else "with reset_delay=False"
        reason = f"inhibition {why} makes each neuron wait for all others"
    if reason is None:
        return True
    if backend.current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available for this layer, because {reason}")
    backend.warn_once(
        f"snnfast: a layer runs step by step on the slow reference path, because {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return False


def _of_known_sizes(shape: torch.Size) -> torch.Size:
    """A shape to try a callable on: 2 for each size that torch.compile keeps open, such as that of the batch."""
    if not torch.compiler.is_compiling():
        return shape
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes long to import

    return torch.Size([n if has_static_value(n) else 2 for n in shape])


def _spikes_go_on(neuron: Neuron, options: Options) -> bool:
    """Whether the states after a step depend on its spikes: a gradient of these then enters the recurrence."""
    return neuron.fed_back or not options.reset_delay


def _fire_afterwards(
    neuron: Neuron,
    options: Options,
    call: Call,
    x: Tensor,
    states: States,
    parameters: Parameters,
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """Any callable as surrogate, or inhibition: the kernel unrolls the states, then all spikes are made in one call.

    This is possible with a delayed reset. Then no gradient of a spike enters the recurrence, and every neuron above the
    threshold is reset.
    """
    # The membrane is in the opmath dtype: a rounded one could fall on the other side of the threshold. The
    # kernel's own spikes are not used. As a sum they are not written for every step.
    acc = arithmetic_dtype(x.dtype)
    given = _plain(options)
    if call.time == STEP:
        _, *found = run(neuron, given, call, x.to(acc), states, parameters)
        mem = found[-1]
    else:
        whole = made_call(call.time, call.steps, call.record | neuron.membrane, call.last, reduce=True)
        _, *found = run(neuron, given, whole, x.to(acc), states, parameters, lengths=lengths)
        recorded = count(neuron, whole.record)
        mem = found[recorded - 1]
        records = found[:recorded] if call.record & neuron.membrane else found[: recorded - 1]
        found = [t.to(x.dtype) for t in records] + found[recorded:]
    threshold, graded = parameters[-2:]
    distance = mem - threshold
    if options.inhibition:
        spk = options.spike_grad(distance) * reference.winners(distance)
    else:
        spk = options.spike_grad(distance) * graded
    if lengths is not None:
        spk = torch.where(valid_steps(lengths, call.steps, spk.dim() - 1), spk, 0)
    if call.reduce:
        spk = spk.sum(0, dtype=acc)
    return spk.to(x.dtype), *found


def _plain(options: Options) -> Options:
    """The same options without a gradient through the spikes, which are not used."""
    return options._replace(spike_grad=DISABLED, inhibition=False, kernels_do_all=True)
