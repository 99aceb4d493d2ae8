"""Hooks of modules: what reads the weights of a layer instead of calling it would leave them out."""

from torch import nn

__all__ = ["is_only_called"]


def is_only_called(layer: nn.Module) -> bool:
    """Whether a call of a module runs its ``forward`` and no hook, neither its own nor a global one."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    every = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not every and not any(hooks) and "forward" not in layer.__dict__
