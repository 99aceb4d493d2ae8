"""What ``torch.compile`` adds to a training step that has nothing to merge, by its backends."""

import argparse
import copy
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast import Leaky, MultiStep

from .bars import OVERHEAD, Bar, Found
from .measure import alternate

BACKENDS = ("snnfast", "eager", "aot_eager", "inductor")
EAGER = "not compiled"
STEPS = 25


class Trivial(nn.Module):
    """Nothing to compute: the time is that of PyTorch's own work around a graph."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3


def dense(inputs: int, hidden: int) -> MultiStep:
    return MultiStep(nn.Linear(inputs, hidden), Leaky(0.95), nn.Linear(hidden, 10), Leaky(0.95))


def convolutional() -> MultiStep:
    return MultiStep(
        nn.Conv2d(1, 12, 5), Leaky(0.5), nn.MaxPool2d(2), nn.Conv2d(12, 64, 5), Leaky(0.5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 10), Leaky(0.5),
    )  # fmt: skip


TUTORIAL5 = "784-1000-10, batch 128"
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    TUTORIAL5: (lambda: dense(784, 1000), (128, 784)),
    "convolutional, batch 16": (convolutional, (16, 1, 28, 28)),
    "100-100-10, batch 1": (lambda: dense(100, 100), (1, 100)),
    "two products": (Trivial, (1, 10)),
}


def run(args: argparse.Namespace) -> Found:
    print(f"a training step of {STEPS} time steps: ms (/ that of a network which is not compiled)")
    width = max(map(len, CASES))
    print(f"{'':<{width}}  {EAGER:>12}" + "".join(f"  {name:>18}" for name in BACKENDS))
    bars, rows = [], []
    for name, (make, shape) in CASES.items():
        torch._dynamo.reset()
        net = make()
        # Of the same numbers: a product or a convolution takes as long as there are spikes.
        x = torch.rand(STEPS, *shape, requires_grad=isinstance(net, Trivial))
        labels = torch.randint(10, (STEPS * shape[0],))
        steps = {backend: training_step(copy.deepcopy(net), x, labels, backend) for backend in (None, *BACKENDS)}
        times = alternate(steps, args.seconds, warm_up=2)
        print(f"{name:<{width}}  {median(times[None]) * 1e3:>12.3f}", end="")
        for backend in BACKENDS:
            # Of calls of the same turn, which a slow moment of the machine hits alike.
            ratio = median(ours / plain for ours, plain in zip(times[backend], times[None], strict=True))
            seconds = median(times[backend])
            print(f"  {f'{seconds * 1e3:.3f} ({ratio:.2f})':>18}", end="")
            rows.append({"network": name, "backend": backend, "seconds": seconds, "ratio": ratio})
            if (name, backend) == (TUTORIAL5, "snnfast"):
                bars.append(Bar(f"{name}: compiled by snnfast / not compiled", ratio, OVERHEAD))
        print(flush=True)
    print()
    return Found(bars, rows)


def training_step(net: nn.Module, x: Tensor, labels: Tensor, backend: str | None) -> Callable[[], None]:
    call = net if backend is None else torch.compile(net, backend=backend)

    def step() -> None:
        _, mem = call(x)
        F.cross_entropy(mem.flatten(0, 1), labels).backward()
        net.zero_grad()

    return step
