"""Train by replays of a CUDA graph: ``snnfast.graphed`` makes a training step on a GPU one launch.

The network is that of ``mnist.py``. docs/gpu.md says what a step may do in a graph.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
from data import load
from torch import Tensor, nn

import snnfast
from snnfast.losses import accuracy_rate, ce_membrane_loss

BETA, LR, BATCH_SIZE, NUM_STEPS = 0.95, 5e-4, 128, 25


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train on MNIST by replays of a CUDA graph.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--epochs", type=int, help="default: 1, or 40 over scikit-learn's digits")
    parser.add_argument("--eager", action="store_true", help="without a graph, to compare")
    args = parser.parse_args(argv)

    data = load(args.data_path, "cuda")
    print(data, flush=True)
    torch.manual_seed(0)
    net = snnfast.MultiStep(nn.Linear(784, 1000), snnfast.Leaky(BETA), nn.Linear(1000, 10), snnfast.Leaky(BETA)).cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True, capturable=True)
    loss_fn = ce_membrane_loss()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        _, mem_rec = net(images, num_steps=NUM_STEPS)
        loss = loss_fn(mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    train_on = step if args.eager else snnfast.graphed(step, optimizer)
    seconds: list[float] = []
    for _ in range(args.epochs or data.epochs):
        for images, labels in data.batches(BATCH_SIZE):
            start = time.perf_counter()
            loss = train_on(images, labels)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    with torch.no_grad():
        spk_rec, _ = net(data.test_images, num_steps=NUM_STEPS)
    accuracy = accuracy_rate(spk_rec, data.test_labels)
    print(f"{1e3 * median(seconds):.2f} ms for a step, last loss {loss.item():.4f}, test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
