"""Delayed match to sample: a recurrent layer keeps a pattern in its spikes while there is nothing to see.

A pattern is shown for a few steps: one of four groups of channels is busy. Then only noise comes in, for longer than a
membrane remembers. Then a second pattern is shown, and the network says whether the two are the same. Half of them are,
so that chance is 50%.

Two networks learn from the same trials. The neurons of one are connected to one another (``snnfast.RLeaky``), those of
the other are not (``snnfast.Leaky``): only the first learns to wait. In the end the states of its layers are wiped in
the middle of the delay, and what it knew is gone.

    python examples/memory.py
    python examples/memory.py --delay 60    # too long: both stay at chance
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from startup import importing

with importing(__name__):
    import torch
    from common import Parser, add_output, add_quick, add_run, integer, make_trainer, parse_quick, run_main
    from figures import save_trial
    from files import try_folder
    from torch import Tensor, nn

    import snnfast

PATTERNS, GROUP = 4, 10  # what can be shown, and the channels of each
SHOWN, ANSWER = 6, 4  # steps for which a pattern is shown, and steps behind the second
QUIET, BUSY = 0.02, 0.5  # spikes of a channel in a step
BETA, READOUT_BETA, SLOPE, LR = 0.95, 0.9, 10, 5e-3
BATCHES = 50  # of an epoch
TEST = 500  # trials
CHANCE = 0.5
FIGURE = "memory.png"
QUICK = {"hidden": 50, "delay": 15, "epochs": 3}


def make_trials(count: int, delay: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, B, channels]``, and whether both patterns are the same ``[B]``, 0 or 1."""
    same = torch.arange(count) % 2
    first = torch.randint(PATTERNS, (count,), generator=generator)
    others = (first + torch.randint(1, PATTERNS, (count,), generator=generator)) % PATTERNS
    second = torch.where(same == 1, first, others)
    trials = torch.arange(count)
    rates = torch.full((SHOWN + delay + SHOWN + ANSWER, count, PATTERNS, GROUP), QUIET)
    rates[:SHOWN, trials, first] = BUSY
    rates[SHOWN + delay : -ANSWER, trials, second] = BUSY
    return (torch.rand(rates.shape, generator=generator) < rates).float().flatten(2), same


def build(hidden: int, *, connected: bool) -> snnfast.MultiStep:
    spike_grad = snnfast.surrogate.fast_sigmoid(slope=SLOPE)
    return snnfast.MultiStep(
        nn.Linear(PATTERNS * GROUP, hidden),
        snnfast.RLeaky(beta=BETA, all_to_all=True, linear_features=hidden, spike_grad=spike_grad)
        if connected
        else snnfast.Leaky(beta=BETA, spike_grad=spike_grad),
        nn.Linear(hidden, 2),
        snnfast.Leaky(beta=READOUT_BETA, reset_mechanism="none"),
    )


def answer(net: snnfast.MultiStep, x: Tensor) -> Tensor:  # [B, 2]
    """How much speaks for different, and for the same: the mean membranes of the last steps."""
    _, mem_rec = net(x)
    return decide(mem_rec)


def decide(mem_rec: Tensor) -> Tensor:  # [T, B, 2] to [B, 2]
    return mem_rec[-ANSWER:].mean(0)


def accuracy(scores: Tensor, same: Tensor) -> float:
    return (scores.argmax(1) == same).float().mean().item()


def run(args: argparse.Namespace, device: torch.device) -> None:
    output = Path(args.output)
    try_folder(output, [FIGURE], b"")
    generator = torch.Generator().manual_seed(args.seed)

    def trials(count: int) -> tuple[Tensor, ...]:
        return tuple(t.to(device) for t in make_trials(count, args.delay, generator))

    torch.manual_seed(args.seed)
    nets = {name: build(args.hidden, connected=name == "connected").to(device) for name in ("connected", "unconnected")}
    trainers = [make_trainer(net, partial(answer, net), nn.CrossEntropyLoss(), LR) for net in nets.values()]
    x_test, same_test = trials(TEST)
    print(
        f"patterns with {args.delay} steps between them; accuracy over {TEST} trials, chance {CHANCE:.0%}", flush=True
    )
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        for _ in range(BATCHES):
            x, same = trials(args.batch_size)
            for train_on in trainers:
                train_on(x, same)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            found = [f"{name} {accuracy(answer(net, x_test), same_test):.1%}" for name, net in nets.items()]
        print(f"epoch {epoch} of {args.epochs}: {', '.join(found)}; {seconds:.1f} s", flush=True)
    wipe(nets["connected"], x_test, same_test, args.delay)
    draw(nets["connected"], x_test, same_test, args.delay, output / FIGURE)


@torch.no_grad()
def wipe(net: snnfast.MultiStep, x: Tensor, same: Tensor, delay: int) -> None:
    """Begin anew in the middle of the delay: with the states that are there, and with zeros."""
    before, behind = x.split([SHOWN + delay // 2, len(x) - SHOWN - delay // 2])
    *_, states = net(before, return_states=True)
    for name, given in (("kept", states), ("wiped", None)):
        _, mem_rec = net(behind, states=given)
        print(f"states {name} in the delay: {accuracy(decide(mem_rec), same):.1%}", flush=True)


@torch.no_grad()
def draw(net: snnfast.MultiStep, x: Tensor, same: Tensor, delay: int, path: Path) -> None:
    trial = x[:, 1:2]  # every second one is of the same pattern twice
    _, mem_rec, (hidden, _) = net(trial, return_spikes=True)
    title = f"a trial of {'the same pattern twice' if same[1] else 'different patterns'}"
    second = SHOWN + delay
    periods = {"first": (0, SHOWN), "second": (second, second + SHOWN), "answer": (second + SHOWN, len(x))}
    names = {0: "different", 1: "the same"}
    save_trial(path, title, trial[:, 0].cpu(), hidden[:, 0].cpu(), mem_rec[:, 0].cpu(), names, periods)
    print(f"saved {path}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Delayed match to sample: a memory task, and a recurrent spiking layer that learns it.")
    add = parser.add_argument
    add("--delay", type=integer(2), default=40, help="time steps between the patterns (default: %(default)s)")
    add("--hidden", type=integer(), default=100, help="neurons in the hidden layer (default: %(default)s)")
    add("--batch-size", type=integer(), default=64, help="trials in a minibatch (default: %(default)s)")
    add("--epochs", type=integer(), default=6, help=f"of {BATCHES} minibatches each (default: %(default)s)")
    add_run(parser)
    add_output(parser)
    add_quick(parser)
    return run_main(run, parse_quick(parser, argv, QUICK))


if __name__ == "__main__":
    sys.exit(main())
