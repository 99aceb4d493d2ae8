"""The product of spikes and weights alone, and the gradient of the weights, beside PyTorch's dense product."""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from .bars import PRODUCTS, Bar, Found
from .measure import alternate

T, B, NEURONS, OUTPUTS = 25, 128, 1024, 1024
DIRECTIONS = ("forward", "weight gradient")


def as_bits(spk_rec: Tensor) -> Tensor:
    """``[T, B, N]`` of zeros and ones to bytes of eight steps ``[(T + 7) // 8, B, N]``, the first in the lowest bit."""
    whole = F.pad(spk_rec, (0, 0, 0, 0, 0, -len(spk_rec) % 8)).unflatten(0, (-1, 8))
    return (whole * 2 ** torch.arange(8).view(8, 1, 1)).sum(1).to(torch.uint8)


def functions_of(rate: float) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By direction, dense and of bits, of spikes with this rate."""
    torch.manual_seed(0)
    spk_rec = (torch.rand(T, B, NEURONS) < rate).float()
    weight, bias, grad = torch.randn(OUTPUTS, NEURONS), torch.randn(OUTPUTS), torch.randn(T, B, OUTPUTS)
    bits, one = as_bits(spk_rec), torch.tensor(1.0)
    return {
        "forward": (
            lambda: F.linear(spk_rec, weight, bias),
            lambda: torch.ops.snnfast.spikes_linear(bits, weight, bias, one, T),
        ),
        "weight gradient": (
            lambda: grad.flatten(0, 1).t() @ spk_rec.flatten(0, 1),
            lambda: torch.ops.snnfast.spikes_linear_weight(bits, grad, one),
        ),
    }


def run(args: argparse.Namespace) -> Found:
    print(f"product of spikes [{T * B}, {NEURONS}] and weights [{OUTPUTS}, {NEURONS}], in ms")
    print(f"{'spikes':>6}" + "".join(f"  {f'{name}: dense':>22}  {'bits':>7}  {'ratio':>6}" for name in DIRECTIONS))
    bars, rows = [], []
    for rate, limits in PRODUCTS.items():
        found = functions_of(rate)
        for dense, ours in found.values():
            torch.testing.assert_close(ours(), dense(), rtol=1e-3, atol=1e-3)
        times = alternate(
            {f"{name} {i}": function for name, both in found.items() for i, function in enumerate(both)},
            args.seconds, least=3, slow=0.1,
        )  # fmt: skip
        line = f"{rate:>6.0%}"
        for name, limit in zip(DIRECTIONS, limits, strict=True):
            dense, ours = (median(times[f"{name} {i}"]) * 1e3 for i in range(2))
            line += f"  {dense:>22.2f}  {ours:>7.2f}  {dense / ours:>6.2f}"
            rows.append({"rate": rate, "direction": name, "dense": dense / 1e3, "bits": ours / 1e3})  # seconds
            bars.append(Bar(f"{name}, {rate:.0%} spikes: dense / bits", dense / ours, limit, at_least=True))
        print(line, flush=True)
    print()
    return Found(bars, rows)
