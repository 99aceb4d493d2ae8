"""Regression: a membrane learns to follow a curve, and each neuron its own decay and threshold.

The network, 1-128-128-1, is that of snnTorch's first tutorial on regression. ``beta`` and ``threshold`` of the hidden
neurons start at random between 0 and 1 and are learned with the weights. The output neuron is never reset, so that its
membrane is free to follow the curve.

    python examples/regression.py           # all time steps of a layer at once
    python examples/regression.py --loop    # step after step, as in snnTorch; the losses agree to rounding
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import snnfast

HIDDEN, LR, NUM_STEPS = 128, 1e-3, 50


def neurons() -> snnfast.Leaky:
    return snnfast.Leaky(
        beta=torch.rand(HIDDEN),
        threshold=torch.rand(HIDDEN),
        learn_beta=True,
        learn_threshold=True,
        spike_grad=snnfast.surrogate.fast_sigmoid(),
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(1, HIDDEN), neurons()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, HIDDEN), neurons()
        self.fc3 = nn.Linear(HIDDEN, 1)
        self.out = snnfast.Leaky(beta=torch.rand(1), learn_beta=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:  # [T, B, 1] to the membrane of the output [T, B, 1]
        spk1_rec, _ = self.lif1.unroll(self.fc1(x), record_mem=False)
        spk2_rec, _ = self.lif2.unroll(self.fc2(spk1_rec), record_mem=False)
        _, mem3_rec = self.out.unroll(self.fc3(spk2_rec))
        return mem3_rec

    def loop(self, x: Tensor) -> Tensor:
        """The same, step after step."""
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.out.init_leaky()
        mem3_rec = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            _, mem3 = self.out(self.fc3(spk2), mem3)
            mem3_rec.append(mem3)
        return torch.stack(mem3_rec)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Regression with learned decays and thresholds.")
    parser.add_argument("--iterations", type=int, default=300, help="default: 300")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loop", action="store_true", help="step after step")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, NUM_STEPS, device=args.device).view(-1, 1, 1)  # [T, 1, 1]
    curve = ramp.sqrt()
    net = Net().to(args.device)
    forward = net.loop if args.loop else net
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.9, 0.999))
    seconds: list[float] = []
    for i in range(1, args.iterations + 1):
        start = time.perf_counter()
        loss = nn.functional.mse_loss(forward(ramp), curve)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
        if i <= 3 or i % 50 == 0:
            print(f"iteration {i}: loss {value:.8f}, {1e3 * median(seconds):.1f} ms each", flush=True)

    with torch.no_grad():
        mem_rec = forward(ramp)
    print(f"largest distance from the curve: {(mem_rec - curve).abs().max():.4f}")
    figure, ax = plt.subplots()
    ax.plot(curve.flatten().cpu(), label="curve")
    ax.plot(mem_rec.flatten().cpu(), label="membrane")
    ax.set(xlabel="time step")
    ax.legend()
    Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/regression.png", dpi=150)
    print("saved figures/regression.png")


if __name__ == "__main__":
    main()
