"""Loops that differ in what lies between the spiking layers: convolutions, norms, attention, branches, feedback."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as users import it
from loop_programs import REFUSED, Net, add, batch_first, numbers, program, step_first
from torch import Tensor, nn

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


@program(batch_first(1, 8, 8))
class ConvHidden(nn.Module):
    """The network of tutorial 6 with the pooling behind the spikes, and states that the layers hold."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            snn.Leaky(beta=0.5, init_hidden=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, groups=2, bias=False),
            snn.Leaky(beta=0.5, init_hidden=True),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 5),
            snn.Leaky(beta=0.5, init_hidden=True, output=True),
        )

    def forward(self, x: Tensor) -> Any:
        for layer in self.net:
            if hasattr(layer, "reset_mem"):
                layer.reset_mem()
        out = 0
        for t in range(x.size(1)):
            spk, mem = self.net(x[:, t])
            out = out + spk
        return out, mem


class Conv(nn.Module):
    def __init__(self, snn: Any, conv: nn.Module, pool: nn.Module, features: int) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool
        self.lif1 = snn.Leaky(beta=0.75)
        self.fc = nn.Linear(features, 5)
        self.lif2 = snn.Leaky(beta=0.5)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        rec = []
        for t in range(x.size(1)):
            spk1, mem1 = self.lif1(self.conv(x[:, t]), mem1)
            spk2, mem2 = self.lif2(self.fc(self.flat(self.pool(spk1))), mem2)
            rec.append(spk2)
        return torch.stack(rec, dim=1), mem1


class ConvReshaped(Conv):
    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1)


class ConvMean(Conv):
    def flat(self, x: Tensor) -> Tensor:
        return x.mean(dim=(-1, -2))


add("conv-1d", lambda snn: Conv(snn, nn.Conv1d(2, 4, 3, stride=2), nn.MaxPool1d(2), 8), batch_first(2, 9))
add("conv-3d", lambda snn: Conv(snn, nn.Conv3d(1, 3, 2), nn.AvgPool3d(2), 3), batch_first(1, 3, 3, 3))
add(
    "conv-transposed",
    lambda snn: Conv(snn, nn.ConvTranspose1d(2, 3, 2), nn.MaxPool1d(2), 6),
    batch_first(2, 4),
    other=None,
)
add(
    "conv-pooled-adaptively",
    lambda snn: ConvReshaped(snn, nn.Conv2d(1, 4, 3, dilation=2), nn.AdaptiveAvgPool2d(2), 16),
    batch_first(1, 8, 8),
    other=None,
)
add(
    "conv-upsampled-mean",
    lambda snn: ConvMean(snn, nn.Conv2d(1, 4, 3), nn.Upsample(scale_factor=2), 4),
    batch_first(1, 4, 4),
    other=None,
)
add(
    "conv-batch-norm",
    lambda snn: Conv(snn, nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.MaxPool2d(2), 4),
    batch_first(1, 4, 4),
    exact=False,
    repeats=("add_", "batch_norm"),
)


# ---- what goes with a dense layer: dropout, norms, activations


