"""Spiking LSTMs, and PyTorch's own cells."""

import snntorch as snn
import torch
from torch import Tensor, nn

from . import events, frames, program


@program(frames(8, classes=6), T=30, dtype=torch.float32)
class Muscles(nn.Module):
    """Two spiking LSTMs on signals of eight electrodes."""

    def __init__(self) -> None:
        super().__init__()
        self.slstm1, self.slstm2 = snn.SLSTM(8, 64, threshold=0.05), snn.SLSTM(64, 64, threshold=0.05)
        self.fc = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        (syn1, mem1), (syn2, mem2) = self.slstm1.init_slstm(), self.slstm2.init_slstm()
        out = []
        for step in range(x.size(0)):
            spk1, syn1, mem1 = self.slstm1(x[step].flatten(1), syn1, mem1)
            spk2, syn2, mem2 = self.slstm2(spk1, syn2, mem2)
            out.append(self.fc(mem2))
        return torch.stack(out)


@program(events(2, 16, 16), T=20, B=16, dtype=torch.float32)
class Hybrid(nn.Module):
    """A convolution and leaky neurons in front of a spiking LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(2, 8, 3, stride=2, padding=1), snn.Leaky(beta=0.8)
        self.slstm, self.fc, self.lif2 = (
            snn.SLSTM(512, 32, threshold=0.05),
            nn.Linear(32, 10),
            snn.Leaky(beta=0.8, threshold=0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        mem1, (syn, mem), mem2 = self.lif1.init_leaky(), self.slstm.init_slstm(), self.lif2.init_leaky()
        out = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.conv(x[t]), mem1)
            spk, syn, mem = self.slstm(spk1.flatten(1), syn, mem)
            spk2, mem2 = self.lif2(self.fc(spk), mem2)
            out.append(spk2)
        return torch.stack(out)


@program(events(1, 12, 12), T=10, B=8, dtype=torch.float32)
class Edges(nn.Module):
    """A convolutional spiking LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = snn.SConv2dLSTM(1, 8, kernel_size=3, threshold=0.1)
        self.fc, self.lif = nn.Linear(8 * 36, 10), snn.Leaky(beta=0.8, threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        (syn, mem), mem2 = self.lstm.init_sconv2dlstm(), self.lif.init_leaky()
        out = []
        for t in range(x.size(0)):
            spk, syn, mem = self.lstm(x[t], syn, mem)
            spk2, mem2 = self.lif(self.fc(nn.functional.max_pool2d(spk, 2).flatten(1)), mem2)
            out.append(spk2)
        return torch.stack(out)


@program(frames(32), T=30)
class Cell(nn.Module):
    """PyTorch's GRU cell behind spiking neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(32, 64), snn.Leaky(beta=0.9)
        self.cell, self.fc2 = nn.GRUCell(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        mem, hidden = self.lif1.init_leaky(), torch.zeros(x.size(1), 32)
        out = []
        for t in range(x.size(0)):
            spk, mem = self.lif1(self.fc1(x[t]), mem)
            hidden = self.cell(spk, hidden)
            out.append(self.fc2(hidden))
        return torch.stack(out)
