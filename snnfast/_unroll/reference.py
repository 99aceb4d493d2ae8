"""The neurons in plain PyTorch, one time step after the other: the definition, the fall-back and the gradient oracle.

The arithmetic is snnTorch 1.0.0's, operation for operation, so spikes and states are bit-identical to it in float32 and
float64, and the gradients are what autograd makes of these lines. The fused kernels are tested against this module.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snnfast._core.ops import RESET_MECHANISMS, Neuron, arithmetic_dtype
from snnfast._unroll import state_gradients
from snnfast._unroll.call import Options, Parameters, UnrollCall
from snnfast._unroll.steps import over_steps
from snnfast.surrogate.examine import check_spikes

__all__ = ["alpha", "lapicque", "lif", "rleaky", "rsynaptic", "synaptic"]


def lif(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Unroll a layer of leaky integrate-and-fire neurons over time, one step after the other.

    Arguments, results and errors are those of :func:`snnfast.functional.lif`. This function is a Python loop over time
    of differentiable PyTorch operators: slow and readable.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.reference.lif(torch.full((3, 1), 0.6), beta=1.0)
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))
    """
    return _step_by_step("lif", args, kwargs)  # type: ignore[no-any-return]


def synaptic(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`snnfast.functional.synaptic`, one step after the other, like :func:`lif`.

    Example::

        >>> import torch, snnfast
        >>> spk, syn, mem = snnfast.reference.synaptic(torch.full((3, 1), 0.5), alpha=0.5, beta=0.5)
        >>> mem.flatten()
        tensor([0.5000, 1.0000, 1.3750])
    """
    return _step_by_step("synaptic", args, kwargs)  # type: ignore[no-any-return]


def lapicque(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """:func:`snnfast.functional.lapicque`, one step after the other, like :func:`lif`.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.reference.lapicque(torch.full((3, 1), 3.0), R=1.0, C=4.0)
        >>> mem.flatten()
        tensor([0.7500, 1.3125, 0.7344])
    """
    return _step_by_step("lapicque", args, kwargs)  # type: ignore[no-any-return]


def alpha(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`snnfast.functional.alpha`, one step after the other, as :func:`lif`."""
    return _step_by_step("alpha", args, kwargs)  # type: ignore[no-any-return]


def rleaky(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """:func:`snnfast.functional.rleaky`, one step after the other, as :func:`lif`."""
    return _step_by_step("rleaky", args, kwargs)  # type: ignore[no-any-return]


def rsynaptic(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`snnfast.functional.rsynaptic`, one step after the other, as :func:`lif`."""
    return _step_by_step("rsynaptic", args, kwargs)  # type: ignore[no-any-return]


def _step_by_step(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from snnfast._core.backend import use_backend
    from snnfast._unroll import functional

    with use_backend("reference"):
        return getattr(functional, name)(*args, **kwargs)


# ---- the equations of one step: from its current and the states before it to the states after it, without an immediate
# reset


def _leaky(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (mem,), (beta, threshold, _) = states, parameters
    beta = beta.clamp(0, 1)
    if mechanism == "subtract":
        return [(beta * mem + x) - reset * threshold]
    if mechanism == "zero":
        return [beta * ((1 - reset) * mem) + x]
    return [beta * mem + x]


def _synaptic(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (syn, mem), (alpha, beta, threshold, _) = states, parameters
    syn = alpha.clamp(0, 1) * syn + x
    base = beta.clamp(0, 1) * mem + syn
    if mechanism == "subtract":
        return [syn, base - reset * threshold]
    if mechanism == "zero":
        return [syn - 0 * reset, base - base * reset]  # as in snnTorch, whose membrane is not made of this current
    return [syn, base]


def _lapicque(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (mem,), (R, rate, time_step, decay, threshold, _) = states, parameters
    base = x * R * rate * time_step + decay * mem
    if mechanism == "subtract":
        return [base - reset * threshold]
    return [base - reset * base if mechanism == "zero" else base]


def _alpha(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (exc, before, _), (alpha, beta, tau, threshold, _) = states, parameters
    exc = alpha.clamp(0, 1) * exc + x
    inh = beta.clamp(0, 1) * before - x
    v = tau * (exc + inh)  # whatever the membrane before
    if mechanism == "subtract":  # of the membrane no threshold, but the current before the step: as in snnTorch
        return [exc - threshold * reset, inh - inh * reset, v - -before * reset]
    if mechanism == "zero":
        return [exc - exc * reset, inh - inh * reset, v - v * reset]
    return [exc, inh, v]


# Of neurons whose spikes come back to them: what their states are but for the spike, which is the first.


def _rleaky(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (spk, mem), (V, beta, threshold, _) = states, parameters
    base = beta.clamp(0, 1) * mem + x + spk * V
    if mechanism == "subtract":
        return [base - reset * threshold]
    return [base - reset * base if mechanism == "zero" else base]


def _rsynaptic(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (spk, syn, mem), (V, alpha, beta, threshold, _) = states, parameters
    syn = alpha.clamp(0, 1) * syn + x + spk * V
    base = beta.clamp(0, 1) * mem + syn
    if mechanism == "subtract":
        return [syn, base - reset * threshold]
    return [syn - 0 * reset, base - base * reset] if mechanism == "zero" else [syn, base]


_INTEGRATE: dict[str, Callable[[Tensor, list[Tensor], Parameters, Tensor, str], list[Tensor]]] = {
    "leaky": _leaky,
    "synaptic": _synaptic,
    "lapicque": _lapicque,
    "alpha": _alpha,
    "rleaky": _rleaky,
    "rsynaptic": _rsynaptic,
}


# ---- what all neurons share


def unroll(call: UnrollCall) -> tuple[Tensor, ...]:
    """Compute a prepared call: spikes, then the states that it asks for."""
    # Half precision: arithmetic and carried states in float32, results rounded once.
    acc = arithmetic_dtype(call.current.dtype)

    def one_step(x: Tensor, states: list[Tensor], parameters: Parameters) -> tuple[Tensor, list[Tensor]]:
        return step(call.neuron, call.options, x, states, parameters)

    wide = call._replace(parameters=tuple([p.to(acc) for p in call.parameters]))
    return over_steps(wide, call.current.to(acc), one_step)


def step(
    neuron: Neuron, options: Options, x: Tensor, states: list[Tensor], parameters: Parameters
) -> tuple[Tensor, list[Tensor]]:
    """One time step: current ``x`` and states before it (all ``[*]``) to spikes and states after it."""
    threshold, graded = parameters[-2:]
    mechanism, fire = RESET_MECHANISMS[options.reset], options.spike_grad
    # The reset comes from the incoming membrane, not from the last spike: a given one may exceed the threshold.
    distance = states[-1] - threshold
    reset = check_spikes(fire(distance), distance).detach().to(x.dtype)
    after = _INTEGRATE[neuron.name](x, states, parameters, reset, mechanism)
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
