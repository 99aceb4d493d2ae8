"""Loops over time as users of snnTorch write them: small networks and functions, each with a maker of its inputs.

A program takes the module that its layers come from, ``snntorch`` or ``snnfast.snntorch``. It is written as its users
write it, also where that could be shorter. This file has what all programs share, and loops of a dense network that
differ in their inputs, sums and records; ``loop_programs_nets.py`` has other layers and networks, and
``loop_programs_training.py`` losses, training steps and what is put around a loop.
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


def loop(inputs: Inputs, **fields: Any) -> Callable[[Any], Any]:
    """Enter a function that is the ``forward`` of a network that is otherwise ``Net``."""

    def entered(forward: Any) -> Any:
        program(inputs, **fields)(type(forward.__name__, (Net,), {"forward": forward}))
        return forward

    return entered


# ---- inputs


def numbers(*shape: int) -> Tensor:
    """Few multiples of 1/8: sums of their products with weights that are multiples of 1/32 are exact in any order."""
    return torch.randint(0, 13, shape) / 8


def labels(B: int, classes: int = 5) -> Tensor:
    return torch.randint(0, classes, (B,))


def step_first(*shape: int) -> Inputs:
    return lambda T, B: (numbers(T, B, *shape),)


def constant(*shape: int) -> Inputs:
    return lambda T, B: (numbers(B, *shape), T)


# ---- a network of two layers


class Net(nn.Module):
    """What most of the programs are a loop of."""

    def __init__(self, snn: Any, options1: Any = None, options2: Any = None, **options: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Leaky(beta=0.9, **options, **(options1 or {}))
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Leaky(beta=0.8, **options, **(options2 or {}))

    def states(self) -> tuple[Tensor, Tensor]:
        return self.lif1.reset_mem(), self.lif2.reset_mem()

    def step(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


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


def _indexed(T: int, B: int) -> tuple[Any, ...]:
    first, second = [numbers(T, B, 12) for _ in range(3)], [numbers(B, T, 12) for _ in range(3)]
    others = numbers(B, 12, T), numbers(B, T, 3, 4), numbers(B, T + 11), numbers(2 * T, B, 12)
    return *first, *second, *others, numbers(T, B, 12) > 0.7, T


@loop(_indexed)
def inputs_indexed(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any, j: Any, k: Any,
                   num_steps: int) -> Any:  # fmt: skip
    """Each input in another order of time: from the end, in the second or last dimension, a window, every other one."""
    mem1, mem2 = self.states()
    spk_rec = []
    for t in range(num_steps):
        x = a[t] + b[num_steps - 1 - t] + c[-1 - t] + d[:, t] + e[:, t, :] + f.select(1, t) + g[..., t]
        x = x + h[:, t].view(h.size(0), -1) + i[:, t : t + 12] + j[2 * t] + k[t].float()
        spk2, mem1, mem2 = self.step(x * 0.125, mem1, mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@loop(lambda T, B: (numbers(T, B, 12), numbers(B, T, 12), numbers(B, T, 3, 4), numbers(B, 12)))
def inputs_iterated(self: Any, x: Tensor, y: Tensor, z: Tensor, context: Tensor) -> Any:
    """Three signals, and a context that stays."""
    mem1, mem2 = self.states()
    z = z.transpose(0, 1)
    out = torch.zeros(x.size(0), x.size(1), 5)
    for step, (xt, yt) in enumerate(zip(x, y.unbind(1), strict=True)):
        out[step], mem1, mem2 = self.step((xt + yt + z[step].reshape(-1, 12)) * 0.5 + context, mem1, mem2)
    return out


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


READOUTS: dict[str, Callable[[list[Tensor], list[Tensor]], Any]] = {
    "stacks": lambda spk, mem: (torch.stack(spk, dim=1), torch.stack(mem, dim=-1)),
    "cat": lambda spk, mem: (torch.cat([s.unsqueeze(0) for s in spk]), torch.cat(mem, dim=-1)),
    "sums": lambda spk, mem: (torch.stack(spk, 1).sum(1) / len(spk), torch.stack(mem).mean(dim=0), sum(mem) / len(mem)),
    "others": lambda spk, mem: (torch.stack(mem).max(dim=0)[0], torch.stack(spk).mean(0).softmax(-1)),
    "lasts": lambda spk, mem: (spk[-1], mem[-1], torch.stack(spk[-3:]).sum(0)),
    "lists": lambda spk, mem: {"spikes": spk, "membranes": mem, "last": mem[-1]},
}
for _name, _readout in READOUTS.items():
    add(
        f"record-{_name}",
        type("Recording", (Recorded,), {"readout": staticmethod(_readout)}),
        step_first(12),
        exact=_name not in ("sums", "others"),
        other=None,
    )


@loop(step_first(12))
def record_preallocated(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    spk_rec = torch.zeros(x.size(0), x.size(1), 5)
    mem_rec = torch.zeros(x.size(1), x.size(0), 5)
    recs: dict[str, list[Tensor]] = {"spk1": [], "mem1": []}
    for t in range(x.size(0)):
        spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        spk_rec[t] = spk2
        mem_rec[:, t] = mem2
        for name, value in zip(recs, (spk1, mem1), strict=True):
            recs[name].append(value)
    return spk_rec, mem_rec, {name: torch.stack(rec) for name, rec in recs.items()}


# ---- sums within the loop


@loop(step_first(12), exact=False)
def sum_in_place(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    out = torch.zeros(x.size(1), 5)
    total = torch.zeros(x.size(1), 5, device=x.device)
    for t in range(x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        out += spk2
        total.add_(mem2)
    return out / x.size(0), total


class Readout(Net):
    """A last layer that does not spike."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.readout = nn.Linear(16, 3)


