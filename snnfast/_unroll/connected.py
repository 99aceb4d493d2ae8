"""Neurons that are connected to one another: the loop over time, one product and one kernel a step.

The kernel of the neuron with ``V`` is reused: it is given the recurrent product in place of the last spike. ``V`` is 1
there, so that the multiplication is exact and the numbers are snnTorch's. The gradient of the weights is one product
after all steps.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from snnfast._core import backend, ops, settings
from snnfast._core import linear as _linear
from snnfast._core.autograd import differentiable
from snnfast._core.modules import is_only_called
from snnfast._core.ops import NEEDS_AT, SAVE_CHECKPOINTS, SAVED_AT, SEQUENCE, opmath_dtype
from snnfast._core.products import mm
from snnfast._core.pytorch import is_transformed, not_compiled_alone
from snnfast._unroll import reference
from snnfast._unroll.autograd import CLAMP, of_states, say_slow_second_derivative, sum_to, unmoved
from snnfast._unroll.call import ONE_STEP, Connections, Convolution, Parameters, UnrollCall, needs_graph, step_shape
from snnfast._unroll.checks import check_weight, out_of_inference
from snnfast._unroll.ragged import RaggedMask
from snnfast._unroll.steps import over_steps

__all__ = ["check_connections", "connections_of", "in_place_of_v", "one_step", "separate", "takes", "unroll"]

_ONE = torch.ones((), device="cpu")  # V


def connections_of(module: nn.Module) -> Connections:
    """The connections that a module is."""
    if not is_only_called(module):
        return Connections(module)
    if type(module) is nn.Linear:
        return Connections(module, module.weight, module.bias)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        how = Convolution(module.stride, module.padding, module.dilation, module.groups)
        return Connections(module, module.weight, module.bias, how)
    return Connections(module)


def one(x: Tensor) -> Tensor:
    """``V`` beside a current. An operator on fake or functional tensors takes no plain ones."""
    return _ONE if type(x) in (Tensor, nn.Parameter) else torch.ones((), device="cpu")


def in_place_of_v(given: Any, x: Tensor) -> Any:
    """The parameter ``V`` of a node of a graph, which has (weight, bias, form), or ``None`` behind their product."""
    if given is None:
        return one(x)
    weight, bias, form = given
    return _connections_of_weights(weight, bias, None if form is None else Convolution(*form))


def _connections_of_weights(weight: Tensor, bias: Tensor | None, how: Convolution | None) -> Connections:
    if how is None:
        return Connections(lambda spk: F.linear(spk, weight, bias), weight, bias)
    return Connections(lambda spk: F.conv2d(spk, weight, bias, *how), weight, bias, how)


def check_connections(V: Any, weight: object, bias: object, current: Tensor) -> Any:
    """``V``, or the connections in its place; ``current`` has been checked."""
    if weight is None:
        if bias is not None:
            raise ValueError("recurrent_bias: needs a recurrent_weight")
        return V
    if isinstance(V, Tensor) or V != 1:
        raise ValueError("V: must not be given beside a recurrent_weight, which takes its place")
    weight = check_weight("recurrent_weight", weight, current)
    bias = None if bias is None else check_weight("recurrent_bias", bias, current)
    dims = weight.dim()
    odd = dims == 2 or all(n % 2 for n in weight.shape[2:])
    place = -1 if dims == 2 else -3
    if dims not in (2, 4) or weight.shape[0] != weight.shape[1] or not odd or current.dim() < -place:
        raise ValueError(
            f"recurrent_weight: expected [N, N], or [C, C, kH, kW] with kernels of odd sizes, got {tuple(weight.shape)}"
        )
    if current.shape[place] != weight.shape[0]:
        raise ValueError(f"recurrent_weight: expected {current.shape[place]} inputs, got {weight.shape[0]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"recurrent_bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
    weight, bias = out_of_inference(weight), None if bias is None else out_of_inference(bias)
    how = None if dims == 2 else Convolution((1, 1), tuple(n // 2 for n in weight.shape[2:]), (1, 1), 1)
    return _connections_of_weights(weight, bias, how)


def one_step(call: UnrollCall) -> UnrollCall:
    """A call of one step, whose spikes have gone through the connections, as one of neurons without them.

    Its parameters lack ``V``, which is 1.
    """
    (spk, *states), (connections, *parameters), x = call.states, call.parameters, call.current
    spk = torch.zeros_like(x) if spk is None else spk.to(x.dtype)
    # Spikes lie in memory as the current does. The order of the sums in a product must not depend on that.
    came_back = connections.call(spk.contiguous())  # type: ignore[attr-defined]
    return UnrollCall(call.neuron, call.options, ONE_STEP, x, (came_back, *states), tuple(parameters))


def separate(call: UnrollCall) -> UnrollCall:
    """A call of all time steps, with the connections apart from the parameters."""
    connections: Any = call.parameters[0]
    if call.lengths is not None and len(step_shape(call)) < (2 if connections.convolution is None else 4):
        raise ValueError("lengths: needs steps with a batch dimension before those that are connected")
    return call._replace(parameters=(one(call.current), *call.parameters[1:]), connections=connections)


def takes(call: UnrollCall) -> bool:
    """Whether all steps of a prepared call may be one function of autograd."""
    x, connections = call.current, call.connections
    assert connections is not None
    if not call.options.kernels_do_all or torch.compiler.is_compiling() or is_transformed():
        return False
    if x.device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(x.device.type):
        return False
    for t in (x, connections.weight, connections.bias):
        if t is not None and not (type(t) in (Tensor, nn.Parameter) and t.dtype == x.dtype and t.device == x.device):
            return False
    return connections.weight is not None and backend.use_fused(x)


def unroll(call: UnrollCall) -> tuple[Tensor, ...]:
    """All time steps of a prepared call as one function of autograd."""
    connections, request = call.connections, call.request
    assert connections is not None
    tensors = *call.states, *call.parameters[1:], connections.weight, connections.bias
    mask = None if call.lengths is None else RaggedMask(call.lengths, request.steps, len(step_shape(call)))
    how = call.neuron, call.options, request, connections.convolution, mask
    asks = any(t is not None and t.requires_grad for t in tensors[-2:])
    if needs_graph(call) or (asks and torch.is_grad_enabled()):
        return UnrollConnected.apply(how, call.current, *tensors)  # type: ignore[no-any-return]
    return _forward(how, call.current.contiguous(), tensors, keeps=False)[0]


def _forward(how: tuple[Any, ...], x: Tensor, tensors: Sequence[Any], keeps: bool) -> tuple[tuple[Tensor, ...], Any]:
    """All steps forward, each of which writes rows of the results.

    ``keeps``: what backward needs stays, and is returned behind the results: the spikes of each step, the states after
    it, and what came back to it.
    """
    neuron, options, request, convolution, mask = how
    n, steps, dtype, opmath = len(neuron.states), request.steps, x.dtype, opmath_dtype(x.dtype)
    first, now, parameters, (weight, bias) = tensors[0], tensors[1:n], tensors[n:-2], tensors[-2:]
    like = x if request.time != SEQUENCE else x.new_empty(x.shape[1:]) if len(x) == 0 else x[0]
    wide = like if dtype == opmath else like.to(opmath)
    spk = at_end = torch.zeros_like(like) if first is None else first.to(dtype).contiguous()
    count = torch.zeros_like(wide) if request.reduce else None
    came_back: list[Tensor] = []
    # Double-buffer rows that are not saved.
    every = rows_like(like, steps if keeps or not request.reduce else min(2, steps))
    records = [rows_like(wide, steps if keeps or request.record else min(2, steps)) for _ in now]
    back = rows_like(like, steps if keeps else min(1, steps)).unbind(0)
    spks, states = every.unbind(0), list(zip(*(s.unbind(0) for s in records), strict=True))
    product = _recurrent_product(like, weight, bias, convolution)
    asked = options.packed | ONE_STEP.packed
    for t, step in enumerate(x.unbind(0) if request.time == SEQUENCE else (x,) * steps):
        fed_back = product(spk, back[t % len(back)])
        if keeps:
            came_back.append(fed_back)
        spk, after = spks[t % len(spks)], states[t % len(states)]
        neuron.forward_into(step, fed_back, *now, _ONE, *parameters, 1, asked, [spk, *after])
        if mask is not None:
            (at_end,) = mask.kept(t, [spk], [at_end])
            mask.freeze(t, [spk, *after], [None, *now])
        now = list(after)
        if count is not None:
            count += spk
    found = [every if count is None else count.to(dtype)]
    found += [rows.to(dtype) for i, rows in enumerate(records) if request.record >> 1 + i & 1]
    if request.last:
        # Copies: no part of a record, and with no step no arguments.
        last = spk if mask is None else at_end, *now
        found += [torch.zeros_like(wide) if t is None else t.to(opmath, copy=True) for t in last]
    return tuple(found), (every, *records, *came_back)


class UnrollConnected(torch.autograd.Function):
    """All steps, and their gradient: a step back is one kernel and one product, and all weights are one more.

    A second derivative is that of the reference.
    """

    @staticmethod
    def forward(ctx: Any, how: tuple[Any, ...], x: Tensor, *tensors: Any) -> Any:
        x = x.contiguous()
        found, kept = _forward(how, x, tensors, keeps=True)
        ctx.how, ctx.tensors = how, len(tensors)
        *tensors, threshold, graded, weight, bias = tensors  # type: ignore[assignment]
        # Recorded as they are, states are not kept a second time.
        ctx.save_for_backward(x, *tensors, unmoved(threshold), graded, weight, bias, *kept)
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *rest = ctx.saved_tensors
        tensors, spks, rest = rest[: ctx.tensors], rest[ctx.tensors], rest[ctx.tensors + 1 :]
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # create_graph=True
            say_slow_second_derivative()
            return None, *differentiable(lambda given: _by_reference(ctx.how, *given), (x, *tensors), needs, grads)
        return None, *_backward(ctx.how, needs, grads, x, tensors, spks, rest)


def _by_reference(how: tuple[Any, ...], x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    """All steps by the neuron's definition, with the products between them."""
    neuron, options, request, convolution, mask = how
    n, (weight, bias), opmath = len(neuron.states), tensors[-2:], opmath_dtype(x.dtype)
    connections = _connections_of_weights(weight, bias, convolution)

    def step(x: Tensor, states: list[Tensor], parameters: Parameters) -> tuple[Tensor, list[Tensor]]:
        spk, *others = states
        came_back = connections.call(spk.to(weight.dtype).contiguous()).to(opmath)
        spk, (_, *after) = reference.step(neuron, options, x, [came_back, *others], (one(x), *parameters))
        spk = spk.to(weight.dtype)
        return spk, [spk.to(opmath), *after]

    parameters = tuple(p.to(opmath) for p in tensors[n:-2])
    lengths = None if mask is None else mask.lengths
    call = UnrollCall(neuron, options, request, x, tuple(tensors[:n]), parameters, lengths=lengths)
    return over_steps(call, x.to(opmath), step)


