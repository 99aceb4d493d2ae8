"""Small networks with a loop over time, and the ways to merge it."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import snnfast
from benchmarks.collection.comparison import EXACT, difference, seen


def by_torch_compile(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="snnfast", **options)


WAYS = [snnfast.compile, by_torch_compile]
"""The two ways to merge a loop."""

QUICK_WAYS = [snnfast.compile, pytest.param(by_torch_compile, marks=pytest.mark.thorough)]
"""The two ways, for what comes behind both of them: `make test` has the first one."""


class Net(nn.Module):
    """Tutorial 5's loop, over an input that changes with time."""

    def __init__(self, layer: Any = snnfast.Leaky, **options: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 9), layer(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(9, 4), layer(beta=0.8, **options)
        with torch.no_grad():
            for p in self.fc2.parameters():  # whose sums over spikes are exact, in any order
                p.copy_((p * 32).round() / 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


class Feedback(nn.Module):
    """A layer that is given its own spikes of the step before, as shares of all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.back, self.lif = nn.Linear(12, 5), nn.Linear(5, 5), snnfast.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem, spk, rec = self.lif.reset_mem(), torch.zeros(x.shape[1], 5), []
        for step in range(x.size(0)):
            spk, mem = self.lif(self.fc(x[step]) + self.back(spk).softmax(-1), mem)
            rec.append(spk)
        return torch.stack(rec)


class OneStep(Net):
    """The loop is outside."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk, _ = self.lif1(self.fc1(x[0]), torch.zeros(x.shape[1], 9))
        return self.lif2(self.fc2(spk), torch.zeros(x.shape[1], 4))  # type: ignore[no-any-return]


class WithSLSTM(nn.Module):
    """One step: the loop is outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = pytest.importorskip("snntorch").SLSTM(12, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lstm(x[0], *self.lstm.reset_mem())[::2]  # type: ignore[no-any-return]


def currents(T: int = 5, B: int = 3) -> Tensor:
    return torch.rand(T, B, 12) * 3


def refused(function: Any, *args: Any) -> str:
    with warnings.catch_warnings(record=True, action="always") as caught:
        function(*args)
    (message,) = [str(w.message) for w in caught if str(w.message).startswith("snnfast: ")]
    return message


def assert_same(compiled: Any, net: Any, x: Tensor) -> None:
    """Results bit for bit those of the network as it is, with its memory, and as they need gradients."""
    differs = difference(seen(compiled(x)), seen(net(x)), EXACT["float32"])
    assert differs is None, differs


def graphs() -> int:
    """How many graphs torch.compile has made."""
    return int(counters["stats"]["unique_graphs"])


def check(t: int, spk: Tensor, mem: Tensor, count: Tensor) -> None:
    """Asserts as a loop has them, which pytest would write anew in a test's own file."""
    assert not mem.isnan().any(), "the membrane diverged"
    assert (mem < 100).all()
    try:
        assert t < 99
    finally:
        assert t >= 0


def check_numbers(t: int, spk: Tensor, mem: Tensor, count: Tensor) -> None:
    assert mem.sum().item() == mem.sum().item(), "the membrane diverged"
    assert not mem.max().item() >= 100


def mended(t: int, spk: Tensor, mem: Tensor, count: Tensor) -> Tensor:
    """An assert that the loop itself obeys."""
    try:
        with torch.no_grad():
            assert not (mem > 1).any()
    except AssertionError:
        mem = mem * 0
    try:
        assert (spk < 1).all()
        mem = mem + 1
    except AssertionError:
        mem = mem - 1
    return mem


def mended_by_numbers(t: int, spk: Tensor, mem: Tensor, count: Tensor) -> Tensor:
    def large() -> None:
        assert mem.max().item() < 1

    try:
        large()
    except AssertionError:
        return mem * 0
    finally:
        mem = mem - 1
    return mem


def unmended(t: int, spk: Tensor, mem: Tensor, count: Tensor) -> Tensor:
    with contextlib.suppress(AssertionError):
        assert mem.max() < 1
        mem = mem * 0
    return mem
