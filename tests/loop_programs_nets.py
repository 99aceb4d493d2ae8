"""Loops that differ in their spiking layers, in what lies between these, and in how all are put together."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
from helpers import Bump
from loop_programs import (
    PARTLY,
    REFUSED,
    REPEATED,
    Net,
    Tutorial5,
    add,
    constant,
    loop,
    numbers,
    program,
    step_first,
)  # fmt: skip
from torch import Tensor, nn

# ---- neurons


@program(step_first(12))
class Synaptic(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Synaptic(alpha=0.5, beta=0.75)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero", learn_alpha=True, learn_beta=True)

    def forward(self, x: Tensor) -> Any:
        syn1, mem1 = self.lif1.init_synaptic()
        syn2, mem2 = self.lif2.reset_mem()
        spk_rec, syn_rec, mem_rec = [], [], []
        for t in range(x.size(0)):
            spk1, syn1, mem1 = self.lif1(self.fc1(x[t]), syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk_rec.append(spk2)
            syn_rec.append(syn2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(syn_rec), torch.stack(mem_rec)


@program(step_first(12), exact=False)
class OtherNeurons(nn.Module):
    """Three states; and neurons whose last spike is a state, passed and held."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.RLeaky(beta=0.5, V=0.5, all_to_all=False)
        self.fc2 = nn.Linear(16, 16)
        self.lif2 = snn.Lapicque(R=2.0, C=0.75)
        self.fc3 = nn.Linear(16, 16)
        self.lif3 = snn.RSynaptic(alpha=0.5, beta=0.5, V=-0.25, all_to_all=False, init_hidden=True, output=True)
        self.fc4 = nn.Linear(16, 5)
        self.lif4 = snn.Alpha(alpha=0.75, beta=0.5, threshold=0.2)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.init_rleaky()
        mem2 = self.lif2.init_lapicque()
        self.lif3.reset_mem()
        syn_exc, syn_inh, mem4 = self.lif4.reset_mem()
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, syn3, mem3 = self.lif3(self.fc3(spk2))
            spk4, syn_exc, syn_inh, mem4 = self.lif4(self.fc4(spk3), syn_exc, syn_inh, mem4)
            spk_rec.append(spk4)
            mem_rec.append(mem1)
        return torch.stack(spk_rec), torch.stack(mem_rec), spk1, mem2, syn3, mem3, mem4


# Of connected neurons each step waits for the one before it; what is behind them is merged.
@program(step_first(12), expects=PARTLY, repeats=("linear",), exact=False)
class ConnectedNeurons(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.lif1 = snn.RLeaky(beta=0.5, linear_features=16)

    def forward(self, x: Tensor) -> Any:
        spk1, mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        spk_rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem1, mem2


# ---- options of both layers, in the loop of tutorial 5

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reset": ({"reset_mechanism": "zero"}, {"reset_mechanism": "none"}),
    "reset-at-once": ({"reset_delay": False}, {"reset_delay": False, "reset_mechanism": "zero"}),
    "learned": (
        {"learn_beta": True, "learn_threshold": True},
        {"learn_graded_spikes_factor": True, "graded_spikes_factor": 0.75},
    ),
    "graded": ({"surrogate_disable": True}, {"graded_spikes_factor": 0.5}),
}
for _name, _options in OPTIONS.items():
    add(f"option-{_name}", lambda snn, of=_options: Tutorial5(snn, *of), constant(12), other=None)


