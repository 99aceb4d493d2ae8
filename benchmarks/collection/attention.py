"""Spiking transformers."""

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from . import frames, program


@program(frames(16, 32, classes=4), T=12, B=8)
class Brainwaves(nn.Module):
    """Attention over sixteen electrodes at every step, then spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 4)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            attended, _ = self.attention(x[t], x[t], x[t])
            spk1, mem1 = self.lif1(self.fc1(self.norm(x[t] + attended)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1.mean(1)), mem2)
            out.append(spk2)
        return torch.stack(out)


@program(frames(16, 32), T=8, B=8)
class SpikingAttention(nn.Module):
    """Queries, keys and values are spikes; there is no softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj, self.head = (nn.Linear(32, 32) for _ in range(5))
        self.lif_q, self.lif_k, self.lif_v, self.lif_out = (snn.Leaky(beta=0.5, init_hidden=True) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), 16, 4, 8).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        for lif in (self.lif_q, self.lif_k, self.lif_v, self.lif_out):
            lif.reset_mem()
        out = []
        for t in range(x.size(0)):
            q, k, v = (self.heads(lif(fc(x[t]))) for lif, fc in
                       ((self.lif_q, self.q), (self.lif_k, self.k), (self.lif_v, self.v)))  # fmt: skip
            mixed = (q @ k.transpose(-2, -1) @ v * 0.25).transpose(1, 2).reshape(x.size(1), 16, 32)
            out.append(self.head(self.lif_out(self.proj(mixed)) + x[t]).mean(1))
        return torch.stack(out)
