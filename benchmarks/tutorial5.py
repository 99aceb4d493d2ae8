"""snnTorch's tutorial 5: one training step, and one epoch on MNIST, with snnfast and as the tutorial writes it."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import snnfast

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import data
import mnist
import timing

from .lif import verdict
from .measure import alternate, table

NUM_STEPS, BATCH, LR = 25, 128, 5e-4
STEP_BAR = 6.0
ACCURACY_BAR, ACCURACY_MARGIN = 0.905, 0.01


def run_step(args: argparse.Namespace) -> bool:
    """Forward, backward and Adam on one batch of 128."""
    torch.manual_seed(0)
    net = mnist.build(1000, 0.95)
    images, labels = torch.rand(BATCH, data.SIDE**2), torch.randint(data.CLASSES, (BATCH,))
    train_fused = mnist.make_trainer(net, NUM_STEPS, LR)
    _, train_loop = timing.snntorch_trainer(net, NUM_STEPS, LR)
    functions: dict[str, Callable[[], object]] = {
        "snnfast, fused": lambda: train_fused(images, labels),
        "snnTorch, tutorial 5": lambda: train_loop(images, labels),
    }
    print(f"training step of tutorial 5: 784-1000-10, {NUM_STEPS} steps, batch {BATCH}, Adam")
    with snnfast.use_backend("fused"):
        ratio = table(alternate(functions, args.seconds), "snnfast, fused")
    return verdict("snnTorch / ours", ratio, STEP_BAR)


def run_epoch(args: argparse.Namespace) -> bool:
    """One epoch from the same weights over the same batches; test accuracy by rate code."""
    digits = data.load(str(args.data_path) if args.data_path else None, torch.device("cpu"))
    if not digits.name.startswith("MNIST"):
        print("epoch: needs MNIST; give --data-path or SNNFAST_DATA\n")
        return False
    torch.manual_seed(0)
    net = mnist.build(1000, 0.95)
    model, train_loop = timing.snntorch_trainer(net, NUM_STEPS, LR)
    train_fused = mnist.make_trainer(net, NUM_STEPS, LR)
    accuracy = {}
    for name, train, spikes in (
        ("snnfast, fused", train_fused, lambda x: net(x, num_steps=NUM_STEPS, record_mem=False)[0]),
        ("snnTorch, tutorial 5", train_loop, lambda x: model(x)[0]),
    ):
        seconds = _epoch(train, digits)
        accuracy[name] = _accuracy(spikes, digits)
        print(f"{name:<20}  {seconds:>6.1f} s  test accuracy {accuracy[name]:.4f}", flush=True)
    ours, theirs = accuracy.values()
    held = verdict("test accuracy in per cent", 100 * ours, 100 * ACCURACY_BAR)
    close = abs(ours - theirs) <= ACCURACY_MARGIN
    print(f"difference from snnTorch: {ours - theirs:+.4f}, bar 0.01: {'holds' if close else 'MISSED'}\n")
    return held and close


def _epoch(train: Callable[[Tensor, Tensor], object], digits: data.Digits) -> float:
    generator = torch.Generator().manual_seed(0)
    count = len(digits.train_images) // BATCH * BATCH
    start = time.perf_counter()
    for batch in torch.randperm(len(digits.train_images), generator=generator)[:count].split(BATCH):
        train(digits.train_images[batch], digits.train_labels[batch])
    return time.perf_counter() - start


@torch.no_grad()
def _accuracy(spikes: Callable[[Tensor], Tensor], digits: data.Digits) -> float:
    correct = sum(
        int((mnist.predict(spikes(x)) == y).sum())
        for x, y in zip(digits.test_images.split(BATCH), digits.test_labels.split(BATCH), strict=True)
    )
    return correct / len(digits.test_labels)
