"""The reference path: a call in plain PyTorch, one time step after the other, by the step of the neuron's spec."""

import torch
from torch import Tensor

from snnfast._core.ops import RESET_MECHANISMS, Neuron, opmath_dtype
from snnfast._unroll import state_gradients
from snnfast._unroll.call import Options, Parameters, UnrollCall
from snnfast._unroll.steps import over_steps
from snnfast.surrogate.examine import check_spikes

__all__ = ["step", "unroll", "winners"]


def unroll(call: UnrollCall) -> tuple[Tensor, ...]:
    """Compute a prepared call: spikes, then the states that it asks for."""
    # Half precision: arithmetic and carried states in float32, results rounded once.
    opmath = opmath_dtype(call.current.dtype)

    def one_step(x: Tensor, states: list[Tensor], parameters: Parameters) -> tuple[Tensor, list[Tensor]]:
        return step(call.neuron, call.options, x, states, parameters)

    wide = call._replace(parameters=tuple([p.to(opmath) for p in call.parameters]))
    return over_steps(wide, call.current.to(opmath), one_step)


def step(
    neuron: Neuron, options: Options, x: Tensor, states: list[Tensor], parameters: Parameters
) -> tuple[Tensor, list[Tensor]]:
    """One time step: current ``x`` and states before it (all ``[*]``) to spikes and states after it."""
    threshold, graded = parameters[-2:]
    mechanism, fire = RESET_MECHANISMS[options.reset], options.spike_grad
    if neuron.whole_step is not None:
        return neuron.whole_step(x, states, parameters, fire, mechanism)
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
    return out, [out, *after] if neuron.has_spike_feedback else after


def winners(distance: Tensor) -> Tensor:
    """1 for the neuron of each sample that is nearest to or farthest above its threshold, else 0: ``[*, N]``."""
    spk = torch.zeros_like(distance)
    return spk.scatter_(-1, distance.detach().argmax(-1, keepdim=True), 1) if spk.numel() > 0 else spk
