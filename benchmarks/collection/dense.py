"""Fully connected networks, as in tutorials."""

from itertools import pairwise
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import functional as SF  # noqa: N812
from snntorch import spikegen, surrogate, utils
from torch import Tensor, nn

from . import events, frames, images, program


def loss_of_membranes(net: Any, x: Tensor, y: Tensor) -> Tensor:
    spk_rec, mem_rec = net(x)
    loss_val = torch.zeros(1)
    for step in range(mem_rec.size(0)):
        loss_val += F.cross_entropy(mem_rec[step], y)
    return loss_val


@program(images(784), loss_of_membranes, B=128)
class StaticImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 500)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(500, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> Any:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _ in range(25):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


def mean_square(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x)[..., 0], torch.linspace(-1, 1, x.size(0)).unsqueeze(1).expand(x.shape[:2]))


@program(frames(8), mean_square, T=50)
class Price(nn.Module):
    """Regression on the membrane of a last neuron that is never reset."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.lif1 = snn.Leaky(beta=0.9, learn_beta=True)
        self.lif2 = snn.Leaky(beta=0.9, learn_beta=True)
        self.lif3 = snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        out = []
        for t in range(x.shape[0]):
            s1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            s2, mem2 = self.lif2(self.fc2(s1), mem2)
            _, mem3 = self.lif3(self.fc3(s2), mem3)
            out.append(mem3)
        return torch.stack(out)


@program(lambda T, B: (torch.rand(B, T, 40), torch.randint(20, (B,))), T=40)
class Speech(nn.Module):
    """Batch first; a time constant for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(40, 128), nn.Linear(128, 20)
        self.syn1 = snn.Synaptic(alpha=torch.rand(128), beta=torch.rand(128), learn_alpha=True, learn_beta=True)
        self.syn2 = snn.Synaptic(alpha=torch.rand(20), beta=torch.rand(20), learn_alpha=True, learn_beta=True)

    def forward(self, x: Tensor) -> Any:
        syn1, mem1 = self.syn1.init_synaptic()
        syn2, mem2 = self.syn2.init_synaptic()
        outputs, hidden = [], []
        for t in range(x.size(1)):
            spk1, syn1, mem1 = self.syn1(self.fc1(x[:, t, :]), syn1, mem1)
            spk2, syn2, mem2 = self.syn2(self.fc2(spk1), syn2, mem2)
            hidden.append(spk1)
            outputs.append(mem2)
        return torch.stack(outputs), torch.stack(hidden).mean()


def forward_pass(net: Any, x: Tensor, y: Tensor) -> Tensor:
    spk_rec = []
    utils.reset(net)
    for step in range(x.size(0)):
        spk_out, _ = net(x[step])
        spk_rec.append(spk_out)
    return SF.ce_rate_loss()(torch.stack(spk_rec), y)


@program(frames(100), forward_pass, whole=True)
def sequential_function() -> nn.Module:
    spike_grad = surrogate.fast_sigmoid(slope=25)

    def neuron(**options: Any) -> nn.Module:
        return snn.Leaky(beta=0.9, spike_grad=spike_grad, init_hidden=True, **options)

    return nn.Sequential(nn.Linear(100, 200), neuron(), nn.Linear(200, 10), neuron(output=True))


def forward_pass_of_alpha(net: Any, x: Tensor, y: Tensor) -> Tensor:
    utils.reset(net)
    count: Any = 0
    for step in range(x.size(0)):
        count = count + net(x[step])[0]
    return F.cross_entropy(count / x.size(0), y)


@program(frames(100), forward_pass_of_alpha, whole=True)
def alpha_function() -> nn.Module:
    return nn.Sequential(
        nn.Linear(100, 200), snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
        nn.Linear(200, 10), snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True, output=True),
    )  # fmt: skip


def deterministic(net: Any, state: Tensor, y: Tensor) -> Tensor:
    return -net(state).mean() + F.mse_loss(net(state * 0.5), torch.zeros(state.size(0), 4))


