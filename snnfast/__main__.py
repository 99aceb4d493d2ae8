"""``python -m snnfast``: the configuration, a comparison of the kernels with the reference, and their time.

It takes some seconds, and needs neither the sources nor a compiler.
"""

import importlib
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import snnfast
from snnfast import functional, reference
from snnfast._core import backend

PARAMETERS = {
    "lif": {"beta": 0.9},
    "synaptic": {"alpha": 0.5, "beta": 0.9},
    "lapicque": {"beta": 0.9},
    "alpha": {"alpha": 0.9, "beta": 0.8},
}
STEPS, BATCH, NEURONS = 100, 64, 512


def main() -> None:
    """Print all of it, and exit with an error where the numbers differ."""
    snnfast.show_config()
    if backend.unavailable(torch.device("cpu")) is not None:
        return
    wrong = [
        f"{name}, {dtype}" for name in PARAMETERS for dtype in (torch.float32, torch.float64) if differs(name, dtype)
    ]
    if wrong:
        sys.exit(f"numbers: the kernels differ from the reference: {'; '.join(wrong)}")
    print("numbers: the kernels have the spikes and states of the reference, and its gradients up to rounding")
    other = "snnTorch" if find_spec("snntorch") is not None else "the reference, a plain PyTorch loop"
    ours, theirs = seconds(unrolled), seconds(snntorch_loop() if other == "snnTorch" else plain_loop)
    print(
        f"time: {ours * 1e3:.1f} ms for {STEPS} steps of {BATCH} x {NEURONS} leaky neurons, forward and backward; "
        f"{other}: {theirs * 1e3:.1f} ms"
    )


def differs(name: str, dtype: torch.dtype) -> bool:
    """Whether the kernels of a neuron give other numbers than the reference."""
    generator = torch.Generator().manual_seed(0)
    current, results = torch.rand(20, 3, 70, dtype=dtype, generator=generator) * 2, []
    for module in (functional, reference):
        x = current.clone().requires_grad_()
        with snnfast.use_backend("fused"):
            outputs: tuple[Tensor, ...] = getattr(module, name)(x, **PARAMETERS[name])
        loss = torch.stack([output.square().sum() for output in outputs]).sum()
        results.append((outputs, torch.autograd.grad(loss, x)[0]))
    (outputs, gradient), (expected, expected_gradient) = results
    spikes = bool(0 < outputs[0].mean() < 1)  # some, and not all
    same = all(map(torch.equal, outputs, expected))
    return not (spikes and same and torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4))


def unrolled(x: Tensor) -> Tensor:
    """Spikes of all steps, by the kernels."""
    spikes: Tensor = snnfast.Leaky(beta=0.9).unroll(x)[0]
    return spikes


def plain_loop(x: Tensor) -> Tensor:
    """Spikes of all steps, by the reference."""
    return reference.lif(x, beta=0.9)[0]


def snntorch_loop() -> Callable[[Tensor], Tensor]:
    """A loop as snnTorch's users write it."""
    snntorch: Any = importlib.import_module("snntorch")

    def loop(x: Tensor) -> Tensor:
        neuron = snntorch.Leaky(beta=0.9)
        mem, spikes = neuron.init_leaky(), []
        for step in x:
            spk, mem = neuron(step, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    return loop


def seconds(run: Callable[[Tensor], Tensor]) -> float:
    """The least time of some training steps, after one to get ready."""
    x = (torch.rand(STEPS, BATCH, NEURONS, generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.autograd.grad(run(x).sum(), x)
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
