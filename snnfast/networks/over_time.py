"""A signal over time and the states of a layer: their checks, and how a module is applied to all steps."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._core import watch
from snnfast._core.linear import Linear
from snnfast._core.modules import is_only_called
from snnfast._core.norm import Averages, Norm, Pool
from snnfast._core.ops import has_norm
from snnfast._core.pytorch import becomes_node
from snnfast._images.batch_norm import has_batch_statistics, is_pytorchs, running_averages, update_averages
from snnfast._images.pool2d import windows
from snnfast._unroll.checks import check_num_steps
from snnfast.neurons import LAYERS
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.network import is_snntorchs

__all__ = [
    "check_input",
    "check_state",
    "check_stateless",
    "check_states",
    "has_unroll",
    "linear_behind",
    "norm_before",
    "over_time",
    "pool_behind",
    "unrolled",
]


def check_input(x: object, num_steps: int | None) -> int | None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() < (2 if num_steps is None else 1):
        expected = "[T, B, *]" if num_steps is None else "[B, *]"
        raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")
    return None if num_steps is None else check_num_steps(num_steps)


def check_state(number: int, given: object, layer: SpikingLayer, step_shape: torch.Size) -> tuple[Tensor | None, ...]:
    """The states that a layer starts from, in the order of its ``unroll``."""
    names = layer.neuron.states
    if given is None:
        return (None,) * len(names)
    if layer.init_hidden:
        raise ValueError(f"states[{number}]: expected None for a layer with init_hidden=True, which holds its own")
    states = (given,) if len(names) == 1 else given
    if not isinstance(states, tuple | list) or len(states) != len(names):
        raise TypeError(f"states[{number}]: expected ({', '.join(names)}) or None, got {type(given).__name__}")
    for i, state in enumerate(states):
        entry = f"states[{number}]" if len(names) == 1 else f"states[{number}][{i}]"
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(f"{entry}: expected a torch.Tensor or None, got {type(state).__name__}")
        if state is not None and state.shape != step_shape:
            raise ValueError(f"{entry}: expected {tuple(step_shape)}, got {tuple(state.shape)}")
    return tuple(states)


def check_states(states: object, layers: Sequence[nn.Module]) -> None:
    """Raise unless the states that are passed, if any, fit these layers: one entry for each neuron layer."""
    for layer in layers:
        for module in () if isinstance(layer, SpikingLayer) or not has_unroll(layer) else layer.modules():
            if (isinstance(module, SpikingLayer) or is_snntorchs(module)) and not getattr(module, "init_hidden", False):
                raise ValueError(
                    f"states: {type(layer).__name__} has an unroll of its own, and in it a neuron whose state can't be "
                    "passed; give that init_hidden=True"
                )
    if states is None:
        return
    if not isinstance(states, list | tuple):
        raise TypeError(f"states: expected a list of torch.Tensor or None, got {type(states).__name__}")
    number = sum(isinstance(layer, SpikingLayer) for layer in layers)
    if len(states) != number:
        raise ValueError(f"states: expected {number}, one per neuron layer, got {len(states)}")


def check_stateless(layer: nn.Module, argument: str, to_convert: bool) -> None:
    """Raise if a layer is or contains a neuron that can't be unrolled. ``to_convert``: snnTorch's will be converted."""
    kind = type(layer).__name__
    if isinstance(layer, nn.ModuleList | nn.ModuleDict):
        raise TypeError(
            f"{argument}: {kind} has no forward; pass its layers one by one, or give a subclass a method unroll that "
            "takes all time steps [T, B, *]"
        )
    for module in layer.modules():
        fused = [cls.__name__ for cls in type(module).__mro__ if cls.__name__ in LAYERS]
        if isinstance(module, SpikingLayer) or (to_convert and fused and is_snntorchs(module)):
            raise TypeError(
                f"{argument}: {kind} calls a {type(module).__name__} in its forward, which can't be unrolled; pass its "
                "layers one by one or in an nn.Sequential, or give it a method unroll that takes all time steps "
                "[T, B, *]"
            )
        if is_snntorchs(module):
            remedy = "keep the loop over time, or give its module a method unroll with that loop in it"
            if fused:
                remedy = f"use snnfast.{fused[0]}, or snnfast.snntorch.convert"
            raise TypeError(
                f"{argument}: {kind} is or has a neuron of snnTorch ({type(module).__name__}), whose state can't be "
                f"carried over time; {remedy}"
            )


def over_time(layer: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, num_steps: int | None) -> Tensor:
    """Run a stateless layer, by its ``call``, on ``[T, B, *]`` as one batch of ``T * B``, or on a constant."""
    batch = x.flatten(0, 1) if num_steps is None else x
    y: Any
    if torch.compiler.is_compiling():  # it can't trace a note, and tells the line and the shapes itself
        y = call(batch)
    else:
        try:
            y = call(batch)
        except Exception as error:
            expected, given = "[B, *] without time, beside num_steps", f"shape {tuple(x.shape)}"
            if num_steps is None:
                expected = "[T, B, *] with time first, or [B, *] with num_steps"
                given += f", all steps as one batch of shape {tuple(batch.shape)}"
            if _is_of_shapes(error, layer, x):
                raise ValueError(
                    f"x: expected {expected}; {type(layer).__name__} can't take {given}: {error}"
                ) from error
            error.add_note(f"in a MultiStep: {type(layer).__name__}, which was given {given}; x is {expected}")
            raise
    if not isinstance(y, Tensor):
        raise TypeError(
            f"layers: {type(layer).__name__} returned a {type(y).__name__}, expected a torch.Tensor; put it in a "
            "module with a method unroll that takes all time steps [T, B, *]"
        )
    return y if num_steps is not None else y.reshape(*x.shape[:2], *y.shape[1:])


def _is_of_shapes(error: Exception, layer: nn.Module, x: Tensor) -> bool:
    """Whether what one of PyTorch's own layers raises is about the shape that it was given."""
    if any(p.dtype != x.dtype or p.device != x.device for p in layer.parameters()):
        return False
    # Exactly these: a subclass, as that of memory, says something else.
    raised = type(error) in (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError)
    return raised and type(layer).__module__.startswith("torch.nn.")


