"""Batch normalisation in training and the neurons behind it, in one: on CUDA, if only the neurons read the first.

A channel of a step is normalised by ``scale * x + shift``. The two numbers are computed in float64 and rounded to
float32, and so are the product and the sum. The neurons then make their steps from these currents, also in half
precision. Neither the currents nor a membrane is ever in memory: forward reads ``x`` twice and writes the spikes,
backward reads ``x`` and the gradient twice and writes the gradient of ``x``. :func:`reference` is the definition.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast import surrogate
from snnfast._core import backend, ops
from snnfast._core.ops import RESET_MECHANISMS, SEQUENCE, SURROGATE_AT, Neuron
from snnfast._core.pytorch import becomes_node, is_transformed, not_compiled_alone
from snnfast._images.batch_norm import dense, has_batch_statistics, is_pytorchs, running_averages, update
from snnfast._unroll import reference as steps
from snnfast._unroll.call import Options, UnrollCall, make_request
from snnfast._unroll.checks import prepare
from snnfast.neurons.base import SpikingLayer

__all__ = ["reference", "spikes_behind"]

_NEURONS = ("leaky",)
_MOST_STEPS = 16
"""The kernels hold all steps in registers."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DIMS: dict[Any, tuple[int, ...]] = {nn.BatchNorm1d: (3, 4), nn.BatchNorm2d: (5,), nn.BatchNorm3d: (6,)}
_SUBTRACT = RESET_MECHANISMS.index("subtract")
_ATAN, _FAST_SIGMOID = surrogate.atan().kernel_id, surrogate.fast_sigmoid().kernel_id


class _How(NamedTuple):
    """The options of a call, beside its tensors."""

    neuron: Neuron
    options: Options
    eps: float
    over_time: bool  # all steps together have the statistics, in place of each its own


def spikes_behind(
    norm: nn.Module,
    layer: SpikingLayer,
    x: Tensor,  # [T, B, C, *]
    over_time: bool,
) -> Tensor | None:
    """The spikes of neurons that start from zeros behind a batch normalisation, or ``None``: the two do not fit.

    The running averages change in place. Learned numbers of the neurons do not fit, nor do numbers of each neuron.
    """
    if not is_pytorchs(norm) or not has_batch_statistics(norm) or not _fits(norm, x, over_time):
        return None
    options = layer._options()
    if layer.neuron.name not in _NEURONS or layer.init_hidden or not _has_kernels(options):
        return None
    if not backend.use_fused(x):
        return None
    request = make_request(SEQUENCE, len(x), record=0, last=False, reduce=False)
    call = prepare(UnrollCall(layer.neuron, options, request, x, (None,), layer._values()))
    if call.current is not x or not all(_is_constant(t) for t in call.parameters):
        return None
    how = _How(layer.neuron, options, norm.eps, over_time)
    averages = running_averages(norm, 1 if over_time else len(x))
    return _spikes(how, dense(x), norm.weight, norm.bias, averages, call.parameters)


def _fits(norm: _BatchNorm, x: Tensor, over_time: bool) -> bool:
    if not ops.has_norm(x.device) or x.dtype not in _DTYPES:
        return False
    if x.dim() not in _DIMS[type(norm)] or x.shape[2] != norm.num_features:  # PyTorch says what is wrong
        return False
    if not 0 < len(x) <= _MOST_STEPS or _samples(x, over_time) < 2 or becomes_node() or is_transformed():
        return False
    dtypes = x.dtype, torch.float32
    return all(t is None or (t.device == x.device and t.dtype in dtypes) for t in (norm.weight, norm.bias))


def _samples(x: Tensor, over_time: bool) -> int:
    """How many numbers the statistics of a channel are of."""
    return x[0].numel() // x.shape[2] * (len(x) if over_time else 1)


