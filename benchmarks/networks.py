"""The networks of snnTorch's tutorials: step by step as they write them, and over time for everybody else."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from .registry import CLASSES, HIDDEN, NETWORKS, SCALED, SCALING, SEQUENCE, Case, widths

if TYPE_CHECKING:
    from .peers import Neuron

CHANNELS = (12, 64)
FEATURES = CHANNELS[1] * 4 * 4  # of 28 x 28 pixels after two convolutions of 5 x 5, each pooled by 2

WHOLE = (*NETWORKS, SEQUENCE)  # kinds of cases whose neurons are those of a network

Loss = Callable[[Tensor, Tensor], Tensor]


def stages(case: Case) -> list[nn.Module]:
    """What stands before each layer of neurons."""
    if case.kind != "convolution":
        return [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths(case))]
    return [
        nn.Sequential(nn.Conv2d(1, CHANNELS[0], 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(*CHANNELS, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)),
    ]


def neuron_steps(case: Case) -> int:
    """Count the neuron-steps of all layers of neurons."""
    if case.kind == "convolution":
        return case.T * case.B * (CHANNELS[0] * 12 * 12 + FEATURES + CLASSES)
    if case.kind == SCALING:
        return case.T * case.B * sum(SCALED)
    return case.T * case.B * sum(widths(case)[1:]) if case.kind in WHOLE else case.neuron_steps


def wants_membranes(case: Case) -> bool:
    """Whether the loss needs the membranes of the last layer."""
    return case.backward and case.kind != "convolution"


# ---- step by step: the weights are made in the order of stages(), so that all networks begin with the same


def in_loop(case: Case, neuron: Callable[[], nn.Module]) -> nn.Module:
    """A network of snnTorch's layers, or of layers that are called like them."""
    return {"deep": Deep, SEQUENCE: Deep, "convolution": Convolutional}.get(case.kind, FullyConnected)(case, neuron)


class FullyConnected(nn.Module):
    """Tutorial 5."""

    def __init__(self, case: Case, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.num_steps = case.T
        self.fc1 = nn.Linear(case.shape[0], HIDDEN)
        self.lif1 = neuron()
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = neuron()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(self.num_steps):  # noqa: B007 - as the tutorial names it
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Deep(nn.Module):
    """Several hidden layers, otherwise as tutorial 5."""

    def __init__(self, case: Case, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.num_steps = case.T
        self.fcs = nn.ModuleList(stages(case))
        self.lifs = nn.ModuleList(neuron() for _ in self.fcs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mems = [lif.init_leaky() for lif in self.lifs]
        spk_rec = []
        mem_rec = []
        for step in range(self.num_steps):  # noqa: B007 - as the tutorial names it
            spk = x
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            spk_rec.append(spk)
            mem_rec.append(mems[-1])
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


class Convolutional(nn.Module):
    """Tutorial 6."""

    def __init__(self, case: Case, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.num_steps = case.T
        self.conv1 = nn.Conv2d(1, CHANNELS[0], 5)
        self.lif1 = neuron()
        self.conv2 = nn.Conv2d(*CHANNELS, 5)
        self.lif2 = neuron()
        self.fc1 = nn.Linear(FEATURES, CLASSES)
        self.lif3 = neuron()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk3_rec = []
        mem3_rec = []
        for step in range(self.num_steps):  # noqa: B007 - as the tutorial names it
            cur1 = F.max_pool2d(self.conv1(x), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 2)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc1(spk2.view(x.size(0), -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec, dim=0), torch.stack(mem3_rec, dim=0)


# ---- over time


class OverTime(nn.Module):
    """Stages once for all steps, between neurons that unroll."""

    def __init__(self, case: Case, neuron: Callable[[], "Neuron"]) -> None:
        super().__init__()
        self.num_steps = case.T
        self.record_mem = wants_membranes(case)
        self.stages = nn.ModuleList(stages(case))
        self.neurons = [neuron() for _ in self.stages]
        self.of_neurons = nn.ParameterList(p for neuron in self.neurons for p in neuron.parameters)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Spikes ``[T, B, classes]``, and membranes where the loss needs them."""
        last = len(self.neurons) - 1
        out = over_time(self.neurons[0], self.stages[0](x), self.num_steps, False)
        for i in range(1, len(self.neurons)):
            current = self.stages[i](out[0].flatten(0, 1)).unflatten(0, (self.num_steps, -1))
            out = self.neurons[i].unroll(current, self.record_mem and i == last)
        return out


def over_time(neuron: "Neuron", x: Tensor, T: int, record_mem: bool) -> tuple[Tensor, ...]:
    """The same current ``[B, *]`` at each of T steps."""
    if neuron.constant is not None:
        return neuron.constant(x, T, record_mem)
    return neuron.unroll(x.expand(T, *x.shape), record_mem)


# ---- losses


def loss_of(case: Case, net: Callable[[Tensor], tuple[Tensor, ...]], looped: bool, own: Loss | None) -> Loss:
    """Forward pass and loss: of the spike count in tutorial 6, else of the membranes, which ``own`` may compute."""
    num_steps = case.T

    def of_count(x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(net(x)[0].sum(0), labels)

    def of_membranes(x: Tensor, labels: Tensor) -> Tensor:
        mem_rec = net(x)[-1]
        if own is not None:
            return own(mem_rec, labels)
        return F.cross_entropy(mem_rec.flatten(0, 1), labels.repeat(num_steps)) * num_steps

    def as_the_tutorial(x: Tensor, labels: Tensor) -> Tensor:
        _, mem_rec = net(x)
        loss_val = torch.zeros(1, device=x.device)
        for step in range(num_steps):
            loss_val += F.cross_entropy(mem_rec[step], labels)
        return loss_val

    if not wants_membranes(case):
        return of_count
    return as_the_tutorial if looped else of_membranes
