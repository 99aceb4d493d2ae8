"""Loops with losses, whole training steps and truncated gradients, and with something around them or in between."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
from loop_programs import (
    Net,
    Tutorial5,
    add,
    constant,
    labels,
    loop,
    numbers,
    program,
    step_first,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ---- losses


@loop(lambda T, B: (numbers(T, B, 12), labels(B), numbers(T, B, 5)), exact=False)
def losses_in_the_loop(self: Any, x: Tensor, y: Tensor, target: Tensor) -> Any:
    """Added, in place, and in a list; of labels, of a target for each step as in the tutorial on regression."""
    loss_fn = nn.CrossEntropyLoss()
    mem1, mem2 = self.states()
    loss, in_place, losses, rate = 0, torch.zeros(1), [], 0
    for t in range(x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        loss = loss + loss_fn(mem2, y)
        in_place += F.mse_loss(mem2, target[t]) / x.size(0)
        losses.append(F.nll_loss(F.log_softmax(mem2, dim=-1), y))
        rate = rate + spk2.mean()
    return loss, in_place, torch.stack(losses).mean() + 0.5 * (rate / x.size(0) - 0.1) ** 2


@program(lambda T, B: (numbers(B, 12), T, labels(B)), exact=False)
def loss_after_tutorial5(snn: Any) -> Any:
    """The training step of tutorial 5, compiled as a function: the loss of each step is added behind the network."""
    net = Tutorial5(snn)
    loss = nn.CrossEntropyLoss()

    def loss_of(net: nn.Module, data: Tensor, num_steps: int, targets: Tensor) -> Tensor:
        _spk_rec, mem_rec = net(data, num_steps)
        loss_val = torch.zeros((1), dtype=torch.float)
        for step in range(num_steps):
            loss_val += loss(mem_rec[step], targets)
        return loss_val

    return net, loss_of, lambda f, *inputs: f(net, *inputs)


@program(lambda T, B: (numbers(T, B, 12), labels(B)), exact=False, input_grad=False)
def training_step(snn: Any) -> Any:
    net = Net(snn, learn_beta=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)

    def train(net: Any, x: Tensor, y: Tensor) -> Tensor:
        mem1, mem2 = net.states()
        out = 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = net.step(x[t], mem1, mem2)
            out = out + spk2
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, train, lambda f, *inputs: f(net, *inputs)


# ---- truncated gradients


@loop(lambda T, B: (numbers(6, B, 12),), exact=False, repeats=("detach",))
def truncated(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    out = 0
    for t in range(x.size(0)):
        if t % 2 == 0:
            mem1, mem2 = mem1.detach(), mem2.detach()
        spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        out = out + spk2 + mem2
    return out


@program(step_first(12), input_grad=False)
class DetachedSpikes(Net):
    """Each layer learns from its own readout; no gradient goes back to the layer before, and the first is frozen."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.local = nn.Linear(16, 5)
        self.fc1.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out, local = 0, 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            local = local + self.local(spk1)
            spk2, mem2 = self.lif2(self.fc2(spk1.detach()), mem2)
            out = out + spk2
        return out, local


# ---- what is put around


def _around(context: Callable[[], Any]) -> Callable[[Any], Any]:
    def build(snn: Any) -> Any:
        net = Tutorial5(snn)

        def call(f: Any, *inputs: Any) -> Any:
            with context():
                return f(*inputs)

        return net, net, call

    return build


def _bfloat16() -> Any:
    return torch.autocast(device_type="cpu", dtype=torch.bfloat16)


add("no-grad-around", _around(torch.no_grad), constant(12))
add("inference-mode-around", _around(torch.inference_mode), constant(12), input_grad=False)
# Weights have bfloat16 gradients: a sum over steps and batch is rounded to 8 bits, in another order.
add("autocast-around", _around(_bfloat16), constant(12), dtypes=False, relative=2e-2)


@program(constant(12))
def checkpointed(snn: Any) -> Any:
    net = Tutorial5(snn)
    return net, net, lambda f, *inputs: checkpoint(f, *inputs, use_reentrant=False)


# ---- what is inside of a step


@loop(step_first(12), dtypes=False, relative=2e-2)
def autocast_in_the_loop(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    rec = []
    for t in range(x.size(0)):
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        rec.append(spk2.float())
    return torch.stack(rec)