@program(lambda T, B: (numbers(T, B, 12), torch.linspace(1, 0.25, T)), exact=False)
class SumsInTheLoop(Readout):
    """Weighted by what is learned and by numbers; of a readout, of membranes for a penalty, of spikes for energy."""

    def forward(self, x: Tensor, w: Tensor) -> Any:
        mem1, mem2 = self.states()
        early, logits = torch.zeros(x.size(1), 5), torch.zeros(x.size(1), 3)
        late, active, penalty, mem_sum = 0.0, 0, 0.0, None
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            early = early + w[t] * spk2
            late = late + spk2 * (1 - t / x.size(0))
            logits = logits + self.readout(spk1)
            active = active + spk1.detach().sum() + spk2.detach().sum()
            penalty = penalty + mem1.pow(2).mean() + 0.1 * mem2.abs().mean()
            mem_sum = mem2 if mem_sum is None else mem_sum + mem2
        return early, late, logits / x.size(0), active, penalty / x.size(0), mem_sum


# A running value that depends on that of the step before, without a layer in it, is computed step by step.
@loop(step_first(12), exact=False, repeats=("add", "mul"))
def trace_between_layers(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    trace = torch.zeros(x.size(1), 16)
    spk_rec = []
    for t in range(x.size(0)):
        spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
        trace = 0.8 * trace + spk1
        spk2, mem2 = self.lif2(self.fc2(trace), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), trace


# ---- when it begins and ends


@loop(step_first(12), other=(6, 3))
def warm_up_without_gradient(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    with torch.no_grad():
        for t in range(3):
            _, mem1, mem2 = self.step(x[t], mem1, mem2)
    rec = []
    for t in range(3, x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        rec.append(spk2)
    return torch.stack(rec), mem1, mem2


def _steps(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    out = torch.zeros(x.size(1), 5)
    rec = []
    for t in range(x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        out = out + spk2
        rec.append(mem2)
    return out, rec


_Steps = type("Steps", (Net,), {"forward": _steps})
add("one-step", _Steps, lambda T, B: (numbers(1, B, 12),), expects=REFUSED)
add("no-step", _Steps, lambda T, B: (numbers(0, B, 12),), expects=NOTHING, silent=("lif1", "lif2"), other=None)
