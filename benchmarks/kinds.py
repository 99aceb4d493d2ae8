"""One call per time step for every kind of number that a layer may be made of: no kind leaves the quick way."""

import argparse
from statistics import median
from typing import Any

import torch

import snnfast

from .lif import verdict
from .loop import STEPS, train
from .measure import alternate, table

SHAPES = ((1, 10), (128, 1000))
PLAIN = "float32"
NUMBER_BAR, HALF_BAR = 1.05, 1.3


def layers() -> dict[str, tuple[Any, torch.dtype, float]]:
    """Each kind with its layer, the dtype of its currents, and its bar: the most that it may cost beside float32."""
    import numpy as np

    float32, half, bfloat16 = torch.float32, torch.float16, torch.bfloat16
    return {
        PLAIN: (snnfast.Leaky(0.95, 1.0), float32, 1.0),
        "threshold=1": (snnfast.Leaky(0.95, threshold=1), float32, NUMBER_BAR),
        "beta=1": (snnfast.Leaky(1), float32, NUMBER_BAR),
        "float64 tensor": (snnfast.Leaky(torch.tensor(0.95, dtype=torch.float64)), float32, NUMBER_BAR),
        "numpy.float64": (snnfast.Leaky(np.float64(0.95), np.float64(1)), float32, NUMBER_BAR),
        "bfloat16 current": (snnfast.Leaky(0.95), bfloat16, HALF_BAR),
        "float16 current": (snnfast.Leaky(0.95), half, HALF_BAR),
        "layer.bfloat16()": (snnfast.Leaky(0.95).bfloat16(), bfloat16, HALF_BAR),
        "layer.half()": (snnfast.Leaky(0.95).half(), half, HALF_BAR),
    }


def run(args: argparse.Namespace) -> bool:
    held = True
    for B, N in SHAPES:
        torch.manual_seed(0)
        currents = [torch.randn(B, N) for _ in range(STEPS)]
        grads = [torch.rand(B, N) for _ in range(STEPS)]

        functions, bars = {}, {}
        for name, (layer, dtype, bar) in layers().items():
            xs = [x.to(dtype, copy=True).requires_grad_() for x in currents]
            functions[name], bars[name] = train(layer, xs, [g.to(dtype) for g in grads]), bar
        print(f"one call per time step, {STEPS} steps forward + backward, [{B}, {N}], atan, by kind of number")
        with snnfast.use_backend("fused"):
            times = alternate(functions, args.seconds)
        table(times, PLAIN)
        typical = {name: median(taken) for name, taken in times.items()}
        for name, bar in bars.items():
            if name != PLAIN:
                held &= verdict(f"{name} / {PLAIN}, [{B}, {N}]", typical[name] / typical[PLAIN], bar, at_most=True)
        print()
    return held