def has_unroll(layer: nn.Module) -> bool:
    """Whether a layer that is no neuron takes all time steps."""
    return callable(getattr(layer, "unroll", None))


def unrolled(layer: Any, x: Tensor, lengths: Tensor | None) -> Tensor:
    """A module with an ``unroll`` of its own, which takes ``lengths`` if it has such an argument."""
    if lengths is not None and "lengths" in inspect.signature(layer.unroll).parameters:
        y = layer.unroll(x, lengths=lengths)
    elif lengths is not None and any(isinstance(module, SpikingLayer) for module in layer.modules()):
        raise ValueError(
            f"lengths: {type(layer).__name__} has an unroll of its own, and in it a neuron that must know them; give "
            "that unroll an argument lengths"
        )
    else:
        y = layer.unroll(x)
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{type(layer).__name__}.unroll: expected it to return [T, B, *], T={len(x)}, got {got}")
    return y


def norm_before(
    layer: nn.Module, x: Tensor, batch_norm_over_time: bool, by_itself: Callable[[Tensor], Tensor]
) -> Norm | None:
    """A batch normalisation in training whose result only neurons read; ``None``: another layer, or no kernels.

    ``by_itself`` computes it where the kernels do not take the neurons behind it. ``x`` is ``[T, B, C, *]``.
    """
    if not is_pytorchs(layer) or becomes_node() or not has_norm(x.device) or not has_batch_statistics(layer):
        return None
    dims = next(dims for kind, dims in _DIMS.items() if isinstance(layer, kind))
    if x.dim() not in dims or x.shape[2] != layer.num_features:  # PyTorch says what is wrong
        return None

    def update(mean: Tensor, variance: Tensor) -> None:
        update_averages(running_averages(layer, len(mean)), mean, variance)

    tracks = layer.training and layer.track_running_stats
    running = (layer.running_mean, layer.running_var, layer.num_batches_tracked) if tracks else (None, None, None)
    averages = Averages.of(*running, layer.momentum)
    return Norm(layer.weight, layer.bias, layer.eps, batch_norm_over_time, update, by_itself, averages=averages)


def pool_behind(layer: Any, x: Tensor, by_itself: Callable[[Tensor], Tensor]) -> Pool | None:
    """A pooling of the spikes ``[T, B, C, H, W]`` of neurons, by the current ``x`` of these; ``None``: another layer.

    ``by_itself`` computes it where the kernels do not take it. Nobody else may read the spikes.
    """
    is_max = type(layer) is nn.MaxPool2d
    if (
        not (is_max or type(layer) is nn.AvgPool2d)
        or not is_only_called(layer)
        or x.dim() != 5
        or watch.watchers
        or (layer.return_indices if is_max else layer.divisor_override is not None)
    ):
        return None
    how = layer.kernel_size, layer.stride, layer.padding, layer.dilation if is_max else 1, layer.ceil_mode
    found = windows(not is_max, x.shape[3:], *how)
    return None if found is None else Pool(found, by_itself)


_DIMS: dict[Any, tuple[int, ...]] = {nn.BatchNorm1d: (3, 4), nn.BatchNorm2d: (5,), nn.BatchNorm3d: (6,)}
"""The dimensions of all time steps."""


def linear_behind(layers: Sequence[nn.Module], step_dims: int) -> tuple[Linear | None, int]:
    """The ``nn.Linear`` that takes the spikes of a neuron layer, and the number of ``layers`` up to and with it.

    Only modules that leave the spikes of a step (of ``step_dims`` dimensions) as they are may come before it. None of
    these modules may have a hook of the user, which would miss its call.
    """
    dims = 1
    if step_dims < 2:
        return None, 0
    for i, layer in enumerate(layers):
        if not is_only_called(layer):
            break
        kind = type(layer)
        if kind is nn.Linear:
            return Linear(layer.weight, layer.bias, dims), i + 1  # type: ignore[arg-type]
        if kind is nn.Flatten and layer.start_dim == 1 and layer.end_dim == -1:
            dims = step_dims - 1
        elif not (kind is nn.Identity or (kind is nn.Dropout and not (layer.training and layer.p > 0))):  # type: ignore[operator]
            break
    return None, 0
