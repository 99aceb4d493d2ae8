"""Classes that a user derived from a neuron of another library, put on our layers by ``convert``."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from snnfast.neurons.base import SpikingLayer

__all__ = ["derived", "is_derived", "origin", "replaced"]

# By the user's classes.
_derived: dict[type, type[SpikingLayer]] = {}


def replaced(module: nn.Module, theirs: type, parts: Iterable[str]) -> str | None:
    """The reason to leave a neuron as it is: it, or its class, has a part of ``theirs`` of its own. None: it has not.

    Args:
        module: The neuron, an instance of ``theirs`` or of a class that a user derived from it.
        theirs: The class of the other library.
        parts: Names of methods and attributes that the neuron computes by, and that our layer computes by.
    """
    cls = type(module)
    for part in parts:
        known = getattr(theirs, part, None)
        if getattr(cls, part, None) is not known:
            return f"{cls.__name__} has its own {part}"
        if known is not None and part in vars(module):
            return f"its {part} was replaced"
    return None


def derived(cls: type, layer: type[SpikingLayer], join: Callable[[Any, type], type] | None = None) -> Any:
    """Our layer as a subclass of a user's class: whatever that defines stays.

    Args:
        cls: The user's class, derived from the other library's.
        layer: Our layer, which can be imported by its name.
        join: Makes of both a class that comes before the library's in the order of bases, if ``layer`` does not.
    """
    if cls not in _derived:
        base = layer if join is None else join(layer, cls)

        def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
            """Pickle by classes that can be imported."""
            return _rebuilt, (cls, layer, join), self.__getstate__()

        members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__reduce_ex__": reduced}
        _derived[cls] = type(cls.__name__, (cls, base), members)
    return _derived[cls]


def _rebuilt(*arguments: Any) -> Any:
    made = derived(*arguments)
    return made.__new__(made)


def is_derived(cls: type) -> bool:
    """Whether it is a class that :func:`derived` made."""
    return cls in _derived.values()


def origin(cls: type) -> type:
    """The user's class of one that :func:`derived` made."""
    return cls.__mro__[1]
