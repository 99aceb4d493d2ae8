"""The neuron that snnTorch's tutorial 5 writes by hand is ours, with its spike one step later."""

from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, assert_close
from torch import Tensor, nn

import snnfast
from snnfast import surrogate

STEPS = 12


class SpikeItself(torch.autograd.Function):
    """A step whose derivative is its own value."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        spk = (distance > 0).float()
        ctx.save_for_backward(spk)
        return spk

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (spk,) = ctx.saved_tensors
        return grads[0] * spk


class ByHand(nn.Module):
    """One time step: the spike is that of the incoming membrane, then the membrane moves on."""

    def __init__(self, beta: float, threshold: float = 1.0) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        spk = SpikeItself.apply(mem - self.threshold)  # type: ignore[no-untyped-call]
        taken = (spk * self.threshold).detach()
        return spk, self.beta * mem + current - taken


def by_hand(current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and membranes ``[T, B, N]``."""
    neuron, spk_rec, mem_rec = ByHand(0.8), [], []
    for step in current:
        spk, mem = neuron(step, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def ours(current: Tensor, mem: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    lif = snnfast.Leaky(0.8, spike_grad=surrogate.heaviside())
    if unrolled:
        return lif.unroll(current, mem)
    spk_rec, mem_rec = [], []
    for step in current:
        spk, mem = lif(step, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "stepped"])
def test_spikes_come_one_step_earlier(unrolled: bool, backend: str) -> None:
    """Membranes are the same, and so are gradients where a loss sees the same spikes of either."""
    current, mem = torch.rand(STEPS, 4, 7) * 1.2 - 0.1, torch.rand(4, 7) * 2
    weights, weights_mem = torch.randn(STEPS - 1, 4, 7), torch.randn(STEPS, 4, 7)
    records, grads = [], []
    for hand in (True, False):
        x, start = current.clone().requires_grad_(), mem.clone().requires_grad_()
        spk, mem_rec = by_hand(x, start) if hand else ours(x, start, unrolled)
        shared = spk[1:] if hand else spk[:-1]
        ((shared * weights).sum() + (mem_rec * weights_mem).sum()).backward()
        records.append((spk, mem_rec, shared))
        grads.append((x.grad, start.grad))
    for found, expected in zip(records[1][1:], records[0][1:], strict=True):
        assert_bits_equal(found, expected)
    for found, expected in zip(grads[1], grads[0], strict=True):
        assert_close(found, expected, 1e-5)
        assert expected.any()
    assert_bits_equal(records[0][0][0], (mem > 1).float())  # theirs starts with the spike of the given membrane
    assert 0.1 < records[1][0].mean() < 0.9
    assert records[1][0][-1].any()  # the last spikes, which a loss on all of them sees here only
