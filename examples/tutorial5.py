"""snnTorch's tutorial 5 with one line changed: the import.

The network, its loop over time, the loss and the optimizer are written as for snnTorch. The first iterations are shown
beside those of snnTorch itself, from the same weights and on the same images, and beside what the tutorial's page says;
then the network is trained and tested.

With ``--compile`` not even the import changes: one line is added to the script for snnTorch, ``net =
snnfast.compile(net)``, and all time steps of a layer run in one kernel.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from types import ModuleType
from typing import NamedTuple

from startup import importing

with importing(__name__):
    import snntorch
    import torch
    from common import (
        accuracy_on_test_images,
        add_data_path,
        add_length,
        count_iterations,
        describe,
        endless,
        make_parser,
        minibatches,
        run_main,
    )
    from data import CLASSES, SIDE, Digits, load
    from torch import Tensor, nn

    import snnfast  # for --compile

    # The only line that differs from a script for snnTorch, which has `import snntorch as snn`.
    import snnfast.snntorch as snn

HIDDEN, BETA, LR = 1000, 0.95, 5e-4


class Net(nn.Module):
    def __init__(self, num_steps: int, snn: ModuleType = snn) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(SIDE * SIDE, HIDDEN)
        self.lif1 = snn.Leaky(beta=BETA)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=BETA)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def loss_over_time(
    mem_rec: Tensor,  # [T, B, classes]
    targets: Tensor,  # [B]
) -> Tensor:
    cross_entropy = nn.CrossEntropyLoss()
    loss = torch.zeros((), device=mem_rec.device)
    for mem in mem_rec:
        loss = loss + cross_entropy(mem, targets)
    return loss


def accuracy(
    spk_rec: Tensor,  # [T, B, classes]
    targets: Tensor,  # [B]
) -> float:
    """By rate code: a sample's class is the one whose neuron spikes most."""
    return (spk_rec.sum(0).argmax(1) == targets).double().mean().item()


class Seen(NamedTuple):
    loss: float
    accuracy: float


# https://snntorch.readthedocs.io/en/latest/tutorials/tutorial_5.html, section 7.4; its seed is not given.
TUTORIAL = (Seen(60.488, 0.1016), Seen(47.384, 0.3359))


class Trainer:
    """A network, its optimizer, and minibatches in an order that the seed decides."""

    def __init__(
        self,
        make_net: Callable[[], nn.Module],
        data: Digits,
        args: argparse.Namespace,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = loss_over_time,
    ) -> None:
        torch.manual_seed(args.seed)  # for the weights first, then for the order of the images
        self.net = make_net().to(data.train_images.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LR, betas=(0.9, 0.999))
        self.loss_fn = loss_fn
        self.batches = endless(minibatches(data, args.batch_size))

    def look(self, images: Tensor, targets: Tensor) -> Seen:
        with torch.no_grad():
            spk_rec, mem_rec = self.net(images)
            return Seen(self.loss_fn(mem_rec, targets).item(), accuracy(spk_rec, targets))

    def train_on(self, images: Tensor, targets: Tensor) -> Seen:
        spk_rec, mem_rec = self.net(images)
        loss = self.loss_fn(mem_rec, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Seen(loss.item(), accuracy(spk_rec, targets))

    def first(self, count: int) -> list[Seen]:
        """The first minibatch before and after a step on it, then each of the next ones before the step on it."""
        images, targets = next(self.batches)
        seen = [self.train_on(images, targets), self.look(images, targets)]
        return seen + [self.train_on(*next(self.batches)) for _ in range(count - 1)]


def print_first(columns: dict[str, list[Seen]]) -> None:
    titles = (*columns, "tutorial's text")
    rows = list(zip(*columns.values(), strict=True))
    print("loss and accuracy of a minibatch; the text is from another seed")
    print(f"{'':<22}" + "".join(f"  {title:>18}" for title in titles))
    for i, row in enumerate(rows):
        name = ("minibatch 1, untrained", "the same, after a step")[i] if i < 2 else f"minibatch {i}"
        cells = row + TUTORIAL[i : i + 1]
        print(f"{name:<22}" + "".join(f"  {seen.loss:>9.3f} {seen.accuracy:>8.2%}" for seen in cells))
    # To three decimals, as the tutorial prints it; behind them the order of floating-point sums shows.
    far = max(max(seen.loss for seen in row) - min(seen.loss for seen in row) for row in rows)
    print(f"largest difference of the losses: {far:.1e}", flush=True)


def train(trainer: Trainer, data: Digits, args: argparse.Namespace) -> None:
    count = count_iterations(args, data)
    seconds = []
    for i in range(1, count + 1):
        start = time.perf_counter()
        seen = trainer.train_on(*next(trainer.batches))
        seconds.append(time.perf_counter() - start)
        if i % 50 == 0 or i == count:
            ms = 1e3 * median(seconds)  # not the mean: the first iteration compiles
            print(
                f"iteration {i} of {count}: loss {seen.loss:.2f}, accuracy {seen.accuracy:.2%}, {ms:.1f} ms each",
                flush=True,
            )
    share = accuracy_on_test_images(lambda x, y: accuracy(trainer.net(x)[0], y), data, args.batch_size)
    print(f"test accuracy (rate code): {share:.4f}")


def run(args: argparse.Namespace, device: torch.device) -> None:
    data = load(args.data_path, device)
    print(describe(data), flush=True)
    nets: dict[str, Callable[[], nn.Module]] = {
        "snnfast.snntorch": lambda: Net(args.num_steps),
        "snntorch": lambda: Net(args.num_steps, snntorch),
    }
    if args.train == "snnfast.compile":  # which takes seconds
        nets["snnfast.compile"] = lambda: snnfast.compile(Net(args.num_steps, snntorch))
    print_first({name: Trainer(make_net, data, args).first(args.compare) for name, make_net in nets.items()})
    print(f"training with {args.train}", flush=True)
    train(Trainer(nets[args.train], data, args), data, args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "snnTorch's tutorial 5 with snnfast, side by side with snnTorch.", batch_size=128, num_steps=25, compare=3
    )
    add_data_path(parser)
    add_length(parser)
    parser.set_defaults(train="snnfast.snntorch")
    train_with = parser.add_mutually_exclusive_group()
    for option, name, text in (
        ("--compile", "snnfast.compile", "train with snnTorch's network and loop, compiled by snnfast"),
        ("--snntorch", "snntorch", "train with plain snnTorch, to compare the time"),
    ):
        train_with.add_argument(option, dest="train", action="store_const", const=name, help=text)
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
