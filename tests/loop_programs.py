"""Loops over time as users of snnTorch write them: small networks and functions, each with a maker of its inputs.

A program takes the module that its layers come from, ``snntorch`` or ``snnfast.snntorch``. It is written as its users
write it, also where that could be shorter. ``random_programs.py`` draws others.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
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


# ---- neurons


@program(step_first(12), exact=False)
class OtherNeurons(nn.Module):
    """Two and three states; and neurons whose last spike is a state, passed and held."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)])
        self.lif1 = snn.RLeaky(beta=0.5, V=0.5, all_to_all=False)
        self.lif2 = snn.Lapicque(R=2.0, C=0.75)
        self.lif3 = snn.RSynaptic(alpha=0.5, beta=0.5, V=-0.25, all_to_all=False, init_hidden=True, output=True)
        self.lif4 = snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero", learn_alpha=True, learn_beta=True)
        self.fc5, self.lif5 = nn.Linear(16, 5), snn.Alpha(alpha=0.75, beta=0.5, threshold=0.2)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.init_rleaky()
        mem2 = self.lif2.init_lapicque()
        self.lif3.reset_mem()
        syn4, mem4 = self.lif4.init_synaptic()
        syn_exc, syn_inh, mem5 = self.lif5.reset_mem()
        spk_rec, mem_rec, syn_rec = [], [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc[0](x[t]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc[1](spk1), mem2)
            spk3, syn3, mem3 = self.lif3(self.fc[2](spk2))
            spk4, syn4, mem4 = self.lif4(self.fc[3](spk3), syn4, mem4)
            spk5, syn_exc, syn_inh, mem5 = self.lif5(self.fc5(spk4), syn_exc, syn_inh, mem5)
            spk_rec.append(spk5)
            mem_rec.append(mem1)
            syn_rec.append(syn4)
        records = [torch.stack(rec) for rec in (spk_rec, mem_rec, syn_rec)]
        return records, spk1, mem2, syn3, mem3, mem4, mem5


# ---- states that the layers hold


def sequential(snn: Any, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 16),
        snn.Leaky(beta=0.9, init_hidden=True, **options),
        nn.Linear(16, 5),
        snn.Leaky(beta=0.8, init_hidden=True, output=True, **options),
    )


@program(constant(12))
def hidden_forward_pass(snn: Any) -> Any:
    """As in tutorial 6: the loop is in a function outside of the network."""
    net = sequential(snn)

    def forward_pass(net: nn.Module, num_steps: int, data: Tensor) -> Any:
        mem_rec = []
        spk_rec = []
        snn.utils.reset(net)
        for _ in range(num_steps):
            spk_out, mem_out = net(data)
            spk_rec.append(spk_out)
            mem_rec.append(mem_out)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    return net, forward_pass, lambda f, data, num_steps: f(net, num_steps, data)


# ---- convolutions


