"""Event frames through a convolutional network: in which of eight directions does a pattern move?

The frames are made here and look like those of tonic's ``ToFrame``: ``[T, B, 2, H, W]``, counts of events by polarity.
A random pattern moves over the sensor, pixels that become brighter or darker send an event, and noise adds others.

    python examples/events.py           # all frames of a minibatch at once
    python examples/events.py --loop    # frame after frame; the losses agree to rounding
"""

import argparse
import math
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

import snnfast
from snnfast.losses import ce_membrane_loss

DIRECTIONS, SIDE, PATTERN, SPEED, NOISE = 8, 20, 5, 1.0, 0.01  # SPEED: pixels in a step; NOISE: events of a pixel
BETA, SLOPE, LR, BATCH_SIZE, NUM_STEPS = 0.8, 25, 5e-3, 32, 20


def moving_patterns() -> tuple[Tensor, Tensor]:  # events [T, B, 2, H, W], directions [B]
    """Events of a sensor on which the pattern leaves on one side and enters on the other."""
    directions = torch.randint(DIRECTIONS, (BATCH_SIZE,))
    angles = directions * (2 * math.pi / DIRECTIONS)
    steps = torch.arange(NUM_STEPS + 1)[:, None, None]
    starts = torch.rand(BATCH_SIZE, 2) * SIDE
    places = (starts + SPEED * steps * torch.stack([angles.sin(), angles.cos()], 1)).round().long()  # [T + 1, B, 2]
    rows, columns = ((places[..., axis, None] + torch.arange(PATTERN)) % SIDE for axis in (0, 1))
    images = torch.zeros(NUM_STEPS + 1, BATCH_SIZE, SIDE, SIDE)
    samples = torch.arange(BATCH_SIZE)[None, :, None, None]
    images[steps[..., None], samples, rows[..., :, None], columns[..., None, :]] = torch.rand(
        BATCH_SIZE, PATTERN, PATTERN
    )
    change = images.diff(dim=0)
    noise = torch.rand(NUM_STEPS, BATCH_SIZE, 2, SIDE, SIDE) < NOISE
    return torch.stack([change > 0.1, change < -0.1], 2).float() + noise.float(), directions


def build() -> nn.Sequential:
    def neurons(output: bool = False) -> snnfast.Leaky:
        spike_grad = snnfast.surrogate.fast_sigmoid(slope=SLOPE)
        return snnfast.Leaky(beta=BETA, spike_grad=spike_grad, init_hidden=True, output=output)

    return nn.Sequential(
        nn.Conv2d(2, 16, 5, stride=2, padding=2),
        neurons(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        neurons(),
        nn.Flatten(),
        nn.Linear(32 * math.ceil(SIDE / 4) ** 2, DIRECTIONS),
        neurons(output=True),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Event frames through a convolutional spiking network.")
    parser.add_argument("--iterations", type=int, default=200, help="default: 200")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loop", action="store_true", help="frame after frame")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    net = build().to(args.device)
    at_once = snnfast.MultiStep(net)

    def forward(frames: Tensor) -> Tensor:  # membranes [T, B, directions]
        snnfast.reset(net)
        if args.loop:
            return torch.stack([net(frame)[1] for frame in frames])
        mem_rec: Tensor = at_once(frames)[1]
        return mem_rec

    optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=LR), ce_membrane_loss()
    seconds: list[float] = []
    for i in range(1, args.iterations + 1):
        frames, directions = (t.to(args.device) for t in moving_patterns())
        start = time.perf_counter()
        loss = loss_fn(forward(frames), directions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
        if i <= 3 or i % 50 == 0:
            print(f"iteration {i}: loss {value:.6f}, {1e3 * median(seconds):.1f} ms each", flush=True)

    with torch.no_grad():
        tests = [(t.to(args.device) for t in moving_patterns()) for _ in range(10)]
        right = [forward(frames).mean(0).argmax(1) == directions for frames, directions in tests]
    print(f"test accuracy (the highest membrane): {torch.cat(right).float().mean():.4f}")


if __name__ == "__main__":
    main()
