"""Loops with neurons whose steps go other ways: three states, spikes that come back, and neurons of snnTorch's own."""

from typing import Any

import torch
from loop_programs import PARTLY, program, step_first
from torch import Tensor, nn


# A neuron that snnfast does not have is an ordinary module for it, and may hold a loop of its own.
@program(
    step_first(12),
    exact=False,
    repeats=("autograd_function_apply", "getitem", "lstm_cell"),
    since="2.15",
)
class SlstmAfterLeaky(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Leaky(beta=0.9)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.SLSTM(5, 5, threshold=0.2)

    def forward(self, x: Tensor) -> Any:
        mem1 = self.lif1.reset_mem()
        syn2, mem2 = self.lif2.reset_mem()
        spk_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


@program(step_first(12), exact=False)
class Alpha(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Leaky(beta=0.9)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Alpha(alpha=0.75, beta=0.5, threshold=0.2)

    def forward(self, x: Tensor) -> Any:
        mem1 = self.lif1.reset_mem()
        syn_exc, syn_inh, mem2 = self.lif2.reset_mem()
        spk_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, syn_exc, syn_inh, mem2 = self.lif2(self.fc2(spk1), syn_exc, syn_inh, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


# The last spike is a state: passed, and held.
@program(step_first(12))
class OwnSpikesComeBack(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.RLeaky(beta=0.5, V=0.5, all_to_all=False)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.RSynaptic(alpha=0.5, beta=0.5, V=-0.25, all_to_all=False, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.init_rleaky()
        self.lif2.reset_mem()
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), spk1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1))
            spk_rec.append(spk2)
            mem_rec.append(mem1)
        return torch.stack(spk_rec), torch.stack(mem_rec), spk1, syn2, mem2


# Of connected neurons each step waits for the one before it; what is behind them is merged.
@program(step_first(12), expects=PARTLY, repeats=("linear",), exact=False)
class ConnectedNeurons(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.RLeaky(beta=0.5, linear_features=16)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        spk_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem1, mem2
