"""A stream without an end: training in chunks with carried state, then inference one step at a time.

Forty channels spike at random. Ten of them are busy: which ones is the pattern, and it changes now and then. At each
step the network says which pattern is there. It is trained by truncated backpropagation: a chunk of steps is one call,
the states at its end are those that the next one begins with, and gradients stay inside. Inference has no chunks:
each step is a call, whose time is measured.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median, quantiles

from startup import importing

with importing(__name__):
    import torch
    from common import integer, make_parser, run_main
    from torch import Tensor, nn
    from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

    import snnfast

CHANNELS, PATTERNS, BETA, LR = 40, 4, 0.9, 2e-3
QUIET, BUSY = 0.05, 0.4  # spikes of a channel in a step
CHANGE = 0.02  # of the pattern, probability in a step
WARM_UP = 20  # steps


class Stream:
    """Spikes ``[T, B, channels]`` and the pattern ``[T, B]`` behind each step, chunk after chunk."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rates = torch.full((PATTERNS, CHANNELS), QUIET)
        for pattern, channels in enumerate(torch.arange(CHANNELS).view(PATTERNS, -1)):
            self.rates[pattern, channels] = BUSY
        self.pattern = torch.randint(PATTERNS, (batch_size,), generator=self.generator)

    def chunk(self, steps: int) -> tuple[Tensor, Tensor]:
        patterns = []
        for _ in range(steps):
            changes = torch.rand(self.pattern.shape, generator=self.generator) < CHANGE
            others = torch.randint(PATTERNS, self.pattern.shape, generator=self.generator)
            self.pattern = torch.where(changes, others, self.pattern)
            patterns.append(self.pattern)
        targets = torch.stack(patterns)
        spikes = torch.rand(*targets.shape, CHANNELS, generator=self.generator) < self.rates[targets]
        return spikes.float(), targets


def build(hidden: int) -> snnfast.MultiStep:
    readout = snnfast.Leaky(beta=BETA, reset_mechanism="none")
    return snnfast.MultiStep(
        nn.Linear(CHANNELS, hidden), snnfast.Leaky(beta=BETA), nn.Linear(hidden, PATTERNS), readout
    )


def chunk_loss(
    net: snnfast.MultiStep,
    x: Tensor,  # [T, B, channels]
    targets: Tensor,  # [T, B]
    states: list[Tensor] | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss of a chunk, its membranes, and the states behind it, cut off from the graph."""
    _, mem_rec, states = net(x, states=states, return_states=True)
    loss = F.cross_entropy(mem_rec.flatten(0, 1), targets.flatten())
    return loss, mem_rec, [state.detach() for state in states]


def one_step(net: snnfast.MultiStep, x: Tensor, states: list[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """One step ``[B, channels]`` of a network in sequence; returns the readout's membrane and the states."""
    behind: list[Tensor | None] = []
    for layer in net:
        if isinstance(layer, snnfast.Leaky):
            x, mem = layer(x, states[len(behind)])
            behind.append(mem)
        else:
            x = layer(x)
    return mem, behind


def train(net: snnfast.MultiStep, stream: Stream, args: argparse.Namespace, device: torch.device) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    states: list[Tensor] | None = None
    start = time.perf_counter()
    for chunk in range(1, args.chunks + 1):
        x, targets = (t.to(device) for t in stream.chunk(args.num_steps))
        loss, mem_rec, states = chunk_loss(net, x, targets, states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if chunk % 50 == 0 or chunk == args.chunks:
            right = (mem_rec.argmax(-1) == targets).float().mean()
            print(f"chunk {chunk} of {args.chunks}: loss {loss.item():.4f}, {right:.2%} of the steps right", flush=True)
    ms = 1e3 * (time.perf_counter() - start) / args.chunks
    print(f"one chunk of {args.num_steps} steps, with making its spikes: {ms:.2f} ms")


@torch.no_grad()
def infer(net: snnfast.MultiStep, args: argparse.Namespace, device: torch.device) -> None:
    x, targets = Stream(1, args.seed + 1).chunk(WARM_UP + args.steps)
    states: list[Tensor | None] = [None, None]
    seconds, membranes = [], []
    for step in x:
        start = time.perf_counter()
        mem, states = one_step(net, step.to(device), states)
        membranes.append(mem.cpu())  # which waits for the device
        seconds.append(time.perf_counter() - start)
    _, mem_rec = net(x.to(device))
    mem_steps = torch.stack(membranes)
    right = (mem_steps.argmax(-1) == targets).float().mean()
    us = [1e6 * s for s in seconds[WARM_UP:]]
    print(f"inference, one stream: {right:.2%} of {len(x)} steps right")
    print(f"latency of a step: median {median(us):.0f} us, 99th percentile {quantiles(us, n=100)[98]:.0f} us")
    print(f"largest difference from all steps at once: {(mem_steps - mem_rec.cpu()).abs().max():.1e}", flush=True)


def run(args: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(args.seed)
    net = build(args.hidden).to(device)
    train(net, Stream(args.batch_size, args.seed), args, device)
    infer(net, args, device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "Truncated backpropagation over a stream, and inference one step at a time.", batch_size=32, num_steps=50
    )
    add = parser.add_argument
    add("--hidden", type=integer(), default=200, help="neurons in the hidden layer (default: %(default)s)")
    add("--chunks", type=integer(), default=200, help="of --num-steps steps each, to train on (default: %(default)s)")
    add("--steps", type=integer(2), default=2000, help="of inference, to measure (default: %(default)s)")
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
