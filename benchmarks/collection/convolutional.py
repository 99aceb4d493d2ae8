"""Convolutional networks with batch normalisation in training."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import surrogate, utils
from torch import Tensor, nn

from . import events, frames, images, program


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
