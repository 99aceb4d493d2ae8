"""Train by replays of a CUDA graph: a training step on a GPU is one launch.

With a small network, the host takes longer to launch the kernels of a step than the GPU takes to run them. A CUDA graph
launches forward pass, backward pass and optimizer at once. The network is that of ``mnist.py``; docs/gpu.md says what
to look out for.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from data import load
from torch import Tensor, nn

import snnfast
from snnfast.losses import accuracy_rate, ce_membrane_loss

BETA, LR, BATCH_SIZE, NUM_STEPS = 0.95, 5e-4, 128, 25


def capture(
    step: Callable[[Tensor, Tensor], Tensor],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same as ``step``, replayed, for minibatches of the shape of ``images`` and ``labels``."""
    images, labels = images.clone(), labels.clone()  # what the graph reads
    untrained = copy.deepcopy(net.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries set up at their first calls must not happen while a graph is captured
            step(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    net.load_state_dict(untrained)  # Nothing is learned yet. It copies in place, to where the graph will look.
    for state in optimizer.state.values():
        for moment in state.values():
            moment.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(images, labels)

    def replay(new_images: Tensor, new_labels: Tensor) -> Tensor:
        images.copy_(new_images)
        labels.copy_(new_labels)
        graph.replay()
        return loss.clone()

    return replay


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
        return loss.detach()

    train_on = step if args.eager else capture(step, net, optimizer, *next(data.batches(BATCH_SIZE)))
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
