"""Loops that differ in how layers are put together: branches, feedback, and layers that are called more than once."""

import itertools
from typing import Any

import torch
from loop_programs import PARTLY, REPEATED, Net, numbers, program, step_first
from torch import Tensor, nn

# ---- branches and depth


@program(step_first(12))
class Residual(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fc2 = nn.Linear(16, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1) + spk1, mem2)
            rec.append(self.out(spk2 + spk1))
        return torch.stack(rec), mem1


@program(step_first(12))
class Branches(nn.Module):
    """Two paths from one input, of layers with other decays, put together by ``cat``."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.slow, self.fast = nn.Linear(12, 8), nn.Linear(6, 8)
        self.lif_slow, self.lif_fast = snn.Leaky(beta=0.95), snn.Leaky(beta=0.25)
        self.fc = nn.Linear(16, 5)
        self.lif = snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> Any:
        mem_slow, mem_fast, mem = self.lif_slow.reset_mem(), self.lif_fast.reset_mem(), self.lif.reset_mem()
        rec = []
        for t in range(x.size(0)):
            left, right = x[t].chunk(2, dim=-1)
            spk_slow, mem_slow = self.lif_slow(self.slow(x[t]), mem_slow)
            spk_fast, mem_fast = self.lif_fast(self.fast(left * right), mem_fast)
            spk, mem = self.lif(self.fc(torch.cat([spk_slow, spk_fast], dim=1)), mem)
            rec.append(spk)
        return torch.stack(rec), mem_slow


@program(step_first(12))
class NeuronsInParallel(nn.Module):
    """The same current into neurons of several time constants."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 16)
        self.lifs = nn.ModuleList([snn.Leaky(beta=beta) for beta in (0.25, 0.5, 0.9)])

    def forward(self, x: Tensor) -> Any:
        mems = [lif.reset_mem() for lif in self.lifs]
        out = 0
        for t in range(x.size(0)):
            cur = self.fc(x[t])
            for i, lif in enumerate(self.lifs):
                spk, mems[i] = lif(cur, mems[i])
                out = out + spk * (i + 1)
        return out, mems


@program(step_first(12))
class DeepByLists(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        sizes = (12, 16, 16, 5)
        self.fcs = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.lifs = nn.ModuleList([snn.Leaky(beta=0.75) for _ in sizes[1:]])

    def forward(self, x: Tensor) -> Any:
        mems = [lif.init_leaky() for lif in self.lifs]
        rec = []
        for t in range(x.size(0)):
            spk = x[t]
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            rec.append(spk)
        return torch.stack(rec)


# ---- spikes of the step before


@program(step_first(12), expects=REPEATED, repeats=("add", "linear", "mul"))
class RecurrentByHand(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 16)
        self.rec = nn.Linear(16, 16)
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        mem = self.lif.reset_mem()
        spk = torch.zeros(x.size(1), 16)
        spk_rec = []
        for t in range(x.size(0)):
            spk, mem = self.lif(self.fc(x[t]) + self.rec(spk) * 0.25, mem)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem


# A layer before and one behind the loop of feedback: these two merge.
@program(step_first(12), expects=PARTLY, repeats=("add", "linear", "mul"))
class RecurrentInTheMiddle(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.rec = nn.Linear(16, 16)
        self.lif_rec = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        mem_rec = self.lif_rec.reset_mem()
        spk_rec = torch.zeros(x.size(1), 16)
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk_rec, mem_rec = self.lif_rec(spk1 + self.rec(spk_rec) * 0.25, mem_rec)
            spk2, mem2 = self.lif2(self.fc2(spk_rec), mem2)
            out = out + spk2
        return out, mem2


@program(step_first(12), expects=REPEATED, repeats=("add", "linear", "mul"))
class FeedbackBetweenLayers(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.back = nn.Linear(5, 16)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk2 = torch.zeros(x.size(1), 5)
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]) + self.back(spk2) * 0.25, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@program(step_first(12))
class DelayedWithoutFeedback(Net):
    """The second layer sees the first one's spikes a step late, beside those of now."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        before = torch.zeros(x.size(1), 16)
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(0.5 * spk1 + 0.5 * before), mem2)
            before = spk1
            rec.append(spk2)
        return torch.stack(rec), mem2


# ---- layers that are called more than once, or not in sequence


@program(step_first(12), repeats=("add", "sub"))
class OneLayerTwoMembranes(nn.Module):
    """Two streams through one layer with a membrane each, as in a Siamese network."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 16)
        self.lif = snn.Leaky(beta=0.9, learn_beta=True)

    def forward(self, x: Tensor) -> Any:
        mem_a = torch.zeros(x.size(1), 16)
        mem_b = torch.zeros(x.size(1), 16)
        out = 0
        for t in range(x.size(0)):
            spk_a, mem_a = self.lif(self.fc(x[t]), mem_a)
            spk_b, mem_b = self.lif(self.fc(1 - x[t]), mem_b)
            out = out + spk_a - spk_b
        return out, mem_a, mem_b


@program(step_first(12))
class OneLayerTwiceOneMembrane(nn.Module):
    """Each step is two steps of the layer."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc_a = nn.Linear(12, 16)
        self.fc_b = nn.Linear(12, 16)
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        mem = self.lif.reset_mem()
        rec = []
        for t in range(x.size(0)):
            spk_a, mem = self.lif(self.fc_a(x[t]), mem)
            spk_b, mem = self.lif(self.fc_b(x[t]), mem)
            rec.append(spk_a * spk_b)
        return torch.stack(rec), mem


@program(step_first(12), expects=REPEATED)
class MembraneChangedBetweenSteps(Net):
    """What the layer goes on from is not what it returned: a floor for the membrane."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), 5)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1.clamp(min=-0.5), mem2.clamp(min=-0.5))
            out = out + spk2
        return out, mem1, mem2


@program(
    lambda T, B: (numbers(T, B, 12), (torch.arange(T * B).view(T, B, 1) % 3 > 0).float()),
    expects=REPEATED,
    repeats=("add", "mul", "where"),
)
class MembraneMasked(Net):
    """Sequences of several lengths, padded: the membrane stays where the mask is 0."""

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        mem1 = torch.zeros(x.size(1), 16)
        mem2 = torch.zeros(x.size(1), 5)
        out = 0
        for t in range(x.size(0)):
            spk2, new1, new2 = self.step(x[t], mem1, mem2)
            mem1 = mask[t] * new1 + (1 - mask[t]) * mem1
            mem2 = torch.where(mask[t] > 0, new2, mem2)
            out = out + spk2 * mask[t]
        return out, mem2