def _has_kernels(options: Options) -> bool:
    """Whether the neurons reset and are differentiated as the kernels do it."""
    kind, slope, _ = options.derivative
    of_kind = kind >> SURROGATE_AT
    known = of_kind == _ATAN or (of_kind == _FAST_SIGMOID and slope >= 0)
    return known and options.kernels_do_all and options.reset == _SUBTRACT and options.reset_delay


def _is_constant(parameter: Tensor) -> bool:
    """Whether a parameter is one number that nobody learns."""
    return parameter.dim() == 0 and not (torch.is_grad_enabled() and parameter.requires_grad)


def _spikes(
    how: _How,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    averages: tuple[Any, Any, Any],
    parameters: tuple[Tensor, ...],
) -> Tensor:
    with torch.no_grad():
        wide = (None if t is None else t.float().contiguous() for t in (weight, bias))
        numbers, variance = ops.norm_ops.norm_statistics(x, *wide, how.eps, how.over_time)
        mean, var, momentum = averages
        if mean is not None:
            n = _samples(x, how.over_time)
            update(mean, numbers[..., 2], momentum, len(numbers))
            update(var, variance * (n / (n - 1)), momentum, len(numbers))  # that of the running average is unbiased
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Normed.apply(how, x, weight, bias, numbers, *parameters)  # type: ignore[no-any-return]
    return _op(how, "forward")(x, numbers, parameters)  # type: ignore[no-any-return]


def _op(how: _How, direction: str) -> Any:
    return getattr(ops.norm_ops, f"{how.neuron.name}_norm_{direction}")


class _Normed(torch.autograd.Function):
    """The forward op with the backward op as its gradient. A second derivative is that of the definition."""

    @staticmethod
    def forward(ctx: Any, how: _How, x: Tensor, *tensors: Any) -> Tensor:
        weight, bias, numbers, *parameters = tensors
        ctx.save_for_backward(x, weight, bias, numbers, *parameters)
        ctx.how = how
        return _op(how, "forward")(x, numbers, parameters)  # type: ignore[no-any-return]

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, numbers, *parameters = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:4]
        others = (None,) * (1 + len(parameters))
        if torch.is_grad_enabled():  # create_graph=True
            spk = reference(ctx.how, x, weight, bias, parameters)
            wanted = [t for t, needed in zip((x, weight, bias), needs, strict=True) if needed]
            found = iter(torch.autograd.grad(spk, wanted, grad, create_graph=True))
            return None, *(next(found) if needed else None for needed in needs), *others
        surrogate, p0, p1 = ctx.how.options.derivative
        op = _op(ctx.how, "backward")
        sums, *of_x = op(grad, x, numbers, parameters, surrogate >> SURROGATE_AT, p0, p1, needs[0])
        of_bias, of_weight = sums.sum(1).unbind()
        return (
            None,
            of_x[0] if needs[0] else None,
            of_weight.to(weight.dtype) if needs[1] else None,
            of_bias.to(bias.dtype) if needs[2] else None,
            *others,
        )


# ---- the definition


def reference(
    how: _How,
    x: Tensor,  # [T, B, C, *]
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    parameters: Any,
) -> Tensor:
    """The spikes ``[T, B, C, *]`` by PyTorch's operators, of which autograd makes the gradients."""
    scale, shift = affine(x, weight, bias, how.eps, how.over_time)
    y = scale * x.to(scale.dtype) + shift
    request = make_request(SEQUENCE, len(x), record=0, last=False, reduce=False)
    return steps.unroll(UnrollCall(how.neuron, how.options, request, y, (None,), tuple(parameters)))[0].to(x.dtype)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over_time: bool) -> tuple[Tensor, Tensor]:
    """The scale and the shift of each channel, and of each step or over time, as they broadcast to ``x``."""
    wide = x.to(torch.float64)
    dims = [d for d in range(x.dim()) if d != 2 and (d != 0 or over_time)]
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    shape = (1, 1, -1, *(1,) * (x.dim() - 3))
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.view(shape)
    shift = -mean * scale
    if bias is not None:
        shift = bias.view(shape) + shift
    return scale.float(), shift.float()
