"""Code and networks that know SpikingJelly only: :func:`enable_compat`, :func:`convert`."""

import sys
from types import ModuleType
from typing import Any

from torch import nn

from snnfast.neurons.subclass import derived, replaced
from snnfast.spikingjelly import base, cext, functional, layer, neuron, surrogate
from snnfast.spikingjelly.neuron import ATTRIBUTES, BaseNode, IFNode, LIFNode, ParametricLIFNode

__all__ = ["convert", "enable_compat"]

_SUBMODULES = {"base": base, "functional": functional, "layer": layer, "neuron": neuron, "surrogate": surrogate}
_PACKAGES = {"activation_based": _SUBMODULES, "clock_driven": _SUBMODULES, "cext": {"neuron": cext}}
_NODES: dict[str, type[BaseNode]] = {kind.__name__: kind for kind in (IFNode, LIFNode, ParametricLIFNode)}


def enable_compat() -> None:
    """Let ``import spikingjelly`` find this package, in this process: for code that can't be changed.

    ``spikingjelly.activation_based`` and ``spikingjelly.clock_driven`` have the modules ``neuron``, ``surrogate``,
    ``functional``, ``layer`` and ``base`` then, and ``spikingjelly.cext.neuron`` is :mod:`snnfast.spikingjelly.cext`.
    Other names of SpikingJelly are an ``ImportError``. A second call does nothing.

    Raises:
        RuntimeError: SpikingJelly itself was imported already.

    Example::

        >>> import snnfast.spikingjelly
        >>> snnfast.spikingjelly.enable_compat()  # doctest: +SKIP
        >>> from spikingjelly.clock_driven.neuron import MultiStepLIFNode  # doctest: +SKIP
    """
    known = sys.modules.get("spikingjelly")
    if known is not None:
        if not hasattr(known, "of_snnfast"):
            raise RuntimeError("enable_compat: SpikingJelly itself was imported already; call it before that")
        return
    root = _package("spikingjelly")
    root.of_snnfast = True  # type: ignore[attr-defined]
    for name, modules in _PACKAGES.items():
        package = _package(f"spikingjelly.{name}")
        setattr(root, name, package)
        for child, module in modules.items():
            setattr(package, child, module)
            sys.modules[f"spikingjelly.{name}.{child}"] = module


def _package(name: str) -> ModuleType:
    made = ModuleType(name, "SpikingJelly's names, as snnfast.spikingjelly has them.")
    made.__path__ = []  # a package without files of its own
    sys.modules[name] = made
    return made


def convert(net: nn.Module) -> dict[str, str]:
    """Put the nodes of an installed SpikingJelly on the kernels, in place.

    Each node stays the same object, with its parameters, options, membrane and hooks. So optimizers, references and
    checkpoints stay valid. A node of a class that you derived from SpikingJelly's is converted if that changes nothing
    in the computation, for example if it has an ``__init__`` with other defaults. It stays an instance of your class.
    Layers of other kinds, such as ``layer.Conv2d``, are left as they are, and work with the nodes. Reset the network by
    ``functional.reset_net`` afterwards: SpikingJelly's own does it, too, but warns.

    Args:
        net: Any module, also a single node.

    Returns:
        The names of the nodes that were left as they are, each with the reason.

    Raises:
        TypeError: ``net`` is not a module.

    Example::

        >>> from spikingjelly.activation_based import neuron  # doctest: +SKIP
        >>> net = nn.Sequential(nn.Linear(8, 4), neuron.LIFNode(), neuron.QIFNode())  # doctest: +SKIP
        >>> snnfast.spikingjelly.convert(net)  # doctest: +SKIP
        {'2': 'snnfast has no kernel for QIFNode'}
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    left = {}
    for name, module in net.named_modules():
        cls = type(module)
        theirs = [c for c in cls.__mro__ if _is_theirs(c)]
        if isinstance(module, BaseNode) or not any(c.__name__ == "BaseNode" for c in theirs):
            continue
        kind = _NODES.get(theirs[0].__name__)
        if kind is None:
            left[name] = f"snnfast has no kernel for {cls.__name__}"
        elif reason := _reason_to_leave(module, theirs[0], kind):
            left[name] = reason
        else:
            _swap(module, kind if cls is theirs[0] else derived(cls, kind, _before_theirs))
    return left


def _is_theirs(kind: type) -> bool:
    return kind.__module__.startswith("spikingjelly.")


def _reason_to_leave(node: Any, theirs: type, kind: type[BaseNode]) -> str | None:
    known = (c for c in (*theirs.__mro__, *kind.__mro__) if c not in nn.Module.__mro__)
    parts = {name for c in known for name in vars(c) if not name.startswith("__")} - {"extra_repr"}
    if reason := replaced(
        node, theirs, sorted({*parts, *ATTRIBUTES, "__getattribute__", "__getattr__", "__setattr__"})
    ):
        return reason
    if others := [name for name in node._memories if name != "v"]:
        return f"{type(node).__name__} has a state {others[0]}"
    return None


def _before_theirs(kind: type[BaseNode], cls: type) -> type:
    """Our node as a subclass of SpikingJelly's that ``cls`` is derived from, with all methods of our own."""
    theirs = next(filter(_is_theirs, cls.__mro__))
    # SpikingJelly's would come before these, and look for the membrane elsewhere.
    methods = {name: f for name, f in vars(nn.Module).items() if callable(f) and getattr(kind, name) is f}
    return type(kind.__name__, (kind, theirs), {**methods, "__module__": __name__})


def _swap(node: Any, kind: type[BaseNode]) -> None:
    kept = {"v": node.v, "_begins": node.get_reset_value("v")}
    for name in ("_memories", "_memories_rv"):
        del node.__dict__[name]
    node.__class__ = kind
    vars(node).update(kept, backend="torch")
    node._register()
