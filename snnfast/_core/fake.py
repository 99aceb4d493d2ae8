"""Rules of the ops beside their kernels: the shapes of the results while tracing, and ``vmap``."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from snnfast._core import ops
from snnfast._core.autograd import refusing
from snnfast._core.ops import (
    NEURONS,
    SAVE_CHECKPOINTS,
    SAVE_NOTHING,
    SAVE_SPIKES,
    SAVED_MODES,
    SEQUENCE,
    STEP,
    Neuron,
    opmath_dtype,
    unpack,
)
from snnfast._core.order import order_of, strides_of
from snnfast._core.pytorch import outside_of_vmap, transforms_are_active


def register(namespace: str) -> None:
    """Make the ops of a namespace known to ``torch.compile`` and ``torch.func.vmap``."""
    for neuron in NEURONS.values():
        name = f"{namespace}::{neuron.name}"
        torch.library.register_fake(f"{name}_forward", partial(_forward_fake, neuron))
        torch.library.register_fake(f"{name}_backward", partial(_backward_fake, neuron, namespace != ops.NAMESPACE))
        torch.library.register_vmap(f"{name}_forward", partial(_forward_vmap, neuron))
    torch.library.register_fake(f"{namespace}::norm_statistics", _norm_statistics_fake)
    for name in ops.NORM_RESETS:
        torch.library.register_fake(f"{namespace}::{name}_norm_forward", _norm_forward_fake)
        torch.library.register_fake(f"{namespace}::{name}_norm_backward", _norm_backward_fake)
    if hasattr(getattr(torch.ops, namespace), "spikes_linear"):
        torch.library.register_fake(f"{namespace}::spikes_linear", _linear_fake)
        torch.library.register_fake(f"{namespace}::spikes_linear_weight", _linear_weight_fake)


# ---- shapes


class _Outputs:
    """Makes tensors with the strides of a current: the twin of ``Layout`` in ``csrc/op/layout.h``."""

    def __init__(self, like: Tensor, has_rows: bool) -> None:
        self.like = like
        self.step = like.shape[1:] if has_rows else like.shape
        self.numel = math.prod(self.step)  # Size.numel makes an int of a symbol
        strides = like.stride()[1:] if has_rows else like.stride()
        self.order = order_of(strides)
        if like.is_contiguous() or not self._fits(like, has_rows):
            self.order = list(range(len(strides)))

    def _fits(self, t: Tensor, has_rows: bool) -> bool:
        strides = t.stride()[1:] if has_rows else t.stride()
        if has_rows and t.shape[0] > 1 and t.stride(0) != self.numel and t.stride(0) != 0:
            return False
        dense = strides_of(self.step, self.order)
        return all(n <= 1 or a == b for n, a, b in zip(self.step, strides, dense, strict=True))

    def make(self, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        strides = strides_of(self.step, self.order)
        if rows is None:
            return self.like.new_empty_strided(self.step, strides, dtype=dtype)
        return self.like.new_empty_strided((rows, *self.step), (max(self.numel, 1), *strides), dtype=dtype)


def _forward_fake(neuron: Neuron, x: Tensor, *args: Any) -> list[Tensor]:
    steps, options, *_ = args[len(neuron.states) + len(neuron.parameters) :]
    time, reduce, saved, record, last = (unpack(options, n) for n in ("time", "reduce", "saved", "record", "last"))
    outputs, opmath = _Outputs(x, time == SEQUENCE), opmath_dtype(x.dtype)
    every = None if time == STEP else steps
    if unpack(options, "bits"):
        made = [outputs.make(torch.uint8, _rows(SAVE_SPIKES, steps))]
    else:
        made = [outputs.make(x.dtype, None if reduce else every)]
    made += [outputs.make(x.dtype, every) for i in range(len(neuron.states)) if record >> i & 1]
    if record & neuron.pre_reset_membrane:
        made.append(outputs.make(opmath, every))
    if last:
        made += [outputs.make(opmath) for _ in neuron.states[neuron.has_spike_feedback and time == STEP :]]
    if saved != SAVE_NOTHING and time != STEP:  # of one step there are no rows
        rows = _rows(saved, steps) * (len(neuron.states) if saved == SAVE_CHECKPOINTS else 1)
        made.append(outputs.make(torch.uint8 if saved == SAVE_SPIKES else opmath, rows))
    return made


def _rows(saved: int, steps: int) -> Any:
    """The shape of the tensor that a mode saves for one state."""
    _, plus, per, _ = SAVED_MODES[saved]
    return torch.sym_max((steps + plus) // per, 0)


def _backward_fake(
    neuron: Neuron, emulated: bool, grad_spk: Tensor | None, weight: Tensor | None, *args: Any
) -> list[Tensor]:
    states = len(neuron.states)
    grads, (x, mem_rec, rows), rest = args[: 2 * states], args[2 * states : 2 * states + 3], args[2 * states + 4 :]
    steps, options, *_ = rest[states + len(neuron.parameters) :]
    time, needs = unpack(options, "time"), unpack(options, "needs")
    like = next((t for t in (grad_spk, x, mem_rec, *grads) if t is not None), None)
    known = next((t for t in (x, mem_rec, rows) if t is not None), None)
    if known is None:
        raise RuntimeError("exactly one of x, mem_rec and, alone, rows must be given")  # in the words of the kernels
    if like is None:
        raise RuntimeError("a gradient must be given")
    has_rows = time == SEQUENCE if x is not None else time != STEP or mem_rec is None
    outputs = _Outputs(known, has_rows)
    made = [outputs.make(like.dtype, steps if time == SEQUENCE else None)] if needs & 1 else []
    opmath, sums = opmath_dtype(like.dtype), emulated or like.device.type == "cuda"
    made += [outputs.make(opmath) for i in range(states) if needs >> 1 + i & 1]
    for i, parameter in enumerate(rest[states : states + len(neuron.parameters)]):
        if needs >> 1 + states + i & 1:
            one = sums and math.prod(parameter.shape) == 1
            made.append(like.new_empty(parameter.shape, dtype=parameter.dtype) if one else outputs.make(opmath))
    return made


def _norm_statistics_fake(
    x: Tensor, weight: Any, bias: Any, eps: float, over_time: bool, *running: Any
) -> tuple[Tensor, Tensor]:
    shape = (1 if over_time else x.shape[0], x.shape[2])
    return x.new_empty((*shape, 4), dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


def _norm_forward_fake(
    x: Tensor, numbers: Any, state: Any, parameters: Any, reset: int, windows: list[int], last: bool, save: bool
) -> list[Tensor]:
    outputs = _Outputs(x, has_rows=True)
    made = [outputs.make(x.dtype, x.shape[0])]
    if windows:
        pooled = F.avg_pool2d(made[0].flatten(0, 1), windows[1:3], windows[3:])
        pooled = pooled.view(*x.shape[:2], *pooled.shape[1:])
        made = [pooled, *([] if windows[0] else [torch.empty_like(pooled, dtype=torch.uint8)])]
    made += [outputs.make(torch.float32)] if last else []
    kept = _rows(SAVE_CHECKPOINTS, x.shape[0]) if save and ops.has_cpu_kernels(x.device) else 0
    return made + ([outputs.make(torch.float32, kept)] if kept else [])


def _norm_backward_fake(
    grad: Tensor, grad_last: Any, x: Tensor, rows: Any, places: Any, numbers: Tensor, *args: Any
) -> list[Tensor]:
    outputs, (needs_first, needs_x, needs_state) = _Outputs(x, has_rows=True), args[-3:]
    made = [x.new_empty((2, numbers.shape[1]), dtype=torch.float32)]
    made += [x.new_empty(x.shape[2], dtype=torch.float64)] if needs_first else []
    made += [outputs.make(x.dtype, x.shape[0])] if needs_x or needs_state else []
    return made + ([outputs.make(torch.float32)] if needs_state else [])


def _linear_fake(bits: Tensor, weight: Tensor, bias: Tensor | None, graded: Tensor, steps: int) -> Tensor:
    return weight.new_empty((steps, bits.shape[1], weight.shape[0]))


def _linear_weight_fake(bits: Tensor, grad: Tensor, graded: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[2], bits.shape[2]))


# ---- vmap: one more dimension of a step, because neurons are independent of one another


def _forward_vmap(neuron: Neuron, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
    states, parameters = len(neuron.states), len(neuron.parameters)
    (x, *tensors), options = args[: 1 + states + parameters], args[1 + states + parameters :]
    if any(t is not None for t in options[2:]):
        raise RuntimeError("lengths: have no rule for vmap")  # layers take the reference
    time, reduce, record, last = (unpack(options[1], n) for n in ("time", "reduce", "record", "last"))
    lead = 1 if time == SEQUENCE else 0
    x = _batched(x, in_dims[0], info.batch_size, lead)
    given = [
        t if t is None else _batched(t, d, info.batch_size, 0)
        for t, d in zip(tensors[:states], in_dims[1 : 1 + states], strict=True)
    ]
    steps = x.dim() - lead - 1  # dimensions of a step
    for t, d in zip(tensors[states:], in_dims[1 + states : 1 + states + parameters], strict=True):
        if d is not None:
            t = t.movedim(d, 0)
            t = t.reshape(t.shape[0], *(1,) * (steps - t.dim() + 1), *t.shape[1:])
        given.append(t)
    found = neuron.forward(x, *given, *options)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *given)):
        with outside_of_vmap():  # where a derivative may be taken, and autograd has not seen the call
            if transforms_are_active():
                raise RuntimeError(NO_TRANSFORM)
            found = refusing(RuntimeError, NO_TRANSFORM, found, x, *given)
    over_time = 0 if time == STEP else 1
    records = sum([record >> i & 1 for i in range(states + 1)])
    lasts = states - (neuron.has_spike_feedback and time == STEP) if last else 0
    dims = [0 if reduce else over_time] + [over_time] * records + [0] * lasts
    return found, dims + [1] * (len(found) - len(dims))


NO_TRANSFORM = (
    "snnfast's kernels have no derivative under a transform of torch.func (grad, vjp, jacrev, vmap): run this part "
    "under snnfast.use_backend('reference'), or under torch.no_grad() if you want no derivative"
)
NO_FORWARD_MODE = "forward mode (torch.func.jvp, jacfwd): a surrogate gradient has only a backward derivative"


def _batched(t: Tensor, dim: int | None, size: int, to: int) -> Tensor:
    return t.unsqueeze(to).expand(*t.shape[:to], size, *t.shape[to:]) if dim is None else t.movedim(dim, to)