class Block(Net):
    def __init__(self, snn: Any, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__(snn)
        self.before = before or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            cur1 = self.before(self.fc1(x[t]))
            spk1, mem1 = self.lif1(cur1, mem1)
            spk2, mem2 = self.lif2(self.fc2(self.after(spk1)), mem2)
            rec.append(spk2)
        return torch.stack(rec), mem2


def _moved(norm: nn.Module, steps: int) -> nn.Module:
    """As after some training: averages and weights that are neither 0 nor 1."""
    for i in range(steps):
        norm(torch.linspace(-1, 2 + i, 64).view(4, 16))
    nn.init.uniform_(norm.weight, 1, 2)
    nn.init.uniform_(norm.bias, 0.25, 0.75)
    return norm


BLOCKS: dict[str, Any] = {
    "dropout-of-nothing": lambda snn: Block(snn, after=nn.Dropout(0.0)),
    "dropout-eval": lambda snn: Block(snn, after=nn.Dropout(0.5)).eval(),
    "relu-in-place": lambda snn: Block(snn, nn.ReLU(inplace=True)),
    "leaky-relu": lambda snn: Block(snn, nn.LeakyReLU(0.25)),
    "linear-without-bias": lambda snn: Block(snn, nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16, bias=False))),
}
INEXACT_BLOCKS: dict[str, Any] = {
    "batch-norm-eval": lambda snn: Block(snn, _moved(nn.BatchNorm1d(16), 2)).eval(),
    "layer-norm": lambda snn: Block(snn, _moved(nn.LayerNorm(16), 0)),
    "group-norm": lambda snn: Block(snn, _moved(nn.GroupNorm(4, 16), 0)),
    "gelu": lambda snn: Block(snn, nn.GELU(), nn.Tanh()),
    # The statistics are those of one step, and the running averages change at each.
    "batch-norm-train": lambda snn: Block(snn, _moved(nn.BatchNorm1d(16), 1)),
    "batch-norm-of-spikes": lambda snn: Block(snn, None, _moved(nn.BatchNorm1d(16), 1)),
    "batch-norm-without-averages": lambda snn: Block(snn, nn.BatchNorm1d(16, affine=False, track_running_stats=False)),
}
for _name, _build in BLOCKS.items():
    add(_name, _build, step_first(12))
for _name, _build in INEXACT_BLOCKS.items():
    _kept = ("add_", "batch_norm") if _name in ("batch-norm-train", "batch-norm-of-spikes") else ()
    add(_name, _build, step_first(12), exact=False, repeats=_kept)
add(
    "batch-norm-cumulative",
    lambda snn: Block(snn, _moved(nn.BatchNorm1d(16, momentum=None), 1)),
    step_first(12),
    exact=False,
    expects=REFUSED,
    breaks="torch.compile reads num_batches_tracked as a number",
)


@program(step_first(12), exact=False, other=(5, 3), repeats=("add_", "batch_norm"))
class BatchNormThroughTime(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.bntt = snn.BatchNormTT1d(16, 5)
        for norm in self.bntt:
            nn.init.uniform_(norm.weight, 1, 2)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.bntt[t](self.fc1(x[t])), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + spk2
        return out, mem2


@program(step_first(12), other=(5, 3), repeats=("linear",))
class LinearOfEachStep(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.fcs = nn.ModuleList([nn.Linear(12, 16) for _ in range(5)])
        self.gain = nn.Parameter(torch.linspace(1, 0.5, 5))

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        out = 0
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fcs[t](x[t]) + 0 * self.gain[t], mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + spk2
        return out, mem2


@program(lambda T, B: (numbers(T, B, 12), numbers(T, B, 12)))
class CurrentsChangedInPlace(Net):
    def forward(self, x: Tensor, noise: Tensor) -> Any:
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


# ---- attention


class Attention(Net):
    """Self-attention between the positions of one step; positions ``[B, L, 12]`` stay a dimension throughout."""

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1 + self.attend(spk1)), mem2)
            rec.append(spk2.mean(1))
        return torch.stack(rec).sum(0), mem2


@program(step_first(3, 12), exact=False)
class AttentionByHand(Attention):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = torch.matmul(q, k.transpose(-2, -1)) / 16**0.5
        return torch.matmul(F.softmax(scores, dim=-1), v)


@program(step_first(3, 12), exact=False, other=None)
class AttentionOfHeads(Attention):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn)
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)

    def attend(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x)[0]


@program(step_first(3, 12), exact=False)
class AttentionFused(Attention):
    def attend(self, x: Tensor) -> Tensor:
        heads = x.view(x.size(0), x.size(1), 2, 8).permute(0, 2, 1, 3)
        found = F.scaled_dot_product_attention(heads, heads, heads)
        return found.transpose(1, 2).reshape(x.shape)


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
