"""Where a layer's tensors are found."""

from torch import nn


def are_plain(layer: type[nn.Module]) -> bool:
    """Whether what the layers of a class hold is where ``nn.Module`` keeps it, with nothing of the class between.

    It can then be read and written there, which costs a fraction of ``nn.Module.__getattr__`` and ``__setattr__``.
    """
    getter = next(base for base in layer.__mro__ if "__getattr__" in vars(base))
    return (
        getter.__module__ in (nn.Module.__module__, "snnfast.snntorch")
        and layer.__getattribute__ is object.__getattribute__
        and layer.__setattr__ is nn.Module.__setattr__
        and not any(hasattr(layer, name) for name in ("mem", "beta", "threshold", "graded_spikes_factor"))
    )
