"""Functions of all neurons of a network: :func:`reset`, :func:`convert`."""

import dis
import importlib
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.subclass import is_derived

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


def layers_at_once(net: nn.Module | None) -> int:
    """How many neuron layers a network has, if each runs all steps in one call; 0 if that is not known for sure.

    It is where all are SpikingJelly's in step mode "m", on the kernels, and the code of the network has no loop.
    """
    modules = list(net.modules()) if net is not None else []
    layers: list[Any] = [m for m in modules if isinstance(m, SpikingLayer) or is_snntorchs(m)]
    if not all(_is_ours(type(m)) and getattr(m, "step_mode", "s") == "m" for m in layers):
        return 0
    classes = {c for m in modules for c in type(m).__mro__ if m not in layers and not _is_known(c)}
    return 0 if _may_loop(classes) else len(layers)


def _is_ours(layer: type) -> bool:
    """Whether the steps of a layer are those of ours; a class that a user derived from it may have others."""
    return _is_known(layer) or is_derived(layer)


def _is_known(what: Any) -> bool:
    """Whether a class, function or module is PyTorch's or ours."""
    name = what.__name__ if isinstance(what, ModuleType) else what.__module__ or ""
    return name.partition(".")[0] in ("torch", "snnfast", "builtins")


def _calls_layers(what: Any) -> bool:
    """Whether a function or module is known, or SpikingJelly's: a loop of these calls what is no layer at once."""
    name = what.__name__ if isinstance(what, ModuleType) else what.__module__ or ""
    return _is_known(what) or name.partition(".")[0] == "spikingjelly"


def _may_loop(classes: set[type]) -> bool:
    """Whether the ``forward`` of some classes, or what it calls, has a loop, or calls what is not known here."""
    names = ["forward"]
    for name in names:  # which grows
        for method in [found for kind in classes if isinstance(found := vars(kind).get(name), FunctionType)]:
            code = method.__code__
            read = [method.__globals__.get(n) for n in code.co_names]
            if any(isinstance(c, CodeType) for c in code.co_consts):  # such as a comprehension
                return True
            if any(isinstance(found, FunctionType | ModuleType) and not _calls_layers(found) for found in read):
                return True
            if any(i.opname.startswith("JUMP_BACKWARD") for i in dis.get_instructions(code)):
                return True
            names += [n for n in code.co_names if n not in names]
    return False
