"""Stateless functions: :func:`lif`, the whole leaky integrate-and-fire unroll in one call."""

from torch import Tensor

from snnfast import _backend, reference
from snnfast._arguments import LIFArguments, SpikeGrad, check_arguments
from snnfast.autograd import fused_lif
from snnfast.surrogate import heaviside, known_to_kernels

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
    and the membrane carried from step to step are float32; only what is returned is rounded.

    Args:
        current: Input current of every step, ``[T, *]``, in units of the threshold; float32, float64, float16 or
            bfloat16. With ``num_steps``, ``[*]``: the same current at every step, never materialised over time.
        mem: Membrane before the first step, ``[*]``, any floating dtype. ``None``: zeros.
        beta: Decay per time step, clamped to [0, 1]; a number, or a tensor broadcastable to ``[*]`` (one per layer,
            neuron, channel ...). As every tensor argument, it may require a gradient.
        threshold: Membrane above which a neuron spikes; a number or a tensor broadcastable to ``[*]``.
        graded_spikes_factor: Height of a spike; a number or a tensor broadcastable to ``[*]``.
        spike_grad: Derivative used for the step in the backward pass: one of :mod:`snnfast.surrogate`, or any
            callable of ``mem - threshold`` that returns the spikes ``1[mem - threshold > 0]`` (only its derivative is
            free: the kernels reset by that very step). ``None``: ``surrogate.atan()``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.
        num_steps: Number of steps of a constant current. ``None``: time is the leading dimension of ``current``.
        record_mem: Return the membrane after every step, or only after the last one (less memory).

    Returns:
        ``(spk, mem)``: spikes ``[T, *]`` in the dtype of ``current``; membranes ``[T, *]``, or ``[*]`` with
        ``record_mem=False``, in the dtype of ``current`` (float64 where ``mem`` or a parameter with dimensions is).

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
    args = check_arguments(
        current, mem, beta, threshold, graded_spikes_factor, spike_grad, reset_mechanism, reset_delay, num_steps,
        record_mem,
    )  # fmt: skip
    if not _backend.use_fused(current.device):
        return reference.unroll(args)
    if known_to_kernels(args.spike_grad):
        return fused_lif(args, args.spike_grad)
    if args.reset_delay:
        return _lif_of_callable(args)
    if _backend.current_backend() == "fused":
        raise RuntimeError(
            "backend 'fused' is not available: the kernels do not know this spike_grad, and with reset_delay=False its "
            "derivative enters the recurrence"
        )
    _backend.warn_once(
        "snnfast: a spike_grad that the kernels do not know, together with reset_delay=False, runs step by step on the "
        "reference path, many times slower: its derivative enters the recurrence. Use one of snnfast.surrogate."
    )
    return reference.unroll(args)


def _lif_of_callable(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """Any callable as surrogate: the kernel unrolls the membrane, the callable sees all of it at once.

    With a delayed reset no gradient of the spike enters the recurrence, so nothing else is needed. The membrane is
    kept in the dtype of the arithmetic, since a rounded one could fall on the other side of the threshold.
    """
    full = args._replace(current=args.current.to(args.acc), record_mem=True)
    _, mem_rec = fused_lif(full, heaviside())
    spk = args.spike_grad(mem_rec - args.threshold) * args.graded_spikes_factor
    if args.record_mem:
        mem = mem_rec
    elif mem_rec.shape[0] > 0:
        mem = mem_rec[-1].clone()
    else:
        mem = fused_lif(full._replace(record_mem=False), heaviside())[1]
    return spk.to(args.current.dtype), mem.to(args.mem_dtype)