def _backward(
    how: tuple[Any, ...],
    needs: Sequence[bool],
    grads: Sequence[Any],
    x: Tensor,
    tensors: Sequence[Any],
    spks: Tensor,  # [T, *]
    kept: Sequence[Tensor],  # the states after each step, [T, *] each, and what came back to each
) -> list[Tensor | None]:
    """The gradients of the current and the tensors."""
    neuron, options, request, convolution, mask = how
    n, parameters, weight = len(neuron.states), tensors[len(neuron.states) : -2], tensors[-2]
    wanted = needs[1 + n : -2]  # of the parameters
    after, came_back = list(zip(*(rows.unbind(0) for rows in kept[: n - 1]), strict=True)), kept[n - 1 :]
    like = came_back[0] if came_back else x
    wide = like if like.dtype == opmath_dtype(x.dtype) else like.to(opmath_dtype(x.dtype))
    every = rows_like(like, request.steps)  # of the currents, which are those of what came back
    of_spk = torch.empty_like(like)
    carries = [[torch.empty_like(wide) for _ in range(n - 1)] for _ in range(min(2, request.steps))]
    partial = [torch.empty_like(wide) for needed in wanted if needed]
    sums = [torch.zeros_like(wide) for _ in partial]
    surrogate, p0, p1 = options.derivative
    bits = 1 | sum([1 << i for i in range(2, 1 + n)]) | sum([w << 2 + n + j for j, w in enumerate(wanted)])
    asked = options.packed | ONE_STEP.backward_packed | SAVE_CHECKPOINTS << SAVED_AT | surrogate | CLAMP
    asked |= bits << NEEDS_AT
    given = of_states(neuron, request, tuple(grads[1:]))
    records, (last_spk, *carry) = given[1:n], given[n:]
    at_end = None if last_spk is None else last_spk.to(x.dtype)
    later = at_end if mask is None else None  # what the steps after this one say of its spikes

    def by_steps(t: Tensor | None, over_time: bool = True) -> Sequence[Tensor | None]:
        return t.unbind(0) if t is not None and over_time else (t,) * request.steps

    currents, of_currents = by_steps(x, request.time == SEQUENCE), every.unbind(0)
    of_spks, of_records = by_steps(grads[0], not request.reduce), list(zip(*map(by_steps, records), strict=True))
    for t in reversed(range(request.steps)):
        of_this = of_spks[t]
        if t + 1 < request.steps:
            later = _through(of_currents[t + 1], of_this, weight, convolution, of_spk)
        elif of_this is not None:
            later = of_this if later is None else later + of_this
        if mask is not None and at_end is not None:
            later = mask.at_last(t, at_end) if later is None else later + mask.at_last(t, at_end)
        before = after[t - 1] if t else tuple(tensors[1:n])
        out = [of_currents[t], *carries[t % 2], *partial]
        neuron.backward_into(
            later, None, None, *of_records[t], None, *carry, currents[t], None, None, None, came_back[t], *before, _ONE,
            *parameters, 1, asked, p0, p1, out,
        )  # fmt: skip
        if mask is not None:
            mask.freeze(t, carries[t % 2], mask.sums(carry, of_records[t]))
            mask.freeze(t, [of_currents[t], *partial], [None] * (1 + len(partial)))
        carry = carries[t % 2]
        for total, found in zip(sums, partial, strict=True):
            total += found

    made: list[Tensor | None] = [None] * len(needs)
    if needs[0]:
        made[0] = every if request.time == SEQUENCE else every.sum(0, dtype=wide.dtype).to(x.dtype)
    if needs[1]:
        first = tensors[0]
        made[1] = _through(every[0], None, weight, convolution, of_spk) if request.steps else last_spk
        if mask is not None and at_end is not None and request.steps:
            made[1] = made[1] + mask.at_last(-1, at_end)
        made[1] = made[1] if made[1] is None else made[1].to(first.dtype)
    for i in range(2, 1 + n):
        if needs[i] and carry[i - 2] is not None:
            made[i] = carry[i - 2].to(tensors[i - 1].dtype)
    rest = iter(sums)
    for j, parameter in enumerate(parameters):
        if wanted[j]:
            made[1 + n + j] = sum_to(next(rest), parameter)
    if needs[-2]:
        made[-2] = _weight_gradient(every, spks, tensors[0], weight, convolution, parameters[-1])
    if needs[-1]:
        place = every.dim() - (1 if convolution is None else 3)
        made[-1] = every.sum([d for d in range(every.dim()) if d != place])
    return made


