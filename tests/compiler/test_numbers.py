"""Random programs in which sizes, numbers and tensors without dimensions are arguments in every place."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import THOROUGH
from torch import Tensor, nn

import snnfast

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]

# A number of a call with an input [T, B, 3, 6, 6], at step t.
NUMBERS: dict[str, Callable[[Any, Tensor, int], Any]] = {
    "an integer": lambda net, x, t: 2,
    "a number": lambda net, x, t: 0.75,
    "the steps": lambda net, x, t: x.size(net.time),
    "the batch": lambda net, x, t: x.size(1 - net.time),
    "the channels": lambda net, x, t: x.shape[2],
    "the elements": lambda net, x, t: x.select(net.time, t).numel() / 64,
    "a share": lambda net, x, t: 1 / x.size(1),
    "the step": lambda net, x, t: t + 1,
    "a share of the steps": lambda net, x, t: (t + 1) / x.size(net.time),
    "a tensor": lambda net, x, t: net.one_half,
    "an integer tensor": lambda net, x, t: net.two,
    "a parameter": lambda net, x, t: net.gain,
    "a mean": lambda net, x, t: x.mean().detach() + 1,
    "a mean of the step": lambda net, x, t: x.select(net.time, t).mean().detach() + 1,
    "a size as a tensor": lambda net, x, t: torch.tensor(float(x.size(1))),
    "an element": lambda net, x, t: net.weights[1],
    "one element": lambda net, x, t: net.weights[:1],
}
# What is computed of a tensor and such a number.
CALLS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "*": lambda v, n: v * n,
    "r*": lambda v, n: n * v,
    "/": lambda v, n: v / n,
    "+": lambda v, n: v + n,
    "-": lambda v, n: v - n,
    "r-": lambda v, n: n - v,
    "alpha": lambda v, n: torch.add(v, v, alpha=float(n)) if not isinstance(n, Tensor) else torch.add(v, n, alpha=0.5),
    "where": lambda v, n: torch.where(v > 0, v, n),
    "where of it": lambda v, n: torch.where(v > n, v, 0.5 * v),
    "masked_fill": lambda v, n: v.masked_fill(v < 0, n if not isinstance(n, Tensor) or n.dim() == 0 else 0.5),
    "clamp": lambda v, n: v.clamp(max=n) if not isinstance(n, Tensor) else torch.minimum(v, n.to(v.dtype)),
    "compare": lambda v, n: v * (v < n),
    "full": lambda v, n: v + torch.full_like(v, float(n)) if not isinstance(n, Tensor) else v + torch.ones_like(v) * n,
    "sum": lambda v, n: v + v.sum(-1, keepdim=True) / n,
    "mean": lambda v, n: v - v.mean() * n,
    "power": lambda v, n: v.abs().add(0.5).pow(n if not isinstance(n, int) or n < 4 else 2),
    "in place": lambda v, n: v.clone().mul_(n),
    "lerp": lambda v, n: torch.lerp(v, 0.5 * v, 0.25) * n,
    "leaky_relu": lambda v, n: F.leaky_relu(v, 0.125) + n,
}


class Net(nn.Module):
    """Two convolutions and two neurons, with random calls between them, and behind the loop."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.time, self.pool = draw.choice((0, 1)), draw.choice((nn.MaxPool2d(2), nn.AvgPool2d(2)))
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if draw.random() < 0.4 else nn.Identity()
        self.lif1, self.lif2 = snnfast.Leaky(0.9), snnfast.Leaky(0.8)
        self.gain, self.weights = nn.Parameter(torch.tensor(0.75)), nn.Parameter(torch.tensor([0.5, 1.25]))
        self.register_buffer("one_half", torch.tensor(0.5))
        self.register_buffer("two", torch.tensor(2))
        self.drawn = [
            [(draw.choice(list(CALLS)), draw.choice(list(NUMBERS))) for _ in range(draw.choice((0, 1, 1, 2)))]
            for _ in range(6)
        ]

    def compute(self, v: Tensor, place: int, x: Tensor, t: int) -> Tensor:
        for call, number in self.drawn[place]:
            v = CALLS[call](v, NUMBERS[number](self, x, t))
        return v

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total: Any = 0
        for t in range(x.size(self.time)):
            y = self.compute(x.select(self.time, t), 0, x, t)
            y = self.norm(self.compute(self.conv1(y), 1, x, t))
            spk, mem1 = self.lif1(self.compute(y, 2, x, t), mem1)
            y = self.conv2(self.compute(self.pool(spk), 3, x, t))
            spk, mem2 = self.lif2(self.compute(y, 4, x, t), mem2)
            total = total + spk + mem2
        return self.compute(total, 5, x, 0), mem1


def wrong(net: Net, dtype: torch.dtype) -> str | None:
    """What is wrong with a program, compiled. In float32, a spike may be another one: its numbers are not compared."""
    torch.manual_seed(0)
    net = net.to(dtype)
    compiled = snnfast.compile(net)
    with warnings.catch_warnings(record=True, action="always") as caught:
        for T, B in ((9, 2), (9, 2), (12, 3), (9, 4)):
            x, found = torch.rand(*((T, B) if net.time == 0 else (B, T)), 3, 6, 6, dtype=dtype) * 2, []
            for function in (net, compiled):
                out = function(x)
                parameters = [p for p in net.parameters() if p.requires_grad]
                grads = torch.autograd.grad(sum(o.sum() for o in out), parameters, allow_unused=True)
                found.append([*out, *(g for g in grads if g is not None)])
            for a, b in zip(*found, strict=True):
                if a.shape != b.shape or a.dtype != b.dtype:
                    return f"{T} steps, {B} samples: {b.dtype} {list(b.shape)} instead of {a.dtype} {list(a.shape)}"
                if dtype == torch.float64 and not torch.allclose(a, b, rtol=1e-8, atol=1e-8, equal_nan=True):
                    return f"{T} steps, {B} samples: the numbers differ by {(a - b).abs().max()}"
    faults = [str(w.message) for w in caught if "fault of snnfast" in str(w.message)]
    return faults[0][-600:] if faults else None


@pytest.mark.parametrize("seed", range(200 if THOROUGH else 3))
def test_a_number_may_be_any_argument(seed: int) -> None:
    net = Net(seed)
    problem = wrong(net, torch.float32 if seed % 2 else torch.float64)
    assert problem is None, f"{net.drawn}: {problem}"


def test_a_size_behind_a_convolution() -> None:
    """Where the results are channels_last, in float32."""
    for number in ("the steps", "the batch"):
        net = Net(0)
        net.drawn = [[] for _ in net.drawn[:-1]] + [[("/", number)]]
        assert wrong(net, torch.float32) is None
