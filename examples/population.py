"""Population coding on Fashion-MNIST: one neuron for each class, or fifty of them, and a single time step.

A neuron spikes once at most in one step, so that a class with one neuron is either right or silent. Fifty neurons vote.
Network and numbers are those of snnTorch's tutorial on population coding. Both networks are trained as a loop over time
and unrolled. With one time step both ways run the same matrix products; with more of them (``--num-steps``) sums are
in another order, as in ``convolution.py``.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence

from startup import importing

with importing(__name__):
    import torch
    from common import (
        accuracy_on_test_images,
        add_length,
        count_iterations,
        describe,
        endless,
        folder,
        in_turn,
        loop,
        make_parser,
        make_trainer,
        minibatches,
        print_losses,
        run_main,
        unroll,
    )
    from data import CLASSES, SIDE, Digits, load_fashion
    from torch import nn

    import snnfast
    from snnfast import losses

HIDDEN, BETA, LR = 128, 0.9, 2e-3
POPULATION = 50  # neurons of a class


def build(outputs: int) -> nn.Sequential:
    def neurons(output: bool = False) -> snnfast.Leaky:
        return snnfast.Leaky(beta=BETA, spike_grad=snnfast.surrogate.fast_sigmoid(), init_hidden=True, output=output)

    return nn.Sequential(nn.Linear(SIDE * SIDE, HIDDEN), neurons(), nn.Linear(HIDDEN, outputs), neurons(output=True))


def train(data: Digits, args: argparse.Namespace, per_class: int) -> None:
    population = per_class > 1
    loss_fn = losses.mse_count_loss(correct_rate=1, incorrect_rate=0, population_code=population, num_classes=CLASSES)
    torch.manual_seed(args.seed)
    looped = build(per_class * CLASSES).to(data.train_images.device)
    unrolled = copy.deepcopy(looped)
    batches = endless(minibatches(data, args.batch_size))
    in_loop, forward = loop(looped, args.num_steps), unroll(unrolled, args.num_steps)
    train_looped = make_trainer(looped, lambda x: in_loop(x)[0], loss_fn, LR)
    train_unrolled = make_trainer(unrolled, lambda x: forward(x)[0], loss_fn, LR)

    print(f"{per_class * CLASSES} output neurons, {per_class} for each class")
    seen, _ = in_turn({"unrolled": train_unrolled, "loop": train_looped}, batches, args.compare)
    print_losses(seen)
    count = count_iterations(args, data)
    start = time.perf_counter()
    for _ in range(args.compare, count):
        train_unrolled(*next(batches))
    seconds = time.perf_counter() - start
    share = accuracy_on_test_images(
        lambda x, y: losses.accuracy_rate(forward(x)[0], y, population, CLASSES), data, args.batch_size
    )
    print(f"test accuracy after {max(count, args.compare)} iterations: {share:.4f} ({seconds:.1f} s)\n", flush=True)


def run(args: argparse.Namespace, device: torch.device) -> None:
    data = load_fashion(args.data_path, device)
    print(describe(data), flush=True)
    for per_class in (1, POPULATION):
        train(data, args, per_class)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "Population coding on Fashion-MNIST, as a loop over time and unrolled.", batch_size=128, num_steps=1, compare=10
    )
    add_length(parser)
    parser.add_argument(
        "--data-path",
        type=folder,
        metavar="FOLDER",
        help="folder that holds FashionMNIST/raw as torchvision stores it (default: the first that has it of the "
        "environment variable SNNFAST_DATA, ./data, and Debian's package dataset-fashion-mnist; without any of them "
        "it is downloaded into ./data, and offline the small digits set of scikit-learn is used)",
    )
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
