"""Where a layer's tensors are found."""

from collections.abc import Sequence

from torch import nn


def are_plain(layer: type[nn.Module], names: Sequence[str]) -> bool:
    """Whether ``nn.Module`` alone decides where the layers of a class keep what has these names.

    It can then be read and written there, which costs a fraction of ``nn.Module.__getattr__`` and ``__setattr__``.
    """
    getter = next(base for base in layer.__mro__ if "__getattr__" in vars(base))
    return (
        getter.__module__ in (nn.Module.__module__, "snnfast._snntorch_layers")
        and layer.__getattribute__ is object.__getattribute__
        and layer.__setattr__ is nn.Module.__setattr__
        and not any(hasattr(layer, name) for name in names)
    )
