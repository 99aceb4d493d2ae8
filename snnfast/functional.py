"""Stateless functions: :func:`lif`, the whole leaky integrate-and-fire unroll in one call."""

import torch
from torch import Tensor

from snnfast import _backend, reference
from snnfast._arguments import LIFArguments, StateQuant, check_arguments
from snnfast._spike_grad import SpikeGrad, examine
from snnfast.autograd import fused_lif, fused_lif_of_callable
from snnfast.surrogate import has_derivative, heaviside, known_to_kernels

__all__ = ["lif"]


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
    membrane_dtype: torch.dtype | None = None,
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

    Spikes and membranes equal snnTorch's bit for bit in float32 and float64. In float16 and bfloat16 the arithmetic
    and the membrane carried from step to step are float32. Spikes and recorded membranes are rounded when they are
    returned; the last membrane with ``record_mem=False`` is not, so that a next call can go on from it.

    Args:
        current: Input current of every step, ``[T, *]``, in units of the threshold; float32, float64, float16 or
            bfloat16. With ``num_steps``, ``[*]``: the same current at every step, never materialised over time.
        mem: Membrane before the first step, ``[*]``, any floating dtype. ``None``: zeros.
        beta: Decay per time step, clamped to [0, 1]; a number, or a tensor broadcastable to ``[*]`` (one per layer,
            neuron, channel ...). As every tensor argument, it may require a gradient.
        threshold: Membrane above which a neuron spikes; a number or a tensor broadcastable to ``[*]``.
        graded_spikes_factor: Height of a spike; a number or a tensor broadcastable to ``[*]``.
        spike_grad: Derivative used for the step in the backward pass: one of :mod:`snnfast.surrogate` (snnTorch's
            own closures and objects are taken for these), or any callable of ``mem - threshold`` that returns the
            spikes ``1[mem - threshold > 0]``. A callable must be a pure function, the same forward and backward. It is
            tried out on made-up values when it is first used (for a shape, a dtype and a device), and then called on
            all time steps at once, ``[T, *]``; one that does not allow that, or returns other values, runs step by
            step, with one warning. ``None``: ``surrogate.atan()``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.
        num_steps: Number of steps of a constant current. ``None``: time is the leading dimension of ``current``.
        record_mem: Return the membrane after every step, or only after the last one (less memory).
        inhibition: Of each sample only the neuron with the largest ``mem - threshold`` may spike (with height 1, as in
            snnTorch); the others are reset all the same. Steps must be ``[B, N]``. With ``reset_delay=False`` it runs
            step by step, with one warning.
        state_quant: A function of the membrane, such as ``snntorch.functional.quant.state_quant`` makes, applied to it
            at every step; ``False`` or ``None``: none. It runs step by step, with one warning.
        reduce: ``"sum"``: return the sum of the spikes over time, all that a rate code needs, in place of those of
            every step, which the kernels then never write. ``None``: the spikes.
        membrane_dtype: ``torch.bfloat16``: keep for backward the membrane of every step at half the size of the
            current, 2 bytes instead of 4.25 per neuron and step. Spikes and membranes are the same, and so are all
            resets; the surrogate derivative is taken at a membrane that is rounded to 8 bits relative to its distance
            from the threshold. Needs ``reset_delay=True`` and a surrogate of :mod:`snnfast.surrogate`. It has no effect
            where ``beta`` asks for a gradient, which takes the whole membrane, and on the reference path. ``None``:
            exact gradients.

    Returns:
        ``(spk, mem)``: spikes ``[T, *]`` in the dtype of ``current``; membranes ``[T, *]`` in the dtype of ``current``,
        or with ``record_mem=False`` the last one ``[*]`` in that of the arithmetic: float32, or float64 where
        ``current`` is. A float64 ``mem`` or parameter with dimensions makes the arithmetic and the membranes float64.
        With ``reduce="sum"``, ``spk`` is the sum of the spikes over time ``[*]``, accumulated in the dtype of the
        arithmetic and rounded once.

    Raises:
        TypeError: An argument of a wrong type or dtype, named.
        ValueError: A wrong shape, device or value, named. Values of tensors are not looked at (NaN propagates).

    Example::

        >>> import torch, snnfast
        >>> cur = torch.full((3, 1), 0.6, requires_grad=True)  # [T=3, B=1]
        >>> spk, mem = snnfast.functional.lif(cur, beta=1.0)
        >>> spk.detach().flatten(), mem.detach().flatten()
        (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))

    Source: J. K. Eshraghian et al., *Training spiking neural networks using lessons from deep learning*, Proc. IEEE
    111 (2023), and ``snntorch.Leaky`` 1.0.0, whose order of operations this is.
    """
    return run(
        check_arguments(
            current, mem, beta, threshold, graded_spikes_factor, spike_grad, reset_mechanism, reset_delay, num_steps,
            record_mem, inhibition, state_quant, reduce, membrane_dtype,
        )
    )  # fmt: skip


def run(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """:func:`lif` on checked arguments."""
    if not _backend.use_fused(args.current.device):
        return reference.unroll(args)
    if args.state_quant is not None:
        return _step_by_step(args, "state_quant is called on the membrane of every step before the next one")
    reason = None if known_to_kernels(args.spike_grad) else _why_step_by_step(args)
    if reason is not None:
        return _step_by_step(args, reason)
    if args.inhibition:
        if not args.reset_delay:
            return _step_by_step(args, "inhibition with reset_delay=False makes each neuron wait for all others")
        return _lif_with_inhibition(args)
    if known_to_kernels(args.spike_grad):
        return fused_lif(args, args.spike_grad)
    if args.reset_delay:
        return _lif_of_callable(args)
    return fused_lif_of_callable(args, args.spike_grad)


def _why_step_by_step(args: LIFArguments) -> str | None:
    """Why a callable that is not known to the kernels can't be followed by them; ``None``: it can."""
    unfit = examine(args.spike_grad, args.step_shape, args.acc, args.current.device)
    reason = unfit.delayed if args.reset_delay else unfit.immediate
    if (
        reason is None
        and not args.reset_delay
        and torch.compiler.is_compiling()
        and not has_derivative(args.spike_grad)
    ):
        reason = "torch.compile can't trace how its derivative is taken in the backward pass of an immediate reset"
    return reason if reason is None else f"of its spike_grad: {reason}"


