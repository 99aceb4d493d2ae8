"""Batches of event data, each with another number of steps: how long they take, the first call included."""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

import snnfast

from . import report
from .bars import Bar
from .peers import PEERS, snntorch_loop
from .runner import Row

NAME = "tutorial 7: events, two convolutions"
STEPS, BATCHES, BATCH = (290, 310), 12, 32
LOOP, COMPILED, TRACED, PRODUCTS = "snnTorch", "snnfast.compile", "by tracing", "products alone"
WAYS = (LOOP, COMPILED, TRACED, PRODUCTS)
CHUNK = 320
"""So many images are convolved at once: more do not stay in the caches."""


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


def run(args: argparse.Namespace) -> list[Bar]:
    """Print a row for each way, of the same weights and inputs."""
    header = report.header(torch.device("cpu"), [PEERS[snntorch_loop.LOOP]])
    steps = torch.linspace(*STEPS, BATCHES).int()
    lengths = steps[torch.randperm(BATCHES, generator=torch.Generator().manual_seed(0))].tolist()
    print(f"{NAME}: seconds of {BATCHES} batches, each of other steps, on {torch.get_num_threads()} threads")
    print(f"{'':16}{'first':>8}{'others':>9}{'all':>9}   of snnTorch's")
    rows: list[Row] = []
    for way in (way for way in WAYS if way == LOOP or way in (args.way or WAYS)):
        first, *others = _seconds(way, lengths)
        whole = first + sum(others)
        rows.append(Row(NAME, way, median=whole, low=first, repeats=1))
        faster = f"{rows[0].median / whole:.2f} times as fast"
        print(f"{way:16}{first:8.2f}{sum(others):9.2f}{whole:9.2f}   {faster}", flush=True)
    if args.json is not None:
        report.save(args.json, header, rows)
    return []


def _seconds(way: str, lengths: list[int]) -> list[float]:
    import snntorch

    torch._dynamo.reset()
    torch.manual_seed(0)
    net: Any = Events(snntorch)
    if way == PRODUCTS:
        net = nn.Sequential(*(layer for layer in net.net if not hasattr(layer, "reset_mem")))
        net.to(memory_format=torch.channels_last)
    if way in (COMPILED, TRACED):
        snnfast.compile(net, by="tracing" if way == TRACED else None)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, fused=True)
    draws = torch.Generator().manual_seed(0)
    found = []
    for T in lengths:
        x = (torch.rand(T, BATCH, 2, 34, 34, generator=draws) < 0.03).float()
        labels = torch.randint(10, (BATCH,), generator=draws)
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
    for images in x.flatten(0, 1).split(CHUNK):
        net(images.contiguous(memory_format=torch.channels_last)).sum().backward()
