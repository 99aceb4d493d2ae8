"""One call per time step for every kind of number that a layer may be made of: no kind leaves the quick way."""

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

import snnfast

from .bars import HALF_KIND, NUMBER_KIND, Bar, Found
from .measure import alternate, table

SHAPES = ((1, 10), (128, 1000))
STEPS = 25
PLAIN = "float32"


def layers() -> dict[str, tuple[Any, torch.dtype, float]]:
    """Each kind with its layer, the dtype of its currents, and its bar: the most that it may cost beside float32."""
    import numpy as np

    float32, half, bfloat16 = torch.float32, torch.float16, torch.bfloat16
    return {
        PLAIN: (snnfast.Leaky(0.95, 1.0), float32, 1.0),
        "threshold=1": (snnfast.Leaky(0.95, threshold=1), float32, NUMBER_KIND),
        "beta=1": (snnfast.Leaky(1), float32, NUMBER_KIND),
        "float64 tensor": (snnfast.Leaky(torch.tensor(0.95, dtype=torch.float64)), float32, NUMBER_KIND),
        "numpy.float64": (snnfast.Leaky(np.float64(0.95), np.float64(1)), float32, NUMBER_KIND),
        "bfloat16 current": (snnfast.Leaky(0.95), bfloat16, HALF_KIND),
        "float16 current": (snnfast.Leaky(0.95), half, HALF_KIND),
        "layer.bfloat16()": (snnfast.Leaky(0.95).bfloat16(), bfloat16, HALF_KIND),
        "layer.half()": (snnfast.Leaky(0.95).half(), half, HALF_KIND),
    }


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


def run(args: argparse.Namespace) -> Found:
    bars = []
    for B, N in SHAPES:
        torch.manual_seed(0)
        currents = [torch.randn(B, N) for _ in range(STEPS)]
        grads = [torch.rand(B, N) for _ in range(STEPS)]
        kinds = layers()
        functions = {}
        for name, (layer, dtype, _) in kinds.items():
            xs = [x.to(dtype, copy=True).requires_grad_() for x in currents]
            functions[name] = train(layer, xs, [g.to(dtype) for g in grads])
        print(f"one call per time step, {STEPS} steps forward + backward, [{B}, {N}], atan, by kind of number")
        with snnfast.use_backend("fused"):
            times = alternate(functions, args.seconds)
        table(times, PLAIN)
        print()
        typical = {name: median(taken) / median(times[PLAIN]) for name, taken in times.items()}
        bars += [Bar(f"{n} / {PLAIN}, [{B}, {N}]", typical[n], kinds[n][2]) for n in kinds if n != PLAIN]
    return Found(bars)
