"""Where the tensors of a layer are kept."""

from collections.abc import Sequence

from torch import nn


def are_plain(layer: type[nn.Module], names: Sequence[str]) -> bool:
    """Whether the layers of a class keep attributes of these names where ``nn.Module`` puts them.

    The attributes can then be read and written there directly. That costs a fraction of ``nn.Module.__getattr__`` and
    ``__setattr__``.
    """
    getter = next(base for base in layer.__mro__ if "__getattr__" in vars(base))
    return (
        getter.__module__ in (nn.Module.__module__, "snnfast.snntorch._drop_ins")
        and layer.__getattribute__ is object.__getattribute__
        and layer.__setattr__ is nn.Module.__setattr__
        and not any(hasattr(layer, name) for name in names)
    )
