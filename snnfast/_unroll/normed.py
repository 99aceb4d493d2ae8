"""Batch normalisation in training and the neurons behind it, in one, if only the neurons read the first.

Neither the currents nor a membrane is ever in memory as a whole: forward reads ``x`` twice and writes the spikes,
backward reads ``x`` and the gradient and writes the gradient of ``x``. :func:`reference` is the definition.

On the CPU a pooling may follow, if it alone reads the spikes. They are then never in memory, either.

On CUDA, a channel of a step is normalised by ``scale * x + shift``. The two numbers are computed in float64 and rounded
to float32, and so are the product and the sum. The neurons then make their steps from these currents, also in half
precision. The kernels of the CPU compute ``(x - mean) * scale + bias`` and round as their batch normalisation does
alone, so that no spike differs from the two of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from snnfast import surrogate
from snnfast._core import backend, ops
from snnfast._core.autograd import differentiable
from snnfast._core.norm import Norm, Pool, currents, fits, is_small, numbers_of
from snnfast._core.ops import NORM_RESETS, RESET_DELAY_AT, RESET_MECHANISMS, SEQUENCE, SURROGATE_AT, Neuron
from snnfast._core.order import LEAST_CHANNELS, dense_steps
from snnfast._core.pytorch import not_compiled_alone
from snnfast._unroll import reference as steps
from snnfast._unroll.autograd import unmoved
from snnfast._unroll.call import Options, UnrollCall, make_request
from snnfast.surrogate import DISABLED

__all__ = ["reference", "unroll"]

_MOST_STEPS = 16
"""The kernels of CUDA keep numbers of all steps in shared memory."""

_LEAST_STEPS_OF_HALVES = 3
"""By the instructions that `make gates` counts, one call of fewer steps would take an H100 longer than two calls, which
half precision lets move few bytes: the kernels load chunks of four steps. In float32 the bytes take longer."""

_MOST_NEURONS = 2**31 - 2
"""The most of a step: the kernels of CUDA count them in 32 bits."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ATAN, _FAST_SIGMOID, _SIGMOID = (f().kernel_id for f in (surrogate.atan, surrogate.fast_sigmoid, surrogate.sigmoid))


def unroll(call: UnrollCall, norm: Norm) -> tuple[Tensor, ...] | None:
    """The results of a prepared call behind a batch normalisation of its current; ``None``: the two do not fit.

    Learned numbers of the neurons do not fit, but for the rate of ``ParametricLIFNode`` and, on the CPU, one ``beta``
    of ``Leaky``. Nor do numbers of each neuron, nor records, nor on the CPU a linear layer behind the neurons, which
    takes the spikes as bits.
    """
    request, on_cpu = call.request, ops.has_cpu_kernels(call.current.device)
    if not _has_kernels(call.neuron.name, call.options, on_cpu) or not _fits(norm, call.current, on_cpu):
        return None
    if request.time != SEQUENCE or request.record or request.reduce or call.varies or call.lengths is not None:
        return None
    if call.linear is not None and on_cpu:
        return None
    first, *others = call.parameters
    learns = (on_cpu or call.neuron.name == "ifnode") and first.numel() == 1
    if not (learns or _is_constant(first)) or not all(map(_is_constant, others)) or not backend.use_fused(call.current):
        return None
    return _unroll(call, norm)


def _fits(norm: Norm, x: Tensor, on_cpu: bool) -> bool:
    if x.dtype not in _DTYPES or not fits(norm, x):
        return False
    if on_cpu:
        return not (norm.over_time and is_small(x, x.shape[2]))
    least = 1 if x.dtype == torch.float32 else _LEAST_STEPS_OF_HALVES
    return least <= len(x) <= _MOST_STEPS and x[0].numel() <= _MOST_NEURONS


def _has_kernels(neuron: str, options: Options, on_cpu: bool) -> bool:
    """Whether the neurons reset and are differentiated as the kernels do it."""
    # Of a node, the bit of a delayed reset says that nothing is divided by tau.
    delays = bool(options.packed >> RESET_DELAY_AT & 1)
    if neuron not in NORM_RESETS or not options.kernels_do_all or not delays or options.spike_grad is DISABLED:
        return False
    if on_cpu:
        return True
    kind, slope, _ = options.derivative
    of_kind, ordinary = kind >> SURROGATE_AT, 1e-5 < slope < 1e5
    known = (of_kind == _ATAN and ordinary) or (of_kind == _FAST_SIGMOID and slope >= 0)
    known |= neuron == "ifnode" and of_kind == _SIGMOID and ordinary
    return known and RESET_MECHANISMS[options.reset] in NORM_RESETS[neuron]


def _is_constant(parameter: Tensor) -> bool:
    """Whether a parameter is one number that nobody learns."""
    return parameter.dim() == 0 and not (torch.is_grad_enabled() and parameter.requires_grad)


_STRIP_BYTES = 2**18
"""A strip of an image, as high as its windows, stays in the L2 cache from when it spikes to when it is pooled."""


def _windows(pool: Pool | None, x: Tensor) -> tuple[int, ...]:
    """The windows of a pooling of the spikes, if the kernels take it."""
    if pool is None or x.dim() != 5 or not ops.has_cpu_kernels(x.device) or x.dtype != torch.float32:
        return ()
    T, _, C, H, W = x.shape
    mean, *kernel, rows, columns = pool.windows
    if x.stride(2) != 1:  # whole planes, in which vectors hold windows of two by two side by side
        fits = not mean and [*kernel, columns] == [2, 2, 2] and 4 * T * H * W <= _STRIP_BYTES
    else:
        fits = C >= LEAST_CHANNELS and 4 * T * rows * W * C <= _STRIP_BYTES
    return pool.windows if fits else ()


