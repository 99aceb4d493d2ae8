"""Recurrent neurons, whose spikes come back through weights of their own."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import surrogate, utils
from torch import Tensor, nn

from . import events, frames, program
from .neurons import SuperSpike


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


# ---- by hand: a product of the last spikes is a part of the current


class Bell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(-(x**2) / 0.5) * 0.8


@program(events(100), T=50)
class RecurrentByHand(nn.Module):
    """Current-based neurons and a readout that never spikes, in matrices, batch first, as in SpyTorch's tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.v1 = (nn.Parameter(torch.empty(n, 128)) for n in (100, 128))
        self.w2 = nn.Parameter(torch.empty(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        h1 = torch.einsum("abc,cd->abd", (x.transpose(0, 1), self.w1))
        syn, mem, out = (torch.zeros(h1.shape[0], 128, dtype=x.dtype) for _ in range(3))
        spk_rec, out_rec = [], []
        for t in range(h1.shape[1]):
            current = h1[:, t] + torch.einsum("ab,bc->ac", (out, self.v1))
            out = SuperSpike.apply(mem - 1.0)
            new_syn = 0.8 * syn + current
            new_mem = (0.9 * mem + syn) * (1.0 - out.detach())
            spk_rec.append(out)
            mem, syn = new_mem, new_syn
        h2 = torch.einsum("abc,cd->abd", (torch.stack(spk_rec, dim=1), self.w2))
        flt, mem = torch.zeros_like(h2[:, 0]), torch.zeros_like(h2[:, 0])
        for t in range(h2.shape[1]):
            mem, flt = 0.9 * mem + flt, 0.8 * flt + h2[:, t]
            out_rec.append(mem)
        return torch.stack(out_rec)


@program(frames(40, classes=12), T=40)
class RecurrentAdaptive(nn.Module):
    """Two layers with thresholds that rise with each spike and learned time constants, as in the networks of B. Yin."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(40, 128), nn.Linear(128, 128), nn.Linear(128, 12)
        self.rec1, self.rec2 = nn.Linear(128, 128), nn.Linear(128, 128)
        self.taus = nn.ParameterList(torch.full((128,), tau) for tau in (20.0, 100.0, 20.0, 100.0))

    def step(self, current: Tensor, mem: Tensor, spike: Tensor, b: Any, tau_m: Tensor, tau_adp: Tensor) -> Any:
        alpha, rho = torch.exp(-1.0 / tau_m), torch.exp(-1.0 / tau_adp)
        b = rho * b + (1 - rho) * spike
        threshold = 0.01 + 1.8 * b
        mem = mem * alpha + (1 - alpha) * current * 8 - threshold * spike
        return mem, Bell.apply(mem - threshold), b

    def forward(self, x: Tensor) -> Tensor:
        mem1 = spk1 = mem2 = spk2 = torch.zeros(x.shape[1], 128, dtype=x.dtype)
        b1 = b2 = torch.full_like(mem1, 0.01)
        out, outputs = torch.zeros(x.shape[1], 12, dtype=x.dtype), []
        for i in range(x.shape[0]):
            current = self.fc1(x[i]) + self.rec1(spk1)
            mem1, spk1, b1 = self.step(current, mem1, spk1, b1, self.taus[0], self.taus[1])
            current = self.fc2(spk1) + self.rec2(spk2)
            mem2, spk2, b2 = self.step(current, mem2, spk2, b2, self.taus[2], self.taus[3])
            out = out * 0.9 + 0.1 * self.fc3(spk2)
            outputs.append(F.log_softmax(out, dim=1))
        return torch.stack(outputs)


@program(frames(64), T=30)
class LeakyWithFeedback(nn.Module):
    """snnTorch's ``Leaky``, which hears its own spikes through a layer of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.rec, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 128, bias=False), nn.Linear(128, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9, reset_mechanism="zero"), snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, spk_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        spk1 = torch.zeros(x.shape[1], 128, dtype=x.dtype)
        for t in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[t]) + self.rec(spk1), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)
