"""Batch normalisation in training and the neurons behind it, beside the scale and shift of the kernels and float64."""

import copy
from typing import Any

import torch
from helpers import HALVES, assert_bits_equal, assert_close
from torch import Tensor, nn

import snnfast
from snnfast import MultiStep
from snnfast._core import ops
from snnfast._core.order import dense_steps
from snnfast.reference import lif

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


def membranes(x: Tensor, norm: Any, over_time: bool) -> tuple[Tensor, Tensor]:
    """The spikes and the membranes of a scale and a shift that are those of the kernels, bit for bit."""
    wide = (None if t is None else t.detach().float() for t in (norm.weight, norm.bias))
    numbers, _ = ops.norm_ops.norm_statistics(dense_steps(x.detach()), *wide, norm.eps, over_time)
    scale, shift = (t.view(len(t), 1, -1, *(1,) * (x.dim() - 3)) for t in numbers.cpu().unbind(-1)[:2])
    spk, mem = lif(scale * x.detach().cpu().float() + shift, beta=BETA, threshold=THRESHOLD)
    return spk.to(x.dtype), mem


def in_float64(x: Tensor, norm: Any, over_time: bool, mem: Tensor, grad: Tensor) -> list[Tensor]:
    """The gradients of the input, the weight and the bias, given the float32 membranes that decided the spikes."""
    alpha, carry, each = 2.0, torch.zeros_like(mem[0], dtype=torch.float64), []
    for v, g in zip(mem.double().flip(0), grad.double().flip(0), strict=True):
        slope = alpha / 2 / (1 + (torch.pi / 2 * alpha * (v - torch.tensor(THRESHOLD))) ** 2)
        carry = torch.tensor(BETA) * carry + g * slope
        each.append(carry)
    norm = copy.deepcopy(norm).double()
    x = x.detach().double().requires_grad_()
    y = norm(x.flatten(0, 1)).view(x.shape) if over_time else torch.stack([norm(step) for step in x])
    return list(torch.autograd.grad(y, [x, *norm.parameters()], torch.stack(each[::-1])))


def check(x: Tensor, norm: Any, over_time: bool = False) -> None:
    """The spikes, bit for bit, and the gradients of a network."""
    x = x.detach().requires_grad_()
    spk, mem = membranes(x, norm, over_time)
    net = net_of(norm, leaky(), over_time).to(x.device)
    found = net(x)
    assert all(a == b for n, a, b in zip(x.shape, found.stride(), x.stride(), strict=True) if n > 1)
    assert_bits_equal(found, spk)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    grads = torch.autograd.grad(found, [x, *norm.parameters()], grad.to(x.device))
    on_cpu = copy.deepcopy(norm).cpu()
    wanted = in_float64(x.detach().cpu(), on_cpu, over_time, mem, grad)
    assert_close(grads[0].cpu(), wanted[0].to(x.dtype), RELATIVE[x.dtype])
    for a, b in zip(grads[1:], wanted[1:], strict=True):  # sums whose terms may cancel
        assert_close(a.cpu(), b.to(a.dtype), 2e-6, scale=grad.double().norm().item())
