"""The backward pass of few neurons and many steps: divided in time among the threads, against one pass."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import snnfast
from snnfast import _ops

from .lif import verdict
from .measure import alternate, table

BAR = 1.0
SHAPES = ((4096, 1, 64), (4096, 1, 256))
WHOLE, CHOSEN = (1, 0), (0, 0)


def run(args: argparse.Namespace) -> bool:
    """[4096, 256] and [4096, 64] float32, beta 0.95, random gradients."""
    if _ops.extension is None or torch.get_num_threads() < 2:
        print("the backward pass in ranges of time: needs the extension and two threads, not measured\n")
        return True
    held = True
    for shape in SHAPES:
        torch.manual_seed(0)
        current, grad_spk = torch.randn(shape, requires_grad=True), torch.rand(shape)
        with snnfast.use_backend("fused"):
            spk_rec, _ = snnfast.Leaky(beta=0.95).unroll(current, record_mem=False)

        def backward(
            ranges: tuple[int, int], spk: Tensor = spk_rec, current: Tensor = current, grad: Tensor = grad_spk
        ) -> Callable[[], Tensor]:
            def once() -> Tensor:
                assert _ops.extension is not None
                _ops.extension.force_time_ranges(*ranges)
                return torch.autograd.grad(spk, current, grad, retain_graph=True)[0]

            return once

        functions = {"ranges of time": backward(CHOSEN), "one pass": backward(WHOLE)}
        try:
            before = _ops.extension.time_range_counts()
            same = torch.equal(*(function() for function in functions.values()))
            made = _ops.extension.time_range_counts()[0] - before[0]
            print(f"backward {list(shape)} float32, beta 0.95: {made} ranges, {'the same' if same else 'OTHER'} bits")
            ratio = table(alternate(functions, args.seconds / 2), "ranges of time")
        finally:
            _ops.extension.force_time_ranges(*CHOSEN)
        held &= verdict("one pass / ranges of time", ratio, BAR) and same
    return held
