"""A stream without an end: training in chunks with carried state, then inference one step at a time.

Forty channels spike at random. Ten of them are busy: which ones is the pattern, and it changes now and then. At each
step the network says which pattern is there. It is trained by truncated backpropagation: a chunk of steps is one call,
the states at its end are those that the next one begins with, and gradients stay inside. Inference has no chunks:
each step is a call, whose time is measured.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import snnfast

CHANNELS, PATTERNS, HIDDEN, BETA, LR, BATCH_SIZE, NUM_STEPS = 40, 4, 200, 0.9, 2e-3, 32, 50
QUIET, BUSY = 0.05, 0.4  # spikes of a channel in a step
CHANGE = 0.02  # probability in a step that the pattern changes
WARM_UP, MEASURED = 20, 2000  # steps of inference


class Stream:
    def __init__(self, batch_size: int) -> None:
        self.pattern = torch.randint(PATTERNS, (batch_size,))
        self.rates = torch.full((PATTERNS, PATTERNS, CHANNELS // PATTERNS), QUIET)
        self.rates[range(PATTERNS), range(PATTERNS)] = BUSY

    def chunk(self, num_steps: int) -> tuple[Tensor, Tensor]:  # spikes [T, B, channels], patterns [T, B]
        patterns = []
        for _ in range(num_steps):
            changes = torch.rand(self.pattern.shape) < CHANGE
            self.pattern = torch.where(changes, torch.randint_like(self.pattern, PATTERNS), self.pattern)
            patterns.append(self.pattern)
        targets = torch.stack(patterns)
        rates = self.rates.flatten(1)[targets]
        return (torch.rand_like(rates) < rates).float(), targets


def build() -> snnfast.MultiStep:
    return snnfast.MultiStep(
        nn.Linear(CHANNELS, HIDDEN),
        snnfast.Leaky(beta=BETA),
        nn.Linear(HIDDEN, PATTERNS),
        snnfast.Leaky(beta=BETA, reset_mechanism="none"),  # its membranes tell the pattern
    )


def train(net: snnfast.MultiStep, chunks: int, device: str) -> None:
    stream, optimizer = Stream(BATCH_SIZE), torch.optim.Adam(net.parameters(), lr=LR)
    states: list[Tensor] | None = None
    for chunk in range(1, chunks + 1):
        x, targets = (t.to(device) for t in stream.chunk(NUM_STEPS))
        _, mem_rec, states = net(x, states=states, return_states=True)
        states = [state.detach() for state in states]  # Gradients end here, and the next chunk begins here.
        loss = F.cross_entropy(mem_rec.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if chunk % 20 == 0:
            right = (mem_rec.argmax(-1) == targets).float().mean()
            print(f"chunk {chunk} of {chunks}: loss {loss.item():.4f}, {right:.2%} of the steps right", flush=True)


def one_step(net: snnfast.MultiStep, x: Tensor, mem1: Any, mem2: Any) -> tuple[Tensor, Tensor]:
    """The membranes of both layers after one step ``x`` ``[B, channels]``."""
    fc1, lif1, fc2, readout = net
    spk, mem1 = lif1(fc1(x), mem1)
    _, mem2 = readout(fc2(spk), mem2)
    return mem1, mem2


@torch.no_grad()
def infer(net: snnfast.MultiStep, device: str) -> None:
    x, targets = (t.to(device) for t in Stream(1).chunk(WARM_UP + MEASURED))
    mem1 = mem2 = None
    seconds, membranes = [], []
    for step in x:
        start = time.perf_counter()
        mem1, mem2 = one_step(net, step, mem1, mem2)
        membranes.append(mem2.cpu())  # which waits for the device
        seconds.append(time.perf_counter() - start)
    by_steps, (_, at_once) = torch.stack(membranes), net(x)
    us = [1e6 * s for s in seconds[WARM_UP:]]
    print(f"inference: {(by_steps.argmax(-1) == targets.cpu()).float().mean():.2%} of {len(x)} steps right")
    print(f"latency of a step: median {median(us):.0f} us, 99th percentile {quantiles(us, n=100)[98]:.0f} us")
    print(f"largest difference from all steps at once: {(by_steps - at_once.cpu()).abs().max():.1e}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Truncated backpropagation over a stream, and inference by steps.")
    parser.add_argument("--chunks", type=int, default=200, help="to train on (default: 200)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    net = build().to(args.device)
    train(net, args.chunks, args.device)
    infer(net, args.device)


if __name__ == "__main__":
    main()
