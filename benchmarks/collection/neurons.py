"""Neurons that papers and repositories write by hand, in a network 100-512-10: elementwise lines in a loop."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from . import frames, program


class Triangle(torch.autograd.Function):
    """As in TET and in Dspike: a triangle of width ``gamma``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        out = (x > 0).to(x.dtype)
        ctx.save_for_backward(x, out, torch.tensor([gamma]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, _, others = ctx.saved_tensors
        gamma = others[0].item()
        return grad * (1 / gamma) * (1 / gamma) * (gamma - x.abs()).clamp(min=0), None


class Rectangle(torch.autograd.Function):
    """As in STBP: a rectangle around the threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0.5).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (abs(x - 0.5) < 0.5).to(x.dtype)


class SuperSpike(torch.autograd.Function):
    """As in SpyTorch's tutorial, with an attribute of ``ctx`` and a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = 10.0
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.clone() / (ctx.scale * torch.abs(x) + 1.0) ** 2


class MultiGaussian(torch.autograd.Function):
    """As in Yin's adaptive neurons."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.clone() * F.relu(1 - x.abs()) * 0.5


class Levels(torch.autograd.Function):
    """As in integer neurons: rounded to 0 to 4, straight through in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.round(torch.clamp(x, 0, 4))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        made = grad.clone()
        made[x < 0] = 0
        made[x > 4] = 0
        return made


class Layers(nn.Module):
    """Each layer for all steps, and then the next one, as in the code of many papers."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.fc1, self.neuron, self.fc2 = nn.Linear(100, 512), neuron, nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.neuron(self.fc1(x)))  # type: ignore[no-any-return]


class Neuron(nn.Module):
    def __init__(self, learned: tuple[str, ...]) -> None:
        super().__init__()
        self.thresh, self.decay = 1.0, 0.5
        if "w" in learned:
            self.w = nn.Parameter(torch.tensor(0.5))
        if "tau" in learned:
            self.tau = nn.Parameter(torch.linspace(-1.0, 2.0, 512))


def neuron(*learned: str) -> Callable[[Callable[[Any, Tensor], Tensor]], Any]:
    """Enter a network whose neuron has a ``forward`` from ``[T, B, N]`` to ``[T, B, N]``, and learns these."""

    def enter(forward: Callable[[Any, Tensor], Tensor]) -> Any:
        kind = type(forward.__name__, (Neuron,), {"forward": forward, "__module__": __name__})

        def net() -> nn.Module:
            return Layers(kind(learned))

        net.__name__ = forward.__name__
        return program(frames(100), T=30, B=64)(net)

    return enter


@neuron()
def lif_with_soft_reset(self: Any, x: Tensor) -> Tensor:
    mem, out = 0, []
    for t in range(x.shape[0]):
        mem = mem * self.decay + x[t]
        spike = Triangle.apply(mem - self.thresh, 1.0)
        mem = mem - spike.detach() * self.thresh
        out.append(spike)
    return torch.stack(out)


@neuron()
def lif_with_hard_reset(self: Any, x: Tensor) -> Tensor:
    mem, out = 0, []
    for t in range(x.shape[0]):
        mem = mem * self.decay + x[t]
        spike = Triangle.apply(mem - self.thresh, 1.0)
        mem = (1 - spike) * mem
        out.append(spike)
    return torch.stack(out)


@neuron()
def stbp(self: Any, x: Tensor) -> Tensor:
    mem = spike = torch.zeros(x.shape[1:], dtype=x.dtype)
    out = torch.zeros(x.shape, dtype=x.dtype)
    for step in range(x.shape[0]):
        mem = mem * 0.2 * (1.0 - spike) + x[step]
        spike = Rectangle.apply(mem)
        out[step] = spike
    return out


@neuron()
def current_based(self: Any, x: Tensor) -> Tensor:
    syn, mem = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    spk_rec = []
    for t in range(x.shape[0]):
        out = SuperSpike.apply(mem - 1.0)
        rst = out.detach()
        new_syn = 0.8 * syn + x[t]
        new_mem = (0.9 * mem + syn) * (1.0 - rst)
        spk_rec.append(out)
        mem, syn = new_mem, new_syn
    return torch.stack(spk_rec)


@neuron("tau")
def adaptive_threshold(self: Any, x: Tensor) -> Tensor:
    mem = spike = torch.zeros_like(x[0])
    b = torch.full_like(x[0], 0.01)
    alpha, rho = torch.exp(-1.0 / (self.tau.abs() + 5.0)), 0.97
    out = []
    for t in range(x.shape[0]):
        b = rho * b + (1 - rho) * spike
        threshold = 0.5 + 1.8 * b
        mem = mem * alpha + (1 - alpha) * x[t] * 4 - threshold * spike
        spike = MultiGaussian.apply(mem - threshold)
        out.append(spike)
    return torch.stack(out)


@neuron("w")
def parametric_lif(self: Any, x: Tensor) -> Tensor:
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        v = v + (x[t] - v) * self.w.sigmoid()
        spike = SuperSpike.apply(v - 0.5)
        v = v * (1.0 - spike.detach())
        out.append(spike)
    return torch.stack(out)


@neuron()
def izhikevich(self: Any, x: Tensor) -> Tensor:
    v, u, out = torch.full_like(x[0], -65.0), torch.full_like(x[0], -13.0), []
    for t in range(x.shape[0]):
        v = v + (0.04 * v**2 + 5 * v + 140 - u + 20 * x[t]) * 0.5
        u = u + 0.02 * (0.2 * v - u)
        spike = SuperSpike.apply(v - 30.0)
        v = torch.where(spike > 0, torch.full_like(v, -65.0), v)
        u = u + 8.0 * spike
        out.append(spike)
    return torch.stack(out)


@neuron()
def integer_lif(self: Any, x: Tensor) -> Tensor:
    mem, spike = 0, 0
    out = torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = (mem - spike) * 0.25 + x[t] * 2 if t else x[t] * 2
        spike = Levels.apply(mem)
        out[t] = spike.clone() / 4
    return out


@neuron("tau")
def adaptive_lif_with_two_states(self: Any, x: Tensor) -> Tensor:
    u, w, s = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.zeros_like(x[0])
    alpha, out = self.tau.sigmoid(), []
    for current in x:
        w = 0.9 * w + 0.1 * u + 0.3 * s
        u = alpha * (u - s) + (1 - alpha) * (current * 3 - w)
        s = MultiGaussian.apply(u - 0.5)
        out.append(s)
    return torch.stack(out)


@neuron()
def leaky_integrate_and_analog_fire(self: Any, x: Tensor) -> Tensor:
    mem, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        mem = mem * self.decay + x[t]
        spike = Rectangle.apply(mem)
        out.append(F.relu(mem))
        mem = mem * (1 - spike)
    return torch.stack(out, dim=0)


@neuron()
def filtered_by_a_trace(self: Any, x: Tensor) -> Tensor:
    mem, trace, out = 0.0, 0.0, []
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t]
        spike = SuperSpike.apply(mem - 1.0)
        mem = mem - spike
        trace = 0.8 * trace + spike
        out.append(trace)
    return torch.stack(out)


@neuron()
def refractory(self: Any, x: Tensor) -> Tensor:
    mem, rest, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        active = rest <= 0
        mem = torch.where(active, mem * 0.9 + x[t], mem)
        spike = SuperSpike.apply(mem - 1.0) * active.to(x.dtype)
        mem = mem.masked_fill(spike.detach() > 0.5, 0.0)
        rest = torch.clamp(rest - 1, min=0) + 2 * spike.detach()
        out.append(spike)
    return torch.stack(out)


@neuron("w", "tau")
def gated(self: Any, x: Tensor) -> Tensor:
    """As a GLIF: learned gates mix ways to leak, to integrate and to reset."""
    u, o, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    gate, leak = self.tau.sigmoid(), self.w.sigmoid()
    for t in range(x.shape[0]):
        coming = x[t] * (1 - gate * 0.5)
        u = (1 - gate * (1 - leak)) * u * (1 - gate * o) - (1 - gate) * 0.25 + coming
        o = Triangle.apply(u - 0.5, 1.0)
        out.append(o)
    return torch.stack(out)


@program(frames(100), T=30, B=64)
class InOneLoop(nn.Module):
    """Both layers in one loop, with the sum of the spikes, as in SNN tutorials without a library."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(100, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        h1_mem = h1_spike = torch.zeros(x.shape[1], 512, dtype=x.dtype)
        h2_mem = h2_spike = h2_sum = torch.zeros(x.shape[1], 10, dtype=x.dtype)
        for t in range(x.shape[0]):
            h1_mem = h1_mem * 0.5 * (1.0 - h1_spike) + self.fc1(x[t])
            h1_spike = Rectangle.apply(h1_mem)
            h2_mem = h2_mem * 0.5 * (1.0 - h2_spike) + self.fc2(h1_spike)
            h2_spike = Rectangle.apply(h2_mem)
            h2_sum = h2_sum + h2_spike
        return (h2_sum / x.shape[0]).unsqueeze(0)
