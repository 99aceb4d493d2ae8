"""Delayed match to sample: a recurrent layer keeps a pattern in its spikes while there is nothing to see.

A pattern is shown for a few steps: one of four groups of channels is busy. Then only noise comes in, for longer than a
membrane remembers. Then a second pattern is shown, and the network says whether the two are the same. Half of them are,
so that chance is 50%.

Two networks learn from the same trials. The neurons of one are connected to one another (``snnfast.RLeaky``), those of
the other are not (``snnfast.Leaky``): only the first learns to wait. In the end the states of its layers are wiped in
the middle of the delay, and what it knew is gone. With ``--delay 60``, both stay at chance.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import snnfast

PATTERNS, GROUP = 4, 10  # what can be shown, and the channels of each
SHOWN, ANSWER = 6, 4  # steps for which a pattern is shown, and steps after the second
QUIET, BUSY = 0.02, 0.5  # spikes of a channel in a step
HIDDEN, BETA, READOUT_BETA, SLOPE, LR, BATCH_SIZE = 100, 0.95, 0.9, 10, 5e-3, 64


def make_trials(count: int, delay: int) -> tuple[Tensor, Tensor]:  # spikes [T, B, channels], the same? [B] 0 or 1
    same = torch.arange(count) % 2
    first = torch.randint(PATTERNS, (count,))
    second = torch.where(same == 1, first, (first + torch.randint(1, PATTERNS, (count,))) % PATTERNS)
    rates = torch.full((SHOWN + delay + SHOWN + ANSWER, count, PATTERNS, GROUP), QUIET)
    rates[:SHOWN, range(count), first] = BUSY
    rates[SHOWN + delay : -ANSWER, range(count), second] = BUSY
    return (torch.rand_like(rates) < rates).float().flatten(2), same


def build(connected: bool) -> snnfast.MultiStep:
    spike_grad = snnfast.surrogate.fast_sigmoid(slope=SLOPE)
    return snnfast.MultiStep(
        nn.Linear(PATTERNS * GROUP, HIDDEN),
        snnfast.RLeaky(beta=BETA, all_to_all=True, linear_features=HIDDEN, spike_grad=spike_grad)
        if connected
        else snnfast.Leaky(beta=BETA, spike_grad=spike_grad),
        nn.Linear(HIDDEN, 2),
        snnfast.Leaky(beta=READOUT_BETA, reset_mechanism="none"),
    )


def answer(mem_rec: Tensor) -> Tensor:  # [T, B, 2] to [B, 2]
    """How much speaks for different, and for the same: the mean membranes of the last steps."""
    return mem_rec[-ANSWER:].mean(0)


def accuracy(mem_rec: Tensor, same: Tensor) -> float:
    return (answer(mem_rec).argmax(1) == same).float().mean().item()


def draw(x: Tensor, hidden: Tensor, mem_rec: Tensor) -> None:  # of one trial: [T, channels], [T, neurons], [T, 2]
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 8), layout="constrained")
    for ax, spikes, name in zip(axes, (x, hidden), ("spikes that come in", "hidden spikes"), strict=False):
        ax.scatter(*spikes.nonzero(as_tuple=True), marker="|", s=12)
        ax.set(ylabel="neuron", title=name)
    axes[2].plot(mem_rec, label=("different", "the same"))
    axes[2].set(xlabel="time step", title="membranes of the readout")
    axes[2].legend()
    Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/memory.png", dpi=150)
    print("saved figures/memory.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A memory task, and a recurrent spiking layer that learns it.")
    parser.add_argument("--delay", type=int, default=40, help="time steps between the patterns (default: 40)")
    parser.add_argument("--epochs", type=int, default=6, help="of 50 minibatches each (default: 6)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    nets = {name: build(name == "connected").to(args.device) for name in ("connected", "unconnected")}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=LR) for name, net in nets.items()}
    x_test, same_test = (t.to(args.device) for t in make_trials(500, args.delay))
    for epoch in range(1, args.epochs + 1):
        for _ in range(50):
            x, same = (t.to(args.device) for t in make_trials(BATCH_SIZE, args.delay))
            for name, net in nets.items():
                _, mem_rec = net(x)
                loss = nn.functional.cross_entropy(answer(mem_rec), same)
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
        with torch.no_grad():
            found = ", ".join(f"{name} {accuracy(net(x_test)[1], same_test):.3f}" for name, net in nets.items())
        print(f"epoch {epoch} of {args.epochs}, test accuracy: {found}", flush=True)

    with torch.no_grad():
        net, middle = nets["connected"], SHOWN + args.delay // 2
        *_, states = net(x_test[:middle], return_states=True)
        for name, given in (("kept", states), ("wiped", None)):
            _, mem_rec = net(x_test[middle:], states=given)
            print(f"states {name} in the middle of the delay: test accuracy {accuracy(mem_rec, same_test):.3f}")
        trial = x_test[:, 1:2]  # one with the same pattern twice
        _, mem_rec, (hidden, _) = net(trial, return_spikes=True)
    draw(*(t[:, 0].cpu() for t in (trial, hidden, mem_rec)))


if __name__ == "__main__":
    main()
