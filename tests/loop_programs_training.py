"""Loops with losses, whole training steps, and truncated gradients."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
from loop_programs import (
    REPEATED,
    Inputs,
    Net,
    Tutorial5,
    add,
    labels,
    numbers,
    program,
    step_first,
)
from snntorch import functional as SF  # noqa: N812
from torch import Tensor, nn

LABELLED: Inputs = lambda T, B: (numbers(T, B, 12), labels(B))  # noqa: E731


# ---- losses in the loop


@program(LABELLED, exact=False)
class LossInTheLoop(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        loss_fn = nn.CrossEntropyLoss()
        mem1, mem2 = self.states()
        loss = 0
        for t in range(x.size(0)):
            _, mem1, mem2 = self.step(x[t], mem1, mem2)
            loss = loss + loss_fn(mem2, y)
        return loss


@program(LABELLED, exact=False, input_grad=False)
class LossInPlace(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        mem1, mem2 = self.states()
        loss = torch.zeros(1)
        for t in range(x.size(0)):
            _, mem1, mem2 = self.step(x[t], mem1, mem2)
            loss += F.cross_entropy(mem2, y) / x.size(0)
        return loss


@program(lambda T, B: (numbers(T, B, 12), numbers(T, B, 5)), exact=False)
class LossOfMembraneTargets(Net):
    """As in the tutorial on regression: a target membrane for each step."""

    def forward(self, x: Tensor, target: Tensor) -> Any:
        mem1, mem2 = self.states()
        loss = torch.tensor(0.0)
        for t in range(x.size(0)):
            _, mem1, mem2 = self.step(x[t], mem1, mem2)
            loss = loss + F.mse_loss(mem2, target[t])
        return loss


@program(LABELLED, exact=False)
class LossOfBothRecords(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        mem1, mem2 = self.states()
        losses, rate = [], 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            losses.append(F.nll_loss(F.log_softmax(mem2, dim=-1), y))
            rate = rate + spk2.mean()
        return torch.stack(losses).mean() + 0.5 * (rate / x.size(0) - 0.1) ** 2


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


LOSSES: dict[str, Callable[[], Any]] = {
    "ce-rate": SF.ce_rate_loss,
    "ce-count": SF.ce_count_loss,
    "mse-count": lambda: SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2),
    "ce-max-membrane": SF.ce_max_membrane_loss,
    "mse-membrane": SF.mse_membrane_loss,
}
for _name, _loss in LOSSES.items():

    class _WithLoss(nn.Module):
        def __init__(self, snn: Any, make: Any) -> None:
            super().__init__()
            self.net, self.loss = Tutorial5(snn), make()

        def forward(self, x: Tensor, num_steps: int, y: Tensor) -> Any:
            spk_rec, mem_rec = self.net(x, num_steps)
            return self.loss(mem_rec if "membrane" in self.loss.__name__ else spk_rec, y)

    add(
        f"loss-{_name}",
        lambda snn, make=_loss, cls=_WithLoss: cls(snn, make),
        lambda T, B: (numbers(B, 12), T, labels(B)),
        exact=False,
        other=None,
    )


# ---- training steps


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.25)


@program(LABELLED, exact=False, input_grad=False)
def training_step_around(snn: Any) -> Any:
    """Network and loss are compiled; backward and optimizer are outside."""
    net = Net(snn, learn_beta=True)
    optimizer = _optimizer(net)

    def loss_of(net: Any, x: Tensor, y: Tensor) -> Tensor:
        mem1, mem2 = net.states()
        rec = []
        for t in range(x.size(0)):
            _, mem1, mem2 = net.step(x[t], mem1, mem2)
            rec.append(mem2)
        return F.cross_entropy(torch.stack(rec).mean(0), y)

    def call(f: Any, x: Tensor, y: Tensor) -> Any:
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = f(net, x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return net, loss_of, call


@program(LABELLED, exact=False, input_grad=False)
def training_step_inside(snn: Any) -> Any:
    net = Net(snn)
    optimizer = _optimizer(net)

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


@program(lambda T, B: (numbers(6, B, 12),), exact=False, repeats=("detach",))
class TruncatedInside(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            if t % 2 == 0:
                mem1, mem2 = mem1.detach(), mem2.detach()
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2 + mem2
        return out


# No step's gradient goes on to the step before, so that these are no steps of one unroll.
@program(step_first(12), expects=REPEATED, exact=False)
class TruncatedAtEachStep(Net):
    """Only the current of a step has a gradient, not the membrane it meets."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1.detach(), mem2.detach())
            out = out + spk2 + mem2
        return out


@program(lambda T, B: (numbers(6, B, 12),))
def truncated_between_calls(snn: Any) -> Any:
    """A long signal in chunks, the membranes passed on, cut from the graph."""
    net = Net(snn)

    def chunk(x: Tensor, mem1: Tensor, mem2: Tensor) -> Any:
        out = 0
        for xt in x:
            spk2, mem1, mem2 = net.step(xt, mem1, mem2)
            out = out + spk2
        return out, mem1, mem2

    def call(f: Any, x: Tensor) -> Any:
        mems = torch.zeros(x.size(1), 16), torch.zeros(x.size(1), 5)
        total = 0
        for start in range(0, len(x), 2):
            out, *mems = f(x[start : start + 2], *(mem.detach() for mem in mems))
            total = total + out
        return total, *mems

    return net, chunk, call


@program(step_first(12))
class DetachedSpikes(Net):
    """Each layer learns from its own readout: no gradient goes back to the layer before."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.local = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out, local = 0, 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            local = local + self.local(spk1)
            spk2, mem2 = self.lif2(self.fc2(spk1.detach()), mem2)
            out = out + spk2
        return out, local


@program(step_first(12), input_grad=False)
def frozen_first_layer(snn: Any) -> Any:
    net = Tutorial5(snn)
    net.fc1.requires_grad_(False)

    def last(net: Any, x: Tensor) -> Tensor:
        mem1, mem2 = net.lif1.reset_mem(), net.lif2.reset_mem()
        for t in range(x.size(0)):
            spk1, mem1 = net.lif1(net.fc1(x[t]), mem1)
            _spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        return mem2

    return net, last, lambda f, x: f(net, x)
