"""A few calls of every kernel and nothing else on the device, for tools that look at kernels from outside.

All inputs come from the CPU by copies and all results are compared there: no kernel of torch's runs in between, so that
whatever a tool reports is ours.
"""

import argparse
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

import snnfast
from snnfast import _ops

from .card import Card, open_card

BETA, THRESHOLD, ALPHA = 0.9, 1.0, 2.0
SUBTRACT, ATAN, STRAIGHT_THROUGH = 0, 0, 3  # as the ops number them
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.workload", description=__doc__)
    parser.add_argument("--large", action="store_true", help="one shape that fills a card, float32, for the bandwidth")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    card = open_card(args.dry_run)
    if args.large:
        T, N = (4, 64) if card.dry else (100, 1 << 20)
        for keep in (_ops.KEEP_CHECKPOINTS, _ops.KEEP_NOTHING):
            call(card, Call(T, N, torch.float32, keep), check=card.dry)
        return
    # The last shape is one whose time backward shares out among the warps of a block.
    for (T, N), dtype, count in itertools.product(((18, 37), (18, card.many), (272, 37)), DTYPES, (False, True)):
        for keep in (_ops.KEEP_CHECKPOINTS, _ops.KEEP_ROUNDED, _ops.KEEP_BITS, _ops.KEEP_NOTHING):
            if keep != _ops.KEEP_NOTHING or dtype.itemsize >= 4:  # rounded membranes tell no spikes
                call(card, Call(T, N, dtype, keep, count))


class Call(NamedTuple):
    """Of the ops for all steps."""

    T: int
    N: int
    dtype: torch.dtype
    keep: int
    count: bool = False


def call(card: Card, of: Call, check: bool = True) -> None:
    """Forward and backward by the ops themselves: nothing of autograd touches the device."""
    torch.manual_seed(0)
    x = (torch.rand(of.T, of.N) * 2).to(of.dtype)
    grad = torch.rand((of.N,) if of.count else (of.T, of.N)).to(of.dtype)
    acc = torch.float64 if of.dtype == torch.float64 else torch.float32
    parameters = [torch.tensor(value, dtype=acc) for value in (BETA, THRESHOLD, 1.0)]
    # Of x, mem0, beta, threshold and graded, from the lowest bit on. Spikes alone tell the gradients of x, mem0 and
    # threshold, and no surrogate but the one that lets all through; rounded membranes tell all but that of beta.
    needs = {_ops.KEEP_BITS: 0b01011, _ops.KEEP_ROUNDED: 0b11011}.get(of.keep, 0b11111)
    surrogate = STRAIGHT_THROUGH if of.keep == _ops.KEEP_BITS else ATAN

    def results(device: torch.device) -> list[Tensor]:
        there, given, *rest = (t.to(device) for t in (x, grad, *parameters))
        recorded = of.keep == _ops.KEEP_NOTHING
        spk, mem, kept = _ops.lif_forward(there, None, *rest, None, SUBTRACT, True, recorded, of.count, of.keep)
        from_x = there if of.keep == _ops.KEEP_CHECKPOINTS else None
        saved = (from_x, mem if recorded else None, None if recorded else kept)
        options = (None, of.T, False, SUBTRACT, True, of.count, of.keep, surrogate, ALPHA, 0.0, needs)
        return [t.cpu() for t in (spk, mem, *_ops.lif_backward(given, None, *saved, None, *rest, *options))]

    found = results(card.device)
    if not check:
        return
    namespace, _ops.NAMESPACE = _ops.NAMESPACE, "snnfast"
    wanted = results(torch.device("cpu"))
    _ops.NAMESPACE = namespace
    for a, b in zip(found[:2], wanted[:2], strict=True):
        if not torch.equal(a, b):
            raise SystemExit(f"{of}: differs from the CPU")
    for a, b in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if of.dtype.itemsize == 2 else 1e-4, atol=1e-4)


if __name__ == "__main__":
    with snnfast.use_backend("fused"):
        main()
