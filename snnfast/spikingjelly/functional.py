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

Module = Callable[..., Any] | Sequence[Callable[..., Any]]


def reset_net(net: nn.Module) -> None:
    """Reset all modules of a network that have a method ``reset``, between two samples: nodes forget their membranes.

    Until then, a node goes on from its last membrane, and from the graph behind it. SpikingJelly's own modules are
    reset as well.
    """
    for module in net.modules():
        reset = getattr(module, "reset", None)
        if callable(reset):
            reset()


def detach_net(net: nn.Module) -> None:
    """Cut the states of all modules of a network that have a method ``detach`` from their graph.

    That is truncated backpropagation through time. SpikingJelly's own modules are detached as well.
    """
    for module in net.modules():
        detach = getattr(module, "detach", None)
        if callable(detach):
            detach()


def set_step_mode(net: nn.Module, step_mode: str) -> None:
    """Set the step mode of all modules of a network that have one, ``"s"`` or ``"m"``; not inside of containers.

    Containers are those of :mod:`snnfast.spikingjelly.layer`, and SpikingJelly's own, such as
    ``LinearRecurrentContainer``.

    Raises:
        ValueError: ``step_mode`` is neither, or a module has not this one.
    """
    check_step_mode(step_mode)
    if hasattr(net, "step_mode"):
        net.step_mode = step_mode  # type: ignore[assignment]
    if not _keeps_step_mode(net):
        for child in net.children():
            set_step_mode(child, step_mode)


_CONTAINERS = (
    "StepModeContainer", "MultiStepContainer", "SeqToANNContainer", "TLastMultiStepContainer", "TLastSeqToANNContainer",
    "ElementWiseRecurrentContainer", "LinearRecurrentContainer",
)  # fmt: skip


def _keeps_step_mode(module: nn.Module) -> bool:
    """Whether it is a container. SpikingJelly's are known by their names, so that it is never imported for it."""
    if getattr(module, "keeps_step_mode", False):
        return True
    return any(c.__name__ in _CONTAINERS and c.__module__.startswith("spikingjelly.") for c in type(module).__mro__)


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
    return torch.stack([_call((x,), single_step_module) for x in x_seq])


def seq_to_ann_forward(x_seq: Any, stateless_module: Module) -> Any:
    """Call a module, or several one after the other, once on all steps of ``[T, B, *]`` as one batch ``[T * B, *]``.

    Args:
        x_seq: A tensor, or a tuple of tensors with the same ``T`` and ``B``, which are the arguments of the module.
        stateless_module: The module, or the modules. It may return a tuple of tensors.

    Raises:
        ValueError: The tensors differ in ``T`` or ``B``.
    """
    given = x_seq if isinstance(x_seq, tuple) else (x_seq,)
    shape = given[0].shape[:2]
    if any(x.shape[:2] != shape for x in given):
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(f"x_seq: expected tensors with the same [T, B], got shapes {shapes}")
    found = _call(tuple([x.flatten(0, 1) for x in given]), stateless_module)
    if isinstance(found, tuple):
        return tuple([y.unflatten(0, shape) for y in found])
    return found.unflatten(0, shape)


def _call(given: tuple[Any, ...], modules: Module) -> Any:
    first, *others = modules if isinstance(modules, list | tuple) else (modules,)
    found = first(*given)
    for module in others:
        found = module(found)
    return found
