"""A convolutional spiking network on MNIST, with all time steps at once or as a loop over time.

The network, 12C5-MP2-64C5-MP2-10, and the numbers are those of snnTorch's tutorial 6.

    python examples/convolution.py           # all time steps at once
    python examples/convolution.py --loop    # every layer at every step, as snnTorch does it

At once, the first convolution and its pooling run once, as the image does not change. The others see all steps as one
batch, and each layer of neurons is one kernel. Both ways compute the same up to rounding: one convolution of all steps
adds its gradients in another order. As soon as a last digit decides about a spike, the two drift apart like runs on two
machines. With ``--double`` the losses agree to the last digit shown.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import chain, count, islice
from statistics import median

import torch
from data import load
from torch import Tensor, nn

import snnfast
from snnfast.losses import accuracy_rate, ce_rate_loss

BETA, SLOPE, LR, BATCH_SIZE, NUM_STEPS = 0.5, 25, 1e-2, 128, 50


def build() -> nn.Sequential:
    def neurons(output: bool = False) -> snnfast.Leaky:
        spike_grad = snnfast.surrogate.fast_sigmoid(slope=SLOPE)
        return snnfast.Leaky(beta=BETA, spike_grad=spike_grad, init_hidden=True, output=output)

    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Conv2d(12, 64, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
        neurons(output=True),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A convolutional spiking network on MNIST.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--iterations", type=int, default=50, help="an epoch of MNIST has 468 (default: 50)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loop", action="store_true", help="step after step")
    parser.add_argument("--double", action="store_true", help="compute in double precision")
    args = parser.parse_args(argv)

    data = load(args.data_path, args.device)
    print(data, flush=True)
    dtype = torch.float64 if args.double else torch.float32
    torch.manual_seed(0)
    net = build().to(args.device, dtype)
    at_once = snnfast.MultiStep(net)

    def forward(images: Tensor) -> Tensor:  # [B, 784] to spikes [T, B, 10]
        snnfast.reset(net)
        x = images.to(dtype)
        if args.loop:
            return torch.stack([net(x)[0] for _ in range(NUM_STEPS)])
        spk_rec: Tensor = at_once(x, num_steps=NUM_STEPS)[0]
        return spk_rec

    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.9, 0.999))
    loss_fn = ce_rate_loss()
    endless = chain.from_iterable(data.batches(BATCH_SIZE) for _ in count())
    seconds: list[float] = []
    for images, labels in islice(endless, args.iterations):
        start = time.perf_counter()
        loss = loss_fn(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
        if len(seconds) <= 3 or len(seconds) % 10 == 0:
            print(f"iteration {len(seconds)}: loss {value:.8f}, {1e3 * median(seconds):.1f} ms each", flush=True)

    with torch.no_grad():
        spk_rec = torch.cat([forward(images) for images in data.test_images.split(BATCH_SIZE)], 1)
    print(f"test accuracy: {accuracy_rate(spk_rec, data.test_labels):.4f}")


if __name__ == "__main__":
    main()
