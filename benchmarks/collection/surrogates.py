"""Surrogate gradients: those of snnTorch, and of one's own."""

from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from . import events, frames, images, program


class Layers(nn.Module):
    def __init__(self, *surrogates: Any) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(100, 100) for _ in surrogates)
        self.lifs = nn.ModuleList(snn.Leaky(beta=0.9, spike_grad=s) for s in surrogates)

    def forward(self, x: Tensor) -> Tensor:
        mem = [lif.init_leaky() for lif in self.lifs]
        out = []
        for t in range(x.size(0)):
            spk = x[t]
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mem[i] = lif(fc(spk), mem[i])
            out.append(mem[-1])
        return torch.stack(out)


@program(frames(100, classes=100))
def all_of_snntorch() -> nn.Module:
    s = surrogate
    return Layers(s.fast_sigmoid(slope=25), s.atan(alpha=2.0), s.straight_through_estimator(), s.triangular(),
                  s.spike_rate_escape(beta=1, slope=25))  # fmt: skip


def boxcar(x: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    return grad * (x.abs() < 0.5) / 1.0


@program(events(100, classes=100))
def custom_surrogate() -> nn.Module:
    return Layers(surrogate.custom_surrogate(boxcar), surrogate.custom_surrogate(boxcar))


class SuperSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (10 * x.abs() + 1.0) ** 2


@program(frames(100, classes=100))
def own_function() -> nn.Module:
    return Layers(SuperSpike.apply, SuperSpike.apply)


@program(images(1, 20, 20), T=10, B=16)
class OwnFunctionOnImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 5), nn.Linear(8 * 64, 10)
        self.lif1 = snn.Leaky(beta=0.8, spike_grad=SuperSpike.apply, init_hidden=True)
        self.lif2 = snn.Leaky(beta=0.8, spike_grad=SuperSpike.apply, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        out = []
        for _ in range(10):
            pooled = nn.functional.max_pool2d(self.conv(x), 2)
            spk, _ = self.lif2(self.fc(self.lif1(pooled).flatten(1)))
            out.append(spk)
        return torch.stack(out)
