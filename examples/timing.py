"""One training step, side by side: fused kernels, plain PyTorch loop, and snnTorch as its tutorial writes it.

The last also with one line added, ``snnfast.compile``.
"""

import copy
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import snnfast

_WARM_UP = 2  # steps
_MIN_TURNS = 2
_MAX_TURNS = 20
_STEPS = 3  # that count in a turn
_SECONDS = 6.0  # of measuring, unless the fewest rounds take longer

Step = Callable[[], Tensor]
"""One training step; returns its loss, a tensor with no dimensions."""


def compare(
    net: snnfast.MultiStep,
    images: Tensor,  # [B, 784]
    labels: Tensor,  # [B]
    num_steps: int,
    lr: float,
    make_step: Callable[[snnfast.MultiStep], Step],
) -> None:
    """Print the median time of one training step (forward, backward, Adam) of each implementation.

    All start from the weights of ``net``, which stay as they are, and see the same batch. ``make_step`` gives the
    training step that the example itself uses for a network.
    """
    steps: dict[str, Step] = {}
    fused = "fused"
    if (reason := why_not_fused(images.device)) is None:
        steps["snnfast, fused kernels"] = _with_backend("fused", make_step(copy.deepcopy(net)))
    else:
        fused = "reference"
        print(f"left out of the timing: {reason}")
    steps["snnfast, reference loop"] = _with_backend("reference", make_step(copy.deepcopy(net)))
    if importlib.util.find_spec("snntorch") is None:
        print("left out of the timing: snnTorch is not installed: pip install snntorch")
    else:
        for name, change in (("snnTorch, snnfast.compile", snnfast.compile), ("snnTorch, tutorial 5", None)):
            _, train_on = snntorch_trainer(net, num_steps, lr, change)
            steps[name] = _with_backend(fused, partial(train_on, images, labels))

    loss = {name: step().item() for name, step in steps.items()}
    milliseconds = _measure(steps, images.device)
    print(f"one training step on {images.device}, batch {len(images)}, {num_steps} time steps: median, taking turns")
    width = max(map(len, steps))
    base = list(milliseconds)[-1]
    print(f"{'':<{width}}  {'ms':>8}  {'speed-up':>8}  first loss")
    for name, ms in milliseconds.items():
        print(f"{name:<{width}}  {ms:>8.2f}  {milliseconds[base] / ms:>7.1f}x  {loss[name]:>10.4f}")


def why_not_fused(device: torch.device) -> str | None:
    """Why the fused kernels can't run on ``device``; ``None`` where they can."""
    try:
        with snnfast.use_backend("fused"):
            snnfast.functional.lif(torch.zeros(1, 1, device=device), beta=0.5)
    except RuntimeError as error:
        return str(error)
    return None


def _measure(steps: dict[str, Step], device: torch.device) -> dict[str, float]:
    """Median milliseconds of each step; they take turns, so that a slow moment of the machine hits all alike.

    The first step of a turn does not count: in training, a step finds the caches as another of its kind left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    end = time.perf_counter() + _SECONDS
    for turn in range(_MAX_TURNS):
        if turn >= _MIN_TURNS and time.perf_counter() > end:
            break
        for name, step in steps.items():
            step()
            for _ in range(_STEPS):
                _synchronize(device)
                start = time.perf_counter()
                step()
                _synchronize(device)
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(times) for name, times in seconds.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_backend(name: str, step: Step) -> Step:
    def run() -> Tensor:
        with snnfast.use_backend(name):
            return step()

    return run


def snntorch_trainer(
    net: snnfast.MultiStep, num_steps: int, lr: float, change: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """The network, the loop and the loss of snnTorch's tutorial 5, line by line, with the weights of ``net``.

    Returns the network, which maps images to ``(spk_rec, mem_rec)``, and a function that trains it on one batch of
    images and labels and returns the loss. With ``change`` the network is what that makes of it.
    """
    import snntorch as snn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            fc1, lif1, fc2, lif2 = copy.deepcopy(net.layers)
            self.fc1 = fc1
            self.lif1 = snn.Leaky(beta=lif1.beta)
            self.fc2 = fc2
            self.lif2 = snn.Leaky(beta=lif2.beta)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mem1 = self.lif1.init_leaky()
            mem2 = self.lif2.init_leaky()
            spk2_rec = []
            mem2_rec = []
            for _ in range(num_steps):
                cur1 = self.fc1(x)
                spk1, mem1 = self.lif1(cur1, mem1)
                cur2 = self.fc2(spk1)
                spk2, mem2 = self.lif2(cur2, mem2)
                spk2_rec.append(spk2)
                mem2_rec.append(mem2)
            return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)

    model: nn.Module = Net().to(next(net.parameters()).device)
    if change is not None:
        model = change(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999))

    def train_on(images: Tensor, labels: Tensor) -> Tensor:
        _, mem_rec = model(images)
        loss = torch.zeros((), device=images.device)
        for step in range(num_steps):
            loss = loss + F.cross_entropy(mem_rec[step], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, train_on
