"""``snntorch.Leaky`` on the fused kernels; :mod:`snnfast.snntorch` is where users find it."""

import importlib.metadata
import re
import weakref
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from snnfast._instances import Instances
from snnfast.leaky import Leaky as _FusedLeaky

__all__ = ["Leaky", "Theirs", "snntorch"]

_INSTALL = 'pip install "snntorch>=1.0.0"'

try:
    import snntorch
except ModuleNotFoundError as error:
    if error.name != "snntorch":
        raise
    raise ModuleNotFoundError(
        f"snnfast.snntorch needs snntorch >= 1.0.0, which is not installed: {_INSTALL}", name="snntorch"
    ) from None


def _check_version() -> None:
    try:
        version = importlib.metadata.version("snntorch")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        version = str(getattr(snntorch, "__version__", 0))
    if int((re.match(r"\d+", version) or ["0"])[0]) < 1:
        raise ImportError(f"snnfast.snntorch needs snntorch >= 1.0.0, but {version} is installed: {_INSTALL}")


_check_version()


_entries: weakref.WeakKeyDictionary[nn.Module, "_Entry"] = weakref.WeakKeyDictionary()


def _tell_snntorch(layer: nn.Module) -> None:
    """Enter a layer into snnTorch's own list of neurons: ``snntorch.utils.reset`` goes through that list."""
    neurons: list[Any] = snntorch.SpikingNeuron.instances
    entered = _entries.get(layer)
    if any(n is entered for n in neurons if entered is not None):
        return  # a layer that was reverted, and is converted again
    neurons[:] = [n for n in neurons if n is not layer and not (type(n) is _Entry and n.layer() is None)]
    _entries[layer] = _Entry(layer)
    neurons.append(_entries[layer])


# Kept: a program may put our Leaky in the place of snntorch.Leaky.
Theirs = snntorch.Leaky

# What snntorch.Leaky computes a step with, and the fused one does not.
_PARTS = ("fire", "fire_inhibition", "mem_reset", "_base_state_function", "_base_sub", "_base_zero", "_base_int")


class Leaky(_FusedLeaky, snntorch.Leaky):  # type: ignore[misc]  # snnTorch has no type hints
    """:class:`snnfast.Leaky` that is a ``snntorch.Leaky`` as well: same arguments, same methods, same numbers.

    A subclass that replaces a part of the step, such as ``fire``, needs a ``forward`` of its own that calls it; without
    one it is an error, since the fused step calls no such part. Derive it from ``snntorch.Leaky`` instead.

    Example::

        >>> import torch, snntorch
        >>> import snnfast.snntorch as snn
        >>> lif = snn.Leaky(beta=0.9, init_hidden=True)
        >>> isinstance(lif, snntorch.Leaky)
        True
    """

    __module__ = "snnfast.snntorch"  # its public name, by which it is pickled

    instances: ClassVar[Instances] = Instances()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.forward is Leaky.forward:
            for part in _PARTS:
                if getattr(cls, part) is not getattr(Leaky, part):
                    raise TypeError(
                        f"{cls.__name__} replaces {part}, which the fused step of snnfast.snntorch.Leaky does not "
                        "call: derive it from snntorch.Leaky, or give it a forward of its own"
                    )

    def __getattr__(self, name: str) -> Any:
        # snnTorch's AttributeMonitor calls this by its name, where nn.Module knows only of buffers.
        if name == "mem" and name in self.__dict__:
            return self.__dict__[name]
        return nn.Module.__getattr__(self, name)

    def _register(self) -> None:
        super()._register()
        _FusedLeaky.instances.append(self)
        _tell_snntorch(self)

    def _unregister(self) -> None:
        """For ``revert``; snnTorch's list keeps its entry."""
        self.instances.remove(self)
        _FusedLeaky.instances.remove(self)

    @classmethod
    def init(cls) -> None:
        """Forget all layers, snnTorch's included: the next two methods reach only those made from now on."""
        super().init()
        snntorch.SpikingNeuron.init()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the held membrane of every layer, snnTorch's included, from its graph, in place."""
        Theirs.detach_hidden()

    @classmethod
    def reset_hidden(cls) -> None:
        """Set the held membrane of every layer, snnTorch's included, to zeros."""
        Theirs.reset_hidden()


class _Entry(Leaky):
    """Stands for a layer in snnTorch's list of neurons, and does not keep it alive.

    snnTorch's loops over the list ask whether an entry is a ``Leaky``, and read and write its ``mem``. A layer may die
    between two lines of them; its entry stays until the next layer comes. ``weakref.proxy`` will not do: for
    ``torch.compile`` it is no ``Leaky``, and is passed over.
    """

    layer: weakref.ref[nn.Module]

    __setattr__ = object.__setattr__  # type: ignore[assignment]  # it is no module of its own

    def __init__(self, layer: nn.Module) -> None:
        self.layer = weakref.ref(layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer(), name)

    @property
    def mem(self) -> Tensor:
        _not_traced()
        layer = self.layer()
        return torch.zeros(0) if layer is None else cast(Tensor, layer.mem)

    @mem.setter
    def mem(self, mem: Tensor) -> None:
        _not_traced()
        layer: Any = self.layer()
        if isinstance(layer, Leaky):
            layer._set_held(mem)
        elif layer is not None:  # reverted
            layer.mem = mem


def _not_traced() -> None:
    """``torch.compile`` does not see that what a weak reference leads to is a layer that it knows already."""
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()
