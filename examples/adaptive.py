"""A neuron of your own: a threshold that rises with each spike remembers what the membrane has forgotten.

A cue of one of two kinds comes first, then a long pause, then the same "go" signal for all samples. At the go signal,
the network tells the kind of the cue. The neuron is a function of six lines; ``snnfast.neuron`` makes a layer of it.
With ``--gain 0`` the threshold stays as it is, and the network can only guess.

    python examples/adaptive.py
    python examples/adaptive.py --gain 0
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

import snnfast
from snnfast import surrogate

SURROGATE = surrogate.fast_sigmoid(5)
CHANNELS, HIDDEN, BATCH_SIZE = 20, 64, 128
CUE, PAUSE, GO = 10, 60, 10  # time steps


@snnfast.neuron
def AdaptiveLIF(  # noqa: N802 - it becomes a class
    x: Tensor, mem: Tensor, adaptation: Tensor, *, beta: float = 0.8, rho: float = 0.98, gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    threshold = 1.0 + gain * adaptation
    mem = beta * mem + x
    spk = snnfast.spike(mem - threshold, SURROGATE)
    mem = mem - threshold * spk.detach()
    adaptation = rho * adaptation + (1 - rho) * 5 * spk
    return spk, mem, adaptation


class Net(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CHANNELS, HIDDEN)
        self.lif1 = AdaptiveLIF(rho=torch.full((HIDDEN,), 0.98), learn_rho=True, gain=gain)
        self.fc2 = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:  # [T, B, CHANNELS] to [B, 2]
        spk_rec, *_ = self.lif1.unroll(self.fc1(x), record_mem=False)
        out: Tensor = self.fc2(spk_rec[-GO:].mean(0))
        return out


def draw() -> tuple[Tensor, Tensor]:
    """Noisy spikes of a batch ``[T, B, CHANNELS]``, and the kinds of their cues ``[B]``."""
    kinds = torch.randint(2, (BATCH_SIZE,))
    rates = torch.full((CUE + PAUSE + GO, BATCH_SIZE, CHANNELS), 0.02)
    rates[:CUE, kinds == 0, :8] = 0.6
    rates[:CUE, kinds == 1, 8:16] = 0.6
    rates[-GO:, :, 16:] = 0.6
    return torch.bernoulli(rates), kinds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A neuron with an adaptive threshold, on a task of memory.")
    parser.add_argument("--iterations", type=int, default=200, help="default: 200")
    parser.add_argument("--gain", type=float, default=1.0, help="how far a spike raises the threshold; default: 1")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    net = Net(args.gain)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    seconds: list[float] = []
    for i in range(1, args.iterations + 1):
        x, kinds = draw()
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(net(x), kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        if i % 50 == 0:
            print(f"iteration {i}: loss {loss.item():.4f}, {1e3 * median(seconds):.1f} ms each", flush=True)

    with torch.no_grad():
        x, kinds = draw()
        accuracy = (net(x).argmax(1) == kinds).float().mean()
    print(f"accuracy after a pause of {PAUSE} steps: {accuracy:.3f}")


if __name__ == "__main__":
    main()
