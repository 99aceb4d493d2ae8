"""Questions about a module: whether its call runs more than ``forward``, and where it keeps its tensors."""

from collections.abc import Sequence

from torch import nn

__all__ = ["are_plain", "is_only_called"]


def is_only_called(layer: nn.Module) -> bool:
    """Whether a call of a module runs its ``forward`` and no hook, neither its own nor a global one."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    every = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not every and not any(hooks) and "forward" not in layer.__dict__


def are_plain(layer: type[nn.Module], names: Sequence[str]) -> bool:
    """Whether the layers of a class keep attributes of these names where ``nn.Module`` puts them.

    The attributes can then be read and written there directly. That costs a fraction of ``nn.Module.__getattr__`` and
    ``__setattr__``.
    """
    ours = (nn.Module.__module__, "snnfast.neurons.base", "snnfast.snntorch._drop_ins")
    owners = [next(base for base in layer.__mro__ if name in vars(base)) for name in ("__getattr__", "__setattr__")]
    return (
        all(owner.__module__ in ours for owner in owners)
        and layer.__getattribute__ is object.__getattribute__
        and not any(hasattr(layer, name) for name in names)
    )
