"""One epoch on MNIST with the network of snnTorch's tutorial 5: seconds, and test accuracy by rate code."""

import argparse
import sys
import time
from pathlib import Path

import torch

from .bars import ACCURACY, ACCURACY_DIFFERENCE, Bar
from .peers import PEERS
from .peers.ours import OURS
from .peers.snntorch_loop import LOOP
from .registry import TUTORIAL5
from .workloads import Network

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import data


def run(args: argparse.Namespace) -> list[Bar]:
    """From the same weights, over the same batches."""
    digits = data.load(str(args.data_path) if args.data_path else None, torch.device("cpu"))
    if not digits.name.startswith("MNIST"):
        args.error("needs MNIST; give --data-path or SNNFAST_DATA")
    accuracy = []
    for name in (OURS, LOOP):
        network = Network(TUTORIAL5, PEERS[name], torch.device("cpu"))
        seconds = _train(network, digits)
        accuracy.append(_accuracy(network, digits))
        print(f"{name:<{len(LOOP)}}  {seconds:>6.1f} s  test accuracy {accuracy[-1]:.4f}", flush=True)
    ours, theirs = accuracy
    return [
        Bar("test accuracy", ours, ACCURACY, at_least=True),
        Bar("difference from the test accuracy of snnTorch", abs(ours - theirs), ACCURACY_DIFFERENCE),
    ]


def _train(network: Network, digits: data.Digits) -> float:
    generator = torch.Generator().manual_seed(0)
    size = TUTORIAL5.B
    count = len(digits.train_images) // size * size
    start = time.perf_counter()
    for batch in torch.randperm(len(digits.train_images), generator=generator)[:count].split(size):
        network.train(digits.train_images[batch], digits.train_labels[batch])
    return time.perf_counter() - start


@torch.no_grad()
def _accuracy(network: Network, digits: data.Digits) -> float:
    batches = zip(digits.test_images.split(TUTORIAL5.B), digits.test_labels.split(TUTORIAL5.B), strict=True)
    correct = sum(int((network(x)[0].sum(0).argmax(1) == y).sum()) for x, y in batches)
    return correct / len(digits.test_labels)
