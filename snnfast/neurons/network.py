"""What is done with all neurons of a network: :func:`reset`, :func:`convert`."""

import importlib
from typing import Any

from torch import nn

from snnfast.neurons.base import SpikingLayer

__all__ = ["convert", "is_delay", "is_snntorchs", "reset"]


def reset(net: nn.Module) -> None:
    """Set the held states of all neurons in a network to zeros and detach them, between two samples.

    It reaches every neuron layer in ``net``, snnfast's and snnTorch's, and no layer outside of ``net``.
    (``snntorch.utils.reset`` reaches the layers of :mod:`snnfast.snntorch`, but not those of :mod:`snnfast`.) It also
    resets the ``SynapticDelay`` layers of snnTorch, which are newer than snnTorch 1.0.0.

    Args:
        net: Any module, also a single layer. States keep their shape ``[B, *]``, dtype and device.

    Raises:
        TypeError: ``net`` is not a module.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(784, 10), snnfast.Leaky(beta=0.9, init_hidden=True))
        >>> for sample in torch.rand(2, 25, 128, 784):  # [T, B, *] each
        ...     snnfast.reset(net)
        ...     spk_rec = torch.stack([net(step) for step in sample])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    for module in net.modules():
        held: Any = module
        if is_delay(module):
            held.reset_delay()
        elif isinstance(module, SpikingLayer) or is_snntorchs(module):
            # StateLeaky and those derived from it hold nothing, and have none of these.
            for method in ("reset_mem", "reset_state"):  # the second one of neuron_from_equations
                if hasattr(held, method):
                    getattr(held, method)()
                    break


def is_snntorchs(module: nn.Module) -> bool:
    """Whether it is a neuron of snnTorch, or any other layer of it that may hold a state.

    It goes by names, so that snnTorch is never imported for it. A layer of a later version counts as a neuron, unless
    it is known.
    """
    if is_delay(module) or type(module).__name__ == "RecurrentOneToOne":  # the weights of an RLeaky
        return False
    return any(c.__module__.startswith("snntorch._neurons.") for c in type(module).__mro__)


def is_delay(module: nn.Module) -> bool:
    """Whether it is a ``SynapticDelay`` of snnTorch (after 1.0.0), which holds the last inputs of its channels."""
    return any(c.__name__ == "SynapticDelay" and c.__module__.startswith("snntorch.") for c in type(module).__mro__)


def convert(net: nn.Module) -> dict[str, str]:
    """Put snnTorch's and SpikingJelly's neurons on the kernels, in place. If there are none, nothing is imported.

    Returns the names of those that were left as they are, each with the reason.
    """
    left: dict[str, str] = {}
    if any(map(is_snntorchs, net.modules())):
        left |= importlib.import_module("snnfast.snntorch._convert").convert(net).left
    if any(type(module).__module__.startswith("spikingjelly.") for module in net.modules()):
        left |= importlib.import_module("snnfast.spikingjelly").convert(net)
    return left