def _lif_of_callable(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """Any callable as surrogate: the kernel unrolls the membrane, the callable sees all of it at once."""
    # With a delayed reset no gradient of the spike enters the recurrence, so the callable can stay outside of it. The
    # membrane is kept in the dtype of the arithmetic: a rounded one could fall on the other side of the threshold.
    full, mem = _whole_membrane(args)
    spk = args.spike_grad(full - args.threshold) * args.graded_spikes_factor
    return _reduced(spk, args).to(args.current.dtype), mem.to(args.mem_dtype)


def _lif_with_inhibition(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """With a delayed reset, which all neurons above the threshold get, only the spikes know of the inhibition."""
    full, mem = _whole_membrane(args)
    distance = full - args.threshold
    spk = args.spike_grad(distance) * reference.winners(distance)
    return _reduced(spk, args).to(args.current.dtype), mem.to(args.mem_dtype)


def _reduced(spk: Tensor, args: LIFArguments) -> Tensor:
    """Spikes of all steps at once, and from them what is asked for."""
    return spk.sum(0, dtype=args.acc) if args.counts_spikes else spk


def _whole_membrane(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """The membrane of every step in the dtype of the arithmetic, and what is to be returned of it. Reset delayed."""
    # The kernel's own spikes are not used: as a sum they are at least not written.
    full = args._replace(
        current=args.current.to(args.acc), record_mem=True, inhibition=False, reduce="sum", membrane_dtype=None
    )
    mem_rec = fused_lif(full, heaviside())[1]
    if args.record_mem:
        return mem_rec, mem_rec
    if mem_rec.shape[0] > 0:
        return mem_rec, mem_rec[-1].clone()
    return mem_rec, fused_lif(full._replace(record_mem=False), heaviside())[1]


def _step_by_step(args: LIFArguments, reason: str) -> tuple[Tensor, Tensor]:
    """The reference path where the kernels can't run, said once; an error if they were demanded."""
    if _backend.current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available for this layer, because {reason}")
    _backend.warn_once(
        f"snnfast: a layer runs step by step on the slow reference path, because {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return reference.unroll(args)
