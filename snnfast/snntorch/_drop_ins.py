"""snnTorch's neurons on the fused kernels; :mod:`snnfast.snntorch` is where users find them."""

import importlib
import importlib.metadata
import inspect
import re
import threading
import weakref
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from snnfast import neurons
from snnfast._core.backend import warn_once
from snnfast._core.pytorch import untraced
from snnfast.neurons.base import Instances, SpikingLayer

__all__ = ["LAYERS", "DropIn", "snntorch"]

_INSTALL = 'pip install "snntorch>=1.0.0"'
_NEWEST = (1, 0)
"""The newest release of snnTorch whose neurons these are compared with, which is the oldest one as well."""

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
    found = re.match(r"(\d+)\.?(\d*)", version)
    release = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if release < _NEWEST:
        raise ImportError(f"snnfast.snntorch needs snntorch >= 1.0.0, but {version} is installed: {_INSTALL}")
    if release > _NEWEST:
        warn_once(
            f"snnfast.snntorch: snntorch {version} is newer than snntorch 1.0, whose numbers the fused neurons have. "
            "Everything else is that of the installed version."
        )


_check_version()


class DropIn(SpikingLayer):
    """The base of all layers of :mod:`snnfast.snntorch`. Each has two more bases: snnfast's class and snnTorch's."""

    _drop_in: ClassVar[type["DropIn"]]  # the layer itself, also for a user's subclass of it
    _fused: ClassVar[type[SpikingLayer]]
    _theirs: ClassVar[Any]  # snnTorch's class, kept: a program may put ours in its place
    _parts: ClassVar[tuple[str, ...]]  # what a step of snnTorch's class uses, and a fused step does not
    _takes_delay: ClassVar[bool]  # whether snnTorch's class has a reset_delay
    _entry: ClassVar[type["_Entry"]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if DropIn in cls.__bases__:
            _, cls._fused, cls._theirs = cls.__bases__
            cls._drop_in, cls.instances = cls, Instances()
            integrate = [name for name in vars(cls._theirs) if name.startswith("_base_")]
            cls._parts = ("fire", "fire_inhibition", "mem_reset", "reset_dict", *integrate)
            for through_all in (cls._theirs.reset_hidden, cls._theirs.detach_hidden):
                untraced(through_all.__func__)  # torch.compile does not follow the weak references of its list
            cls._takes_delay = "reset_delay" in inspect.signature(cls._theirs).parameters
            cls._entry = type("_Entry", (_Entry, cls), {name: _entered(name) for name in cls.neuron.states})
        elif cls.forward is cls._drop_in.forward:
            for part in cls._parts:
                if getattr(cls, part) is not getattr(cls._drop_in, part):
                    name = cls._drop_in.__name__
                    raise TypeError(
                        f"{cls.__name__} replaces {part}, which the fused step of snnfast.snntorch.{name} does not "
                        f"use: derive it from snntorch.{name}, or give it a forward of its own"
                    )

    def __getattr__(self, name: str) -> Any:
        # snnTorch's AttributeMonitor calls this by its name, where nn.Module knows only of buffers.
        if name in self.neuron.states and name in self.__dict__:
            return self.__dict__[name]
        return nn.Module.__getattr__(self, name)

    def _register(self) -> None:
        super()._register()
        self._fused.instances.append(self)
        _tell_snntorch(self)

    def _unregister(self) -> None:
        """For ``revert``; snnTorch's list keeps its entry."""
        self.instances.remove(self)
        self._fused.instances.remove(self)
        self._become_snntorchs()

    @classmethod
    def init(cls) -> None:
        """Forget the layers of all neurons, snnTorch's included: the next two methods reach only those made later."""
        for layer in LAYERS:
            layer.instances.clear()
        snntorch.SpikingNeuron.init()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the held states of every layer of this neuron, snnTorch's included, from their graph, in place."""
        cls._theirs.detach_hidden()
        if cls.neuron.has_spike_feedback:
            for layer in cls._drop_in.instances:
                layer.spk.detach_()  # which snnTorch's RSynaptic forgets

    @classmethod
    def reset_hidden(cls) -> None:
        """Set the held states of every layer of this neuron, snnTorch's included, to zeros."""
        cls._theirs.reset_hidden()


class _Entry:
    """The entry of a layer in snnTorch's list of neurons, which does not keep the layer alive.

    snnTorch's loops over the list ask whether an entry is a ``Leaky``, and read and write its ``mem``; likewise for the
    other neurons. So an entry has the layer's class as a base. A layer may die between two lines of such a loop: its
    entry stays until the next layer is made. ``weakref.proxy`` would not do: ``torch.compile`` does not take it for a
    ``Leaky``.
    """

    layer: weakref.ref[nn.Module]

    __setattr__ = object.__setattr__  # it is no module of its own

    def __init__(self, layer: nn.Module) -> None:
        self.layer = weakref.ref(layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer(), name)


def _entered(name: str) -> property:
    """A held state of an entry's layer."""

    def get(entry: _Entry) -> Tensor:
        layer = entry.layer()
        return torch.zeros(0) if layer is None else cast(Tensor, getattr(layer, name))

    def set_(entry: _Entry, state: Tensor) -> None:
        layer = entry.layer()
        if isinstance(layer, DropIn):
            layer._set_held(name, state)
            # snnTorch's reset_hidden forgets the spikes.
            if name == "syn" and layer.neuron.has_spike_feedback:
                layer._set_held("spk", torch.zeros_like(layer.spk))
        elif layer is not None:  # reverted
            setattr(layer, name, state)

    return property(get, set_)


_entries: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # a layer may be made by a finalizer, in the middle of an entry


def _tell_snntorch(layer: DropIn) -> None:
    """Enter a layer into snnTorch's own list of neurons: ``snntorch.utils.reset`` goes through that list."""
    untraced(importlib.import_module("snntorch.utils").reset)  # which has globals besides
    neurons: list[Any] = snntorch.SpikingNeuron.instances
    with _lock:
        entered = _entries.get(layer)
        if any(n is entered for n in neurons if entered is not None):
            return  # a layer that was reverted, and is converted again
        # One by one: another thread may append a layer of snnTorch meanwhile.
        for n in [n for n in neurons if n is layer or (isinstance(n, _Entry) and n.layer() is None)]:
            neurons.remove(n)
        _entries[layer] = layer._entry(layer)
        neurons.append(_entries[layer])


# ---- the layers


def _drop_in(fused: type[SpikingLayer]) -> type[DropIn]:
    """The drop-in of a layer of snnfast: its bases are snnfast's class, and then snnTorch's of the same name."""
    name = fused.__name__
    members = {
        "__module__": "snnfast.snntorch",  # where it is found, and by which it is pickled
        "__doc__": f"""The layer :class:`snnfast.{name}` that is a ``snntorch.{name}`` as well.

    Arguments, methods and numbers are the same.

    The fused step does not use the parts of a step, such as ``fire`` and ``reset_dict``. A subclass that replaces one
    needs a ``forward`` that uses it, and raises a ``TypeError`` without one. Derive such a class from
    ``snntorch.{name}`` instead.
    """,
    }
    return type(name, (DropIn, fused, getattr(snntorch, name)), members)


LAYERS = tuple(_drop_in(layer) for name, layer in neurons.LAYERS.items() if hasattr(snntorch, name))
"""The layers that ``convert`` puts in the place of snnTorch's, and that :mod:`snnfast.snntorch` has in their place."""
