"""Batches with another number of steps each, as event data has them: first calls included, how long an epoch takes."""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast.compiler.record.recorded import Recorded

from . import report
from .bars import Bar
from .collection.surrogates import SuperSpike
from .peers import PEERS, snntorch_loop
from .runner import Row

BATCHES = 60
LOOP, COMPILED, PRODUCTS = "snnTorch", "snnfast.compile", "products alone"
WAYS = (LOOP, COMPILED, PRODUCTS)
CHUNK = 320
"""So many images are convolved at once: more do not stay in the caches."""


class Work(NamedTuple):
    """A network of snnTorch's layers, and what it is given.

    Attributes:
        steps: The least and the most steps of a batch.
        shape: Of one step.
        products: Its layers without neurons, which every way computes.
    """

    name: str
    net: Callable[[Any], nn.Module]
    steps: tuple[int, int]
    batch: int
    shape: tuple[int, ...]
    products: Callable[[], nn.Module]


class Events(nn.Module):
    """The network of snnTorch's tutorial 7, and its loop."""

    def __init__(self, snn: Any) -> None:
        super().__init__()

        def leaky(**options: Any) -> nn.Module:
            return snn.Leaky(beta=0.5, init_hidden=True, **options)  # type: ignore[no-any-return]

        self.net = nn.Sequential(
            nn.Conv2d(2, 12, 5), leaky(), nn.MaxPool2d(2), nn.Conv2d(12, 32, 5), leaky(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 5 * 5, 10), leaky(output=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        spk_rec = []
        for layer in self.net:
            if hasattr(layer, "reset_mem"):
                layer.reset_mem()
        for step in range(x.size(0)):
            spk, _ = self.net(x[step])
            spk_rec.append(spk)
        return torch.stack(spk_rec)


class Dense(nn.Module):
    """Three dense layers: a learned decay, a synaptic neuron, and a readout without reset."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(700, 128), snn.Leaky(beta=0.9, learn_beta=True)
        self.fc2, self.lif2 = nn.Linear(128, 128), snn.Synaptic(alpha=0.8, beta=0.9)
        self.fc3, self.lif3 = nn.Linear(128, 20), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem1, (syn2, mem2), mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        mem_rec = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            _, mem3 = self.lif3(self.fc3(spk2), mem3)
            mem_rec.append(mem3)
        return torch.stack(mem_rec)


class ByHand(nn.Module):
    """Two layers of neurons written by hand."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(700, 128), nn.Linear(128, 20)

    def forward(self, x: Tensor) -> Tensor:
        syn = mem1 = torch.zeros(x.shape[1], 128)
        mem2 = torch.zeros(x.shape[1], 20)
        rec = []
        for step in range(x.size(0)):
            syn = 0.8 * syn + self.fc1(x[step])
            mem1 = 0.9 * mem1 + syn
            spk = SuperSpike.apply(mem1 - 1.0)
            mem1 = mem1 * (1 - spk.detach())
            mem2 = 0.95 * mem2 + self.fc2(spk)
            rec.append(mem2)
        return torch.stack(rec)


def _convolutions() -> nn.Module:
    layers = (nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32 * 5 * 5, 10))


def _linears(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(n, m) for n, m in pairwise(sizes)))


WORKS = (
    Work("tutorial 7: events, two convolutions", Events, (270, 330), 32, (2, 34, 34), _convolutions),
    Work("three dense layers", Dense, (70, 130), 64, (700,), lambda: _linears(700, 128, 128, 20)),
    Work("two layers of neurons written by hand", ByHand, (70, 130), 64, (700,), lambda: _linears(700, 128, 20)),
)


