"""Recurrent neurons, whose spikes come back through weights of their own."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import surrogate, utils
from torch import Tensor, nn

from . import events, frames, program


@program(events(700, classes=20), T=50)
class RecurrentSpeech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(700, 128), nn.Linear(128, 20)
        self.rlif1 = snn.RLeaky(beta=0.9, linear_features=128)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.rlif1.init_rleaky()
        mem2 = self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.rlif1(self.fc1(x[step]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@program(lambda T, B: (torch.randn(B, 8), torch.randint(4, (B,))), T=16)
class RecurrentPolicy(nn.Module):
    """The layers hold their states."""

    def __init__(self) -> None:
        super().__init__()
        spike_grad = surrogate.fast_sigmoid()
        self.fc1, self.fc2 = nn.Linear(8, 64), nn.Linear(64, 4)
        self.lif1 = snn.RLeaky(beta=0.9, linear_features=64, spike_grad=spike_grad, init_hidden=True)
        self.lif2 = snn.RLeaky(beta=0.9, linear_features=4, spike_grad=spike_grad, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        utils.reset(self)
        outputs = []
        for _ in range(16):
            spk, mem = self.lif2(self.fc2(self.lif1(self.fc1(x))))
            outputs.append(mem)
        return torch.stack(outputs)


@program(frames(32, classes=5), T=40)
class RecurrentStudent(nn.Module):
    """Recurrent synaptic neurons behind a LayerNorm, from states of zeros; the mean of all membranes decides."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 5)
        self.rsyn = snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=64, learn_alpha=True, learn_beta=True)

    def forward(self, x: Tensor) -> Tensor:
        spk = syn = mem = torch.zeros(x.size(1), 64)
        outputs = []
        for t in range(x.size(0)):
            spk, syn, mem = self.rsyn(self.norm(self.fc1(x[t])), spk, syn, mem)
            outputs.append(self.fc2(spk))
        return torch.stack(outputs)


def of_counts(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y.squeeze(0))


@program(lambda T, B: (torch.rand(T, 578), torch.randint(10, (1,))), of_counts, T=50)
class RecurrentUnbatched(nn.Module):
    """One recording at a time, of two polarities of 17 by 17."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(578, 100), nn.Linear(100, 10)
        self.lif1, self.lif2 = snn.RLeaky(beta=0.8, linear_features=100), snn.RLeaky(beta=0.8, linear_features=10)

    def forward(self, x: Tensor) -> Tensor:
        spk1, mem1 = self.lif1.init_rleaky()
        spk2, mem2 = self.lif2.init_rleaky()
        total = torch.zeros(10)
        for frame in x:
            spk1, mem1 = self.lif1(self.fc1(frame), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), spk2, mem2)
            total = total + spk2
        return total


@program(events(2, 16, 16), T=20, B=16)
class RecurrentConvolution(nn.Module):
    """Neurons that are connected by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.lif1 = snn.RLeaky(beta=0.8, conv2d_channels=8, kernel_size=3)
        self.fc, self.lif2 = nn.Linear(8 * 64, 10), snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.init_rleaky()
        mem2, spk_rec = self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(F.avg_pool2d(self.conv(x[t]), 2), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.flatten(1)), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@program(frames(64), T=30)
def recurrent_gradients() -> nn.Module:
    """One-to-one feedback, and a hook that clips the gradient of a weight."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 100), nn.Linear(100, 10)
            self.rsyn = snn.RSynaptic(alpha=0.9, beta=0.8, all_to_all=False, V=torch.rand(100))
            self.out = snn.RLeaky(beta=0.8, linear_features=10, reset_mechanism="zero")
            self.fc1.weight.register_hook(lambda grad: grad.clamp(-1, 1))

        def forward(self, x: Tensor) -> Any:
            spk1, syn1, mem1 = self.rsyn.init_rsynaptic()
            spk2, mem2 = self.out.init_rleaky()
            rec = []
            for step in range(x.size(0)):
                spk1, syn1, mem1 = self.rsyn(self.fc1(x[step]), spk1, syn1, mem1)
                spk2, mem2 = self.out(self.fc2(spk1), spk2, mem2)
                rec.append(mem2)
            return torch.stack(rec, dim=0)

    return Net()
