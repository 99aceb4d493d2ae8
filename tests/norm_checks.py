"""Batch normalisation in training and the neurons behind it, beside the scale and shift of the kernels and float64."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from helpers import HALVES, assert_bits_equal, assert_close
from torch import Tensor, nn

import snnfast
from snnfast import MultiStep
from snnfast._core import ops
from snnfast._core.order import dense_steps
from snnfast._unroll import normed
from snnfast.reference import lif
from snnfast.spikingjelly import neuron
from snnfast.spikingjelly.surrogate import ATan, Sigmoid

DTYPES = (torch.float32, *HALVES)
RELATIVE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BETA, THRESHOLD = 0.9, 0.7
Shape = tuple[int, ...]


def images(
    steps: int, shape: Shape, dtype: torch.dtype = torch.float32, layout: str = "usual", seed: int = 0
) -> Tensor:
    """Each step and channel has a mean and a deviation of its own."""
    torch.manual_seed(seed)
    means, deviations = torch.randn(2, steps, 1, shape[1], *(1,) * (len(shape) - 2))
    x = (torch.randn(steps, *shape) * (deviations.abs() + 0.2) + 3 * means).to(dtype)
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if layout == "channels_last" else x


def norm_of(x: Tensor, **options: Any) -> Any:
    torch.manual_seed(1)
    kind: Any = {3: nn.BatchNorm1d, 4: nn.BatchNorm1d, 5: nn.BatchNorm2d, 6: nn.BatchNorm3d}[x.dim()]
    norm = kind(x.shape[2], **options)
    for p in norm.parameters():
        nn.init.uniform_(p, 0.3, 1.2)
    return norm


def leaky(**options: Any) -> snnfast.Leaky:
    return snnfast.Leaky(**{"beta": BETA, "threshold": THRESHOLD, **options})


def net_of(norm: nn.Module, neurons: nn.Module, over_time: bool = False) -> MultiStep:
    return MultiStep(norm, neurons, nn.Identity(), batch_norm_over_time=over_time)


class Loop(nn.Module):
    """A loop over time with a normalisation of 16 channels, neurons and a pooling behind one another."""

    def __init__(self, norm: nn.Module, pool: nn.Module, reads_twice: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.lif1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), norm, leaky()
        self.pool, self.fc, self.lif2 = pool, nn.Linear(16 * 16, 3), leaky()
        self.reads_twice = reads_twice

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, spk_rec = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in x:
            spk, mem1 = self.lif1(self.norm(self.conv(step)), mem1)
            pooled = self.pool(spk).flatten(1) * (spk.mean() if self.reads_twice else 1.0)
            spk, mem2 = self.lif2(self.fc(pooled), mem2)
            spk_rec.append(spk)
        return torch.stack(spk_rec)


Charge = Callable[[Tensor, Tensor], Tensor]  # the membrane and a current to the membrane that decides the spike


class Neurons(NamedTuple):
    """Neurons behind a batch normalisation, and what their gradients are in float64."""

    name: str  # in the names of the kernels
    reset: int  # as the kernels count it
    make: Callable[[], Any]
    spikes: Callable[[Tensor], tuple[Tensor, Tensor]]  # of a current; and the membranes that decide them
    charge: Callable[[Tensor], Charge]  # of the rate that is learned
    after: Callable[[Tensor, Tensor], Tensor]  # the reset, of a membrane and its spike
    slope: Callable[[Tensor], Tensor]  # the derivative of a spike, of how far its membrane is from the threshold


def _atan(alpha: float, z: Tensor) -> Tensor:
    return alpha / 2 / (1 + (torch.pi / 2 * alpha * z) ** 2)


def _sigmoid(alpha: float, z: Tensor) -> Tensor:
    s = (alpha * z).sigmoid()
    return alpha * s * (1 - s)


LEAKY = Neurons(
    "Leaky", 0, leaky,
    spikes=lambda y: lif(y, beta=BETA, threshold=THRESHOLD),
    charge=lambda _: lambda v, y: torch.tensor(BETA) * v + y,
    after=lambda v, s: v - s.detach() * torch.tensor(THRESHOLD),
    slope=lambda z: _atan(2.0, z),
)  # fmt: skip


def nodes(kind: str, gradient: str, v_reset: float | None, detach: bool = False, decays: bool = True) -> Neurons:
    """SpikingJelly's nodes, with a rate of 1 / 2 where they leak."""
    of = {"v_threshold": THRESHOLD, "v_reset": v_reset, "detach_reset": detach}
    if kind != "IFNode":
        of["decay_input"] = decays

    def make() -> Any:
        node = getattr(neuron, kind)(surrogate_function={"ATan": ATan, "Sigmoid": Sigmoid}[gradient](), **of)
        for w in node.parameters():
            w.data = w.data.reshape(1)  # a tensor without dimensions would be a number of the host in the emulator
        return node

    def spikes(y: Tensor) -> tuple[Tensor, Tensor]:
        """And the membranes: without a reset they are what decides."""
        node, each, charge_of = make(), [], charge(torch.tensor(0.5))
        with snnfast.use_backend("reference"), torch.no_grad():
            v = torch.full_like(y[0], v_reset or 0.0)
            for step in y:
                each.append(charge_of(v, step))
                v = after(each[-1], (each[-1] - torch.tensor(THRESHOLD) >= 0).float())
            node.step_mode = "m"
            return node(y), torch.stack(each)

    def charge(rate: Tensor) -> Charge:
        if kind == "IFNode":
            return lambda v, y: v + y
        if decays:
            return lambda v, y: v + (y - (v - (v_reset or 0.0))) * rate
        return lambda v, y: v + -(v - (v_reset or 0.0)) * rate + y

    def after(h: Tensor, s: Tensor) -> Tensor:
        s = s.detach() if detach else s
        return h - s * torch.tensor(THRESHOLD) if v_reset is None else s * v_reset + (1 - s) * h

    slope = {"ATan": lambda z: _atan(2.0, z), "Sigmoid": lambda z: _sigmoid(4.0, z)}[gradient]
    return Neurons("IFNode", int(v_reset is not None), make, spikes, charge, after, slope)