@program(lambda T, B: (torch.randn(B, 24), torch.zeros(B)), deterministic, B=64)
class Actor(nn.Module):
    """Continuous control: four layers of synaptic neurons, and actions from the last membrane."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (24, 256, 256, 256, 4)
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.lif = nn.ModuleList(snn.Synaptic(alpha=0.8, beta=0.9) for _ in self.fc)

    def forward(self, state: Tensor) -> Tensor:
        states = [lif.init_synaptic() for lif in self.lif]
        for _ in range(16):
            cur = state
            for i, (fc, lif) in enumerate(zip(self.fc, self.lif, strict=True)):
                cur, *states[i] = lif(fc(cur), *states[i])
        return torch.tanh(states[-1][1])


@program(images(14, classes=2), T=20, B=256)
class Tabular(nn.Module):
    """Learned decays and thresholds; the layers hold their states."""

    def __init__(self) -> None:
        super().__init__()
        options = {"learn_beta": True, "learn_threshold": True, "init_hidden": True}
        self.fc1, self.lif1 = nn.Linear(14, 64), snn.Leaky(beta=torch.full((64,), 0.8), **options)
        self.fc2, self.lif2 = nn.Linear(64, 2), snn.Leaky(beta=0.8, output=True, **options)

    def forward(self, x: Tensor) -> Any:
        utils.reset(self)
        spikes = torch.zeros(20, x.size(0), 2)
        for t in range(20):
            spikes[t], _ = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return spikes


@program(events(2, classes=2), T=60)
class Oscillations(nn.Module):
    """States that are attributes of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 64), nn.Linear(64, 32), nn.Linear(32, 2)
        self.lif1, self.lif2, self.lif3 = (snn.Leaky(beta=0.9) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        self.mem1, self.mem2, self.mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        self.spikes: list[Tensor] = []
        for t in range(x.size(0)):
            spk1, self.mem1 = self.lif1(self.fc1(x[t]), self.mem1)
            spk2, self.mem2 = self.lif2(self.fc2(spk1), self.mem2)
            spk3, self.mem3 = self.lif3(self.fc3(spk2), self.mem3)
            self.spikes.append(spk3)
        return torch.stack(self.spikes), self.mem3


def fitness(net: Any, x: Tensor) -> Tensor:
    return net(x).mul(torch.linspace(-1, 1, 4)).sum()


@program(lambda T, B: (torch.rand(T, 6),), fitness, T=50)
class Controller(nn.Module):
    """One sample without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(6, 32), nn.Linear(32, 4)
        self.n1, self.n2 = snn.Leaky(beta=0.8, threshold=0.5), snn.Leaky(beta=0.8, threshold=3.0)

    def forward(self, x: Tensor) -> Tensor:
        m1, m2 = self.n1.init_leaky(), self.n2.init_leaky()
        total: Any = 0
        for obs in x:
            s1, m1 = self.n1(self.l1(obs), m1)
            s2, m2 = self.n2(self.l2(s1), m2)
            total += s2
        return total / len(x)


def population(net: Any, x: Tensor, y: Tensor) -> Any:
    spk_rec = net(x)
    loss = SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2, population_code=True, num_classes=10)
    return loss(spk_rec, y), SF.accuracy_rate(spk_rec, y, population_code=True, num_classes=10)


@program(images(784), population, B=64)
class Population(nn.Module):
    """Ten output neurons a class."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 128), snn.Lapicque(beta=0.9, threshold=0.2)
        self.fc2, self.lif2 = nn.Linear(128, 100), snn.Lapicque(beta=0.9, threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, spikes = self.lif1.init_lapicque(), self.lif2.init_lapicque(), []
        for _ in range(25):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


@program(images(28, 28), B=64)
class RateCoded(nn.Module):
    """Spikes are drawn from the image in ``forward``; Dropout between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(784, 256), nn.Linear(256, 10), nn.Dropout(0.3)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        spike_data = spikegen.rate(x, num_steps=25)
        mem1, mem2, spk_rec, mem_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for step in range(25):
            spk1, mem1 = self.lif1(self.fc1(spike_data[step].view(x.size(0), -1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(self.drop(spk1)), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@program(lambda T, B: (torch.randn(B, 17), torch.randint(6, (B,))), T=10, B=64)
class PopulationPolicy(nn.Module):
    """LayerNorm in front of every layer of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.fc1, self.fc2 = nn.Linear(17, 170), nn.Linear(170, 128), nn.Linear(128, 6)
        self.norm0, self.norm1 = nn.LayerNorm(170), nn.LayerNorm(128)
        self.lif0, self.lif1, self.lif2 = (snn.Leaky(beta=0.75) for _ in range(3))

    def forward(self, obs: Tensor) -> Any:
        mem0, mem1, mem2 = self.lif0.init_leaky(), self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes = []
        for _ in range(10):
            spk0, mem0 = self.lif0(self.norm0(self.encode(obs)), mem0)
            spk1, mem1 = self.lif1(self.norm1(self.fc1(spk0)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes += [spk2]
        return torch.stack(spikes), mem2


@program(images(100), T=20)
class MembraneForgotten(nn.Module):
    """The membranes are never passed on: the layers keep them all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(100, 64), nn.Linear(64, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        outputs = []
        for _ in range(20):
            spk, _ = self.lif1(self.fc1(x))
            spk, mem = self.lif2(self.fc2(spk))
            outputs.append(mem)
        return torch.stack(outputs, dim=0)
