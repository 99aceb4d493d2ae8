"""What is not called again and again: an epoch on MNIST, and the compilation of a loop, in a fresh process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from . import mnist
from .peers import PEERS, Peer, Unsupported
from .registry import TUTORIAL5, Case, case_named
from .workloads import Network

CPU = torch.device("cpu")
SEEDS = 3
LATER = 4  # calls after the first; from the third on nothing is compiled


def epoch(case: Case, peer: Peer) -> dict[str, Any]:
    """Seconds and test accuracy by rate code, means over seeds; for each seed from the same weights and batches."""
    digits = mnist.load()
    seconds, accuracies = [], []
    for seed in range(SEEDS):
        network = Network(case, peer, CPU, seed=seed)
        order = torch.randperm(len(digits.train_images), generator=torch.Generator().manual_seed(seed))
        start = time.perf_counter()
        for batch in order[: len(order) // case.B * case.B].split(case.B):
            network.train(digits.train_images[batch], digits.train_labels[batch])
        seconds.append(time.perf_counter() - start)
        accuracies.append(_accuracy(network, digits, case.B))
    return {"median": mean(seconds), "repeats": SEEDS, "accuracy": mean(accuracies)}


def _accuracy(network: Network, digits: mnist.Digits, size: int) -> float:
    batches = zip(digits.test_images.split(size), digits.test_labels.split(size), strict=True)
    correct = sum(int((network.infer(x)[0].sum(0).argmax(1) == y).sum()) for x, y in batches)
    return correct / len(digits.test_labels)


def compilation(case: Case, peer: Peer) -> dict[str, Any]:
    """Seconds of the first training step beyond those of a later one, with an empty cache on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps([case.name, peer.name, torch.get_num_threads()])],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    if isinstance(found, str):
        raise Unsupported(found)
    return {"median": found, "repeats": 1}


def seconds_to_compile(case: Case, peer: Peer) -> float:
    # What is done once in a process does not count: imports, a look at the processor, its headers.
    _first_calls(replace(case, T=1), peer)
    torch._dynamo.reset()
    first, _, *later = _first_calls(case, peer)
    return first - min(later)


def _first_calls(case: Case, peer: Peer) -> list[float]:
    network = Network(case, peer, CPU)
    seconds = []
    for _ in range(1 + LATER):
        x, labels = torch.rand(case.B, *TUTORIAL5.shape), torch.randint(10, (case.B,))
        start = time.perf_counter()
        network.train(x, labels)
        seconds.append(time.perf_counter() - start)
    return seconds


ONCE: dict[str, Callable[[Case, Peer], dict[str, Any]]] = {"epoch": epoch, "compile": compilation}


def _main() -> None:
    name, peer, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    case = case_named(name)
    assert case is not None
    try:
        print(json.dumps(seconds_to_compile(case, PEERS[peer])))
    except Unsupported as error:
        print(json.dumps(str(error)))


if __name__ == "__main__":
    _main()