NODES = {
    f"{kind}, {gradient}, {reset}{', detached' * detach}{', decays' * decays}": partial(
        nodes, kind, gradient, {"soft": None, "hard": 0.0, "elsewhere": -0.25}[reset], detach, decays
    )
    for kind, gradient, reset, detach, decays in (
        ("IFNode", "Sigmoid", "hard", False, False), ("IFNode", "ATan", "soft", False, False),
        ("IFNode", "ATan", "elsewhere", True, False), ("IFNode", "Sigmoid", "soft", True, False),
        ("LIFNode", "Sigmoid", "hard", False, True), ("LIFNode", "ATan", "hard", True, False),
        ("LIFNode", "ATan", "elsewhere", False, False), ("LIFNode", "Sigmoid", "soft", False, True),
        ("ParametricLIFNode", "Sigmoid", "elsewhere", False, True), ("ParametricLIFNode", "ATan", "hard", True, False),
        ("ParametricLIFNode", "ATan", "soft", False, True), ("ParametricLIFNode", "Sigmoid", "soft", True, False),
    )
}  # fmt: skip


def membranes(x: Tensor, norm: Any, over_time: bool, neurons: Neurons = LEAKY) -> tuple[Tensor, Tensor]:
    """The spikes and the membranes of a scale and a shift that are those of the kernels, bit for bit."""
    wide = (None if t is None else t.detach().float() for t in (norm.weight, norm.bias))
    numbers, _ = ops.norm_ops.norm_statistics(dense_steps(x.detach()), *wide, norm.eps, over_time)
    scale, shift, mean = (t.view(len(t), 1, -1, *(1,) * (x.dim() - 3)) for t in numbers.cpu().unbind(-1)[:3])
    y = x.detach().cpu().float()
    y = ((y - mean) * scale + shift).to(x.dtype).float() if ops.has_cpu_kernels(x.device) else scale * y + shift
    spk, mem = neurons.spikes(y)
    return spk.to(x.dtype), mem


def by_reference(x: Tensor, norm: Any, state: Tensor | None, neurons: Any = None) -> tuple[Tensor, ...]:
    """What the definition makes of a call, of neurons that are leaky by default; and the last state."""
    neurons = neurons or leaky()
    how = normed._How(neurons.neuron, neurons._options(), norm.eps, over_time=False, last=True)
    return normed.reference(how, x, norm.weight, norm.bias, state, neurons._values())


def in_float64(
    x: Tensor, norm: Any, over_time: bool, spk: Tensor, mem: Tensor, grad: Tensor, neurons: Neurons = LEAKY
) -> list[Tensor]:
    """The gradients of the input, the weight and the bias, and of the rate: given the spikes and how steep each is."""
    norm = copy.deepcopy(norm).double()
    x, rate = x.detach().double().requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = norm(x.flatten(0, 1)).view(x.shape) if over_time else torch.stack([norm(step) for step in x])
    slopes = neurons.slope(mem.double() - torch.tensor(THRESHOLD))
    begin = getattr(neurons.make(), "v_reset", None) or 0.0
    v, charge, outputs = torch.full_like(y[0], begin), neurons.charge(rate), []
    for current, fired, slope in zip(y, spk.double(), slopes, strict=True):
        h = charge(v, current)
        s = fired + slope * (h - h.detach())
        v = neurons.after(h, s)
        outputs.append(s)
    of_all = [x, *norm.parameters(), rate]
    return list(torch.autograd.grad(torch.stack(outputs), of_all, grad.double(), allow_unused=True))


def check(x: Tensor, norm: Any, over_time: bool = False, neurons: Neurons = LEAKY) -> None:
    """The spikes, bit for bit, and the gradients of a network."""
    x = x.detach().requires_grad_()
    spk, mem = membranes(x, norm, over_time, neurons)
    net = net_of(norm, neurons.make(), over_time).to(x.device)
    found = net(x)
    assert all(a == b for n, a, b in zip(x.shape, found.stride(), x.stride(), strict=True) if n > 1)
    assert_bits_equal(found, spk)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    grads = torch.autograd.grad(found, [x, *net.parameters()], grad.to(x.device))
    on_cpu = copy.deepcopy(norm).cpu()
    wanted = in_float64(x.detach().cpu(), on_cpu, over_time, spk.cpu(), mem, grad, neurons)
    if len(wanted) > len(grads):
        del wanted[-1]  # nothing is learned
    else:
        wanted[-1] = wanted[-1] / 4  # of w: the rate is its sigmoid, of 0
    assert_close(grads[0].cpu(), wanted[0].to(x.dtype), RELATIVE[x.dtype])
    for a, b in zip(grads[1:], wanted[1:], strict=True):  # sums whose terms may cancel
        assert_close(a.cpu(), b.to(a.dtype).view(a.shape), 2e-6, scale=grad.double().norm().item())
