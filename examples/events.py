"""Event frames through a convolutional network: in which of eight directions does a pattern move?

The frames are made here and look like those of tonic's ``ToFrame``: ``[T, B, 2, H, W]``, counts of events by polarity.
A random pattern moves over the sensor, pixels that become brighter or darker send an event, and noise adds others. All
frames of a minibatch go through the network at once; the loop over time beside it computes the same.
"""

import argparse
import copy
import math
import sys
from collections.abc import Iterator, Sequence

from startup import importing

with importing(__name__):
    import torch
    from common import in_turn, integer, loop, make_parser, make_trainer, print_losses, print_times, run_main, unroll
    from torch import Tensor, nn

    import snnfast
    from snnfast import losses

DIRECTIONS = 8
BETA, SLOPE, LR = 0.8, 25, 5e-3
SPEED, NOISE = 1.0, 0.01  # pixels in a step, events of a pixel and polarity in a step
PATTERN = 5  # pixels of its side


def moving_patterns(
    batch_size: int, num_steps: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # [T, B, 2, H, W] float32, [B] int64
    """Events of a sensor on which the pattern leaves on one side and enters on the other."""
    directions = torch.randint(DIRECTIONS, (batch_size,), generator=generator)
    patterns = torch.rand(batch_size, PATTERN, PATTERN, generator=generator)
    starts = torch.rand(batch_size, 2, generator=generator) * side
    angles = directions * (2 * math.pi / DIRECTIONS)
    steps = torch.arange(num_steps + 1)[:, None, None]
    places = (starts + SPEED * steps * torch.stack([angles.sin(), angles.cos()], 1)).round().long()  # [T + 1, B, 2]
    inside = torch.arange(PATTERN)
    rows, columns = ((places[..., axis, None] + inside) % side for axis in (0, 1))  # [T + 1, B, PATTERN]
    images = torch.zeros(num_steps + 1, batch_size, side, side)
    times, samples = torch.arange(num_steps + 1)[:, None, None, None], torch.arange(batch_size)[None, :, None, None]
    images[times, samples, rows[..., :, None], columns[..., None, :]] = patterns
    change = images.diff(dim=0)
    noise = torch.rand(num_steps, batch_size, 2, side, side, generator=generator) < NOISE
    return torch.stack([change > 0.1, change < -0.1], 2).float() + noise.float(), directions


def build(side: int) -> nn.Sequential:
    def neurons(output: bool = False) -> snnfast.Leaky:
        spike_grad = snnfast.surrogate.fast_sigmoid(slope=SLOPE)
        return snnfast.Leaky(beta=BETA, spike_grad=spike_grad, init_hidden=True, output=output)

    return nn.Sequential(
        nn.Conv2d(2, 16, 5, stride=2, padding=2),
        neurons(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        neurons(),
        nn.Flatten(),
        nn.Linear(32 * math.ceil(side / 4) ** 2, DIRECTIONS),
        neurons(output=True),
    )


def run(args: argparse.Namespace, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(args.seed)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        while True:
            x, y = moving_patterns(args.batch_size, args.num_steps, args.side, generator)
            yield x.to(device), y.to(device)

    torch.manual_seed(args.seed)
    looped = build(args.side).to(device)
    unrolled = copy.deepcopy(looped)
    forward, in_loop, loss_fn = unroll(unrolled), loop(looped), losses.ce_membrane_loss()
    train_unrolled = make_trainer(unrolled, lambda x: forward(x)[1], loss_fn, LR)
    train_looped = make_trainer(looped, lambda x: in_loop(x)[1], loss_fn, LR)

    training = batches()
    seen, milliseconds = in_turn({"unrolled": train_unrolled, "loop": train_looped}, training, args.compare)
    print_losses(seen)
    print_times(milliseconds)
    print("training goes on unrolled", flush=True)
    for i in range(args.compare + 1, args.iterations + 1):
        loss = train_unrolled(*next(training))
        if i % 50 == 0 or i == args.iterations:
            print(f"iteration {i} of {args.iterations}: loss {loss:.4f}", flush=True)
    with torch.no_grad():
        right = [forward(x)[1].mean(0).argmax(1) == y for x, y in (next(training) for _ in range(args.test))]
    iterations = max(args.compare, args.iterations)
    print(f"test accuracy (highest membrane) after {iterations} iterations: {torch.cat(right).float().mean():.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "Event frames through a convolutional spiking network, unrolled and as a loop over time.",
        batch_size=32,
        num_steps=20,
        compare=5,
    )
    add = parser.add_argument
    add("--side", type=integer(PATTERN), default=20, help="pixels of the sensor's side (default: %(default)s)")
    add("--iterations", type=integer(), default=200, help="minibatches to train on (default: %(default)s)")
    add("--test", type=integer(), default=10, help="minibatches to test on (default: %(default)s)")
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
