"""SpikingJelly's functions on networks and on signals over time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnfast.spikingjelly.base import check_step_mode
from snnfast.spikingjelly.neuron import BACKENDS, BaseNode

__all__ = [
    "detach_net",
    "multi_step_forward",
    "reset_net",
    "seq_to_ann_forward",
    "set_backend",
    "set_step_mode",
]

Module = Callable[[Any], Any] | Sequence[Callable[[Any], Any]]


def reset_net(net: nn.Module) -> None:
    """Reset all modules of a network that have a method ``reset``, between two samples: nodes forget their membranes.

    Until then, a node goes on from its last membrane, and from the graph behind it.
    """
    for module in net.modules():
        reset = getattr(module, "reset", None)
        if callable(reset):
            reset()


def detach_net(net: nn.Module) -> None:
    """Cut the membranes of all nodes of a network from their graph: truncated backpropagation through time."""
    for module in net.modules():
        if isinstance(module, BaseNode):
            module.detach()


def set_step_mode(net: nn.Module, step_mode: str) -> None:
    """Set the step mode of all modules of a network that have one, ``"s"`` or ``"m"``; not inside of containers.

    Raises:
        ValueError: ``step_mode`` is neither, or a module has not this one.
    """
    check_step_mode(step_mode)
    if hasattr(net, "step_mode"):
        net.step_mode = step_mode  # type: ignore[assignment]
    if not getattr(net, "keeps_step_mode", False):
        for child in net.children():
            set_step_mode(child, step_mode)


def set_backend(net: nn.Module, backend: str, instance: type | tuple[type, ...] = nn.Module) -> None:
    """Name the backend of all nodes of a network that are an ``instance``. It has no effect: the kernels are one.

    Raises:
        ValueError: SpikingJelly has no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    for module in net.modules():
        if isinstance(module, BaseNode) and isinstance(module, instance):
            module.backend = backend


def multi_step_forward(x_seq: Tensor, single_step_module: Module) -> Tensor:
    """Call a module, or several one after the other, on each step of ``[T, B, *]``, and stack the results."""
    return torch.stack([_call(x, single_step_module) for x in x_seq])


def seq_to_ann_forward(x_seq: Tensor, stateless_module: Module) -> Tensor:
    """Call a module, or several one after the other, once on all steps of ``[T, B, *]`` as one batch ``[T * B, *]``."""
    y: Tensor = _call(x_seq.flatten(0, 1), stateless_module)
    return y.reshape(*x_seq.shape[:2], *y.shape[1:])


def _call(x: Any, modules: Module) -> Any:
    for module in modules if isinstance(modules, list | tuple) else (modules,):
        x = module(x)
    return x
