"""Layers whose spikes come back to layers of another width, and gates written by hand."""

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from . import events, frames, program
from .neurons import SuperSpike


def spikes(mem: Tensor) -> Tensor:
    return SuperSpike.apply(mem)  # type: ignore[no-any-return, no-untyped-call]


@program(events(96), T=40)
class ExcitationAndInhibition(nn.Module):
    """100 excitatory neurons and 25 inhibitory ones, which they drive, and which hold them back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(96, 100), nn.Linear(100, 10)
        self.drive, self.hold, self.among = nn.Linear(100, 25), nn.Linear(25, 100), nn.Linear(100, 100)

    def forward(self, x: Tensor) -> Tensor:
        e = s_e = x.new_zeros(x.shape[1], 100)
        i = s_i = x.new_zeros(x.shape[1], 25)
        out = []
        for t in range(x.shape[0]):
            e = 0.9 * e * (1 - s_e) + self.fc(x[t]) + self.among(s_e) - self.hold(s_i)
            s_e = spikes(e - 0.3)
            i = 0.8 * i * (1 - s_i) + self.drive(s_e)
            s_i = spikes(i - 0.3)
            out.append(self.out(s_e))
        return torch.stack(out)


@program(frames(64), T=25)
class ApicalDendrites(nn.Module):
    """The second layer's spikes come back to dendrites of the first one, which raise its membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.basal, self.apical, self.up = nn.Linear(64, 96), nn.Linear(48, 96), nn.Linear(96, 48)
        self.low, self.high = snn.Leaky(beta=0.9, threshold=0.5), snn.Leaky(beta=0.8, threshold=0.3)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Any:
        low, high = self.low.init_leaky(), self.high.init_leaky()
        dendrite, top = x.new_zeros(x.shape[1], 96), x.new_zeros(x.shape[1], 48)
        record = []
        for step in range(x.shape[0]):
            dendrite = 0.7 * dendrite + self.apical(top)
            spk, low = self.low(self.basal(x[step]) * (1 + torch.sigmoid(dendrite)), low)
            top, high = self.high(self.up(spk), high)
            record.append(self.out(top))
        return torch.stack(record)


@program(frames(40, classes=12), T=50, dtype=torch.float32)
class Keywords(nn.Module):
    """Gates of an LSTM with a spike for its output, in one linear layer each for input and state."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state, self.out = nn.Linear(40, 256), nn.Linear(64, 256, bias=False), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], 64)
        out = []
        for frame in x:
            i, f, g, o = (self.of_input(frame) + self.of_state(h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = spikes(torch.sigmoid(o) * torch.tanh(c) - 0.05)
            out.append(self.out(h))
        return torch.stack(out)
