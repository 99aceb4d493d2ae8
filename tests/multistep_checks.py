"""What the tests of MultiStep share: networks whose sums are exact, and the loop over time that they equal."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfast import Alpha, Lapicque, Leaky, RLeaky, RSynaptic, Synaptic
from snnfast.neurons.base import SpikingLayer

DECAYS: dict[type[SpikingLayer], dict[str, Any]] = {
    Leaky: {"beta": 0.5}, Synaptic: {"alpha": 0.25, "beta": 0.5}, Lapicque: {"beta": 0.5, "R": 4.0},
    Alpha: {"alpha": 0.875, "beta": 0.5}, RLeaky: {"beta": 0.5, "V": 0.25, "all_to_all": False},
    RSynaptic: {"alpha": 0.25, "beta": 0.5, "V": 0.25, "all_to_all": False},
}  # fmt: skip
NEURONS = pytest.mark.parametrize("neuron", DECAYS, ids=lambda neuron: neuron.__name__)


def make(neuron: type[SpikingLayer], **options: Any) -> Any:
    return neuron(**{**DECAYS[neuron], **options})


def exact(layer: nn.Module) -> nn.Module:
    """Weights in eighths: products with spikes or eighths and their sums are exact, in any order."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_((p * 16).round() / 8)
    return layer


def eighths(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape) / 8


def loop(layers: list[nn.Module], x: Tensor, num_steps: int | None = None) -> tuple[Tensor, ...]:
    """The layers called step by step: the outputs of the last and, if it is a neuron layer, its states."""
    states: dict[int, Any] = {}
    record = []
    for out in x if num_steps is None else (x,) * num_steps:
        for i, layer in enumerate(layers):
            if isinstance(layer, SpikingLayer):
                before = states[i] if i in states else [torch.zeros_like(out) for _ in layer.neuron.states]
                out, *after = layer(out, *before)
                states[i] = [out, *after] if len(after) < len(before) else after  # a last spike is a state
            else:
                out = layer(out)
        of_last = states.get(len(layers) - 1, [])
        record.append((out, *(state for state in of_last if state is not out)))
    return tuple(torch.stack(r) for r in zip(*record, strict=True))


class Loop(nn.Sequential):
    """The layers in a loop over time, as a network."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return loop(list(self), x)


HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
         "register_full_backward_pre_hook")  # fmt: skip


def of_their_own(make: Callable[[], nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    """Layers that may do anything with what they are given: a subclass, one with another forward, and with hooks."""

    def subclass() -> nn.Module:
        layer = make()
        layer.__class__ = type("Own", (type(layer),), {})
        return layer

    def with_forward() -> nn.Module:
        layer = make()
        forward = layer.forward
        layer.forward = lambda x: forward(x)  # type: ignore[method-assign]
        return layer

    def with_hook(register: str) -> nn.Module:
        layer = make()
        getattr(layer, register)(lambda *args: None)
        return layer

    hooked = {hook: partial(with_hook, hook) for hook in HOOKS}
    return {"a subclass": subclass, "a forward of its own": with_forward, **hooked}
