"""A linear layer behind the neurons: its checks, and whether it takes their spikes as bits."""

import torch
from torch import Tensor

from snnfast._core.linear import Linear, bits_pay
from snnfast._core.ops import STEP
from snnfast._unroll.call import UnrollCall, step_shape
from snnfast._unroll.checks import check_weight, out_of_inference


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


def takes_bits(call: UnrollCall, linear: Linear) -> bool:
    """Whether the kernels can hand the spikes on as bits. If not, ``linear`` takes them as numbers."""
    request, shape, graded = call.request, step_shape(call), call.parameters[-1]
    if not call.options.kernels_do_all or request.time == STEP or request.reduce:
        return False
    if not bits_pay(call.current, shape, request.steps, linear):
        return False
    return graded.dim() <= linear.dims or all(n == 1 for n in graded.shape[: -linear.dims])
