"""Loops over time as users of snnTorch write them: small networks and functions, each with a maker of its inputs.

A program takes the module that its layers come from, ``snntorch`` or ``snnfast.snntorch``. It is written as its users
write it, also where that could be shorter. This file has what all programs share, and those that differ in how the
input is indexed and what becomes of spikes and membranes; the others are in ``loop_programs_*.py``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int, int], tuple[Any, ...]]

# What a compiler for loops over time makes of the layers of a program.
MERGED = "merged"  # each became an unroll
PARTLY = "partly"  # some did
REPEATED = "repeated"  # none did, but something between them is one call for all steps
REFUSED = "refused"  # the loop stays as it is
NOTHING = "nothing"  # there is no step


@dataclass(frozen=True)
class Program:
    """One loop over time.

    Attributes:
        build: From the module of the layers: the network; or it and the function that is compiled; or these two and how
            that function is called with the inputs.
        inputs: Of T and B.
        expects: What a compiler for loops makes of its layers.
        repeats: What else there is a call of for each step, since every one needs the result of an earlier one, or
            gives something that must stay in order.
        exact: Outputs agree bit for bit, since all sums are exact in any order (see ``numbers``); else up to rounding.
            What is a whole number, as spikes and their counts, agrees in either case: with networks of this size and
            the same inputs in every run, no membrane comes so close to its threshold that rounding decides.
        simple: Weights are multiples of 1/32.
        dtypes: Outputs and states have snnTorch's dtypes; of other inputs than float32 they have not
            (docs/snntorch.md, "Half precision and autocast").
        relative: Of the largest gradient: how far gradients may be off.
        other: T and B of the last call, or None.
        input_grad: Inputs of floating dtype ask for gradients.
        silent: Layers that are not meant to spike.
        since: The torch that traces all of it; an older one breaks the graph.
        breaks: Why the graph breaks inside of the loop, so that nothing can be merged.
    """

    name: str
    build: Callable[[Any], Any]
    inputs: Inputs
    expects: str = MERGED
    repeats: tuple[str, ...] = ()
    exact: bool = True
    simple: bool = True
    dtypes: bool = True
    relative: float = 1e-5
    other: tuple[int, int] | None = (4, 3)
    input_grad: bool = True
    silent: tuple[str, ...] = ()
    breaks: str = ""
    since: str = "2.11"


PROGRAMS: dict[str, Program] = {}


def add(name: str, build: Callable[[Any], Any], inputs: Inputs, **fields: Any) -> None:
    assert name not in PROGRAMS, name
    PROGRAMS[name] = Program(name, build, inputs, **fields)


def program(inputs: Inputs, **fields: Any) -> Callable[[Any], Any]:
    """Enter a class of networks, or a function that builds one; its name with hyphens is that of the program."""

    def entered(build: Any) -> Any:
        add(re.sub("(?<=[a-z0-9])(?=[A-Z])|_", "-", build.__name__).lower(), build, inputs, **fields)
        return build

    return entered


# ---- inputs


def numbers(*shape: int) -> Tensor:
    """Few multiples of 1/8: sums of their products with weights that are multiples of 1/32 are exact in any order."""
    return torch.randint(0, 13, shape) / 8


def labels(B: int, classes: int = 5) -> Tensor:
    return torch.randint(0, classes, (B,))


def step_first(*shape: int) -> Inputs:
    return lambda T, B: (numbers(T, B, *shape),)


def batch_first(*shape: int) -> Inputs:
    return lambda T, B: (numbers(B, T, *shape),)


def constant(*shape: int) -> Inputs:
    return lambda T, B: (numbers(B, *shape), T)


# ---- a network of two layers


class Net(nn.Module):
    """What most of the programs are a loop of."""

    def __init__(self, snn: Any, **options: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Leaky(beta=0.9, **options)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Leaky(beta=0.8, **options)

    def states(self) -> tuple[Tensor, Tensor]:
        return self.lif1.reset_mem(), self.lif2.reset_mem()

    def step(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


@program(constant(12))
class Tutorial5(Net):
    def forward(self, x: Tensor, num_steps: int) -> Any:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _ in range(num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


# ---- how the input is indexed


class Indexed(Net):
    """A loop that differs in its input alone; all spikes and the last membrane are returned."""

    def num_steps(self, x: Tensor) -> int:
        return x.size(0)

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[t]

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        for t in range(self.num_steps(x)):
            spk2, mem1, mem2 = self.step(self.at(x, t), mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


class IndexedInSecond(Indexed):
    def num_steps(self, x: Tensor) -> int:
        return x.size(1)


@program(step_first(12))
class InputXt(Indexed):
    pass


@program(batch_first(12))
class InputSecondDimension(IndexedInSecond):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[:, t]


@program(batch_first(12))
class InputSecondOfThree(IndexedInSecond):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[:, t, :]


@program(lambda T, B: (numbers(B, 12, T),))
class InputLastDimension(Indexed):
    def num_steps(self, x: Tensor) -> int:
        return x.size(-1)

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[..., t]


@program(step_first(12))
class InputReversed(Indexed):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[x.size(0) - 1 - t]


@program(step_first(12))
class InputFromTheEnd(Indexed):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[-1 - t]


@program(batch_first(12))
class InputSelected(IndexedInSecond):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x.select(1, t)


@program(batch_first(3, 4))
class InputFlattened(IndexedInSecond):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[:, t].view(x.size(0), -1)


@program(step_first(3, 4))
class InputReshaped(Indexed):
    def at(self, x: Tensor, t: int) -> Tensor:
        return x[t].reshape(-1, 3 * 4)


@program(lambda T, B: (numbers(B, T + 11),))
class InputWindow(Indexed):
    """A signal of one channel: each step sees the last twelve samples."""

    def num_steps(self, x: Tensor) -> int:
        return x.size(1) - 11

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[:, t : t + 12]


@program(lambda T, B: (numbers(2 * T, B, 12),))
class InputEverySecond(Indexed):
    def num_steps(self, x: Tensor) -> int:
        return x.size(0) // 2

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[2 * t]


@program(step_first(12), input_grad=False)
class InputIterated(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        for xt in x:
            spk2, mem1, mem2 = self.step(xt, mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


@program(batch_first(12))
class InputUnboundEnumerated(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = torch.zeros(x.size(1), x.size(0), 5)
        for step, xt in enumerate(x.unbind(1)):
            out[step], mem1, mem2 = self.step(xt, mem1, mem2)
        return out


@program(batch_first(12), input_grad=False)
class InputTransposed(Net):
    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1)
        mem1, mem2 = self.states()
        spk_rec = []
        for t in range(len(x)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem1


@program(lambda T, B: (numbers(T, B, 12) > 0.7,), input_grad=False)
class InputOfEvents(Net):
    """Boolean events, made numbers within the loop."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        for t in range(x.shape[0]):
            spk2, mem1, mem2 = self.step(x[t].float(), mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@program(lambda T, B: (numbers(T, B, 12), numbers(B, 12)))
class InputAndConstant(Net):
    """A signal, and a context that stays."""

    def forward(self, x: Tensor, context: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        t = 0
        while t < x.size(0):
            spk2, mem1, mem2 = self.step(x[t] * 0.5 + context, mem1, mem2)
            spk_rec.append(spk2)
            t += 1
        return torch.stack(spk_rec)


# ---- what becomes of spikes and membranes


class Recorded(Net):
    """A loop that differs in what is made of the lists of spikes and membranes."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return self.readout(spk_rec, mem_rec)

    def readout(self, spk_rec: list[Tensor], mem_rec: list[Tensor]) -> Any:
        raise NotImplementedError


READOUTS: dict[str, Callable[[list[Tensor], list[Tensor]], Any]] = {
    "stack-dim-1": lambda spk, mem: (torch.stack(spk, dim=1), torch.stack(mem, dim=1)),
    "stack-last": lambda spk, mem: torch.stack(spk, dim=-1),
    "stack-sum": lambda spk, mem: torch.stack(spk).sum(0),
    "stack-mean": lambda spk, mem: torch.stack(spk, dim=0).mean(dim=0),
    "stack-sum-dim-1": lambda spk, mem: torch.stack(spk, 1).sum(1) / len(spk),
    "stack-max": lambda spk, mem: torch.stack(mem).max(dim=0)[0],
    "python-sum": lambda spk, mem: sum(spk) / len(spk),
    "cat-unsqueezed": lambda spk, mem: torch.cat([s.unsqueeze(0) for s in spk]),
    "last-spike": lambda spk, mem: spk[-1],
    "last-membrane": lambda spk, mem: mem[-1],
    "last-three": lambda spk, mem: torch.stack(spk[-3:]).sum(0),
    "a-list": lambda spk, mem: spk,
    "a-dict-of-lists": lambda spk, mem: {"spikes": spk, "membranes": mem, "last": mem[-1]},
    "softmax-of-mean": lambda spk, mem: torch.stack(spk).mean(0).softmax(-1),
}
for _name, _readout in READOUTS.items():
    add(
        f"record-{_name}",
        type("Recording", (Recorded,), {"readout": staticmethod(_readout)}),
        step_first(12),
        exact="softmax" not in _name and "mean" not in _name and "sum" not in _name,
        other=None,
    )


@program(step_first(12))
class RecordPreallocated(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = torch.zeros(x.size(0), x.size(1), 5)
        mem_rec = torch.zeros(x.size(1), x.size(0), 5)
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_rec[t] = spk2
            mem_rec[:, t] = mem2
        return spk_rec, mem_rec


@program(step_first(12))
class RecordAllLayers(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        recs: dict[str, list[Tensor]] = {"spk1": [], "mem1": [], "spk2": [], "mem2": []}
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            for name, value in zip(recs, (spk1, mem1, spk2, mem2), strict=True):
                recs[name].append(value)
        return {name: torch.stack(rec) for name, rec in recs.items()}


@program(step_first(12))
class SumFromNumber(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            out = out + spk2
        return out
