"""The loop over time in Python: for the reference, for parameters that vary with time, and for connected neurons."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snnfast._core.ops import SEQUENCE, STEP, opmath_dtype
from snnfast._unroll.call import Parameters, UnrollCall, step_shape
from snnfast._unroll.ragged import RaggedMask

__all__ = ["over_steps"]

Step = Callable[[Tensor, list[Tensor], Parameters], tuple[Tensor, list[Tensor]]]


def over_steps(call: UnrollCall, current: Tensor, step: Step) -> tuple[Tensor, ...]:
    """Compute a prepared call one step after the other, and return the results that it asks for.

    A sample of a ragged batch keeps its states and does not spike at the steps that it does not have.

    Args:
        current: The current of the call, in the dtype in which ``step`` takes it.
        step: A function of the current ``[*]`` of one step, the states before it and the parameters of this step. It
            returns the spikes and the states after it.
    """
    request, shape, dtype, device = call.request, step_shape(call), call.current.dtype, call.current.device
    opmath = opmath_dtype(dtype)
    currents = current.unbind(0) if request.time == SEQUENCE else (current,) * request.steps
    # A parameter with one dimension more than a step has a value for each.
    each = [p.unbind(0) if p.dim() > len(shape) else (p,) * request.steps for p in call.parameters]
    now = [torch.zeros(shape, dtype=opmath, device=device) if s is None else s.to(opmath) for s in call.states]
    mask = None if call.lengths is None else RaggedMask(call.lengths, request.steps, len(shape))
    count = torch.zeros(shape, dtype=opmath, device=device) if request.reduce else None
    spks: list[Tensor] = []
    records: list[list[Tensor]] = []
    for t, (x, *of_step) in enumerate(zip(currents, *each, strict=True)):
        if mask is None:
            spk, now = step(x, now, tuple(of_step))
        else:
            # NaN in the padding would reach the gradients of parameters.
            spk, after = step(mask.without_padding(t, x), now, tuple(of_step))
            spk, now = mask.without_padding(t, spk), mask.kept(t, after, now)
        if count is None:
            spks.append(spk)
        else:
            count = count + spk
        records.append(now if request.record else [])
    # With no step the initial states are the last ones; copies, so that writing to them can't reach the arguments.
    last = [s if currents else s.clone() for s in now] if request.last else []
    if request.time == STEP:
        return spks[0].to(dtype), *last[call.neuron.has_spike_feedback :]

    def over_time(tensors: Sequence[Tensor]) -> Tensor:
        made = torch.stack(list(tensors)) if tensors else torch.empty((0, *shape), dtype=opmath, device=device)
        return made.to(dtype)

    wanted = [i for i in range(len(now)) if request.record >> i & 1]
    spk = over_time(spks) if count is None else count.to(dtype)
    return spk, *(over_time([states[i] for states in records]) for i in wanted), *last
