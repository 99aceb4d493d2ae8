"""Loops over time as users of snnTorch write them, and how much of each is merged; ``random_programs.py`` draws others.

A network takes the module that its layers come from. Each has five steps.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
from loop_fuzz import SETTINGS, Run
from torch import Tensor, nn

T, B = 5, 4
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """One loop over time.

    Attributes:
        inputs: Their shapes.
        classes: Whether the last input has the numbers of classes.
        repeats: What else than layers there is a call of for each step, since every one needs the result of an earlier
            one, or gives something that must stay in order.
        layers: What becomes of the layers: "merged", "partly", "repeated" (something between them is merged).
    """

    net: Callable[[Any], nn.Module]
    inputs: tuple[Shape, ...]
    classes: bool = False
    repeats: tuple[str, ...] = ()
    layers: str = "merged"
    dtype: str = "float64"

    def run(self, dtype: str | None = None) -> Run:
        """It and its two calls, as those of a random program."""
        kinds = ["input"] * len(self.inputs)
        kinds[-1] = "classes" if self.classes else "input"
        inputs = {f"x{i}": given for i, given in enumerate(zip(kinds, self.inputs, strict=True))}
        given = {"dtype": dtype or self.dtype, "calls": [{"resets": False, "inputs": inputs}] * 2}
        return Run(self.net, SETTINGS | given)


PROGRAMS: dict[str, Program] = {}


def program(*inputs: Shape, **fields: Any) -> Callable[[Any], Any]:
    """Enter a class of networks; its name with hyphens is that of the program."""

    def entered(net: Any) -> Any:
        PROGRAMS[re.sub("(?<=[a-z0-9])(?=[A-Z])|_", "-", net.__name__).lower()] = Program(net, inputs, **fields)
        return net

    return entered


def loop(*inputs: Shape, **fields: Any) -> Callable[[Any], Any]:
    """Enter a function that is the ``forward`` of a network that is otherwise ``Net``."""

    def entered(forward: Any) -> Any:
        program(*inputs, **fields)(type(forward.__name__, (Net,), {"forward": forward}))
        return forward

    return entered


class Net(nn.Module):
    """What most of the programs are a loop of."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 16), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(16, 5), snn.Leaky(beta=0.8)

    def states(self) -> tuple[Tensor, Tensor]:
        return self.lif1.reset_mem(), self.lif2.reset_mem()

    def step(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


@loop((B, 12))
def tutorial5(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
    spk2_rec, mem2_rec = [], []
    for _ in range(T):
        spk2, mem1, mem2 = self.step(x, mem1, mem2)
        spk2_rec.append(spk2)
        mem2_rec.append(mem2)
    return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


# ---- how the input is indexed


@loop((B, 12))
def image_repeated(self: Any, x: Tensor) -> Any:
    """As ``spikegen.rate`` does it: how often, it takes from a tensor. What is changed in place is no image."""
    counts = torch.ones(x.dim(), dtype=torch.int64).tolist()
    rates, changed = (x.repeat([T, *counts]).mul(0.5).sub(0.1).clamp(0, 1) for _ in range(2))
    changed[0] = 0
    mem1, mem2 = self.states()
    spk_rec = []
    for t in range(T):
        spk2, mem1, mem2 = self.step(rates[t] + changed[t], mem1, mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), rates, changed


@loop(*[(T, B, 12)] * 4, *[(B, T, 12)] * 3, (B, 12, T), (B, T, 3, 4), (B, T + 11), (2 * T, B, 12))
def inputs_indexed(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any, j: Any,
                   k: Any) -> Any:  # fmt: skip
    """Each input in another order of time: from the end, in the second or last dimension, a window, every other one."""
    mem1, mem2 = self.states()
    spk_rec = []
    for t in range(T):
        x = a[t] + b[T - 1 - t] + c[-1 - t] + (d[t] > 0.5).float() + e[:, t] + f[:, t, :] + g.select(1, t)
        x = x + h[..., t] + i[:, t].view(i.size(0), -1) + j[:, t : t + 12] + k[2 * t]
        spk2, mem1, mem2 = self.step(x * 0.125, mem1, mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@loop((T, B, 12), (B, T, 12), (B, T, 3, 4), (B, 12))
def inputs_iterated(self: Any, x: Tensor, y: Tensor, z: Tensor, context: Tensor) -> Any:
    """Three signals, and a context that stays; records that are made before, and lists."""
    mem1, mem2 = self.states()
    z = z.transpose(0, 1)
    spk_rec, mem_rec = torch.zeros(x.size(0), x.size(1), 5), torch.zeros(x.size(1), x.size(0), 5)
    recs: dict[str, list[Tensor]] = {"spk1": [], "mem1": []}
    for step, (xt, yt) in enumerate(zip(x, y.unbind(1), strict=True)):
        cur1 = self.fc1((xt + yt + z[step].reshape(-1, 12) + context) * 0.25)
        spk1, mem1 = self.lif1(cur1, mem1)
        spk_rec[step], mem2 = self.lif2(self.fc2(spk1), mem2)
        mem_rec[:, step] = mem2
        for name, value in zip(recs, (spk1, mem1), strict=True):
            recs[name].append(value)
    return spk_rec, mem_rec, {name: torch.stack(rec) for name, rec in recs.items()}


# ---- sums, and what becomes of spikes and membranes


@program((T, B, 12), (T,))
class SumsInTheLoop(Net):
    """Weighted by what is learned and by numbers; of a readout, of membranes for a penalty, of spikes for energy."""

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.readout = nn.Linear(16, 3)

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
@loop((T, B, 12))
def trace_between_layers(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    trace, spk_rec = torch.zeros(x.size(1), 16), []
    for t in range(x.size(0)):
        spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
        trace = 0.8 * trace + spk1
        spk2, mem2 = self.lif2(self.fc2(trace), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), trace


@loop((T, B, 12))
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


# ---- neurons, and states that the layers hold


@program((T, B, 12))
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


# ---- neurons that are connected to one another


@program((T, B, 12))
class ConnectedNeurons(nn.Module):
    """From empty states, from zeros, and held; the second layer reads spikes of the first, and of the step before."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 5)])
        self.lif1 = snn.RLeaky(beta=0.5, linear_features=16)
        self.lif2 = snn.RSynaptic(alpha=0.5, beta=0.5, linear_features=8, reset_mechanism="zero", learn_beta=True)
        self.lif3 = snn.RLeaky(beta=0.5, linear_features=5, init_hidden=True, output=True, learn_recurrent=False)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.init_rleaky()
        spk2 = syn2 = mem2 = x.new_zeros(x.size(1), 8)
        self.lif3.reset_mem()
        spk_rec, mem_rec, count = [], [], 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc[0](x[t]), spk1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc[1](spk1), spk2, syn2, mem2)
            spk3, mem3 = self.lif3(self.fc[2](spk2))
            spk_rec.append(spk3)
            mem_rec.append(mem1)
            count = count + spk2
        return torch.stack(spk_rec), torch.stack(mem_rec), count, spk1, syn2, mem3


@program((T, B, 2, 6, 6), (B, 4, 6, 6))
class ConnectedImages(nn.Module):
    """A convolution connects them. The spikes before the first step are given."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(16 * 9, 5)
        self.lif1 = snn.RSynaptic(alpha=0.5, beta=0.5, conv2d_channels=4, kernel_size=3)
        self.lif2 = snn.RLeaky(beta=0.5, conv2d_channels=4, kernel_size=(1, 3))

    def forward(self, x: Tensor, given: Tensor) -> Any:
        spk1 = (given > 0).to(given.dtype)
        syn1, mem1 = torch.zeros_like(spk1), torch.ones_like(spk1)
        spk2, mem2 = self.lif2.init_rleaky()
        out = []
        for t in range(x.size(0)):
            spk1, syn1, mem1 = self.lif1(self.conv(x[t]), spk1, syn1, mem1)
            spk2, mem2 = self.lif2(spk1, spk2, mem2)
            out.append(self.fc(spk2.flatten(1)))
        return torch.stack(out), mem1


@program((T, B, 12), layers="partly", repeats=("roll",))
class ConnectedNeuronsBetweenSteps(nn.Module):
    """Their spikes are changed on their way back, so that each step waits; those of the layer behind are not."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 5)
        self.lif1 = snn.RLeaky(beta=0.5, linear_features=16)
        self.lif2 = snn.RLeaky(beta=0.5, linear_features=5)

    def forward(self, x: Tensor) -> Any:
        (spk1, mem1), (spk2, mem2) = self.lif1.init_rleaky(), self.lif2.init_rleaky()
        out = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), spk2, mem2)
            out.append(spk2)
            spk1 = spk1.roll(1, -1)
        return torch.stack(out), mem1


# ---- dropout, norms, activations


class Block(Net):
    """With modules before the first layer and behind it."""

    before: tuple[Callable[[], nn.Module], ...] = ()
    behind: tuple[Callable[[], nn.Module], ...] = ()

    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fc1 = nn.Sequential(self.fc1, *(made() for made in self.before))
        self.fc2 = nn.Sequential(*(made() for made in self.behind), self.fc2)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            rec.append(spk2)
        return torch.stack(rec), mem2


@program((T, B, 12))
class Activations(Block):
    before = (lambda: nn.ReLU(inplace=True), lambda: nn.Linear(16, 16, bias=False), lambda: nn.Hardtanh(-0.5, 0.4))
    behind = (lambda: nn.Dropout(0.0),)


@program((T, B, 12))
class Norms(Block):
    before = (lambda: nn.LayerNorm(16), lambda: nn.GroupNorm(4, 16), nn.GELU)
    behind = (lambda: nn.BatchNorm1d(16, affine=False, track_running_stats=False), nn.Tanh)


@program((T, B, 12))
class BatchNormTrain(Block):
    before = behind = (lambda: nn.BatchNorm1d(16),)


@program((T, B, 12), repeats=("add_", "linear"))
class ModulesOfEachStep(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fcs = nn.ModuleList([nn.Linear(12, 16) for _ in range(T)])
        self.gain, self.bntt = nn.Parameter(torch.ones(T)), snn.BatchNormTT1d(16, T)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.bntt[t](self.fcs[t](x[t])) * self.gain[t], mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + spk2
        return out, mem2


@program((T, B, 3, 12))
class Attention(Net):
    """Between the positions ``[B, L, 12]`` of one step: by hand, fused, and of PyTorch's module."""

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
            spk2, mem2 = self.lif2(self.fc2(spk1 - 0.1 * self.attend(spk1)), mem2)
            rec.append(spk2.mean(1))
        return torch.stack(rec).sum(0), mem2


# ---- branches, feedback, and layers that are called more than once


# The layer before the loop of feedback merges.
@program((T, B, 12), layers="partly", repeats=("add", "linear", "mul"))
class FeedbackBetweenLayers(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.middle, self.lif, self.back = nn.Linear(16, 16), snn.Leaky(beta=0.5), nn.Linear(5, 16)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        mem, spk2 = self.lif.reset_mem(), torch.zeros(x.size(1), 5)
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk, mem = self.lif(self.middle(spk1) + self.back(spk2) * 0.25, mem)
            spk2, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@loop((T, B, 12))
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


@loop((T, B, 12), layers="repeated", repeats=("add", "clamp"))
def membrane_changed_between_steps(self: Any, x: Tensor) -> Any:
    """What the layer goes on from is not what it returned: a floor for the membrane."""
    mem1, mem2 = self.states()
    out = torch.zeros(x.size(1), 5)
    for t in range(x.size(0)):
        spk2, mem1, mem2 = self.step(x[t], mem1.clamp(min=-0.5), mem2.clamp(min=-0.5))
        out = out + spk2
    return out, mem1, mem2


@program((T, B, 12), repeats=("gru_cell",))
class Cells(nn.Module):
    """PyTorch's cells. Only one of them goes on from the step before."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn, self.last = (
            nn.LSTMCell(12, 9),
            nn.GRUCell(9, 9),
            nn.RNNCell(9, 9),
            nn.GRUCell(9, 5),
        )
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Any:
        mem, hidden, rec = self.lif.reset_mem(), x.new_zeros(x.size(1), 5), []
        for step in x:
            h, c = self.lstm(step)
            hidden = self.last(self.rnn(h, self.gru(c, step[:, :9])), hidden)
            spk, mem = self.lif(5 * hidden, mem)
            rec.append(spk)
        return torch.stack(rec), mem, c


@loop((T, B, 12), (T, B, 5), (B,), classes=True)
def losses_in_the_loop(self: Any, x: Tensor, target: Tensor, y: Tensor) -> Any:
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


@loop((T, B, 12), dtype="float32")
def autocast_in_the_loop(self: Any, x: Tensor) -> Any:
    mem1, mem2 = self.states()
    rec = []
    for t in range(x.size(0)):
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
        rec.append(spk2.float())
    return torch.stack(rec)