@program(step_first(1, 8, 8))
class Tutorial6(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.lif1 = snn.Leaky(beta=0.5)
        self.conv2 = nn.Conv2d(4, 6, 2)
        self.lif2 = snn.Leaky(beta=0.5)
        self.fc1 = nn.Linear(6, 5)
        self.lif3 = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Any:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk3_rec, mem3_rec = [], []
        for step in range(x.size(0)):
            cur1 = F.max_pool2d(self.conv1(x[step]), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 2)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc1(spk2.view(x.size(1), -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


class Block(Net):
    """With modules before the first layer and behind it."""

    def __init__(self, snn: Any, before: list[nn.Module], after: list[nn.Module], features: int = 16) -> None:
        super().__init__(snn)
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)
        self.fc2 = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.before(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(self.after(spk1)), mem2)
            rec.append(spk2)
        return torch.stack(rec), mem2


# ---- what goes with a dense layer: dropout, norms, activations


def _moved(norm: nn.Module, steps: int) -> nn.Module:
    """As after some training: averages and weights that are neither 0 nor 1."""
    for i in range(steps):
        norm(torch.linspace(-1, 2 + i, 64).view(4, 16))
    nn.init.uniform_(norm.weight, 1, 2)
    nn.init.uniform_(norm.bias, 0.25, 0.75)
    return norm


def _first() -> nn.Module:
    return nn.Linear(12, 16)


BLOCKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "activations": (
        lambda snn: Block(
            snn,
            [_first(), nn.ReLU(inplace=True), nn.LeakyReLU(0.25), nn.Linear(16, 16, bias=False)],
            [nn.Dropout(0.0)],
        ),
        {},
    ),
    "norms": (
        lambda snn: Block(
            snn,
            [_first(), _moved(nn.LayerNorm(16), 0), _moved(nn.GroupNorm(4, 16), 0), nn.GELU()],
            [nn.BatchNorm1d(16, affine=False, track_running_stats=False), nn.Tanh()],
        ),
        {"exact": False},
    ),
    "batch-norm-train": (
        lambda snn: Block(snn, [_first(), _moved(nn.BatchNorm1d(16), 1)], [_moved(nn.BatchNorm1d(16), 1)]),
        {"exact": False},
    ),
}
for _name, (_build, _fields) in BLOCKS.items():
    add(_name, _build, step_first(12), **_fields)


@program(step_first(12), exact=False, other=(5, 3), repeats=("add_", "linear"))
class ModulesOfEachStep(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fcs = nn.ModuleList([nn.Linear(12, 16) for _ in range(5)])
        self.gain = nn.Parameter(torch.linspace(1, 0.5, 5))
        self.bntt = snn.BatchNormTT1d(16, 5)
        for norm in self.bntt:
            nn.init.uniform_(norm.weight, 1, 2)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.bntt[t](self.fcs[t](x[t])) * self.gain[t], mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + spk2
        return out, mem2


@loop(lambda T, B: (numbers(T, B, 12), numbers(T, B, 12)))
def currents_changed_in_place(self: Any, x: Tensor, noise: Tensor) -> Any:
    mem1, mem2 = self.states()
    out = 0
    for t in range(x.size(0)):
        cur1 = self.fc1(x[t])
        cur1 += 0.25
        cur1.mul_(0.5).add_(noise[t].sum(-1, keepdim=True) / 16)
        spk1, mem1 = self.lif1(cur1, mem1)
        cur2 = self.fc2(spk1)
        cur2 += cur1[:, :5]
        spk2, mem2 = self.lif2(cur2, mem2)
        out = out + spk2
    return out, mem2


# ---- attention between the positions of one step; positions ``[B, L, 12]`` stay a dimension throughout


@program(step_first(3, 12), exact=False, other=None)
class Attention(Net):
    """By hand, fused, and of PyTorch's module."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = torch.matmul(q, k.transpose(-2, -1)) / 16**0.5
        heads = x.view(x.size(0), x.size(1), 2, 8).permute(0, 2, 1, 3)
        fused = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(x.shape)
        return torch.matmul(F.softmax(scores, dim=-1), v) + fused + self.mha(x, x, x)[0]

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1 + self.attend(spk1)), mem2)
            rec.append(spk2.mean(1))
        return torch.stack(rec).sum(0), mem2


# ---- branches, feedback, and layers that are called more than once


# The layer before the loop of feedback merges.
@program(step_first(12), expects=PARTLY, repeats=("add", "linear", "mul"))
class FeedbackBetweenLayers(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.middle = nn.Linear(16, 16)
        self.lif = snn.Leaky(beta=0.5)
        self.back = nn.Linear(5, 16)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        mem = self.lif.reset_mem()
        spk2 = torch.zeros(x.size(1), 5)
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk, mem = self.lif(self.middle(spk1) + self.back(spk2) * 0.25, mem)
            spk2, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@loop(step_first(12), repeats=("add", "sub"))
def one_layer_twice(self: Any, x: Tensor) -> Any:
    """One layer with two membranes, as in a Siamese network; the other twice in a step with the same membrane."""
    mem_a, mem_b = torch.zeros(x.size(1), 16), torch.zeros(x.size(1), 16)
    mem2 = self.lif2.reset_mem()
    out, rec = 0, []
    for t in range(x.size(0)):
        spk_a, mem_a = self.lif1(self.fc1(x[t]), mem_a)
        spk_b, mem_b = self.lif1(self.fc1(1 - x[t]), mem_b)
        out = out + spk_a - spk_b
        spk_c, mem2 = self.lif2(self.fc2(spk_a), mem2)
        spk_d, mem2 = self.lif2(self.fc2(spk_b), mem2)
        rec.append(spk_c * spk_d)
    return out, mem_a, mem_b, torch.stack(rec), mem2


@loop(step_first(12), expects=REPEATED)
def membrane_changed_between_steps(self: Any, x: Tensor) -> Any:
    """What the layer goes on from is not what it returned: a floor for the membrane."""
    mem1, mem2 = self.states()
    out = torch.zeros(x.size(1), 5)
    for t in range(x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1.clamp(min=-0.5), mem2.clamp(min=-0.5))
        out = out + spk2
    return out, mem1, mem2


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
