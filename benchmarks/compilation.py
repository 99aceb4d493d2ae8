"""What it costs to compile the loop of tutorial 5: seconds over T, beside torch.compile's own, and how often."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch._dynamo.utils import counters

from .bars import COMPILATIONS, COMPILE_TIME, Bar, Found
from .peers import PEERS
from .peers.ours import LOOPED, WITH_LOSS
from .peers.snntorch_loop import NETWORK
from .registry import TUTORIAL5
from .workloads import Network

STEPS = (25, 100, 1000)
BATCH = 16  # samples; compilation does not depend on it, and a later call is short
LATER = 4  # calls after the first; from the third on nothing is compiled
CPU = torch.device("cpu")


class Cost(NamedTuple):
    """Of the first training steps in a fresh process."""

    first: float  # seconds of compilation in the first call: less those of a later one
    all: float  # in all calls
    later: float  # seconds of a later call
    graphs: int


def run(args: argparse.Namespace) -> Found:
    print(f"compiling the training step of {TUTORIAL5.suite}, batch {BATCH}: seconds beyond those of a later call")
    width = max(map(len, (LOOPED, WITH_LOSS, NETWORK)))
    print(f"{'':<{width}}  {'T':>5}  {'first call':>10}  {'all calls':>10}  {'a later call':>13}  graphs")
    first = {}
    for T, names in ((STEPS[0], (LOOPED, WITH_LOSS, NETWORK)), *((T, (LOOPED,)) for T in STEPS[1:])):
        for name in names:
            if problem := PEERS[name].missing(CPU):
                print(f"{name:<{width}}  {T:>5}  {problem}")
                continue
            cost = in_fresh_process(name, T, args.threads)
            print(
                f"{name:<{width}}  {T:>5}  {cost.first:>8.2f} s  {cost.all:>8.2f} s  {cost.later * 1e3:>10.2f} ms"
                f"  {cost.graphs:>6}",
                flush=True,
            )
            first[name, T] = cost.first
    print()
    theirs = first.get((NETWORK, STEPS[0]))
    bars = [
        Bar(
            f"{name}, T = {STEPS[0]}: compilation in the first call / that of {NETWORK}",
            first[name, STEPS[0]] / theirs if theirs else None,
            COMPILE_TIME,
        )
        for name in (LOOPED, WITH_LOSS)
    ]
    for name in (LOOPED, WITH_LOSS):
        found = None if PEERS[name].missing(CPU) else graphs_of_two_epochs(name)
        bars.append(Bar(f"{name}: graphs compiled in two epochs", found, COMPILATIONS))
    return Found(bars)


def in_fresh_process(name: str, T: int, threads: int | None) -> Cost:
    """With an empty cache on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps([name, T, threads])],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
        )
    if done.returncode != 0:
        raise RuntimeError(f"{name}, T = {T}: {done.stderr[-2000:]}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def cost_of(name: str, T: int) -> Cost:
    # What is done once in a process does not count: imports, a look at the processor, its headers.
    _train(_network(name, 1), BATCH)
    torch._dynamo.reset()
    counters.clear()
    network = _network(name, T)
    seconds = [_train(network, BATCH) for _ in range(1 + LATER)]
    later = min(seconds[2:])
    return Cost(seconds[0] - later, sum(s - later for s in seconds[:2]), later, graphs())


def graphs_of_two_epochs(name: str) -> int:
    """Of training with a smaller last batch, and of evaluation with another batch; a line on each part of them."""
    torch._dynamo.reset()
    counters.clear()
    network = _network(name, STEPS[0])
    print(f"{name}: graphs compiled in two epochs, T = {STEPS[0]}")
    for epoch in (1, 2):
        _part(f"epoch {epoch}, 3 batches of 128", lambda: [_train(network, 128) for _ in range(3)])
        _part("the last batch of 96", lambda: [_train(network, 96)])
        _part("evaluation, 2 batches of 100", lambda: [_evaluate(network, 100) for _ in range(2)])
        _part("evaluation, the last batch of 60", lambda: [_evaluate(network, 60)])
    print()
    return graphs()


def _part(what: str, calls: Callable[[], list[float]]) -> None:
    before = graphs()
    seconds = calls()
    print(f"  {what:<34} {graphs() - before} graphs, seconds per call: {', '.join(f'{s:.3f}' for s in seconds)}")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def _network(name: str, T: int) -> Network:
    return Network(replace(TUTORIAL5, T=T), PEERS[name], CPU)


def _train(network: Network, size: int) -> float:
    return _call(network.train, size, nullcontext())


def _evaluate(network: Network, size: int) -> float:
    """Of the loss as well, where it is compiled with the network."""
    return _call(network.loss, size, torch.no_grad())


def _call(function: Callable[..., object], size: int, mode: AbstractContextManager[object]) -> float:
    x, labels = torch.rand(size, *TUTORIAL5.shape), torch.randint(10, (size,))
    start = time.perf_counter()
    with mode:
        function(x, labels)
    return time.perf_counter() - start


def _main() -> None:
    name, T, threads = json.loads(sys.argv[1])
    if threads:
        torch.set_num_threads(threads)
    print(json.dumps(cost_of(name, T)))


if __name__ == "__main__":
    _main()