def rows_like(like: Tensor, rows: int) -> Tensor:
    """``[rows, *]``, of which the values are to be written; on the CPU from snnfast's own memory."""
    if ops.rows_like is None or not like.is_cpu:
        return torch.empty((rows, *like.shape), dtype=like.dtype, device=like.device)
    return ops.rows_like(like.contiguous(), rows)  # type: ignore[no-any-return]


def _recurrent_product(like: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution | None) -> Any:
    """A function of the spikes and a free row: the recurrent product of a step by snnTorch's operator."""
    # The order of its sums may depend on whether memory begins where that of a tensor of its own would.
    aligned = like.numel() * like.element_size() % 64 == 0
    if how is not None:
        return lambda spk, _: F.conv2d(spk if aligned else spk.clone(), weight, bias, *how).contiguous()
    if not aligned or like.dim() != 2:
        return lambda spk, _: F.linear(spk if aligned else spk.clone(), weight, bias)
    turned = weight.t()
    if bias is None:
        return lambda spk, row: torch.mm(spk, turned, out=row)
    return lambda spk, row: torch.addmm(bias, spk, turned, out=row)


def _through(dx: Tensor, grad: Tensor | None, weight: Tensor, how: Convolution | None, out: Tensor) -> Tensor:
    """The gradient of the spikes before a step: ``grad``, plus that through the recurrent product, ``dx``."""
    if how is None and dx.dim() == 2:
        return torch.mm(dx, weight, out=out) if grad is None else torch.addmm(grad, dx, weight, out=out)
    if how is None:
        found = dx @ weight
    else:
        images = dx.reshape(-1, *dx.shape[-3:])
        found = conv2d_input(images.shape, weight, images, *how).view_as(dx)  # type: ignore[no-untyped-call]
    return found if grad is None else found + grad


