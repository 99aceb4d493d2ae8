"""Loops that count, print and check on the way."""

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import frames, images, program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(100, 128), nn.Linear(128, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def start(self) -> Any:
        return self.lif1.init_leaky(), self.lif2.init_leaky()

    def step(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk1, mem1, spk2, mem2


@program(frames(100))
class SpikeCounts(Net):
    """The spikes of every layer are counted for the energy that they would cost."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.start()
        count1 = count2 = 0.0
        out = []
        for t in range(x.size(0)):
            spk1, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            count1 += spk1.sum().item()
            count2 += spk2.sum().item()
            out.append(spk2)
        return torch.stack(out), {"spikes": [count1, count2]}


@program(images(100))
class Rates(Net):
    """A list of numbers for each layer, for a figure."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.start()
        rates: dict[str, list[float]] = {"lif1": [], "lif2": [], "mem": []}
        out = []
        for _ in range(25):
            spk1, mem1, spk2, mem2 = self.step(x, mem1, mem2)
            rates["lif1"].append(spk1.mean().item())
            rates["lif2"].append(float(spk2.mean()))
            rates["mem"].append(mem2.detach().abs().max().item())
            out.append(mem2)
        return torch.stack(out), rates


@program(frames(100), T=20)
class ActiveNeurons(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.start()
        active, total = 0, 0
        out = []
        for t in range(x.size(0)):
            spk1, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            active += int((spk1 > 0).sum())
            total += spk1.numel()
            out.append(spk2)
        return torch.stack(out), active / total


@program(frames(100))
class Prints(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        out = []
        for t in range(x.size(0)):
            spk1, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            print(f"step {t}: {spk1.sum().item():.0f} spikes")
            out.append(spk2)
        return torch.stack(out)


@program(frames(100))
class PrintsSometimes(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        out = []
        for t in range(x.size(0)):
            spk1, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            if t % 5 == 0:
                print("step", t, "membrane", mem2.mean())
            out.append(spk2)
        return torch.stack(out)


@program(frames(100))
class ProgressBar(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        out = []
        for t in tqdm(range(x.size(0)), desc="time", leave=False):
            _, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            out.append(spk2)
        return torch.stack(out)


@program(frames(100))
class Asserts(Net):
    """Nothing may become NaN."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        out = []
        for t in range(x.size(0)):
            _, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            assert not torch.isnan(mem1).any()
            assert not mem2.isnan().any(), "the membrane diverged"
            out.append(spk2)
        return torch.stack(out)


@program(frames(100), T=20)
class RecordsInNumpy(Net):
    """What is kept for a figure leaves PyTorch in the loop."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.start()
        out, kept = [], []
        for t in range(x.size(0)):
            spk1, mem1, spk2, mem2 = self.step(x[t], mem1, mem2)
            kept.append(spk1.detach().cpu().numpy().sum())
            out.append(spk2)
        return torch.stack(out), float(sum(kept))


@program(images(100))
class EarlyExit(Net):
    """Stops once every sample has spiked: what happens depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        out = []
        seen = torch.zeros(x.size(0), dtype=torch.bool)
        for _ in range(25):
            _, mem1, spk2, mem2 = self.step(x, mem1, mem2)
            out.append(mem2)
            seen |= spk2.bool().any(1)
            if seen.all() and len(out) > 12:
                break
        return torch.stack(out)
