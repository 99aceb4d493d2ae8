"""Regression: a membrane learns to follow a curve, and each neuron its own decay and threshold.

The network, 1-128-128-1, is that of snnTorch's first tutorial on regression; ``beta`` and ``threshold`` of the hidden
neurons start at random between 0 and 1 and are learned with the weights. The output neuron is never reset, so that its
membrane is free to follow the curve.

It is trained as a loop over time and with all time steps at once, from the same parameters. The neurons agree to the
bit; one product of 50 rows and fifty of one row add up in another order, which the last digits of the losses show.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from itertools import repeat

from startup import importing

with importing(__name__):
    import torch
    from common import in_turn, integer, make_parser, make_trainer, print_losses, print_times, run_main
    from torch import Tensor, nn

    import snnfast

LR = 1e-3


class Net(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, hidden)
        self.lif1 = hidden_neurons(hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.lif2 = hidden_neurons(hidden)
        self.fc3 = nn.Linear(hidden, 1)
        # Without a reset and with its spikes unused, its threshold has no effect, and there is none to learn.
        self.out = snnfast.Leaky(beta=torch.rand(1), learn_beta=True, reset_mechanism="none")

    def loop(
        self,
        x: Tensor,  # [T, B, 1]
    ) -> Tensor:  # [T, B, 1]
        """The membrane of the output, step after step as in snnTorch."""
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.out.init_leaky()
        mem3_rec = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            _, mem3 = self.out(self.fc3(spk2), mem3)
            mem3_rec.append(mem3)
        return torch.stack(mem3_rec)

    def unroll(
        self,
        x: Tensor,  # [T, B, 1]
    ) -> Tensor:  # [T, B, 1]
        """The same, layer after layer."""
        spk1_rec, _ = self.lif1.unroll(self.fc1(x), record_mem=False)
        spk2_rec, _ = self.lif2.unroll(self.fc2(spk1_rec), record_mem=False)
        _, mem3_rec = self.out.unroll(self.fc3(spk2_rec))
        return mem3_rec


def hidden_neurons(size: int) -> snnfast.Leaky:
    return snnfast.Leaky(
        beta=torch.rand(size),
        threshold=torch.rand(size),
        learn_beta=True,
        learn_threshold=True,
        spike_grad=snnfast.surrogate.fast_sigmoid(),
    )


def make_curve(kind: str, num_steps: int) -> tuple[Tensor, Tensor]:
    """A ramp up to a random height and the curve to be learned from it, both ``[T, 1, 1]``."""
    ramp = torch.linspace(0, 1, num_steps).view(-1, 1, 1) * torch.rand(1)
    return ramp, ramp.sqrt() if kind == "sqrt" else ramp


def relative_error(
    mem_rec: Tensor,  # [T, B, 1]
    curve: Tensor,  # [T, B, 1]
) -> float:
    """Distance of membrane and curve in units of the curve; mean over the steps but the first, where it is 0."""
    return ((mem_rec - curve).abs() / curve)[1:].mean().item()


def run(args: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(args.seed)
    ramp, curve = (t.to(device) for t in make_curve(args.curve, args.num_steps))
    looped = Net(args.hidden).to(device)
    unrolled = copy.deepcopy(looped)
    trainers = {
        "unrolled": make_trainer(unrolled, unrolled.unroll, nn.MSELoss(), LR),
        "loop": make_trainer(looped, looped.loop, nn.MSELoss(), LR),
    }
    seen, milliseconds = in_turn(trainers, repeat((ramp, curve)), args.iterations)
    print_losses({name: values[: args.compare] for name, values in seen.items()})
    print_times(milliseconds)
    with torch.no_grad():
        mem_rec = {"unrolled": unrolled.unroll(ramp), "loop": looped.loop(ramp)}
    for name, values in seen.items():
        print(
            f"{name}: loss {values[0]:.2e} in the first and {values[-1]:.2e} in iteration {args.iterations}; "
            f"relative error {relative_error(mem_rec[name], curve):.2e}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "Regression with learned decays and thresholds, as a loop over time and unrolled.",
        num_steps=50,
        least_steps=2,  # the curve begins at 0, where there is no relative error
        compare=5,
    )
    add = parser.add_argument
    add("--curve", choices=("linear", "sqrt"), default="sqrt", help="curve to follow (default: %(default)s)")
    add("--hidden", type=integer(), default=128, help="neurons in each hidden layer (default: %(default)s)")
    add("--iterations", type=integer(), default=300, help="training iterations (default: %(default)s)")
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
