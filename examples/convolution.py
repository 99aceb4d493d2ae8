"""A convolutional spiking network on MNIST, as a loop over time and with all time steps at once.

The network, 12C5-MP2-64C5-MP2-10, and the numbers are those of snnTorch's tutorial 6. The loop calls every layer at
every step. Unrolled, the first convolution and its pooling run once, as the image does not change; the others see all
steps as one batch, and each layer of neurons is one kernel.

Both ways compute the same, up to rounding: the neurons agree to the bit, but one convolution of all steps does not add
its products, and above all its gradients, in the order in which one convolution for each step does. As long as these
last digits decide on no spike, the losses agree to about seven digits; from the first membrane on that is so near the
threshold that they do, the two drift apart like runs on two machines. ``--double`` moves that far away: its losses
agree to the last digit shown.
"""

import argparse
import copy
import sys
from collections.abc import Sequence

from startup import importing

with importing(__name__):
    import torch
    from common import (
        accuracy_on_test_images,
        add_data_path,
        describe,
        endless,
        in_turn,
        integer,
        loop,
        make_parser,
        make_trainer,
        minibatches,
        print_losses,
        print_times,
        run_main,
        unroll,
    )
    from data import CLASSES, SIDE, load
    from torch import nn

    import snnfast
    from snnfast import losses

BETA, SLOPE, LR = 0.5, 25, 1e-2


def build() -> nn.Sequential:
    def neurons(output: bool = False) -> snnfast.Leaky:
        return snnfast.Leaky(
            beta=BETA, spike_grad=snnfast.surrogate.fast_sigmoid(slope=SLOPE), init_hidden=True, output=output
        )

    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Conv2d(12, 64, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, CLASSES),
        neurons(output=True),
    )


def run(args: argparse.Namespace, device: torch.device) -> None:
    data = load(args.data_path, device)
    print(describe(data), flush=True)
    torch.manual_seed(args.seed)
    dtype = torch.float64 if args.double else torch.float32
    looped = build().to(device, dtype)
    unrolled = copy.deepcopy(looped)
    batches = endless(minibatches(data, args.batch_size))
    forward = unroll(unrolled, args.num_steps)
    in_loop = loop(looped, args.num_steps)
    loss_fn = losses.ce_rate_loss()
    train_looped = make_trainer(looped, lambda x: in_loop(x.to(dtype))[0], loss_fn, LR)
    train_unrolled = make_trainer(unrolled, lambda x: forward(x.to(dtype))[0], loss_fn, LR)

    seen, milliseconds = in_turn({"unrolled": train_unrolled, "loop": train_looped}, batches, args.compare)
    print_losses(seen)
    print_times(milliseconds)
    print("training goes on unrolled", flush=True)
    for i in range(args.compare + 1, args.iterations + 1):
        loss = train_unrolled(*next(batches))
        if i % 10 == 0 or i == args.iterations:
            print(f"iteration {i} of {args.iterations}: loss {loss:.4f}", flush=True)
    share = accuracy_on_test_images(
        lambda x, y: losses.accuracy_rate(forward(x.to(dtype))[0], y), data, args.batch_size
    )
    print(f"test accuracy (rate code) after {max(args.compare, args.iterations)} iterations: {share:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "A convolutional spiking network on MNIST, as a loop over time and unrolled.",
        batch_size=128,
        num_steps=50,
        compare=8,
    )
    add_data_path(parser)
    parser.add_argument(
        "--iterations",
        type=integer(),
        default=50,
        help="minibatches to train on, of which an epoch of MNIST has 468 (default: %(default)s)",
    )
    parser.add_argument("--double", action="store_true", help="compute in double precision")
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
