"""The spec of SpikingJelly's neurons, whose layers are in :mod:`snnfast.spikingjelly`."""

import torch
from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["IFNODE"]

IFNODE = Neuron(
    "ifnode",
    states=("v",),
    parameters=("rate", "tau", "charge", "attached", "v_reset", "v_threshold", "graded_spikes_factor"),
)


@IFNODE.whole_reference_step
def whole_step(
    x: Tensor, states: list[Tensor], parameters: Parameters, spike_grad: SpikeGrad, mechanism: str
) -> tuple[Tensor, list[Tensor]]:
    """Charge, fire and reset, as in SpikingJelly 2.0.0. ``csrc/neurons/ifnode.h`` describes the parameters."""
    (v,), (rate, tau, charge, attached, v_reset, threshold, graded) = states, parameters
    above = v - v_reset
    driven = torch.where(charge > 1, x - above, -above)
    leaked = torch.where(charge > 0, v + driven * rate / tau, v)
    h = torch.where(charge > 1, leaked, leaked + x)
    z = h - threshold
    surrogate = spike_grad(z)
    spk = (z >= 0).to(z.dtype) + (surrogate - surrogate.detach())  # the gradient of one, the value of the other
    after = h
    if mechanism != "none":
        s = torch.where(attached > 0, spk, spk.detach())
        after = h - s * threshold if mechanism == "subtract" else s * v_reset + (1 - s) * h
    return spk * graded, [after]
