"""``beta`` and ``threshold`` with values for every time step: one kernel a step.

:func:`snnfast.reference.unroll` is the definition: a step is computed with its own values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend
from snnfast._core.ops import CONSTANT, SEQUENCE, Neuron, arithmetic_dtype
from snnfast._unroll import reference
from snnfast._unroll.checks import ONE_STEP, Call, Options, check_dense, out_of_inference, prepare
from snnfast._unroll.linear import Linear
from snnfast._unroll.ragged import Freezing

__all__ = ["unroll", "vary"]


def vary(neuron: Neuron, call: Call, current: Tensor, parameters: tuple[Any, ...]) -> bool:
    """Whether a parameter has values for every step: as many dimensions as a current ``[T, *]``."""
    return bool(neuron.may_vary) and any(_varies(p, call, current) for p in parameters[: len(neuron.may_vary)])


def _varies(parameter: object, call: Call, current: Tensor) -> bool:
    return isinstance(parameter, Tensor) and parameter.dim() == current.dim() + (call.time == CONSTANT)


def unroll(
    run: Callable[..., tuple[Tensor, ...]],  # ``_unroll.run``
    neuron: Neuron,
    options: Options,
    call: Call,
    current: Tensor,  # [T, *], or [*] of a constant current; checked
    states: tuple[Any, ...],  # [*]
    parameters: tuple[Any, ...],  # one of them at least is [T, ...]
    linear: Linear | None,
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """A call of ``_unroll.run`` on neurons some of whose parameters vary with time."""
    given = list(parameters)
    varying = {i: name for i, name in enumerate(neuron.may_vary) if _varies(given[i], call, current)}
    for i, name in varying.items():
        check_dense(name, given[i])
        if len(given[i]) != call.steps:
            shape = tuple(given[i].shape)
            raise ValueError(f"{name}: shape {shape} has values for {shape[0]} steps, but there are {call.steps}")
        given[i] = out_of_inference(given[i])
    # The values of one step are checked as those of a layer are. The sum over no steps has their shape as well.
    first: Any = [(p[0] if call.steps else p.sum(0)) if i in varying else p for i, p in enumerate(given)]
    if call.steps == 0:
        return run(neuron, options, call, current, states, tuple(first), linear=linear)
    x, states, first, _ = prepare(neuron, options, call.time, current, states, tuple(first))
    whole = tuple(given[i] if i in varying else p for i, p in enumerate(first))
    if backend.use_fused(x.device):
        found = _by_steps(run, neuron, options, call, x, states, whole, lengths)
    else:
        found = reference.unroll(neuron, options, call, x, states, whole, lengths)
    if x.dtype != current.dtype:
        found = found[0].to(current.dtype), *found[1:]
    return found if linear is None else (linear.of_spikes(found[0]), *found[1:])


def _by_steps(
    run: Callable[..., tuple[Tensor, ...]],
    neuron: Neuron,
    options: Options,
    call: Call,
    x: Tensor,
    states: tuple[Any, ...],
    parameters: tuple[Tensor, ...],
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """One call of the kernels after the other, each with its own graph."""
    wide = x.to(arithmetic_dtype(x.dtype))  # so that results are rounded once
    dims = wide.dim() - (call.time == SEQUENCE)
    steps = wide.unbind(0) if call.time == SEQUENCE else (wide,) * call.steps
    each = [p.unbind(0) if p.dim() > dims else (p,) * call.steps for p in parameters]
    spks, mems = [], []
    total = torch.zeros_like(steps[0]) if call.reduce else None
    (mem,) = states
    freezing = None if lengths is None else Freezing(lengths, call.steps, dims)
    for t, (step, *of_step) in enumerate(zip(steps, *each, strict=True)):
        before = mem
        if freezing is not None:
            step = freezing.without_padding(t, step)
        spk, mem = run(neuron, options, ONE_STEP, step, (mem,), tuple(of_step))
        if freezing is not None:
            spk, (mem,) = freezing.without_padding(t, spk), freezing.kept(t, (mem,), (before,))
        if total is None:
            spks.append(spk)
        else:
            total = total + spk
        if call.record:
            mems.append(mem)
    found = (torch.stack(spks) if total is None else total).to(x.dtype)
    return found, *((torch.stack(mems).to(x.dtype),) if call.record else ()), *((mem,) if call.last else ())
