"""Convolutional networks: with batch normalisation in training, and with neurons written by hand."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import surrogate, utils
from torch import Tensor, nn

from . import events, frames, images, program
from .neurons import Rectangle, Triangle


@program(frames(3, 24, 24), T=10, B=32)
class TrafficSigns(nn.Module):
    """Convolution, batch normalisation, neuron, pooling, twice; records of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), snn.Leaky(beta=0.9)
        self.conv2, self.bn2, self.lif2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), snn.Leaky(beta=0.9)
        self.fc, self.lif3 = nn.Linear(32 * 6 * 6, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.bn1(self.conv1(x[step])), mem1)
            spk2, mem2 = self.lif2(self.bn2(self.conv2(F.max_pool2d(spk1, 2))), mem2)
            spk3, mem3 = self.lif3(self.fc(F.max_pool2d(spk2, 2).flatten(1)), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@program(events(2, 32, 32, classes=11), T=16, B=16)
class DeepGestures(nn.Module):
    """Five blocks of convolution, batch normalisation, neuron and pooling, in sequence, which hold their states."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 2
        for _ in range(4):
            neuron = snn.Leaky(beta=0.5, spike_grad=surrogate.atan(), init_hidden=True)
            conv = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
            blocks += [conv, nn.BatchNorm2d(32), neuron, nn.MaxPool2d(2)]
            channels = 32
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32 * 4, 11))
        self.out = snn.Leaky(beta=0.5, spike_grad=surrogate.atan(), init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.features)
        self.out.reset_mem()
        return torch.stack([self.out(self.head(self.features(frame)))[0] for frame in x])


class Block(nn.Module):
    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider)
        self.conv2, self.bn2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider)
        self.lif1, self.lif2 = snn.Leaky(beta=0.8), snn.Leaky(beta=0.8)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor, mem: list[Any]) -> tuple[Tensor, list[Any]]:
        spk, mem1 = self.lif1(self.bn1(self.conv1(x)), mem[0])
        spk, mem2 = self.lif2(self.bn2(self.conv2(spk)) + self.shortcut(x), mem[1])
        return spk, [mem1, mem2]


@program(images(3, 24, 24), T=8, B=16)
class ResidualNetwork(nn.Module):
    """A ResNet with a neuron behind each of its nine convolutions, on the same image at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.lif = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), snn.Leaky(beta=0.8)
        self.blocks = nn.ModuleList([Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2)])
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        mem0, mems = self.lif.init_leaky(), [[b.lif1.init_leaky(), b.lif2.init_leaky()] for b in self.blocks]
        out = []
        for _ in range(8):
            spk, mem0 = self.lif(self.bn(self.stem(x)), mem0)
            for i, block in enumerate(self.blocks):
                spk, mems[i] = block(spk, mems[i])
            out.append(self.fc(self.pool(spk).flatten(1)))
        return torch.stack(out)


def mem_update(layer: nn.Module, x: Tensor, mem: Tensor, spike: Tensor) -> tuple[Tensor, Tensor]:
    mem = mem * 0.5 * (1.0 - spike) + layer(x)
    return mem, Rectangle.apply(mem)


@program(frames(1, 28, 28), T=10, B=32)
class SpatioTemporal(nn.Module):
    """As in STBP: neurons written by hand, between convolutions and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32 * 7 * 7, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        B, options = x.shape[1], {"dtype": x.dtype, "device": x.device}
        c1_mem = c1_spike = torch.zeros(B, 32, 28, 28, **options)
        c2_mem = c2_spike = torch.zeros(B, 32, 14, 14, **options)
        h1_mem = h1_spike = torch.zeros(B, 128, **options)
        h2_mem = h2_spike = h2_sum = torch.zeros(B, 10, **options)
        for step in range(x.shape[0]):
            c1_mem, c1_spike = mem_update(self.conv1, x[step], c1_mem, c1_spike)
            c2_mem, c2_spike = mem_update(self.conv2, F.avg_pool2d(c1_spike, 2), c2_mem, c2_spike)
            pooled = F.avg_pool2d(c2_spike, 2).view(B, -1)
            h1_mem, h1_spike = mem_update(self.fc1, pooled, h1_mem, h1_spike)
            h2_mem, h2_spike = mem_update(self.fc2, h1_spike, h2_mem, h2_spike)
            h2_sum = h2_sum + h2_spike
        return (h2_sum / x.shape[0]).unsqueeze(0)


class LIFSpike(nn.Module):
    """As in TET: all steps of a layer ``[B, T, *]``, and then the next one."""

    def forward(self, x: Tensor) -> Tensor:
        mem, spike_pot = 0, []
        for t in range(x.shape[1]):
            mem = mem * 0.5 + x[:, t, ...]
            spike = Triangle.apply(mem - 1.0, 1.0)
            mem = (1 - spike) * mem
            spike_pot.append(spike)
        return torch.stack(spike_pot, dim=1)


class SeqToANN(nn.Module):
    """Layers without a state on all steps of a batch at once."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x.flatten(0, 1).contiguous())
        return y.view(x.shape[0], x.shape[1], *y.shape[1:])  # type: ignore[no-any-return]


@program(frames(2, 32, 32), T=6, B=32)
class TemporalEfficient(nn.Module):
    """A small spiking VGG as in TET."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, wider in ((2, 32), (32, 32), (32, 64)):
            layers += [SeqToANN(nn.Conv2d(channels, wider, 3, 1, 1), nn.BatchNorm2d(wider)), LIFSpike()]
            layers.append(SeqToANN(nn.AvgPool2d(2)))
        self.features, self.classifier = nn.Sequential(*layers), SeqToANN(nn.Linear(64 * 4 * 4, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x.transpose(0, 1))
        return self.classifier(torch.flatten(x, 2)).mean(1).unsqueeze(0)  # type: ignore[no-any-return]