def _weight_gradient(
    every: Tensor, spks: Tensor, first: Tensor | None, weight: Tensor, how: Convolution | None, graded: Tensor
) -> Tensor:
    """The gradient of the weights, of all steps at once."""
    if len(every) == 0:
        return torch.zeros_like(weight)
    total = None
    if len(every) > 1:
        total = _gradient_of_rows(every[1:], spks[:-1], weight, how, graded)
    if first is not None:
        one = _gradient_of_rows(every[:1], first.to(every.dtype).unsqueeze(0), weight, how, None)
        total = one if total is None else total + one
    return torch.zeros_like(weight) if total is None else total


def _gradient_of_rows(
    every: Tensor, spks: Tensor, weight: Tensor, how: Convolution | None, graded: Tensor | None
) -> Tensor:
    """The gradient of the weights of some steps. ``graded``: the spike height; ``None``: the inputs are no spikes."""
    if how is not None:
        every, spks = (t.reshape(-1, *t.shape[-3:]) for t in (every, spks))
        return conv2d_weight(spks, weight.shape, every, *how)  # type: ignore[no-any-return,no-untyped-call]
    rows = len(every), -1, every.shape[-1]
    every, spks = every.reshape(rows), spks.reshape(rows)
    counts = ops.spikes_as_bits is not None and settings.events.value and every.is_cpu and every.numel() > 0
    if counts and graded is not None and graded.dim() == 0 and every.shape[0] * every.shape[1] >= _linear.LEAST_ROWS:
        bits, *_ = ops.spikes_as_bits(spks)  # adds a row of the gradient for each spike, where these are few
        return ops.spikes_linear_weight(bits, every, graded)  # type: ignore[no-any-return]
    return mm(every.flatten(0, 1).t(), spks.flatten(0, 1))
