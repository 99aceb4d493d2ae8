"""Calls that go to the fused kernels."""

from torch import Tensor
from torch.compiler import is_compiling

from snnfast._core.fake import NO_FORWARD_MODE, NO_TRANSFORM
from snnfast._core.linear import product
from snnfast._core.ops import BITS_AT
from snnfast._core.pytorch import is_forward_mode, transforms_are_active
from snnfast._unroll.autograd import Unroll
from snnfast._unroll.call import UnrollCall, count_states, needs_graph, step_shape
from snnfast._unroll.ragged import batch_outermost

__all__ = ["unroll", "unroll_linear"]


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
        found = found[: count_states(neuron, request.record) + request.last * len(neuron.states)]
    else:
        packed = options.packed | request.packed | 1 << BITS_AT
        bits, *found = neuron.forward(x, *tensors, request.steps, packed, lengths)
        out = product(bits, weight, bias, call.parameters[-1], shape[-dims:], request.steps)
    # Not in the function: autograd forbids changes of a view that a function has made.
    return out.view(request.steps, *shape[:-dims], out.shape[-1]), *found


def _refuse_transforms() -> None:
    if not is_compiling() and transforms_are_active():
        raise RuntimeError(NO_FORWARD_MODE if is_forward_mode() else NO_TRANSFORM)
