"""A few calls of every kernel and nothing else on the device, for tools that look at kernels from outside.

All inputs come from the CPU by copies and all results are compared there: no kernel of torch's runs in between, so that
whatever a tool reports is ours.
"""

import argparse
import itertools

import torch
from torch import Tensor

import snnfast
from snnfast import _ops

from .card import Card, open_card

BETA, THRESHOLD = 0.9, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.workload", description=__doc__)
    parser.add_argument("--large", action="store_true", help="one shape that fills a card, float32, for the bandwidth")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    card = open_card(args.dry_run)
    if args.large:
        size = (4, 64) if card.dry else (100, 1 << 20)
        for record in (False, True):
            call(card, *size, torch.float32, record, False, check=card.dry)
        return
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for dtype, N, record, count in itertools.product(dtypes, (37, card.many), (False, True), (False, True)):
        call(card, 18, N, dtype, record, count)


def call(card: Card, T: int, N: int, dtype: torch.dtype, record: bool, count: bool, check: bool = True) -> None:
    """Forward and backward by the ops themselves: nothing of autograd touches the device."""
    torch.manual_seed(0)
    x, grad = (torch.rand(T, N) * 2).to(dtype), torch.rand((N,) if count else (T, N)).to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = [torch.tensor(value, dtype=acc) for value in (BETA, THRESHOLD, 1.0)]

    def results(device: torch.device) -> list[Tensor]:
        there, given, *rest = (t.to(device) for t in (x, grad, *parameters))
        spk, mem, checkpoints = _ops.lif_forward(there, None, *rest, None, 0, True, record, count, True)
        from_mem = record and acc == dtype
        saved = (None, mem, None) if from_mem else (there, None, checkpoints)
        options = (None, None, 0, True, count, 0, 2.0, 0.0, 31)
        grads = _ops.lif_backward(given, None, *saved, None, *rest, *options)
        return [t.cpu() for t in (spk, mem, *grads)]

    found = results(card.device)
    if not check:
        return
    namespace, _ops.NAMESPACE = _ops.NAMESPACE, "snnfast"
    wanted = results(torch.device("cpu"))
    _ops.NAMESPACE = namespace
    for a, b in zip(found[:2], wanted[:2], strict=True):
        if not torch.equal(a, b):
            raise SystemExit(f"T={T}, N={N}, {dtype}, record={record}, count={count}: differs from the CPU")
    for a, b in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if dtype.itemsize == 2 else 1e-4, atol=1e-4)


if __name__ == "__main__":
    with snnfast.use_backend("fused"):
        main()
