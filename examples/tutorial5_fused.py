"""The network of snnTorch's tutorial 5 without its loop over time, and what that is worth.

The first layer sees the same image at every step and runs once; each layer of neurons is unrolled in one kernel; the
layer between them is given the spikes of all steps at once, as bits. The first iterations and the time of one are shown
beside the loop of ``tutorial5.py``: compiled by ``snnfast.compile``, with snnfast's neurons, and with snnTorch's.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from startup import importing

with importing(__name__):
    import snntorch
    import torch
    import tutorial5
    from common import add_data_path, add_length, describe, in_turn, integer, make_parser, print_times, run_main
    from data import CLASSES, SIDE, Digits, load
    from torch import Tensor, nn

    import snnfast


class Net(nn.Module):
    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.layers = snnfast.MultiStep(
            nn.Linear(SIDE * SIDE, tutorial5.HIDDEN),
            snnfast.Leaky(beta=tutorial5.BETA),
            nn.Linear(tutorial5.HIDDEN, CLASSES),
            snnfast.Leaky(beta=tutorial5.BETA),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk_rec, mem_rec = self.layers(x, num_steps=self.num_steps)
        return spk_rec, mem_rec


def trainers(data: Digits, args: argparse.Namespace) -> dict[str, tutorial5.Trainer]:
    """All start from the same weights and see the same images."""
    nets: dict[str, Callable[[], nn.Module]] = {
        "unrolled": lambda: Net(args.num_steps),
        "compiled": lambda: snnfast.compile(tutorial5.Net(args.num_steps)),
        "loop": lambda: tutorial5.Net(args.num_steps),
        "snntorch": lambda: tutorial5.Net(args.num_steps, snntorch),
    }
    loss_fns = {"unrolled": snnfast.losses.ce_membrane_loss()}
    return {
        name: tutorial5.Trainer(make_net, data, args, loss_fns.get(name, tutorial5.loss_over_time))
        for name, make_net in nets.items()
    }


def run(args: argparse.Namespace, device: torch.device) -> None:
    data = load(args.data_path, device)
    print(describe(data), flush=True)
    tutorial5.print_first({name: trainer.first(args.compare) for name, trainer in trainers(data, args).items()})
    again = trainers(data, args)
    _, milliseconds = in_turn({name: t.train_on for name, t in again.items()}, again["unrolled"].batches, args.rounds)
    print_times(milliseconds)
    print("training unrolled")
    tutorial5.train(trainers(data, args)["unrolled"], data, args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "snnTorch's tutorial 5 with all time steps in one kernel, beside the loop over time.",
        batch_size=128,
        num_steps=25,
        compare=3,
    )
    add_data_path(parser)
    add_length(parser)
    parser.add_argument(
        "--rounds", type=integer(), default=20, help="iterations to time of each (default: %(default)s)"
    )
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