class Tutorial5(nn.Module):
    """The network of snnTorch's tutorial 5, of an input that changes with time."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem_rec = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            mem_rec.append(mem2)
        return torch.stack(mem_rec)


class Recurrent(nn.Module):
    """A recurrent layer, and a readout."""

    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(700, 128), snn.RLeaky(beta=0.9, linear_features=128)
        self.fc2, self.lif2 = nn.Linear(128, 20), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        (spk, mem1), mem2, mem_rec = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(x.size(0)):
            spk, mem1 = self.lif1(self.fc1(x[step]), spk, mem1)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            mem_rec.append(mem2)
        return torch.stack(mem_rec)


STEPS = (25, 100, 500)
CALLED = (
    ("tutorial 5", Tutorial5, 128, (784,)),
    ("tutorial 7: events, two convolutions", Events, 8, (2, 34, 34)),
    ("a recurrent layer", Recurrent, 64, (700,)),
    ("two layers of neurons written by hand", ByHand, 64, (700,)),
)
LATER = 7


def run(args: argparse.Namespace) -> list[Bar]:
    """Print tables: batches of other steps each, of the same weights and inputs each way; and single calls."""
    header = report.header(torch.device("cpu"), [PEERS[snntorch_loop.LOOP]]) | {"batches": BATCHES}
    load = report.Load()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {BATCHES} batches, each of other steps")
    print(f"{'':40}{'way':16}{'first':>8}{'others':>9}{'all':>9}   of snnTorch's; slowest other call, of their median")
    rows: list[Row] = []
    for work in WORKS:
        if args.case in work.name:
            rows += _measure(work, [way for way in WAYS if way == LOOP or not args.way or way in args.way])
    if args.json is not None:
        report.save(args.json, header | {"load": str(load)}, rows)
    print("\nrecorded training steps: seconds of the first; of a later one, milliseconds, those of recording it, and")
    print("microseconds of recording one call of PyTorch; one with another number of steps, of that later one's time")
    for name, net, batch, shape in CALLED:
        if args.case in name:
            for T in STEPS:
                print(f"{name if STEPS[0] == T else '':40}{T:5} steps  {_of_calls(net, T, batch, shape)}", flush=True)
    return []


def _of_calls(make: Callable[[Any], nn.Module], T: int, batch: int, shape: tuple[int, ...]) -> str:
    torch.manual_seed(0)
    net = make(snn)
    recorded, optimizer = Recorded(net, "the network"), torch.optim.Adam(net.parameters(), lr=5e-4, fused=True)

    def step(T: int) -> tuple[float, float, int]:
        """Seconds in all, seconds of recording, recorded calls."""
        x, labels = (torch.rand(T, batch, *shape) < 0.03).float(), torch.randint(10, (batch,))
        start = time.perf_counter()
        optimizer.zero_grad()
        mem, recorder = recorded(x)
        nn.functional.cross_entropy(mem.sum(0), labels).backward()
        optimizer.step()
        return time.perf_counter() - start, recorder.seconds, recorder.calls

    first = step(T)[0]
    later, recording, calls = (statistics.median(n) for n in zip(*(step(T) for _ in range(LATER)), strict=True))
    other = step(T + 1)[0] * T / (T + 1)
    ms, us = (1e3 * later, 1e3 * recording), 1e6 * recording / calls
    return f"{first:6.2f}{ms[0]:9.1f}{ms[1]:8.2f}{us:7.1f}   {other / later:.2f} of it"


def _measure(work: Work, ways: list[str]) -> list[Row]:
    lengths = torch.linspace(*work.steps, BATCHES).int().tolist()
    lengths = [lengths[i] for i in torch.randperm(BATCHES, generator=torch.Generator().manual_seed(0)).tolist()]
    whole, rows = 0.0, []
    for way in ways:
        seconds = _seconds(work, way, lengths)
        first, *others = seconds
        # By the step, as the numbers of steps differ.
        later = [s / n for s, n in zip(others, lengths[1:], strict=True)]
        whole = whole or sum(seconds)
        rows.append(Row(work.name, way, median=sum(seconds), low=first, repeats=1))
        slowest = max(later) / statistics.median(later)
        print(
            f"{work.name if way == LOOP else '':40}{way:16}{first:8.2f}{sum(others):9.2f}{sum(seconds):9.2f}"
            f"   {whole / sum(seconds):.2f} times as fast; {slowest:.2f}",
            flush=True,
        )
    return rows


def _seconds(work: Work, way: str, lengths: list[int]) -> list[float]:
    import snntorch

    torch.manual_seed(0)
    net = work.products() if way == PRODUCTS else work.net(snntorch)
    if way == COMPILED:
        snnfast.compile(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, fused=True)
    draws = torch.Generator().manual_seed(0)
    found = []
    for T in lengths:
        x = (torch.rand(T, work.batch, *work.shape, generator=draws) < 0.03).float()
        labels = torch.randint(10, (work.batch,), generator=draws)
        start = time.perf_counter()
        optimizer.zero_grad()
        if way == PRODUCTS:
            _products(net, x)
        else:
            nn.functional.cross_entropy(net(x).sum(0), labels).backward()
        optimizer.step()
        found.append(time.perf_counter() - start)
    return found


def _products(net: nn.Module, x: Tensor) -> None:
    """The layers without neurons for all steps, and their gradients, in the way that is fastest on a CPU."""
    rows = x.flatten(0, 1)
    if rows.dim() == 2:
        net(rows).sum().backward()
        return
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for images in rows.split(CHUNK):
        net(images.contiguous(memory_format=torch.channels_last)).sum().backward()
