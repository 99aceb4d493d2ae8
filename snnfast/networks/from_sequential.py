"""The checks of ``MultiStep.from_sequential``."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast.neurons import LAYERS
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.network import is_delay, is_snntorchs

__all__ = ["check_names", "check_neurons", "rename_old_keys", "warn_of_batch_norm"]


def check_names(cls: type[nn.Sequential], net: nn.Sequential) -> None:
    """Raise unless an instance of ``cls`` can have the modules under their names."""
    if not len(net):
        raise ValueError("net: expected at least one module")
    for name in net._modules:
        if hasattr(cls, name):
            raise ValueError(f"net: {cls.__name__} has an attribute {name!r} already; give that module another name")


def check_neurons(layers: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise unless every neuron layer can be unrolled and has a state of its own."""
    names: dict[nn.Module, str] = {}
    for name, layer in layers:
        if not isinstance(layer, SpikingLayer) and not is_snntorchs(layer) and not is_delay(layer):
            continue
        kind = type(layer).__name__
        if layer in names:
            raise ValueError(
                f"net.{name}: the same {kind} as net.{names[layer]}; in a loop the two share one state, which can't be "
                "unrolled; make a layer for each"
            )
        names[layer] = name
        if not is_delay(layer) and (reason := _reason(layer)) is not None:
            raise TypeError(f"net.{name}: {kind} can't be unrolled: {reason}; keep the loop over time")


def _reason(layer: nn.Module) -> str | None:
    """Why a neuron layer can't be unrolled."""
    if not isinstance(layer, SpikingLayer):
        reason: str | None = importlib.import_module("snnfast.snntorch._convert")._reason_to_leave(layer)
        return reason
    own = "forward" in vars(layer) or not any(type(layer).forward is known.forward for known in LAYERS.values())
    return f"{type(layer).__name__} has its own forward" if own else None


def warn_of_batch_norm(net: nn.Module) -> None:
    """Warn that the numbers will differ from those of the loop."""
    names = [
        name
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    if names:
        warnings.warn(
            f"net: batch normalisation in training ({', '.join(names)}) takes its statistics over all time steps "
            "together, and updates its running averages once for all of them; the loop did both at every step. In "
            "evaluation there is no difference",
            UserWarning,
            stacklevel=3,
        )


def rename_old_keys(state_dict: dict[str, Any], prefix: str, names: list[str]) -> None:
    """Of a ``MultiStep`` before it was an ``nn.Sequential``: ``layers.`` and the number in order of application."""
    old = f"{prefix}layers."
    for key in [key for key in state_dict if key.startswith(old)]:
        number, dot, rest = key.removeprefix(old).partition(".")
        if dot and number.isdecimal() and int(number) < len(names):
            state_dict[f"{prefix}{names[int(number)]}.{rest}"] = state_dict.pop(key)
