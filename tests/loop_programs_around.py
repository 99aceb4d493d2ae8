"""Loops with something around them: autocast, no gradient, checkpoints, other dtypes, and Python in between."""

from collections.abc import Callable
from typing import Any

import torch
from loop_programs import NOTHING, REFUSED, Net, Tutorial5, add, constant, program, step_first
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ---- what is put around, or within


def _around(context: Callable[[], Any]) -> Callable[[Any], Any]:
    def build(snn: Any) -> Any:
        net = Tutorial5(snn)

        def call(f: Any, *inputs: Any) -> Any:
            with context():
                return f(*inputs)

        return net, net, call

    return build


def _bfloat16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


add("no-grad-around", _around(torch.no_grad), constant(12))
add("inference-mode-around", _around(torch.inference_mode), constant(12), input_grad=False)
# Weights have bfloat16 gradients: a sum over steps and batch is rounded to 8 bits, in another order.
add("autocast-around", _around(_bfloat16), constant(12), dtypes=False, relative=2e-2)


@program(constant(12))
class NoGradWithin(Tutorial5):
    @torch.no_grad()
    def forward(self, x: Tensor, num_steps: int) -> Any:
        return super().forward(x, num_steps)


@program(constant(12), dtypes=False, relative=2e-2)
class AutocastWithin(Tutorial5):
    def forward(self, x: Tensor, num_steps: int) -> Any:
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            return super().forward(x, num_steps)


@program(step_first(12), dtypes=False, relative=2e-2)
class AutocastInTheLoop(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2.float())
        return torch.stack(rec)


@program(lambda T, B: (torch.rand(T, B, 12, dtype=torch.float64),), exact=False, simple=False, dtypes=False)
class Double(Net):
    """snnTorch's spikes are float32 whatever the current is, so that a network in float64 has to turn them back."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.double()

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            _spk2, mem2 = self.lif2(self.fc2(spk1.to(x.dtype)), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@program(constant(12))
def checkpointed(snn: Any) -> Any:
    net = Tutorial5(snn)
    return net, net, lambda f, *inputs: checkpoint(f, *inputs, use_reentrant=False)


# The steps are in a graph of their own, which the checkpoint calls as a whole.
@program(step_first(12), expects=NOTHING)
class CheckpointedInside(Net):
    """Chunks of the loop are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        total = 0
        for start in range(0, x.size(0), 3):
            out, mem1, mem2 = checkpoint(self.chunk, x[start : start + 3], mem1, mem2, use_reentrant=False)
            total = total + out
        return total, mem2

    def chunk(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> Any:
        out = 0
        for xt in x:
            spk2, mem1, mem2 = self.step(xt, mem1, mem2)
            out = out + spk2
        return out, mem1, mem2


# ---- what Python does in between


@program(step_first(12), expects=REFUSED, breaks="item() leaves the graph")
class RateLogged(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rates = []
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rates.append(spk2.mean().item())
            rec.append(spk2)
        return torch.stack(rec), rates


@program(step_first(12))
class SpikesToCpu(Net):
    """Records are moved off the device, as to save its memory."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2.detach().cpu())
        return torch.stack(rec), mem2


@program(step_first(12))
class StepsOfModules(nn.Module):
    """One step is a module of its own that takes and gives a dict of states."""

    class Step(Net):
        def forward(self, x: Tensor, state: dict[str, Tensor]) -> Any:
            spk, mem1, mem2 = self.step(x, state["mem1"], state["mem2"])
            return spk, {"mem1": mem1, "mem2": mem2}

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.cell = self.Step(snn)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.cell.states()
        state = {"mem1": mem1, "mem2": mem2}
        rec = []
        for t in range(x.size(0)):
            spk, state = self.cell(x[t], state)
            rec.append(spk)
        return torch.stack(rec), state
