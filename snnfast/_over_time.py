"""A signal over time and the states of a layer: their checks, and how a module is applied to all steps."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from snnfast._arguments import check_num_steps
from snnfast._layer import SpikingLayer

__all__ = ["check_input", "check_state", "has_unroll", "over_time", "unrolled"]


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


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """A stateless layer on ``[T, B, *]``, as one batch of ``T * B``."""
    steps = x.shape[:2]
    y = layer(x.flatten(0, 1))
    return cast(Tensor, y.reshape(*steps, *y.shape[1:]))


def has_unroll(layer: nn.Module) -> bool:
    return callable(getattr(layer, "unroll", None))


def unrolled(layer: Any, x: Tensor) -> Tensor:
    y = layer.unroll(x)
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{type(layer).__name__}.unroll: expected it to return [T, B, *], T={len(x)}, got {got}")
    return y
