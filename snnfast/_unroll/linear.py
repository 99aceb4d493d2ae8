"""A linear layer behind the neurons, which takes their spikes as bits."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from snnfast._core import events, ops
from snnfast._core.backend import exporting
from snnfast._core.ops import (
    BITS_AT,
    NEEDS_AT,
    SAVE_CHECKPOINTS,
    SAVE_NOTHING,
    SAVE_SPIKES,
    SAVED_AT,
    SEQUENCE,
    STEP,
    Neuron,
    arithmetic_dtype,
)
from snnfast._core.pytorch import is_forward_mode, transforms_are_active
from snnfast._unroll.autograd import (
    CLAMP,
    NO_SECOND_DERIVATIVE,
    by_input,
    count,
    no_gradient,
    of_states,
    records,
    refusing,
    split,
    what_to_save,
)
from snnfast._unroll.checks import Call, Options, Parameters, States, check_weight, out_of_inference
from snnfast.surrogate import DISABLED

LEAST_ROWS = 256
"""Samples times steps from which on bits are faster. Below, their packing and one more op cost more than they save."""


class Linear(NamedTuple):
    """The weights of a linear layer that alone reads the spikes of a neuron layer."""

    weight: Tensor  # [O, N]
    bias: Tensor | None  # [O]
    dims: int = 1  # of a step, from the last: N is their product

    def of_spikes(self, spk: Tensor) -> Tensor:
        """``[*rows, O]`` of spikes as numbers, ``[*rows, N]``."""
        return F.linear(spk if self.dims == 1 else spk.flatten(-self.dims), self.weight, self.bias)


def check_linear(weight: object, bias: object, current: Tensor, step_shape: torch.Size) -> Linear | None:
    """Check the weight and the bias, or raise an error that names one. ``current`` is checked already."""
    if weight is None:
        if bias is not None:
            raise ValueError("bias: needs a weight")
        return None
    if len(step_shape) == 0:
        raise ValueError("weight: needs steps with at least one dimension, that of its inputs")
    outputs = weight.shape[0] if isinstance(weight, Tensor) and not weight.is_nested and weight.dim() == 2 else None
    given = {"weight": (weight, "[O, N]", (outputs, step_shape[-1])), "bias": (bias, "[O]", (outputs,))}
    cast = torch.is_autocast_enabled(current.device.type)
    for name, (t, letters, shape) in given.items():
        if t is None:
            continue
        found = tuple(check_weight(name, t, current, cast).shape)
        if found != shape:
            numbers = ", ".join("O" if n is None else str(n) for n in shape)
            raise ValueError(f"{name}: expected {letters} of shape ({numbers}), got {found}")
    return Linear(out_of_inference(weight), bias if bias is None else out_of_inference(bias))  # type: ignore[arg-type]


def by_events(options: Options, call: Call, x: Tensor, parameters: Parameters, linear: Linear) -> bool:
    """Whether the kernels can hand the spikes on as bits. If not, ``linear`` takes them as numbers."""
    weight, bias, dims = linear
    if not events.setting.value or ops.spikes_linear is None or not x.is_cpu or not options.kernels_do_all:
        return False
    if call.time == STEP or call.reduce or torch.is_autocast_enabled("cpu"):
        return False
    if is_forward_mode():
        return False
    if not torch.compiler.is_compiling() and transforms_are_active():
        return False
    if not _is_fit(weight, x) or weight.dim() != 2 or (bias is not None and not _is_fit(bias, x)):
        return False
    outputs, inputs = weight.shape
    step_shape, graded = _step_shape(x, call), parameters[-1]
    if inputs != math.prod(step_shape[-dims:]) or (bias is not None and bias.shape != (outputs,)):
        return False  # an error, which PyTorch words
    neurons = math.prod(step_shape)  # Size.numel makes an int of a symbol
    if neurons == 0 or outputs == 0 or not _are_enough(call.steps, neurons // inputs):
        return False
    return graded.dim() <= dims or all(n == 1 for n in graded.shape[:-dims])


def _are_enough(steps: int, samples: int) -> bool:
    if not exporting():
        return steps * samples >= LEAST_ROWS
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known  # takes long to import

    # A program for any number of steps must not depend on it: not by this choice, nor by the shape of the bits.
    return known(steps * samples >= LEAST_ROWS) and (known(steps <= 8) or known(steps > 8))


def _is_fit(t: Tensor, x: Tensor) -> bool:
    known = type(t) in (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)  # the last two while PyTorch traces
    return known and t.dtype == x.dtype and t.device == x.device and t.layout is torch.strided


def unroll_linear(
    neuron: Neuron,
    options: Options,
    call: Call,
    x: Tensor,  # [T, *, N], or [*, N] of a constant current
    states: States,
    parameters: Parameters,
    linear: Linear,
    asks: bool,  # whether a tensor before ``linear`` asks for a gradient
    lengths: Tensor | None,  # [B]
) -> tuple[Tensor, ...]:
    """Compute all time steps: the output of the linear layer ``[T, *, O]``, and the states that the call returns."""
    weight, bias, dims = linear
    x = x.contiguous()
    if records(asks or weight.requires_grad or (bias is not None and bias.requires_grad)):
        how, ragged = (neuron, options, call, dims), () if lengths is None else (lengths,)
        out, *found = UnrollLinear.apply(how, x, *states, *parameters, weight, bias, *ragged)
    else:
        asked = options.packed | call.packed | 1 << BITS_AT
        if lengths is None:
            bits, *found = neuron.forward(x, *states, *parameters, call.steps, asked)
        else:
            bits, *found = neuron.forward_ragged(x, *states, *parameters, call.steps, asked, lengths)
        out = _product(bits, linear, parameters[-1], x, call)
    # Not in the function: autograd forbids changes of a view that a function has made.
    return out.view(call.steps, *_step_shape(x, call)[:-dims], out.shape[-1]), *found


class UnrollLinear(torch.autograd.Function):
    """A neuron's forward op and the product of its spikes with the weights behind it.

    It saves the spikes as bits, for the gradient of the weight, and the tensors that :class:`Unroll` saves. The
    neuron's backward op computes the gradient of the spikes, block by block, from that of the product.
    """

    @staticmethod
    def forward(ctx: Any, how: tuple[Neuron, Options, Call, int], x: Tensor, *tensors: Any) -> Any:
        neuron, options, call, dims = how
        tensors, (weight, bias, *lengths) = split(neuron, tensors)
        *needs, needs_weight, needs_bias = ctx.needs_input_grad[1 : 4 + len(tensors)]
        asks = any(needs)
        saved = what_to_save(neuron, options, call, x.dtype, needs) if asks else SAVE_NOTHING
        asked = options.packed | call.packed | 1 << BITS_AT
        if saved != SAVE_SPIKES:  # which are the first result
            asked |= saved << SAVED_AT
        forward = neuron.forward_ragged if lengths else neuron.forward
        bits, *found = forward(x, *tensors, call.steps, asked, *lengths)
        source: Tensor | None = None  # backward computes the membranes from it
        rows = None
        if saved == SAVE_SPIKES:
            rows = bits
        elif saved != SAVE_NOTHING:
            *found, rows = found
            source = x if saved == SAVE_CHECKPOINTS else None
        elif asks:
            source = found[count(neuron, call.record) - 1]  # the recorded membrane
        out = _product(bits, Linear(weight, bias, dims), tensors[-1], x, call)
        kept = bits if needs_weight else None, weight if asks else None
        ctx.save_for_backward(source, rows, *kept, *tensors, *lengths)
        ctx.how = neuron, options, call, saved, x.dtype, _step_shape(x, call)[-dims:]
        ctx.set_materialize_grads(False)
        if options.spike_grad is DISABLED and not (needs[-1] or needs_weight or needs_bias):
            ctx.mark_non_differentiable(out)
        elif not asks:
            ctx.mark_non_differentiable(*found)
        return out, *found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Any) -> Any:
        neuron, options, call, saved, dtype, shape = ctx.how
        source, rows, bits, weight, *tensors = ctx.saved_tensors
        tensors, lengths = split(neuron, tensors)
        *needs, needs_weight, needs_bias = ctx.needs_input_grad[1 : 4 + len(tensors)]
        refuses = torch.is_grad_enabled()  # create_graph=True
        if refuses and source is None and any(needs):
            raise NotImplementedError(NO_SECOND_DERIVATIVE)  # nothing that is saved leads back to the current
        grad_weight = grad_bias = None
        given = (grad, *others)
        if grad is not None:
            grad = grad.reshape(call.steps, -1, grad.shape[-1]).contiguous()  # [T, R, O]
            if needs_weight:
                bits, heights = _flat(bits, shape), _heights(tensors[-1], shape, dtype)
                if refuses and not any(needs):  # no spike is differentiated, and so this can be once more
                    grad_weight = grad.flatten(0, 1).t() @ (_as_numbers(bits, call.steps) * heights).to(dtype)
                else:
                    grad_weight = ops.spikes_linear_weight(bits, grad, heights)
            if needs_bias:
                grad_bias = grad.sum((0, 1))
            if options.spike_grad is DISABLED and not needs[-1]:
                grad = None  # none of it passes through a spike
        gradients: list[Tensor | None] = [None] * len(needs)
        if any(needs) and (grad is not None or any(g is not None for g in others)):
            x, mem_rec = (None, source) if saved == SAVE_NOTHING else (source, None)
            asked = options.packed | call.backward_packed | saved << SAVED_AT | options.derivative[0] | CLAMP
            asked |= sum([needed << i for i, needed in enumerate(needs)]) << NEEDS_AT
            backward = neuron.backward_ragged if lengths else neuron.backward
            found = backward(
                grad, None if grad is None else weight, *of_states(neuron, call, others), x, mem_rec, rows, None,
                *tensors, call.steps, asked, *options.derivative[1:], *lengths,
            )  # fmt: skip
            gradients = by_input(neuron, found, needs, tensors)
            if needs[0] and gradients[0].dtype != dtype:  # type: ignore[union-attr] # of last states alone
                gradients[0] = gradients[0].to(dtype)  # type: ignore[union-attr]
        gradients = [None, *gradients, grad_weight, grad_bias, *no_gradient(lengths)]
        if refuses and any(needs):
            return refusing(gradients, *given, source, weight, *tensors)
        return tuple(gradients)


def _product(bits: Tensor, linear: Linear, graded: Tensor, x: Tensor, call: Call) -> Tensor:
    """``[T, R, O]`` of the spikes as bits."""
    shape = _step_shape(x, call)[-linear.dims :]
    heights = _heights(graded, shape, x.dtype)
    return ops.spikes_linear(  # type: ignore[no-any-return]
        _flat(bits, shape), linear.weight, linear.bias, heights, call.steps
    )


def _step_shape(x: Tensor, call: Call) -> torch.Size:
    return x.shape[1:] if call.time == SEQUENCE else x.shape


def _flat(bits: Tensor, shape: torch.Size) -> Tensor:
    """``[rows of eight steps, R, N]``."""
    return bits.reshape(bits.shape[0], -1, shape.numel())


def _as_numbers(bits: Tensor, steps: int) -> Tensor:
    """``[T * R, N]`` uint8 of bits ``[rows of eight steps, R, N]``."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device).view(1, 8, 1, 1)
    numbers = bits.unsqueeze(1).bitwise_right_shift(places).bitwise_and(1)
    return numbers.flatten(0, 1)[:steps].flatten(0, 1)


def _heights(graded: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Of the spikes ``[N]``, or of all spikes ``[]``; for a call in ``dtype``."""
    graded = graded if graded.is_floating_point() else graded.to(arithmetic_dtype(dtype))
    if graded.numel() == 1:
        return graded.reshape(())
    return graded.reshape(graded.shape[-len(shape) :]).expand(shape).reshape(-1)