class _How(NamedTuple):
    """The options of a call, beside its tensors."""

    neuron: Neuron
    options: Options
    eps: float
    over_time: bool
    last: bool  # return the state after the last step
    windows: tuple[int, ...] = ()  # of a pooling of the spikes


def _unroll(call: UnrollCall, norm: Norm) -> tuple[Tensor, ...]:
    x, (state,) = dense_steps(call.current), call.states
    numbers = numbers_of(norm, x)
    windows = _windows(norm.pool, x)
    how = _How(call.neuron, call.options, norm.eps, norm.over_time, call.request.last, windows)
    first, *others = call.parameters
    if call.neuron.name == "leaky" and first.requires_grad:
        first = first.clamp(0, 1)  # whose derivative at 0 and 1 PyTorch knows
    learned = x, norm.weight, norm.bias, state, first
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learned):
        found = _Normed.apply(how, *learned, numbers, *others)
    else:
        found, *_ = _forward(how, x, numbers, state, call.parameters, save=False)
    return found if norm.pool is None or windows else (norm.pool.by_itself(found[0]), *found[1:])


def _op(how: _How, direction: str) -> Any:
    return getattr(ops.norm_ops, f"{how.neuron.name}_norm_{direction}")


def _forward(
    how: _How, x: Tensor, numbers: Tensor, state: Tensor | None, parameters: Sequence[Tensor], save: bool
) -> Any:
    """The results of a call; the states that are saved for its backward pass, and the places of what was pooled."""
    spk, *found = _op(how, "forward")(x, numbers, state, parameters, how.options.reset, how.windows, how.last, save)
    places = found.pop(0) if how.windows and not how.windows[0] else None  # a mean is of all
    last = [found.pop(0)] if how.last else []
    rows = found[0] if found else None  # with many steps, on the CPU
    return (spk, *last), rows, places


class _Normed(torch.autograd.Function):
    """The forward op with the backward op as its gradient. A second derivative is that of the definition."""

    @staticmethod
    def forward(ctx: Any, how: _How, x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        _, _, state, first, numbers, *others = tensors
        found, rows, places = _forward(how, x, numbers, state, [first, *others], save=True)
        *others, threshold, graded = others
        ctx.save_for_backward(x, *tensors[:5], rows, places, *others, unmoved(threshold), graded)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return found  # type: ignore[no-any-return]

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None = None) -> Any:
        x, weight, bias, state, first, numbers, rows, places, *others = ctx.saved_tensors
        how = ctx.how
        learned: Any = x, weight, bias, state, first
        needs, unasked = ctx.needs_input_grad[1:6], (None,) * (1 + len(others))
        if grad is None and grad_last is None:
            return None, *(None,) * len(learned), *unasked
        if torch.is_grad_enabled():  # create_graph=True

            def defined(given: Sequence[Any]) -> tuple[Tensor, ...]:
                x, weight, bias, state, first = given
                return reference(how, x, weight, bias, state, (first, *others))

            return None, *differentiable(defined, learned, needs, (grad, grad_last)), *unasked
        kind, p0, p1 = how.options.derivative
        grad = torch.zeros_like(_pooled(x, how.windows)) if grad is None else grad
        if how.windows:
            grad = grad.movedim(2, -1).contiguous().movedim(-1, 2) if x.stride(2) == 1 else grad.contiguous()
        given = grad, grad_last, x, rows, places, numbers, state, [first, *others], how.options.reset, how.windows
        sums, *made = _op(how, "backward")(*given, kind >> SURROGATE_AT, p0, p1, needs[4], needs[0], needs[3])
        of_bias, of_weight = sums.unbind()
        of_first = made.pop(0).sum().to(first).view_as(first) if needs[4] else None
        return (
            None,
            made[0] if needs[0] else None,
            of_weight.to(weight.dtype) if needs[1] else None,
            of_bias.to(bias.dtype) if needs[2] else None,
            made[1].to(state.dtype) if needs[3] else None,
            of_first,
            *unasked,
        )


# ---- the definition


def reference(
    how: _How,
    x: Tensor,  # [T, B, C, *]
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    state: Tensor | None,  # [B, C, *]
    parameters: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The spikes ``[T, B, C, *]``, or what is pooled of these, and the last state.

    By operators of which autograd makes the gradients.
    """
    y = currents(x, weight, bias, how.eps, how.over_time)
    request = make_request(SEQUENCE, len(x), record=0, last=how.last, reduce=False)
    spk, *last = steps.unroll(UnrollCall(how.neuron, how.options, request, y, (state,), tuple(parameters)))
    spk = spk.to(x.dtype)
    return _pooled(spk, how.windows), *last


def _pooled(spk: Tensor, windows: tuple[int, ...]) -> Tensor:
    if not windows:
        return spk
    mean, *sides = windows
    pooled = (F.avg_pool2d if mean else F.max_pool2d)(spk.flatten(0, 1), sides[:2], sides[2:])
    return pooled.view(*spk.shape[:2], *pooled.shape[1:])
