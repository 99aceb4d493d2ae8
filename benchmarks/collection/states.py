"""Membranes and thresholds that the program changes, and delays."""

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from . import frames, images, program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def change(self, mem: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            mem1 = self.change(mem1, x[t])
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


@program(frames(64))
class Squashed(Net):
    def change(self, mem: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(mem)


@program(frames(64))
class Masked(Net):
    """Lesions: some neurons are kept silent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alive", (torch.rand(128) < 0.8).to(torch.get_default_dtype()))

    def change(self, mem: Tensor, x: Tensor) -> Tensor:
        return mem * self.alive


@program(frames(64))
class Bounded(Net):
    def change(self, mem: Tensor, x: Tensor) -> Tensor:
        return torch.clamp(mem, min=-1.0)


@program(frames(64))
class ClampedThreshold(nn.Module):
    """Learned thresholds are kept positive at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 10)
        self.lif1 = snn.Leaky(beta=0.9, threshold=torch.full((128,), 0.7), learn_threshold=True)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            self.lif1.threshold.data.clamp_(min=0.1)
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(mem2)
        return torch.stack(out)


class Graded(snn.Leaky):
    """A subclass that computes its decay from a time constant."""

    def __init__(self, tau_mem: float, **options: Any) -> None:
        super().__init__(beta=float(torch.exp(torch.tensor(-1 / tau_mem))), **options)
        self.tau_mem = tau_mem


@program(frames(64))
def subclass() -> nn.Module:
    net = Squashed()
    net.lif1, net.lif2 = Graded(10.0), Graded(5.0, reset_mechanism="zero")
    net.change = lambda mem, x: mem  # type: ignore[method-assign]
    return net


@program(frames(64), T=30)
class Delayed(nn.Module):
    """Spikes arrive three steps later, through a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 10)
        self.lif1, self.lif2 = snn.Synaptic(alpha=0.7, beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        (syn1, mem1), mem2 = self.lif1.init_synaptic(), self.lif2.init_leaky()
        queue = [torch.zeros(x.size(1), 128) for _ in range(3)]
        out = []
        for t in range(x.size(0)):
            spk1, syn1, mem1 = self.lif1(self.fc1(x[t]), syn1, mem1)
            queue.append(spk1)
            spk2, mem2 = self.lif2(self.fc2(queue.pop(0)), mem2)
            out.append(spk2)
        return torch.stack(out), mem1


@program(images(64), T=20)
class Inhibition(nn.Module):
    """The winner takes all: the strongest neuron alone spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 100), nn.Linear(100, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.8, inhibition=True), snn.Leaky(beta=0.8, threshold=0.1)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(20):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


@program(frames(64), T=40)
class Truncated(nn.Module):
    """Truncated backpropagation: the states are detached every ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.95), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            if t % 10 == 0:
                mem1, mem2 = mem1.detach(), mem2.detach()
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(mem2)
        return torch.stack(out)
