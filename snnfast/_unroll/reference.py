"""The reference path: a call in plain PyTorch, one time step after the other, by the step of the neuron's spec."""

import torch
from torch import Tensor

from snnfast._core.ops import RESET_MECHANISMS, SEQUENCE, STEP, Neuron, arithmetic_dtype
from snnfast._unroll import state_gradients
from snnfast._unroll.checks import Call, Options, Parameters, States
from snnfast._unroll.ragged import Freezing
from snnfast.surrogate.examine import check_spikes

__all__ = ["step", "unroll", "winners"]


def unroll(
    neuron: Neuron,
    options: Options,
    call: Call,
    current: Tensor,
    states: States,
    parameters: Parameters,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A call of :func:`snnfast._unroll.run` on prepared tensors: spikes, then the states that it asks for.

    A sample of a ragged batch keeps its states and does not spike at the steps that it does not have.
    """
    # Half precision: arithmetic and carried states in float32, results rounded once.
    acc = arithmetic_dtype(current.dtype)
    x = current.to(acc)
    steps = x.unbind(0) if call.time == SEQUENCE else (x,) * call.steps
    step_shape = current.shape[1:] if call.time == SEQUENCE else current.shape
    now = [torch.zeros(step_shape, dtype=acc, device=x.device) if s is None else s.to(acc) for s in states]
    # A parameter with one dimension more than a step has a value for each.
    wide = [p.to(acc) for p in parameters]
    each = [p.unbind(0) if p.dim() > len(step_shape) else (p,) * len(steps) for p in wide]
    spk_rec: list[Tensor] = []
    record: list[list[Tensor]] = []
    freezing = None if lengths is None else Freezing(lengths, call.steps, len(step_shape))
    for t, (x, *of_step) in enumerate(zip(steps, *each, strict=True)):
        before = now
        if freezing is not None:
            x = freezing.without_padding(t, x)  # NaN would reach the gradients of parameters
        spk, now = step(neuron, options, x, before, tuple(of_step))
        if freezing is not None:
            spk, now = freezing.without_padding(t, spk), freezing.kept(t, now, before)
        spk_rec.append(spk)
        record.append(now)
    # With no step the initial states are the last ones; copies, so that writing to them can't reach the arguments.
    last = [s if steps else s.clone() for s in now] if call.last else []
    if call.time == STEP:
        return spk_rec[0].to(current.dtype), *last[neuron.fed_back :]

    def over_time(tensors: list[Tensor]) -> Tensor:
        made = torch.stack(tensors) if tensors else torch.empty((0, *step_shape), dtype=acc, device=current.device)
        return made.to(current.dtype)

    count = sum(spk_rec, start=torch.zeros_like(now[0])) if call.reduce else None  # one step after the other
    spk = over_time(spk_rec) if count is None else count.to(current.dtype)
    wanted = [i for i in range(len(now)) if call.record >> i & 1]
    return spk, *(over_time([states[i] for states in record]) for i in wanted), *last


def step(
    neuron: Neuron, options: Options, x: Tensor, states: list[Tensor], parameters: Parameters
) -> tuple[Tensor, list[Tensor]]:
    """One time step: current ``x`` and states before it (all ``[*]``) to spikes and states after it."""
    threshold, graded = parameters[-2:]
    mechanism, fire = RESET_MECHANISMS[options.reset], options.spike_grad
    # The reset comes from the incoming membrane, not from the last spike: a given one may exceed the threshold.
    distance = states[-1] - threshold
    reset = check_spikes(fire(distance), distance).detach().to(x.dtype)
    after = neuron.step(x, states, parameters, reset, mechanism)
    if options.state_quant is not None:
        after = [options.state_quant(s) for s in reversed(after)][::-1]  # snnTorch's order: the membrane first
    v = after[-1]
    if options.inhibition:
        distance = v - threshold
        spk = fire(distance).to(v.dtype) * winners(distance)
        out = spk  # snnTorch does not grade the spikes of inhibited layers
    else:
        # snnTorch quantizes once more what decides the spike.
        spk = fire((v if options.state_quant is None else options.state_quant(v)) - threshold).to(v.dtype)
        out = spk * graded
    if not options.reset_delay and mechanism != "none":
        # Reset at once what spikes now; what `reset` already took (or took too early) is given back.
        # snnTorch makes it of the spikes that it returns, which is NaN for a height of 0.
        due = (out / graded if options.inhibition or state_gradients.setting.value else spk) - reset
        after[-1] = v - due * (threshold if mechanism == "subtract" else v)
    return out, [out, *after] if neuron.fed_back else after


def winners(distance: Tensor) -> Tensor:
    """1 for the neuron of each sample that is nearest to or farthest above its threshold, else 0: ``[*, N]``."""
    spk = torch.zeros_like(distance)
    return spk.scatter_(-1, distance.detach().argmax(-1, keepdim=True), 1) if spk.numel() > 0 else spk
