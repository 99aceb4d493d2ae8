"""Functions of all neurons of a network: :func:`reset`, :func:`convert`."""

import importlib
from typing import Any

from torch import nn

from snnfast.neurons.base import SpikingLayer

__all__ = ["convert", "is_snntorchs", "reset"]


def reset(net: nn.Module) -> None:
    """Set the held states of all neurons in a network to zeros and detach them, between two samples.

    It reaches every neuron layer in ``net``, snnfast's and snnTorch's, and no layer outside of ``net``.
    (``snntorch.utils.reset`` reaches the layers of :mod:`snnfast.snntorch`, but not those of :mod:`snnfast`.)

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
        # StateLeaky and those derived from it hold nothing, and have no such method.
        if (isinstance(module, SpikingLayer) or is_snntorchs(module)) and hasattr(held, "reset_mem"):
            held.reset_mem()


def is_snntorchs(module: nn.Module) -> bool:
    """Whether it is a neuron of snnTorch, or any other layer of it that may hold a state.

    It goes by names, so that snnTorch is never imported for it. A layer of a later version counts as a neuron.
    """
    if type(module).__name__ == "RecurrentOneToOne":  # the weights of an RLeaky
        return False
    return any(c.__module__.startswith("snntorch._neurons.") for c in type(module).__mro__)


def convert(net: nn.Module) -> dict[str, str]:
    """Put snnTorch's and SpikingJelly's neurons on the kernels, in place. If there are none, nothing is imported.

    Returns the names of those that were left as they are, each with the reason.
    """
    left: dict[str, str] = {}
    if any(map(is_snntorchs, net.modules())):
        left |= importlib.import_module("snnfast.snntorch._convert").convert(net).left
    if any(c.__module__.startswith("spikingjelly.") for module in net.modules() for c in type(module).__mro__):
        left |= importlib.import_module("snnfast.spikingjelly").convert(net)
    return left