@program(step_first(12))
class OptionPerNeuron(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.lif1 = snn.Leaky(beta=torch.linspace(0.5, 1, 16), threshold=torch.linspace(0.5, 1.5, 16))
        learned = {"learn_beta": True, "learn_threshold": True}
        self.lif2 = snn.Leaky(beta=torch.linspace(0.5, 1, 5), threshold=torch.ones(5), **learned)


# What competes must not be equal: which of two equal membranes wins is not told. So no exact numbers here.
@program(
    lambda T, B: (torch.rand(T, B, 12),), exact=False, simple=False, repeats=("autograd_function_apply", "getitem")
)
def option_inhibition(snn: Any) -> Any:
    return Net(snn, inhibition=True, threshold=0.25)


def _straight_through(z: Tensor) -> Tensor:
    linear = (0.5 * z).clamp(-0.5, 0.5)
    return (z > 0).float() + (linear - linear.detach())


SURROGATES = {
    "atan": lambda snn: (snn.surrogate.atan(alpha=2.0), snn.surrogate.fast_sigmoid(slope=5)),
    "sigmoid": lambda snn: (snn.surrogate.sigmoid(slope=4), snn.surrogate.straight_through_estimator()),
    "detached": lambda snn: (_straight_through, _straight_through),
    # An autograd.Function that is not recognised has its own two graphs, which are called as a whole.
    "function": lambda snn: (lambda z: snn.surrogate.fast_sigmoid(slope=5)(z), Bump.apply),
}
for _name, _surrogates in SURROGATES.items():
    add(
        f"surrogate-{_name}",
        lambda snn, of=_surrogates: Tutorial5(snn, *({"spike_grad": grad} for grad in of(snn))),
        constant(12),
        repeats=("autograd_function_apply", "getitem") if _name == "function" else (),
        other=None,
    )

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


@program(step_first(12))
class HiddenReadFromLayers(nn.Module):
    """A membrane is not returned by the layer but read where the layer holds it."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.net = sequential(snn, learn_beta=True, learn_threshold=True)

    def forward(self, x: Tensor) -> Any:
        for layer in self.net:
            if hasattr(layer, "reset_mem"):
                layer.reset_mem()
        rec = []
        for xt in x:
            self.net(xt)
            rec.append(self.net[1].mem)
        return torch.stack(rec).mean(0), self.net[3].mem


@program(step_first(12))
def hidden_carried_between_calls(snn: Any) -> Any:
    """A long signal in chunks: the layers hold their states in between, cut from the graph."""
    net = sequential(snn)

    def chunk(x: Tensor) -> Tensor:
        out = 0
        for xt in x:
            spk, _ = net(xt)
            out = out + spk
        return out

    def call(f: Any, x: Tensor) -> Any:
        snn.utils.reset(net)
        first = f(x[:2])
        for layer in (net[1], net[3]):
            layer.mem = layer.mem.detach()
        return first, f(x[2:])

    return net, chunk, call


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


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(-1, -2))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], Any]] = {
    "1d": ((2, 4), lambda: ([nn.ConvTranspose1d(2, 3, 2), nn.Conv1d(3, 4, 3)], [nn.MaxPool1d(2), nn.Flatten()], 4)),
    "2d": (
        (1, 4, 4),
        lambda: (
            [nn.Upsample(scale_factor=2), nn.Conv2d(1, 4, 3, dilation=2), nn.Conv2d(4, 4, 1, groups=2)],
            [nn.AdaptiveAvgPool2d(2), Mean()],
            4,
        ),
    ),
    "3d": ((1, 3, 3, 3), lambda: ([nn.Conv3d(1, 3, 2)], [nn.AvgPool3d(2), nn.Flatten()], 3)),
}
for _name, (_shape, _make) in CONVOLUTIONS.items():
    add(f"conv-{_name}", lambda snn, make=_make: Block(snn, *make()), step_first(*_shape), other=None)


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


NORMED = ("add_", "batch_norm")  # the statistics are those of one step, and the running averages change at each
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
    "evaluation": (
        lambda snn: Block(snn, [_first(), _moved(nn.BatchNorm1d(16), 2)], [nn.Dropout(0.5)]).eval(),
        {"exact": False},
    ),
    "batch-norm-train": (
        lambda snn: Block(snn, [_first(), _moved(nn.BatchNorm1d(16), 1)], [_moved(nn.BatchNorm1d(16), 1)]),
        {"exact": False, "repeats": NORMED},
    ),
    # torch.compile reads num_batches_tracked as a number, which breaks the graph inside of the loop.
    "batch-norm-cumulative": (
        lambda snn: Block(snn, [_first(), _moved(nn.BatchNorm1d(16, momentum=None), 1)], []),
        {"exact": False, "expects": REFUSED},
    ),
}
for _name, (_build, _fields) in BLOCKS.items():
    add(_name, _build, step_first(12), **_fields)


@program(step_first(12), exact=False, other=(5, 3), repeats=(*NORMED, "linear"))
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


@program(step_first(3, 12))
class AttentionOfSpikes(nn.Module):
    """As in Spikformer: no softmax, and queries, keys and values are spikes."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(12, 8) for _ in range(3)])
        self.lifs = nn.ModuleList([snn.Leaky(beta=0.5) for _ in range(4)])
        self.proj = nn.Linear(8, 5)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Any:
        mems = [lif.reset_mem() for lif in self.lifs]
        mem = self.lif.reset_mem()
        rec = []
        for t in range(x.size(0)):
            spks = []
            for i, fc in enumerate(self.qkv):
                spk, mems[i] = self.lifs[i](fc(x[t]), mems[i])
                spks.append(spk)
            q, k, v = spks
            spk, mems[3] = self.lifs[3]((q @ k.transpose(-2, -1)) @ v * 0.125, mems[3])
            out, mem = self.lif(self.proj(spk), mem)
            rec.append(out)
        return torch.stack(rec), mem


# ---- branches, feedback, and layers that are called more than once


@program(step_first(12))
class Branches(nn.Module):
    """Two paths from one input, of layers with other decays, put together by ``cat``; and a residual connection."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.slow, self.fast = nn.Linear(12, 8), nn.Linear(6, 8)
        self.lif_slow, self.lif_fast = snn.Leaky(beta=0.95), snn.Leaky(beta=0.25)
        self.fc = nn.Linear(16, 16)
        self.lif = snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> Any:
        mem_slow, mem_fast, mem = self.lif_slow.reset_mem(), self.lif_fast.reset_mem(), self.lif.reset_mem()
        rec = []
        for t in range(x.size(0)):
            left, right = x[t].chunk(2, dim=-1)
            spk_slow, mem_slow = self.lif_slow(self.slow(x[t]), mem_slow)
            spk_fast, mem_fast = self.lif_fast(self.fast(left * right), mem_fast)
            both = torch.cat([spk_slow, spk_fast], dim=1)
            spk, mem = self.lif(self.fc(both) + both, mem)
            rec.append(spk)
        return torch.stack(rec), mem_slow


@program(step_first(12), expects=REPEATED, repeats=("add", "linear", "mul"), silent=("lif2",))
class RecurrentByHand(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.rec = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Any:
        mem = self.lif1.reset_mem()
        spk = torch.zeros(x.size(1), 16)
        spk_rec = []
        for t in range(x.size(0)):
            spk, mem = self.lif1(self.fc1(x[t]) + self.rec(spk) * 0.25, mem)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem


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


@loop(step_first(12))
def delayed_without_feedback(self: Any, x: Tensor) -> Any:
    """The second layer sees the first one's spikes a step late, beside those of now."""
    mem1, mem2 = self.states()
    before = torch.zeros(x.size(1), 16)
    rec = []
    for t in range(x.size(0)):
        spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
        spk2, mem2 = self.lif2(self.fc2(0.5 * spk1 + 0.5 * before), mem2)
        before = spk1
        rec.append(spk2)
    return torch.stack(rec), mem2


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
