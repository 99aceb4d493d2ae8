"""Bits that differ from snnTorch's loop over random configurations."""

import argparse
import random

import torch
from torch import Tensor

import snnfast


def run(args: argparse.Namespace) -> bool:
    """Spikes and membranes, float32 and float64, random options, shapes and parameters."""
    rng = random.Random(0)
    torch.manual_seed(0)
    different = compared = spikes = 0
    with snnfast.use_backend("fused"):
        for _ in range(args.configurations):
            dtype = rng.choice((torch.float32, torch.float64))
            spk, mem, expected_spk, expected_mem = _one(rng, dtype)
            different += _bits(spk.float(), expected_spk) + _bits(mem, expected_mem)
            compared += spk.numel() + mem.numel()
            spikes += int(expected_spk.count_nonzero())
    print(f"{args.configurations} random configurations, {compared} values ({spikes} spikes) against snnTorch's loop")
    held = different == 0
    print(f"values that differ in any bit: {different}, bar 0: {'holds' if held else 'MISSED'}\n")
    return held


def _one(rng: random.Random, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import snntorch

    T, B = rng.choice((1, 2, 8, 17, 33, 129)), rng.choice((1, 3, 16))
    step = (B, *rng.choice([(1,), (10,), (127,), (3, 5, 7)]))

    def parameter(low: float, high: float) -> float | Tensor:
        shape = rng.choice([None, (), step[-1:], (*step[1:2], *[1] * (len(step) - 2))])
        values = torch.rand(shape or (), dtype=dtype if shape else torch.float32) * (high - low) + low
        return values.item() if shape is None else values

    options = {
        "beta": parameter(-0.1, 1.1),
        "threshold": parameter(0.2, 1.5),
        "reset_mechanism": rng.choice(("subtract", "zero", "none")),
        "reset_delay": rng.choice((True, False)),
        "graded_spikes_factor": rng.choice((1.0, 0.75)),
    }
    current = torch.randn(T, *step, dtype=dtype) * rng.choice((0.3, 1.0, 3.0))
    mem = torch.randn(step, dtype=dtype) if rng.random() < 0.5 else torch.zeros(step, dtype=dtype)
    spk_rec, mem_rec = snnfast.Leaky(**options).unroll(current, mem)
    loop = snntorch.Leaky(**options)
    expected_spk, expected_mem = [], []
    for x in current.unbind(0):
        spk, mem = loop(x, mem)
        expected_spk.append(spk)
        expected_mem.append(mem)
    return spk_rec, mem_rec, torch.stack(expected_spk).float(), torch.stack(expected_mem)


def _bits(a: Tensor, b: Tensor) -> int:
    """How many elements are not the same bits."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    whole = torch.int64 if a.dtype == torch.float64 else torch.int32
    return int((a.contiguous().view(whole) != b.contiguous().view(whole)).sum())
