"""What the tests of RLeaky and RSynaptic share: layers, connected or not, and their loop over time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfast import surrogate

DECAYS: dict[str, dict[str, float]] = {"RLeaky": {"beta": 0.9}, "RSynaptic": {"alpha": 0.7, "beta": 0.9}}
CONNECTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # and the shape of a step
    "linear": ({"linear_features": 16}, (4, 16)),
    "odd rows": ({"linear_features": 10}, (3, 10)),  # of which the second does not begin where a tensor would
    "more dimensions": ({"linear_features": 6}, (2, 3, 6)),
    "one sample": ({"linear_features": 10}, (10,)),
    "conv": ({"conv2d_channels": 2, "kernel_size": 3}, (3, 2, 5, 4)),
    "conv of a pair": ({"conv2d_channels": 2, "kernel_size": (1, 5)}, (2, 2, 4, 8)),
}
layers = pytest.mark.parametrize("name", DECAYS)
connected = pytest.mark.parametrize("kind", CONNECTIONS)


def make(library: Any, name: str, kind: str | None, **options: Any) -> Any:
    torch.manual_seed(3)
    how = {"V": 0.4, "all_to_all": False} if kind is None else CONNECTIONS[kind][0]
    # A surrogate of ours in either layer: those of snnTorch return float32 spikes, which no float64 weights take.
    return getattr(library, name)(**{**DECAYS[name], "spike_grad": surrogate.atan(), **how, **options})


def current(kind: str | None, steps: int = 19, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(steps, *(CONNECTIONS[kind][1] if kind else (3, 10)), dtype=dtype) * 1.5 - 0.3


def loop(layer: Any, x: Tensor, states: Any = None) -> tuple[Tensor, ...]:
    """The layer called step by step: records, with its last states among them as the last entries."""
    states = states or [torch.zeros_like(x[0]) for _ in layer.reset_mem()]
    record = []
    for step in x:
        states = layer(step, *states)
        record.append(states)
    return tuple(torch.stack(r) for r in zip(*record, strict=True))


def trained(layer: nn.Module, outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
    return list(torch.autograd.grad(loss, [*leaves, *layer.parameters()]))
