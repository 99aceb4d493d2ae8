"""Weights that are computed from others: quantised, normalised, masked."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from . import events, frames, program


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, levels: int) -> Tensor:
        scale = weight.abs().max() / levels
        return torch.round(weight / scale) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class Quantised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Rounded.apply(self.weight, 7), self.bias)


class TwoLayers(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = make(100, 128), make(128, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2, spk_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@program(events(100))
def straight_through() -> nn.Module:
    """Weights of four bits, whose gradient goes straight through."""
    return TwoLayers(Quantised)


@program(events(100))
def straight_through_detached() -> nn.Module:
    """The same idea without a class: the rounding error is detached."""

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            quantised = (self.weight * 8).round().clamp(-8, 7) / 8
            return F.linear(x, self.weight + (quantised - self.weight).detach(), self.bias)

    return TwoLayers(Layer)


@program(frames(100))
def weight_norm() -> nn.Module:
    return TwoLayers(lambda a, b: parametrizations.weight_norm(nn.Linear(a, b)))


@program(frames(100))
def pruned() -> nn.Module:
    """A mask on the weights, as a parametrisation."""

    class Mask(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.register_buffer("mask", (torch.rand(shape) < 0.5).to(torch.get_default_dtype()))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    def make(a: int, b: int) -> nn.Module:
        layer = nn.Linear(a, b)
        parametrize.register_parametrization(layer, "weight", Mask(b, a))
        return layer

    return TwoLayers(make)


@program(frames(8, 32), T=20, B=16)
class TemporalConvolution(nn.Module):
    """One-dimensional convolutions with weight norm, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.conv1, self.conv2 = norm(nn.Conv1d(8, 16, 3, padding=1)), norm(nn.Conv1d(16, 16, 3, padding=1))
        self.down, self.fc = nn.Conv1d(8, 16, 1), nn.Linear(16, 10)
        self.lif1, self.lif2, self.lif3 = (snn.Leaky(beta=0.8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        out = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.conv1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.conv2(spk1) + self.down(x[t]), mem2)
            _, mem3 = self.lif3(self.fc(spk2.mean(-1)), mem3)
            out.append(mem3)
        return torch.stack(out)


@program(frames(100), T=20)
class QuantisedRecurrent(nn.Module):
    """Quantised weights into recurrent neurons, for a microcontroller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = Quantised(100, 64), Quantised(64, 10)
        self.lif1, self.lif2 = snn.RLeaky(beta=0.9, linear_features=64), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        (spk1, mem1), mem2 = self.lif1.init_rleaky(), self.lif2.init_leaky()
        rec = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)
