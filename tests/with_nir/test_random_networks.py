"""Random networks of layers that branch, as graphs and back."""

import random
from collections import defaultdict
from typing import Any

import pytest
import torch
from helpers import THOROUGH
from torch import Tensor, nn

from snnfast import Leaky, RLeaky, Synaptic

pytest.importorskip("nir", reason="nir is not installed; the extra 'nir' brings it")

from snnfast.nir import export_to_nir, import_from_nir

WIDTH, INPUT = 5, -1


class Network(nn.Module):
    """Layers of one width, each of which reads the sum of some before it, in a loop over time or all steps at once."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        options: dict[str, Any] = {"threshold": 0.3, "reset_mechanism": "zero", "reset_delay": False}
        kinds = (
            lambda: nn.Linear(WIDTH, WIDTH),
            lambda: Leaky(draw.random(), **options),
            lambda: Synaptic(0.9 * draw.random(), 0.9 * draw.random(), **options),
            lambda: RLeaky(0.9 * draw.random(), linear_features=WIDTH, **options),
        )
        n = draw.randint(1, 8)
        self.layers = nn.ModuleList(draw.choice(kinds)() for _ in range(n))
        self.reads = [draw.sample(range(INPUT, i), min(draw.choice((1, 1, 1, 2, 3)), i + 1)) for i in range(n)]
        self.ends = [i for i in range(n) if all(i not in reads for reads in self.reads)]
        self.at_once = draw.random() < 0.5

    def step(self, x: Tensor, states: Any) -> Tensor:
        """One step, or all steps without states."""
        found = {INPUT: x}
        for i, (layer, reads) in enumerate(zip(self.layers, self.reads, strict=True)):
            current = sum(found[j] for j in reads)
            if isinstance(layer, nn.Linear):
                found[i] = layer(current)
            elif states is None:
                found[i] = layer.unroll(current)[0]  # type: ignore[operator]
            else:
                found[i], *rest = states[i] = layer(current, *states[i])
                states[i] = states[i] if isinstance(layer, RLeaky) else rest
        result: Tensor = sum(found[i] for i in self.ends)  # type: ignore[assignment]
        return result

    def forward(self, x: Tensor) -> Tensor:
        if self.at_once:
            return self.step(x, None)
        states: Any = defaultdict(tuple)
        return torch.stack([self.step(current, states) for current in x])


@pytest.mark.parametrize("seed", range(1000 if THOROUGH else 60))
def test_a_random_network_there_and_back(seed: int) -> None:
    """In float64, because products of all steps and of one step, and sums of three, round in other ways."""
    torch.manual_seed(seed)
    net = Network(random.Random(seed)).double()
    back = import_from_nir(export_to_nir(net, torch.rand(2, 1, WIDTH).double()), dtype=torch.float64)
    x = 3 * torch.randn(6, 2, WIDTH).double()
    with torch.no_grad():
        result = back(x)
        torch.testing.assert_close(result[0] if isinstance(result, tuple) else result, net(x), rtol=0, atol=1e-9)
