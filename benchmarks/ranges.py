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
CASES = (
    (64, "a current for every step"),
    (256, "a current for every step"),
    (64, "a beta that learns"),
    (64, "a constant current"),
)
WHOLE, CHOSEN = (1, 0), (0, 0)
STEPS = 4096


def backward(neurons: int, of: str) -> Callable[[], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    shape = (1, neurons) if of == "a constant current" else (STEPS, 1, neurons)
    current, grad_spk = torch.randn(shape, requires_grad=True), torch.rand(STEPS, 1, neurons)
    lif = snnfast.Leaky(beta=0.95, learn_beta=of == "a beta that learns")
    num_steps = STEPS if of == "a constant current" else None
    with snnfast.use_backend("fused"):
        spk_rec, _ = lif.unroll(current, num_steps=num_steps, record_mem=False)
    leaves = (current, lif.beta) if lif.beta.requires_grad else (current,)
    return lambda: torch.autograd.grad(spk_rec, leaves, grad_spk, retain_graph=True)


def run(args: argparse.Namespace) -> bool:
    """4096 steps of float32, beta 0.95, random gradients."""
    if _ops.extension is None or torch.get_num_threads() < 2:
        print("the backward pass in ranges of time: needs the extension and two threads, not measured\n")
        return True
    held = True
    for neurons, of in CASES:
        function = backward(neurons, of)

        def forced(ranges: tuple[int, int], function: Callable[[], object] = function) -> Callable[[], object]:
            def once() -> object:
                assert _ops.extension is not None
                _ops.extension.force_time_ranges(*ranges)
                return function()

            return once

        functions = {"ranges of time": forced(CHOSEN), "one pass": forced(WHOLE)}
        try:
            before = _ops.extension.time_range_counts()
            same = all(map(torch.equal, *(function() for function in functions.values())))
            made = _ops.extension.time_range_counts()[0] - before[0]
            bits = "the same bits" if same else "OTHER bits"
            print(f"backward, {STEPS} steps of {neurons} neurons, {of}: {made} ranges, {bits}")
            ratio = table(alternate(functions, args.seconds / 2), "ranges of time")
        finally:
            _ops.extension.force_time_ranges(*CHOSEN)
        held &= verdict("one pass / ranges of time", ratio, BAR) and same and made > 1
    return held
