"""Neurons in a network, ours and snnTorch's: :func:`reset`."""

from typing import Any

from torch import nn

from snnfast.leaky import Leaky

__all__ = ["is_snntorchs", "reset"]


def reset(net: nn.Module) -> None:
    """Set the state that the neurons of a network hold to zeros, and cut it from its graph: call it between samples.

    It reaches every :class:`Leaky` anywhere in ``net``, and snnTorch's own neurons beside them by their ``reset_mem``;
    no layer outside of ``net``. (``snntorch.utils.reset`` knows ``snnfast.snntorch.Leaky``, but not :class:`Leaky`.)

    Args:
        net: Any module, also a single layer. Membranes keep their shape ``[B, *]``, dtype and device.

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
        if isinstance(module, Leaky) or is_snntorchs(module):
            held: Any = module
            if hasattr(held, "reset_mem"):  # StateLeaky and those derived from it hold nothing, and have none
                held.reset_mem()


def is_snntorchs(module: nn.Module) -> bool:
    """Whether it is a neuron of snnTorch; told by name, so that snnTorch is never imported for it."""
    names = ("SpikingNeuron", "LeakyParallel")
    return any(c.__name__ in names and c.__module__.startswith("snntorch.") for c in type(module).__mro__)
