"""The leaky integrate-and-fire unroll in plain PyTorch: the definition, the fall-back and the gradient oracle.

The arithmetic is snnTorch 1.0.0's ``Leaky``, operation for operation, so spikes and membranes are bit-identical to it
in float32 and float64, and its gradients are what autograd makes of these lines. The fused kernels are tested against
this module.
"""

import torch
from torch import Tensor

from snnfast._arguments import LIFArguments, StateQuant, check_arguments
from snnfast._spike_grad import SpikeGrad

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
    """Unroll a layer of leaky integrate-and-fire neurons over time, one step after the other.

    The same arguments, results and errors as :func:`snnfast.functional.lif`, which documents them; this one is a
    Python loop over time of differentiable PyTorch operators, slow and readable.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.reference.lif(torch.full((3, 1), 0.6), beta=1.0)
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))
    """
    return unroll(
        check_arguments(
            current, mem, beta, threshold, graded_spikes_factor, spike_grad, reset_mechanism, reset_delay, num_steps,
            record_mem, inhibition, state_quant, reduce, membrane_dtype,
        )
    )  # fmt: skip


def unroll(args: LIFArguments) -> tuple[Tensor, Tensor]:
    """:func:`lif` on checked arguments."""
    # Half precision: arithmetic and carried state in float32, results rounded once.
    current = args.current.to(args.acc)
    steps = current.unbind(0) if args.num_steps is None else (current,) * args.num_steps
    mem = args.mem if args.mem is not None else torch.zeros(args.step_shape, dtype=args.acc, device=current.device)
    spk_rec, mem_rec = [], []
    for x in steps:
        spk, mem = step(x, mem, args)
        spk_rec.append(spk)
        mem_rec.append(mem)
    if args.counts_spikes:
        spk = sum(spk_rec, start=torch.zeros_like(mem)).to(args.current.dtype)  # one step after the other
    else:
        spk = _stack(spk_rec, args, args.current.dtype)
    if args.record_mem:
        return spk, _stack(mem_rec, args, args.mem_dtype)
    # With no step the initial membrane is the last one; a copy, so that writing to it can't reach the argument.
    return spk, mem.to(args.mem_dtype) if steps else mem.to(args.mem_dtype, copy=True)


def step(x: Tensor, mem: Tensor, args: LIFArguments) -> tuple[Tensor, Tensor]:
    """One time step: input ``x`` and membrane ``mem`` (both ``[*]``) to spikes and membrane (both ``[*]``)."""
    beta, threshold, fire = args.beta.clamp(0, 1), args.threshold, args.spike_grad
    # The reset comes from the incoming membrane, not from the last spike: a given one may exceed the threshold.
    reset = fire(mem - threshold).detach().to(mem.dtype)
    if args.reset_mechanism == "subtract":
        v = (beta * mem + x) - reset * threshold
    elif args.reset_mechanism == "zero":
        v = beta * ((1 - reset) * mem) + x
    else:
        v = beta * mem + x
    if args.state_quant is not None:
        v = args.state_quant(v)
    if args.inhibition:
        distance = v - threshold
        spk = fire(distance).to(v.dtype) * winners(distance)
        out = spk  # snnTorch does not grade the spikes of inhibited layers
    else:
        # snnTorch quantizes once more what decides the spike.
        spk = fire((v if args.state_quant is None else args.state_quant(v)) - threshold).to(v.dtype)
        out = spk * args.graded_spikes_factor
    if args.reset_delay:
        mem = v
    else:
        # Reset at once what spikes now; what `reset` already took (or took too early) is given back.
        due = (spk / args.graded_spikes_factor if args.inhibition else spk) - reset
        if args.reset_mechanism == "subtract":
            mem = v - due * threshold
        elif args.reset_mechanism == "zero":
            mem = v - due * v
        else:
            mem = v
    return out, mem


def winners(distance: Tensor) -> Tensor:
    """1 for the neuron of each sample that is nearest to or farthest above its threshold, else 0: ``[*, N]``."""
    spk = torch.zeros_like(distance)
    return spk.scatter_(-1, distance.detach().argmax(-1, keepdim=True), 1) if spk.numel() > 0 else spk


def _stack(steps: list[Tensor], args: LIFArguments, dtype: torch.dtype) -> Tensor:
    if not steps:
        return torch.empty((0, *args.step_shape), dtype=dtype, device=args.current.device)
    return torch.stack(steps).to(dtype)
