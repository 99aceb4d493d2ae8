"""Loops outside of the network: streams and reinforcement learning, one call a step."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import utils
from torch import Tensor, nn

from . import frames, images, program


def episode(net: Any, start: Tensor, y: Tensor) -> Tensor:
    """The next observation depends on the action, so that every step is one call."""
    utils.reset(net)
    obs, losses = start, []
    for t in range(20):
        logits = net(obs)
        action = logits.detach().argmax(1)
        obs = torch.roll(obs, 1, 1) + 0.1 * F.one_hot(action, obs.size(1)).to(obs.dtype)
        losses.append(F.cross_entropy(logits, action) * 0.99**t)
    return torch.stack(losses).sum()


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(16, 64), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(64, 4), snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, obs: Tensor) -> Tensor:
        _, mem = self.lif2(self.fc2(self.lif1(self.fc1(obs))))
        return mem


@program(lambda T, B: (torch.rand(B, 16), torch.zeros(B)), episode, B=8)
def episodes() -> nn.Module:
    return Policy()


@program(lambda T, B: (torch.rand(B, 16), torch.zeros(B)), episode, B=8)
class ThinkingPolicy(nn.Module):
    """One call a step of the environment, in which the network takes five steps of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 4)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, obs: Tensor) -> Tensor:
        mem1, mem2, total = self.lif1.init_leaky(), self.lif2.init_leaky(), torch.zeros(obs.size(0), 4)
        for _ in range(5):
            spk1, mem1 = self.lif1(self.fc1(obs), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + mem2
        return total


def over_frames(net: Any, x: Tensor, y: Tensor) -> Tensor:
    utils.reset(net)
    out = [net(x[t])[0] for t in range(x.size(0))]
    return F.cross_entropy(torch.stack(out).sum(0), y)


@program(frames(100), over_frames)
def loop_outside() -> nn.Module:
    """The network is compiled, but the loop over time is in the training step."""
    return nn.Sequential(
        nn.Linear(100, 200), snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(200, 10), snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )  # fmt: skip


def stream(net: Any, x: Tensor, y: Tensor) -> Tensor:
    mem: Any = (torch.zeros(x.size(1), 64), torch.zeros(x.size(1), 10))
    total: Any = 0
    for t in range(x.size(0)):
        spk, *mem = net(x[t], *mem)
        total = total + F.cross_entropy(spk + mem[1], y)
    return total


@program(frames(32), stream, T=20)
class Stream(nn.Module):
    """One step, whose states the caller carries."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


@program(images(64), T=20)
class Nested(nn.Module):
    """A model in a wrapper, which resets it and runs it over time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), snn.Leaky(beta=0.9, init_hidden=True),
            nn.Linear(128, 10), snn.Leaky(beta=0.9, init_hidden=True, output=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        utils.reset(self.net)
        return torch.stack([self.net(x)[0] for _ in range(20)])
