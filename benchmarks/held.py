"""Bytes that networks hold between their forward and their backward pass, beside others. Nothing is timed."""

import argparse

import torch

from . import memory_use
from .bars import HELD_OF, Bar, Found
from .networks import neurons_per_step
from .peers import PEERS
from .peers.ours import NUMBERS, OURS
from .peers.snntorch_loop import LOOP
from .peers.spikingjelly import PREFIX as JELLY
from .registry import TUTORIAL5, Case, suites
from .workloads import build, make_data

CPU = torch.device("cpu")
COLUMNS = (LOOP, JELLY, NUMBERS, OURS)
CASES = {
    "784-1000-10": TUTORIAL5,
    "784-1000-1000-1000-1000-10": Case("held", "deep", 25, 128, (784,), hidden=(1000,) * 4),
    "convolutional": next(case for case in suites("cpu")["conv"] if case.T == 25),
}


def run(args: argparse.Namespace) -> Found:
    print("bytes per neuron-step that autograd saves: without inputs and parameters / all")
    width = max(map(len, CASES))
    print(f"{'':<{width}}" + "".join(f"  {name:>26}" for name in COLUMNS))
    bars, rows = [], []
    for name, case in CASES.items():
        line = f"{name:<{width}}"
        for peer in COLUMNS:
            if problem := PEERS[peer].missing(CPU):
                line += f"  {problem.split(':')[0]:>26}"
                continue
            found, count = kept(case, peer), case.T * neurons_per_step(case)
            held, saved = found.held / count, found.saved / count
            line += f"  {f'{held:.2f} / {saved:.2f}':>26}"
            rows.append({"network": name, "peer": peer, "held": held, "saved": saved})
            if peer == OURS:
                bars.append(Bar(f"{name}: bytes held", held, HELD_OF[name]))
        print(line, flush=True)
    print()
    return Found(bars, rows)


def kept(case: Case, peer: str) -> memory_use.Kept:
    candidate = build(case, PEERS[peer], make_data(case, CPU))
    return memory_use.kept(candidate.forward, candidate.given)
