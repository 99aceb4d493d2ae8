"""SpikingJelly's neurons on the fused kernels, in the signatures of version 2 and of older ones.

``from snnfast.spikingjelly import functional, layer, neuron, surrogate`` takes the place of the same import from
``spikingjelly.activation_based`` or ``spikingjelly.clock_driven``. Neither SpikingJelly nor CuPy is needed. Of its
neurons there are IF, LIF and parametric LIF (:mod:`snnfast.spikingjelly.neuron`). Their spikes and membranes equal
SpikingJelly 2.0.0's on a CPU, bit for bit in float32 and float64.

:func:`enable_compat` makes ``import spikingjelly`` find these modules. :func:`convert` puts the nodes of an installed
SpikingJelly on the kernels.

Example::

    >>> import torch
    >>> from torch import nn
    >>> from snnfast.spikingjelly import functional, layer, neuron
    >>> net = nn.Sequential(
    ...     layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(tau=2.0, detach_reset=True),
    ...     layer.Flatten(), layer.Linear(2048, 10), neuron.LIFNode(tau=2.0, detach_reset=True),
    ... )
    >>> functional.set_step_mode(net, "m")
    >>> net(torch.rand(4, 2, 3, 16, 16)).mean(0).shape  # [T, B, C, H, W] to the rates [B, 10]
    torch.Size([2, 10])
    >>> functional.reset_net(net)
"""

from snnfast.spikingjelly import base, cext, functional, layer, neuron, surrogate
from snnfast.spikingjelly._compat import convert, enable_compat

__all__ = ["base", "cext", "convert", "enable_compat", "functional", "layer", "neuron", "surrogate"]
