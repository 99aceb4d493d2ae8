"""Loops that reduce over time, or begin and end at other times than the first and last step."""

from typing import Any

import torch
from loop_programs import NOTHING, REFUSED, Net, add, numbers, program, step_first
from torch import Tensor, nn

# ---- sums within the loop


@program(step_first(12), exact=False)
class SumInPlace(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), 5)
        total = torch.zeros(x.size(1), 5, device=x.device)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out += spk2
            total.add_(mem2)
        return out / x.size(0), total


@program(step_first(12), exact=False)
class SumOfMembranesAndSpikes(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_sum, mem_sum = None, None
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_sum = spk2 if spk_sum is None else spk_sum + spk2
            mem_sum = mem2 if mem_sum is None else mem_sum + mem2
        return spk_sum, mem_sum


@program(lambda T, B: (numbers(T, B, 12), torch.linspace(1, 0.25, T)), exact=False)
class SumWeighted(Net):
    """Early spikes count for more, by weights that are learned."""

    def forward(self, x: Tensor, w: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), 5)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + w[t] * spk2
        return out


@program(step_first(12), exact=False)
class SumWeightedByNumbers(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0.0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2 * (1 - t / x.size(0))
        return out


@program(step_first(12), exact=False, repeats=("add", "mul"))
class SumDecaying(Net):
    """A readout that leaks, by hand: what is last counts for most."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), 5)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = 0.9 * out + spk2
        return out


# A running value that depends on that of the step before, without a layer in it, is computed step by step.
@program(step_first(12), exact=False, repeats=("add", "mul"))
class TraceBetweenLayers(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        trace = torch.zeros(x.size(1), 16)
        spk_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            trace = 0.8 * trace + spk1
            spk2, mem2 = self.lif2(self.fc2(trace), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), trace


@program(step_first(12))
class SumOfBothLayers(Net):
    """Spike counts of each layer, as for an account of the energy."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out, active = 0, 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            active = active + spk1.detach().sum() + spk2.detach().sum()
            out = out + spk2
        return out, active


@program(step_first(12), exact=False)
class SumForPenalty(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        reg = 0.0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            reg = reg + mem1.pow(2).mean() + 0.1 * mem2.abs().mean()
            spk_rec.append(spk2)
        return torch.stack(spk_rec).sum(0), reg / x.size(0)


@program(step_first(12), exact=False)
class SumOfLinearReadout(Net):
    """The last layer does not spike: what it says is added over time."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.readout = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        logits = torch.zeros(x.size(1), 3)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            logits = logits + self.readout(spk2)
        return logits / x.size(0)


# ---- population codes


class Population(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fc2 = nn.Linear(16, 20)


@program(step_first(12))
class PopulationInTheLoop(Population):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2.view(x.size(1), 5, 4).sum(-1))
        return torch.stack(rec)


@program(step_first(12))
class PopulationAfterTheLoop(Population):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2
        return out.view(x.size(1), 5, -1).sum(-1)


# ---- when it begins and ends


@program(step_first(12))
class ReadEarlyStepsNot(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        T = x.size(0)
        rec = []
        for t in range(T):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            if t >= T // 2:
                rec.append(spk2)
        return torch.stack(rec).sum(0)


@program(step_first(12))
class ReadEverySecondStep(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            if t % 2 == 0:
                rec.append(spk2)
        return torch.stack(rec)


# The second layer has fewer steps than the first.
@program(step_first(12))
class SecondLayerBeginsLater(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            if t >= 2:
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                out = out + spk2
        return out, mem2


@program(lambda T, B: (numbers(T, B, 12), numbers(T - 2, B, 12)))
class TwoLoopsFresh(Net):
    """Two sequences through the same network, each from zeros, as for a contrastive loss."""

    def forward(self, first: Tensor, second: Tensor) -> Any:
        found = []
        for x in (first, second):
            mem1, mem2 = self.states()
            out = torch.zeros(x.size(1), 5)
            for t in range(x.size(0)):
                spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
                out = out + spk2
            found.append(out)
        return found[0], found[1], mem2


@program(step_first(12), other=(6, 3))
class TwoLoopsContinuing(Net):
    """Warm-up without records, then a loop with them."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        for t in range(3):
            _, mem1, mem2 = self.step(x[t], mem1, mem2)
        rec = []
        for t in range(3, x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2)
        return torch.stack(rec), mem1, mem2


@program(step_first(12), other=(6, 3))
class WarmUpWithoutGradient(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        with torch.no_grad():
            for t in range(3):
                _, mem1, mem2 = self.step(x[t], mem1, mem2)
        rec = []
        for t in range(3, x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2)
        return torch.stack(rec), mem1, mem2


class LayerAfterLayer(Net):
    """All steps of the first layer, then all of the second: two loops, one after the other."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk1_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk1_rec.append(spk1)
        spk1_all = torch.stack(spk1_rec)
        spk2_rec = []
        for t in range(x.size(0)):
            spk2, mem2 = self.lif2(self.fc2(spk1_all[t]), mem2)
            spk2_rec.append(spk2)
        return torch.stack(spk2_rec)


add("layer-after-layer", LayerAfterLayer, step_first(12))


@program(step_first(12))
class StatesMadeByTheCaller(Net):
    """States that the caller makes, not the layers."""

    def forward(self, x: Tensor) -> Any:
        mem1 = torch.full((x.size(1), 16), 0.5)
        mem2 = torch.zeros(x.size(1), 5, device=x.device)
        out = 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2
        return out


class Steps(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), 5)
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2
            rec.append(mem2)
        return out, rec


add("one-step", Steps, lambda T, B: (numbers(1, B, 12),), expects=REFUSED)
add("no-step", Steps, lambda T, B: (numbers(0, B, 12),), expects=NOTHING, silent=("lif1", "lif2"), other=None)
add("two-steps", Steps, lambda T, B: (numbers(2, B, 12),))
