"""Say in words why a network may learn nothing."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snnfast._activity.report import LayerActivity
    from snnfast._activity.watching import Seen

__all__ = ["problems_of"]

MOST_SILENT, MOST_SATURATED = 0.5, 0.5
"""The shares of neurons from which a layer has a problem."""

LEAST_GRADIENT = 1e-4
"""The gradient of a weight, relative to the weight, is small where it is this part of the largest in the network."""


def problems_of(net: nn.Module, layers: "dict[str, LayerActivity]") -> list[str]:
    """The problems of the layers in order, then those of the gradients."""
    found = [f"{name}: {problem}" for name, layer in layers.items() for problem in _of_layer(layer)]
    return found + list(_of_gradients(net))


def _of_layer(layer: "LayerActivity") -> Iterator[str]:
    seen, silent, saturated = layer._seen, layer.silent, layer.saturated
    if silent is None or saturated is None:
        if any(not product.is_analog and not product.synops for product in seen.products.values()):
            yield "all that it was given is 0, so its weights do not matter"
        return
    if silent >= MOST_SILENT:
        yield f"{_percent(silent)} of the neurons never spike{_membrane(layer)}"
    if saturated >= MOST_SATURATED:
        yield f"{_percent(saturated)} of the neurons spike at every step{_membrane(layer)}"
    dead = _without_derivative(seen)
    if dead is not None and dead >= MOST_SILENT:
        yield f"its surrogate is 0 at {_percent(dead)} of the membranes, where no gradient passes"


def _membrane(layer: "LayerActivity") -> str:
    return "" if layer.membrane is None else f"; the membrane's mean is {layer.membrane:.2g} of the threshold"


def _without_derivative(layer: "Seen") -> float | None:
    """The share of the last membranes at which the surrogate of a layer has the derivative 0."""
    surrogate: Any = getattr(layer.module, "spike_grad", None)
    if surrogate is None:
        surrogate = getattr(layer.module, "surrogate_function", None)
    distances = None if layer.membranes is None else layer.membranes.distances
    if not callable(surrogate) or distances is None or layer.is_doubted:  # by hand, it may be a function of more
        return None
    with torch.inference_mode(False), torch.enable_grad():
        x = distances.to(torch.float32, copy=True).requires_grad_()
        spk: Tensor = surrogate(x)
        (derivative,) = torch.autograd.grad(spk.sum(), x) if spk.requires_grad else (torch.zeros_like(x),)
    return float((derivative == 0).float().mean())


def _of_gradients(net: nn.Module) -> Iterator[str]:
    """Problems of the gradients that parameters hold, if any do."""
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    given = {name: _numbers(p.grad) for name, p in learned.items() if p.grad is not None}
    if not given:
        return
    sizes: dict[str, float] = {}
    for name, p in learned.items():
        if name not in given:
            yield f"{name}: it has no gradient, as the loss does not depend on it"
            continue
        grad = given[name]
        if not bool(grad.isfinite().all()):
            yield f"{name}: its gradient is not finite"
        elif not bool(grad.any()):
            yield f"{name}: its gradient is 0"
        elif p.dim() > 1:
            sizes[name] = float(grad.float().norm() / p.detach().float().norm().clamp(min=1e-30))
    largest = max(sizes, key=sizes.__getitem__, default="")
    for name, size in sizes.items():
        if size < LEAST_GRADIENT * sizes[largest]:
            part = size / sizes[largest]
            yield f"{name}: its gradient vanishes: relative to the weight, it is {part:.1e} of that of {largest}"


def _numbers(grad: Tensor) -> Tensor:
    """The numbers that a gradient stores: one of an embedding may be sparse."""
    return (grad.coalesce().values() if grad.is_sparse else grad).detach()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
