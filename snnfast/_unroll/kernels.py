"""Calls that go to the fused kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from snnfast._core.fake import NO_FORWARD_MODE, NO_TRANSFORM
from snnfast._core.linear import product
from snnfast._core.ops import (
    BITS_AT,
    NEURONS,
    RESET_AT,
    RESET_DELAY_AT,
    RESET_MECHANISMS,
    SURROGATE_AT,
    Neuron,
    opmath_dtype,
)
from snnfast._core.pytorch import is_forward_mode, transforms_are_active
from snnfast._unroll.autograd import Fire, Unroll
from snnfast._unroll.call import ONE_STEP, Options, UnrollCall, needs_graph, step_shape
from snnfast._unroll.ragged import batch_outermost
from snnfast.surrogate import DISABLED

__all__ = ["step_in_parts", "unroll", "unroll_linear"]


def unroll(call: UnrollCall) -> tuple[Tensor, ...]:
    """The spikes and states of a prepared call: one op, and one function of autograd if it needs a graph."""
    neuron, options, request, x, lengths = call.neuron, call.options, call.request, call.current, call.lengths
    if lengths is not None:
        x = batch_outermost(x, request)
    tensors = *call.states, *call.parameters
    if not needs_graph(call) and not is_forward_mode():
        return tuple(neuron.forward(x, *tensors, request.steps, options.packed | request.packed, lengths))
    _refuse_transforms()  # in forward mode, too
    others = () if lengths is None else (None, None, lengths)
    return Unroll.apply((neuron, options, request, 1), x, *tensors, *others)  # type: ignore[no-any-return]


def unroll_linear(call: UnrollCall) -> tuple[Tensor, ...]:
    """The output of the linear layer ``[T, *, O]``, which takes the spikes as bits, and the states of a call."""
    neuron, options, request, lengths = call.neuron, call.options, call.request, call.lengths
    assert call.linear is not None
    (weight, bias, dims), x, shape = call.linear, call.current.contiguous(), step_shape(call)
    tensors = *call.states, *call.parameters
    if needs_graph(call):
        how = neuron, options, request, dims
        out, *found = Unroll.apply(how, x, *tensors, weight, bias, lengths)
    else:
        packed = options.packed | request.packed | 1 << BITS_AT
        bits, *found = neuron.forward(x, *tensors, request.steps, packed, lengths)
        out = product(bits, weight, bias, call.parameters[-1], shape[-dims:], request.steps)
    # Not in the function: autograd forbids changes of a view that a function has made.
    return out.view(request.steps, *shape[:-dims], out.shape[-1]), *found


def _refuse_transforms() -> None:
    if not is_compiling() and transforms_are_active():
        raise RuntimeError(NO_FORWARD_MODE if is_forward_mode() else NO_TRANSFORM)


# ---- one step whose results autograd sees one after the other, see use_state_gradients


def step_in_parts(call: UnrollCall) -> tuple[Tensor, ...]:
    """One step as a function for the states and one for the spikes of the membrane, as in snnTorch."""
    _refuse_transforms()
    x, dtype = call.current, call.current.dtype
    spk, *after = _in_parts(call.neuron, call.options, x.to(opmath_dtype(dtype)), call.states, call.parameters)
    return spk.to(dtype), *after


def _in_parts(
    neuron: Neuron,
    options: Options,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """One step in the opmath dtype.

    ``Synaptic`` runs as two leaky steps: one without a reset gives the synaptic current, which drives the other.
    """
    if neuron.synapse is not None and RESET_MECHANISMS[options.reset] in neuron.membrane_of_states:
        quiet = Options(DISABLED, _NONE, True, False, None, True, _PACKED, _NO_DERIVATIVE)
        _, syn = Unroll.apply((neuron.synapse, quiet, ONE_STEP, 1), x, *states[:-1], *parameters[:-3], _ZERO, _ZERO)
        spk, mem = _in_parts(NEURONS["leaky"], options, syn, states[-1:], parameters[-3:])
        return spk, syn, mem
    silent = Options(DISABLED, options.reset, options.reset_delay, False, None, True, options.packed, _NO_DERIVATIVE)
    threshold, graded = parameters[-2:]
    spk, *after = Unroll.apply((neuron, silent, ONE_STEP, 1), x, *states, *parameters[:-1], graded.detach())
    fires = Options(options.spike_grad, _NONE, True, False, None, options.kernels_do_all, _PACKED, options.derivative)
    return Fire.apply((fires, spk), after[-1], None, _ZERO, threshold, graded), *after


_NONE = RESET_MECHANISMS.index("none")
_PACKED = _NONE << RESET_AT | 1 << RESET_DELAY_AT
_NO_DERIVATIVE = DISABLED.kernel_id << SURROGATE_AT, *DISABLED.parameters()
_ZERO = torch.zeros((), device="cpu", dtype=torch.float32)  # a parameter that has no effect
