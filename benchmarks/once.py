"""What is not called again and again: an epoch on MNIST, and the compilation of a loop."""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from . import mnist
from .peers import Peer
from .registry import CLASSES, Case
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
    with fresh_cache():
        # What is done once in a process does not count: imports, a look at the processor, its headers.
        _first_calls(replace(case, T=2), peer)
        torch._dynamo.reset()
        first, _, *later = _first_calls(case, peer)
    torch._dynamo.reset()
    return {"median": first - min(later), "repeats": 1}


def _first_calls(case: Case, peer: Peer) -> list[float]:
    network = Network(case, peer, CPU)
    seconds = []
    for _ in range(1 + LATER):
        x, labels = torch.rand(case.B, *case.shape), torch.randint(CLASSES, (case.B,))
        start = time.perf_counter()
        network.train(x, labels)
        seconds.append(time.perf_counter() - start)
    return seconds


ONCE: dict[str, Callable[[Case, Peer], dict[str, Any]]] = {"epoch": epoch, "compile": compilation}
