"""One epoch on MNIST with the network of snnTorch's tutorial 5: seconds, and test accuracy by rate code."""

import argparse
import time
from statistics import mean

import torch

from . import mnist
from .bars import ACCURACY, ACCURACY_DIFFERENCE, Bar, Found
from .peers import PEERS, Unsupported
from .peers.ours import OURS
from .peers.snntorch_loop import LOOP
from .registry import TUTORIAL5
from .workloads import Network

CPU = torch.device("cpu")


def run(args: argparse.Namespace) -> Found:
    """For each seed from the same weights, over the same batches."""
    try:
        digits = mnist.load()
    except Unsupported as error:
        args.error(str(error))
    if problem := PEERS[LOOP].missing(CPU):
        args.error(f"{LOOP}: {problem}")
    rows = []
    for seed in range(args.seeds):
        for name in (OURS, LOOP):
            network = Network(TUTORIAL5, PEERS[name], CPU, seed=seed)
            seconds = train(network, digits, seed)
            accuracy = _accuracy(network, digits)
            print(f"seed {seed}  {name:<{len(LOOP)}}  {seconds:>6.1f} s  test accuracy {accuracy:.4f}", flush=True)
            rows.append({"seed": seed, "peer": name, "seconds": seconds, "accuracy": accuracy})
    ours, theirs = (mean(row["accuracy"] for row in rows if row["peer"] == name) for name in (OURS, LOOP))
    bars = [
        Bar("test accuracy", ours, ACCURACY, at_least=True),
        Bar("difference from the test accuracy of snnTorch", abs(ours - theirs), ACCURACY_DIFFERENCE),
    ]
    return Found(bars, rows)


def train(network: Network, digits: mnist.data.Digits, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    size = TUTORIAL5.B
    count = len(digits.train_images) // size * size
    start = time.perf_counter()
    for batch in torch.randperm(len(digits.train_images), generator=generator)[:count].split(size):
        network.train(digits.train_images[batch], digits.train_labels[batch])
    return time.perf_counter() - start


@torch.no_grad()
def _accuracy(network: Network, digits: mnist.data.Digits) -> float:
    batches = zip(digits.test_images.split(TUTORIAL5.B), digits.test_labels.split(TUTORIAL5.B), strict=True)
    correct = sum(int((network(x)[0].sum(0).argmax(1) == y).sum()) for x, y in batches)
    return correct / len(digits.test_labels)
