"""The layer called once per time step, in a loop of the user's own: forward and backward, against snnTorch's layer."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .lif import verdict
from .measure import alternate, table

BARS = {(128, 1000): 3.0, (1, 10): 1.0}
STEPS = 25


def train(layer: Any, currents: Sequence[Tensor], grads: Sequence[Tensor]) -> Callable[[], Any]:
    """One call per time step: the gradients of the currents ``[B, N]`` of each step, given those of its spikes."""

    def step_by_step() -> Any:
        mem = torch.zeros_like(currents[0])
        spks = []
        for x in currents:
            spk, mem = layer(x, mem)
            spks.append(spk)
        return torch.autograd.grad(spks, currents, grads)

    return step_by_step


def run(args: argparse.Namespace) -> bool:
    """The import is all that changes: currents arrive step by step, as the outputs of a layer before."""
    import snntorch

    import snnfast.snntorch

    held = True
    for (B, N), bar in BARS.items():
        torch.manual_seed(0)
        currents = [torch.randn(B, N, requires_grad=True) for _ in range(STEPS)]
        grads = [torch.rand(B, N) for _ in range(STEPS)]

        functions = {
            "snnfast.snntorch.Leaky": train(snnfast.snntorch.Leaky(beta=0.95), currents, grads),
            "snntorch.Leaky": train(snntorch.Leaky(beta=0.95), currents, grads),
        }
        found, expected = (function() for function in functions.values())
        difference = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
        print(f"one call per time step, {STEPS} steps forward + backward, [{B}, {N}] float32, atan")
        print(f"largest difference of the gradients: {difference:.1e}")
        with snnfast.use_backend("fused"):
            ratio = table(alternate(functions, args.seconds / 2), "snnfast.snntorch.Leaky")
        held &= verdict("snnTorch / ours", ratio, bar)
    return held
