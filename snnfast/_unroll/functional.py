"""Stateless functions: the whole unroll of a layer of neurons over time in one call."""

import numbers
from typing import Any

import torch
from torch import Tensor

from snnfast._core.ops import ALPHA, LAPICQUE, LEAKY, SYNAPTIC, arithmetic_dtype
from snnfast._unroll.call import StateQuant
from snnfast._unroll.checks import check_current, check_options, check_parameter, out_of_inference
from snnfast._unroll.functional_recurrent import rleaky, rsynaptic
from snnfast._unroll.run import run_function
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["alpha", "lapicque", "lif", "rleaky", "rsynaptic", "synaptic"]


def lif(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None = None,  # [*]
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor]:
    r"""Unroll a layer of leaky integrate-and-fire neurons over time, in one kernel forward and one backward.

    Per neuron and step, with ``H(z) = 1`` if ``z > 0`` else ``0``, ``b = clamp(beta, 0, 1)``, ``u`` the membrane
    before the step and ``x`` the current::

        r = H(u - threshold)                                       (no gradient)
        subtract: v = (b * u + x) - r * threshold
        zero:     v = b * ((1 - r) * u) + x
        none:     v = b * u + x
        s = H(v - threshold);  spk = s * graded_spikes_factor
        reset_delay=True:   mem = v
        reset_delay=False:  d = s - r;  subtract: mem = v - d * threshold;  zero: mem = v - d * v;  none: mem = v

    Spikes and membranes equal snnTorch's bit for bit in float32 and float64. The kernels compute, and carry the
    membrane from step to step, in the *opmath dtype*: float32 in half precision, otherwise the dtype of ``current``.
    Spikes and recorded membranes are rounded to the dtype of ``current`` when they are returned. The last membrane with
    ``record_mem=False`` is not rounded, so that the next call can continue from it.

    Args:
        current: Input current of every step, ``[T, *]``, in units of the threshold; float32, float64, float16 or
            bfloat16. With ``num_steps``, ``[*]``: the same current at every step, which never exists over time.
        mem: Membrane before the first step, ``[*]``, any floating dtype. ``None``: zeros.
        beta: Decay per time step, clamped to [0, 1]; a number, or a tensor broadcastable to ``[*]`` (one per layer,
            neuron, channel ...). Like every tensor argument, it may require a gradient. It may vary with time: pass a
            tensor with all dimensions of ``[T, *]``, whose first is ``T`` and whose others broadcast to ``[*]``. Each
            step is then one kernel.
        threshold: Membrane above which a neuron spikes; a number or a tensor broadcastable to ``[*]``, or one that
            varies with time, like ``beta``. The reset of step ``t`` then uses the threshold of that step,
            ``r = H(u - threshold[t])``, not the one under which the membrane spiked before.
        graded_spikes_factor: Height of a spike; a number or a tensor broadcastable to ``[*]``.
        spike_grad: Derivative of a spike in the backward pass. One of :mod:`snnfast.surrogate` or of
            ``snntorch.surrogate``, or any callable of ``mem - threshold`` that returns the spikes
            ``1[mem - threshold > 0]``. A callable must be a pure function, the same forward and backward. When it is
            first used for a shape, a dtype and a device, it is tested on made-up values. It is then called on all time
            steps at once, ``[T, *]``. If it does not support that, or returns other values, the layer runs step by
            step, with one warning. ``None``: ``surrogate.atan()``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.
        num_steps: Number of steps of a constant current. ``None``: time is the leading dimension of ``current``.
        record_mem: Return the membrane after every step, or only after the last one (less memory).
        inhibition: In each sample, only the neuron with the largest ``mem - threshold`` may spike (with height 1, as in
            snnTorch). Others above the threshold are reset all the same. A step must be ``[B, N]``. With
            ``reset_delay=False`` the layer runs step by step, with one warning.
        state_quant: A function that is applied to the membrane at every step, such as
            ``snntorch.functional.quant.state_quant`` makes. ``False`` or ``None``: none. The layer runs step by step,
            with one warning.
        reduce: ``"sum"``: return the spike count over time, as for a rate code. The kernels then never write the
            spikes. ``None``: return the spikes.
        weight: Weights ``[O, N]`` of a linear layer behind the neurons, in the dtype of ``current``, whose last
            dimension is ``N``. The first result is then ``linear(spk, weight, bias)`` instead of the spikes. The CPU
            kernels pass the spikes on as bits, and never write them or their gradient as numbers
            (:func:`snnfast.use_events`). Results are the same up to the order of the sums. ``None``: return the spikes.
        bias: Bias ``[O]`` of that layer. ``None``: none.
        lengths: The number of steps of each sample, integers ``[B]`` from 0 to ``T``, where ``B`` is the first
            dimension of a step; on the CPU or the device of ``current``. After its last step a sample keeps its states
            and does not spike, so records repeat its last state. Results and gradients are those of a separate call for
            each sample, whatever the padding of ``current`` contains. Other numbers are an error if ``lengths`` is on
            the CPU; on CUDA they are clamped to the range. ``None``: all samples have ``T`` steps.

    Returns:
        ``(spk, mem)``, both ``[T, *]`` in the dtype of ``current``.

        - With ``record_mem=False``, ``mem`` is the last membrane ``[*]`` in the opmath dtype.
        - A float64 ``mem``, or a float64 parameter with dimensions, makes the opmath dtype and the membranes float64.
        - With ``reduce="sum"``, ``spk`` is the spike count ``[*]``, added up in the opmath dtype and rounded once.
        - With ``weight``, the output of the linear layer ``[T, *, O]`` replaces ``spk``. With ``reduce="sum"`` as well,
          the linear layer gets the spike count and returns ``[*, O]``.

    Raises:
        TypeError: An argument has a wrong type or dtype. The message names it.
        ValueError: An argument has a wrong shape, device or value. Values of tensors are not checked: NaN propagates.

    Example::

        >>> import torch, snnfast
        >>> cur = torch.full((3, 1), 0.6, requires_grad=True)  # [T=3, B=1]
        >>> spk, mem = snnfast.functional.lif(cur, beta=1.0)
        >>> spk.detach().flatten(), mem.detach().flatten()
        (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))
        >>> weight = torch.tensor([[0.5], [2.0]])  # [O=2, N=1]
        >>> out, mem = snnfast.functional.lif(cur, beta=1.0, weight=weight)
        >>> out.detach()
        tensor([[0.0000, 0.0000],
                [0.5000, 2.0000],
                [0.0000, 0.0000]])

    Source: J. K. Eshraghian et al., *Training spiking neural networks using lessons from deep learning*, Proc. IEEE
    111 (2023), and ``snntorch.Leaky`` 1.0.0, whose order of operations this is.
    """
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = beta, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        LEAKY, options, current, (mem,), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def synaptic(
    current: Tensor,  # [T, *], or [*] with num_steps
    syn: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Unroll a layer of neurons with a decaying synaptic current over time, in one kernel forward and one backward.

    Per neuron and step, with ``a = clamp(alpha, 0, 1)``, ``i`` the synaptic current and ``u`` the membrane before the
    step, and the rest as in :func:`lif`::

        r = H(u - threshold)                                       (no gradient)
        syn = a * i + x;  base = b * u + syn
        subtract: v = base - r * threshold
        zero:     v = base - base * r                              (syn is not reset)
        none:     v = base
        s = H(v - threshold);  spk = s * graded_spikes_factor
        reset_delay=True:   mem = v
        reset_delay=False:  d = s - r;  subtract: mem = v - d * threshold;  zero: mem = v - d * v;  none: mem = v

    Args:
        current: Input current of every step, as of :func:`lif`.
        syn: Synaptic current before the first step, ``[*]``. ``None``: zeros.
        mem: Membrane before the first step, ``[*]``. ``None``: zeros.
        alpha: Decay of the synaptic current per time step, clamped to [0, 1]; a number or a tensor as ``beta``.
        beta: Decay of the membrane per time step, as of :func:`lif`.
        record_mem: Return both states after every step, or only after the last one.
        state_quant: As of :func:`lif`, applied to both states.

    All other arguments are those of :func:`lif`.

    Returns:
        ``(spk, syn, mem)``: as of :func:`lif`, with the synaptic current as a second state.

    Raises:
        TypeError, ValueError: As :func:`lif`.

    Example::

        >>> import torch, snnfast
        >>> spk, syn, mem = snnfast.functional.synaptic(torch.full((3, 1), 0.5), alpha=0.5, beta=0.5)
        >>> spk.flatten(), syn.flatten(), mem.flatten()
        (tensor([0., 0., 1.]), tensor([0.5000, 0.7500, 0.8750]), tensor([0.5000, 1.0000, 1.3750]))

    Source: ``snntorch.Synaptic`` 1.0.0, whose order of operations this is.
    """
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = alpha, beta, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        SYNAPTIC, options, current, (syn, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def lapicque(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None = None,  # [*]
    *,
    beta: float | Tensor | None = None,
    R: float | Tensor | None = None,
    C: float | Tensor | None = None,
    time_step: float | Tensor = 1,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor]:
    r"""Unroll a layer of neurons that are RC circuits over time, in one kernel forward and one backward.

    Pass ``beta``, or two of ``beta``, ``R`` and ``C``. The missing one follows from
    ``beta = exp(-time_step / (R * C))``, with ``R = 1`` if only ``beta`` is given. The equations are those of
    :func:`synaptic` with another ``base``::

        base = x * R * (1 / (R * C)) * time_step + (1 - time_step / (R * C)) * u

    As in snnTorch, the decay is the first-order approximation of ``beta``, and is not clamped.

    Args:
        current: Input current of every step, as of :func:`lif`.
        mem: Membrane before the first step, ``[*]``. ``None``: zeros.
        beta: Decay per time step, between 0 and 1; a number, or a tensor broadcastable to ``[*]``. ``None`` and 0: not
            given.
        R: Resistance; likewise.
        C: Capacitance; likewise.
        time_step: Duration of a step, in units of ``R * C``; likewise.

    All other arguments are those of :func:`lif`.

    Returns:
        ``(spk, mem)``: as of :func:`lif`.

    Raises:
        TypeError, ValueError: As :func:`lif`; ``beta``, ``R`` and ``C`` all given, or too few of them.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.functional.lapicque(torch.full((3, 1), 3.0), R=1.0, C=4.0)
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 1., 0.]), tensor([0.7500, 1.3125, 0.7344]))

    Source: ``snntorch.Lapicque`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    given: dict[str, Any] = {**check_rc(beta, R, C), "time_step": time_step}
    for name, value in given.items():
        if value is not None:
            given[name] = _made(name, value, current, num_steps)
    parameters = *kernel_rc(*infer_rc(**given), given["time_step"]), threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        LAPICQUE, options, current, (mem,), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def check_rc(beta: Any, R: Any, C: Any) -> dict[str, Any]:
    """By name, ``None`` for each that is not given: snnTorch takes 0 and ``False`` for that."""
    given = {"beta": beta, "R": R, "C": C}
    given = {name: None if isinstance(v, numbers.Real) and v == 0 else v for name, v in given.items()}
    names = [name for name, value in given.items() if value is not None]
    if names != ["beta"] and len(names) != 2:
        raise ValueError(f"beta, R, C: expected beta, or two of the three, got {', '.join(names) or 'none of them'}")
    return given


def infer_rc(beta: Any, R: Any, C: Any, time_step: Tensor) -> tuple[Any, Any]:
    """R and C, the missing ones from ``beta``."""
    if R is None and C is not None:
        return time_step / (C * torch.log(1 / beta)), C
    R = torch.as_tensor(1, device=time_step.device) if R is None else R
    return R, time_step / (R * torch.log(1 / beta)) if C is None else C


def kernel_rc(R: Tensor, C: Tensor, time_step: Tensor) -> tuple[Tensor, ...]:
    """What snnTorch computes of them at each step: all but the last two parameters of the kernel."""
    rc = R * C
    return R, 1 / rc, time_step, 1 - time_step / rc


def _made(name: str, value: Any, current: Tensor, num_steps: object) -> Tensor:
    """A parameter from which others are computed. Tensors and ints keep their dtype: promotion decides what in."""
    step_shape = current.shape if num_steps is not None else current.shape[1:]
    checked = check_parameter(name, value, current, step_shape, arithmetic_dtype(current.dtype))
    if isinstance(value, Tensor):
        return out_of_inference(value)
    return torch.as_tensor(value, device="cpu") if isinstance(value, int) else checked


def alpha(
    current: Tensor,  # [T, *], or [*] with num_steps
    syn_exc: Tensor | None = None,  # [*]
    syn_inh: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "zero",
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Unroll a layer of neurons that respond with an alpha function, in one kernel forward and one backward.

    Per neuron and step, with ``a = clamp(alpha, 0, 1)``, ``b = clamp(beta, 0, 1)``, ``e`` and ``h`` the currents
    ``syn_exc`` and ``syn_inh`` before the step, ``u`` the membrane before it, and the rest as in :func:`lif`::

        tau = log(a) / (log(b) - log(a)) + 1
        r = H(u - threshold)                                       (no gradient)
        exc = a * e + x;  inh = b * h - x;  v = tau * (exc + inh)
        zero:     syn_exc = exc - exc * r;        syn_inh = inh - inh * r;  mem = v - v * r
        subtract: syn_exc = exc - threshold * r;  syn_inh = inh - inh * r;  mem = v + h * r
        none:     syn_exc = exc;                  syn_inh = inh;            mem = v
        s = H(mem - threshold);  spk = s * graded_spikes_factor

    The previous membrane decides only the reset; the new membrane does not depend on it otherwise. What ``"subtract"``
    changes is as in snnTorch. There is no ``reset_delay``: the reset comes one step after the spike.

    Args:
        current: Input current of every step, as of :func:`lif`.
        syn_exc, syn_inh, mem: The states before the first step, ``[*]`` each. ``None``: zeros.
        alpha: Decay of ``syn_exc`` per time step, clamped to [0, 1], and greater than ``beta``; a number or a tensor.
        beta: Decay of ``syn_inh`` per time step, clamped to [0, 1], and less than 1; likewise.
        threshold, graded_spikes_factor, spike_grad, reset_mechanism, num_steps, inhibition, reduce: As of :func:`lif`.
        weight, bias, lengths: As of :func:`lif`.
        record_mem: Return the states after every step, or only after the last one.
        state_quant: As of :func:`lif`; it is applied to all states.

    Returns:
        ``(spk, syn_exc, syn_inh, mem)``: as of :func:`lif`, with two more states.

    Raises:
        TypeError, ValueError: As :func:`lif`; ``alpha`` and ``beta`` are numbers, and ``alpha`` is not greater.

    Example::

        >>> import torch, snnfast
        >>> found = snnfast.functional.alpha(torch.tensor([[2.0], [0.0], [0.0]]), alpha=0.5, beta=0.25)
        >>> spk, syn_exc, syn_inh, mem = found
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 0., 0.]), tensor([0.0000, 1.0000, 0.7500]))

    Source: ``snntorch.Alpha`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    made = _made("alpha", alpha, current, num_steps), _made("beta", beta, current, num_steps)
    if not isinstance(alpha, Tensor) and not isinstance(beta, Tensor):
        check_decays(*made)
    parameters = *made, kernel_tau(*made), threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, True, inhibition, state_quant)
    states = syn_exc, syn_inh, mem
    return run_function(  # type: ignore[no-any-return]
        ALPHA, options, current, states, parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def check_decays(alpha: Tensor, beta: Tensor) -> None:
    """Between the two, ``tau`` must exist."""
    if (alpha <= beta).any():
        raise ValueError("alpha: expected more than beta, which the other current decays by")
    if (beta == 1).any():
        raise ValueError("beta: expected less than 1, at which the time constant has no value")


def kernel_tau(alpha: Tensor, beta: Tensor) -> Tensor:
    """What snnTorch computes of them at each step."""
    log_alpha = torch.log(alpha.clamp(0, 1))
    return log_alpha / (torch.log(beta.clamp(0, 1)) - log_alpha) + 1
