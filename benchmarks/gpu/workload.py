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
from snnfast._ops import NEURONS, SAVE_CHECKPOINTS, SAVE_MEMBRANE, SAVE_NOTHING, SAVE_SPIKES, SEQUENCE, Neuron, pack

from .card import Card, open_card

DECAY, ALPHA = 0.9, 2.0  # of every neuron; of the surrogate
SUBTRACT, ATAN, STRAIGHT_THROUGH = 0, 0, 3  # as the ops number them
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.workload", description=__doc__)
    parser.add_argument("--profiled", action="store_true", help="a launch of each kernel at sizes that fill a card")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    card = open_card(args.dry_run)
    for of in profiled(card) if args.profiled else watched(card):
        # At sizes that fill a card, the comparison on the CPU would take longer than the tool.
        call(card, of, check=card.dry or card.many > of.N)


def profiled(card: Card) -> list["Call"]:
    """Vectors and single neurons, the dtypes, the saved modes, and few neurons over many steps."""
    many, steps = (card.many, 4) if card.dry else (1 << 20, 100)
    return [
        *(Call(_ops.LEAKY, steps, many, dtype, SAVE_CHECKPOINTS) for dtype in DTYPES),
        Call(_ops.LEAKY, steps, many, torch.float32, SAVE_NOTHING),
        Call(_ops.LEAKY, steps, many - 1, torch.float32, SAVE_CHECKPOINTS),  # no vector fits
        Call(_ops.LEAKY, 272 if card.dry else 4096, 256, torch.float32, SAVE_CHECKPOINTS),
        Call(_ops.SYNAPTIC, steps, many, torch.float32, SAVE_CHECKPOINTS),
    ]


def watched(card: Card) -> list["Call"]:
    """Every kernel at a few neurons, and the vectors of float32 and float16 at as many as they take."""
    found = []
    # Time is shared out among the warps of a block at the second shape.
    shapes = ((18, 37), (272, 37), (18, card.many))
    for neuron, (T, N), dtype, reduce in itertools.product(NEURONS, shapes, DTYPES, (False, True)):
        modes = (SAVE_CHECKPOINTS, SAVE_MEMBRANE, SAVE_SPIKES, SAVE_NOTHING) if neuron.record_tells else (1,)
        if card.many == N and (reduce or dtype not in (torch.float32, torch.float16)):
            continue
        for saved in modes:
            if saved != SAVE_NOTHING or dtype.itemsize >= 4:  # rounded membranes tell no spikes
                found.append(Call(neuron, T, N, dtype, saved, reduce))
    return found


class Call(NamedTuple):
    """Of the ops for all steps."""

    neuron: Neuron
    T: int
    N: int
    dtype: torch.dtype
    saved: int
    reduce: bool = False


def call(card: Card, of: Call, check: bool) -> None:
    """Forward and backward by the ops themselves: nothing of autograd touches the device."""
    torch.manual_seed(0)
    neuron, states = of.neuron, len(of.neuron.states)
    x = (torch.rand(of.T, of.N) * 2).to(of.dtype)
    grad = torch.rand((of.N,) if of.reduce else (of.T, of.N)).to(of.dtype)
    acc = torch.float64 if of.dtype == torch.float64 else torch.float32
    numbers = [DECAY] * (len(neuron.parameters) - 2) + [1.0, 1.0]
    parameters = [torch.tensor(value, dtype=acc) for value in numbers]
    # Of x, the states and the parameters, from the lowest bit on. Spikes alone tell the gradients of x, mem and
    # threshold, and no surrogate but the one that lets all through; rounded membranes tell all but that of beta.
    every_input = (1 << 1 + states + len(parameters)) - 1
    needs = {SAVE_SPIKES: 0b01011, SAVE_MEMBRANE: 0b11011}.get(of.saved, every_input)
    surrogate = STRAIGHT_THROUGH if of.saved == SAVE_SPIKES else ATAN
    initial = [None] * states
    how = {"time": SEQUENCE, "reset": SUBTRACT, "reset_delay": 1, "reduce": of.reduce, "saved": of.saved}

    def results(device: torch.device) -> list[Tensor]:
        there, given, *rest = (t.to(device) for t in (x, grad, *parameters))
        recorded = of.saved == SAVE_NOTHING
        asked = pack(**how, record=neuron.membrane if recorded else 0, last=not recorded)
        found = neuron.forward(there, *initial, *rest, of.T, asked)
        from_x = there if of.saved == SAVE_CHECKPOINTS else None
        saved = (from_x, found[1] if recorded else None, None if recorded else found[-1], None)
        asked = pack(**how, surrogate=surrogate, clamp_closed=_ops.CLAMP_CLOSED, needs=needs)
        no_weight, of_states = None, [None] * 2 * states  # gradients of the records and of the last states
        gradients = neuron.backward(given, no_weight, *of_states, *saved, *initial, *rest, of.T, asked, ALPHA, 0.0)
        return [t.cpu() for t in (*found[:2], *gradients)]

    found = results(card.device)
    if not check:
        return
    namespace = _ops.used
    _ops.use(_ops.NAMESPACE)
    wanted = results(torch.device("cpu"))
    _ops.use(namespace)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        if not torch.equal(a, b):
            raise SystemExit(f"{of}: differs from the CPU")
    for a, b in zip(found[2:], wanted[2:], strict=True):
        b = b if b.shape == a.shape else b.sum()  # of a parameter that is one number, which the kernels of CUDA add up
        torch.testing.assert_close(a, b, rtol=1e-2 if of.dtype.itemsize == 2 else 1e-4, atol=1e-4)


if __name__ == "__main__":
    with snnfast.use_backend("fused"):
        main()
