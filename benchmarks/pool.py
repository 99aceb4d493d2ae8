"""What freed outputs leave idle in memory after training steps of varying shapes, and what that memory saves."""

import argparse
import gc
import random

import torch

import snnfast
from snnfast import _ops

from .bars import IDLE, Bar, Found
from .measure import alternate, table

STEPS, MILLION, MIB = 300, 10**6, 1 << 20
SECONDS = 5.0
REPEATED = (25, 128, 1000)


def train(x: torch.Tensor) -> torch.Tensor:
    spk, _ = snnfast.functional.lif(x, beta=0.9, record_mem=False)
    return torch.autograd.grad(spk.sum(), x)[0]


def run(args: argparse.Namespace) -> Found:
    assert _ops.extension is not None, _ops.missing
    snnfast.empty_cache()
    draw, most = random.Random(0), 0
    for _ in range(STEPS):
        neurons = draw.randint(MILLION, 12 * MILLION)
        train(torch.rand(2, neurons, requires_grad=True))
        most = max(most, 4 * 2 * neurons * 4)  # the current, the spikes and the gradients of both
    gc.collect()
    idle = _ops.extension.pool_idle_bytes()
    print(f"{STEPS} training steps, 2 x 1 to 12 million floats, one at a time; the largest takes {most / MIB:.0f} MiB")
    x = torch.rand(REPEATED, requires_grad=True)

    def fresh() -> torch.Tensor:
        snnfast.set_cache_limit(0)
        try:
            return train(x)
        finally:
            snnfast.set_cache_limit(None)

    print(f"one training step of {list(REPEATED)} float32, in memory that earlier ones left and in fresh memory")
    table(alternate({"as by default": lambda: train(x), "nothing kept": fresh}, SECONDS), "as by default")
    print()
    return Found([Bar("MiB kept idle", idle / MIB, max(1024, most / MIB * IDLE))])
