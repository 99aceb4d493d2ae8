"""Time of the kernels alone, by replays of a CUDA graph, and of the calls that launch them, beside ``copy_`` and peers.

Ours come first, the largest shapes before the others, and then the peers, which may compile for long. The results are
written after each: what is cut off is worth least. A call is timed end to end as well, because at small sizes Python
takes longer than the kernels.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnfast

from ..peers import snntorch_loop, spikingjelly
from ..peers.base import Neuron
from ..peers.ours import make as make_ours
from ..registry import DTYPES, Case, Options
from .card import Card, open_card

# The three of the short run come first: one beyond the L2 cache, one at its size, one of few neurons and many steps.
SHORT = ((500, 16, (16384,)), (100, 128, (1024,)), (1000, 32, (700,)))
SHAPES = (*SHORT, (25, 128, (1000,)), (4096, 1, (256,)), (4, 128, (65536,)))
DRY = ((5, 2, (33,)),)
ALL_DTYPES_AT = SHAPES[1]
MOST_STEPS_OF_A_LOOP = 100  # of snnTorch, which launches a dozen kernels for each
# Of one graph: the launch of a graph takes as long as a small kernel, and so must be few beside what it launches.
GRAPH_SECONDS, MOST_CALLS = 1e-3, 20


def cases(short: bool, dry: bool) -> list[Case]:
    made = []
    for T, B, shape in DRY if dry else SHORT if short else SHAPES:
        every = not short and (T, B, shape) == ALL_DTYPES_AT
        for dtype in DTYPES if every else ("float32",):
            made.append(Case("kernels", "layer", T, B, shape, dtype=dtype))
    if not short and not dry:
        T, B, shape = ALL_DTYPES_AT
        for options in (
            Options(surrogate="fast_sigmoid"),
            Options(reset_mechanism="zero"),
            Options(reset_delay=False),
            Options(record_mem=True),
            Options(learn_beta=True),
        ):
            made.append(Case("kernels", "layer", T, B, shape, options=options))
    return made


Contenders = dict[str, Callable[[Case, torch.device], Neuron]]
OURS: Contenders = {"snnfast": make_ours}


def peers(card: Card) -> Contenders:
    return {
        "SpikingJelly": partial(spikingjelly.make, implementation=None if card.dry else "triton"),
        "snnTorch, compiled": snntorch_loop.make_compiled,
        "snnTorch": snntorch_loop.make,
    }


def copy_of(bytes_moved: float, device: torch.device) -> Callable[[], Any]:
    """``copy_`` reads half of the bytes and writes the other half."""
    source = torch.rand(max(1, int(bytes_moved / 8)), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


class Passes:
    """Forward, and backward through it, of one layer on tensors that stay where they are, as a graph needs them."""

    def __init__(self, neuron: Neuron, case: Case, card: Card) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(case.T, case.B, *case.shape, generator=generator).to(DTYPES[case.dtype])
        self.x = x.to(card.device).requires_grad_()
        self.grad = torch.rand_like(self.x)
        self.neuron, self.record = neuron, case.options.record_mem
        self.inputs = [self.x, *neuron.parameters]
        self.spk = self.forward()

    def forward(self) -> Tensor:
        self.spk = self.neuron.unroll(self.x, self.record)[0]
        return self.spk

    def backward(self) -> Any:
        return torch.autograd.grad(self.spk, self.inputs, self.grad, retain_graph=True)


def measured(card: Card, run: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Medians in microseconds: of a call, and of its kernels as a graph replays them."""
    call = card.timed(run, seconds)
    calls = max(1, min(MOST_CALLS, int(GRAPH_SECONDS / call)))

    def several() -> None:
        for _ in range(calls):
            run()

    return {"call us": 1e6 * call, "kernel us": 1e6 * card.timed(card.captured(several), seconds) / calls}


def row(case: Case, name: str, what: str, **found: Any) -> dict[str, Any]:
    return {
        "shape": [case.T, case.B, *case.shape],
        "dtype": case.dtype,
        "options": case.options.changed(),
        "who": name,
        "pass": what,
        **found,
    }


def of_case(card: Card, case: Case, contenders: Contenders, seconds: float) -> list[dict[str, Any]]:
    """A row for each contender and pass."""
    rows = []
    for name, make in contenders.items():
        if name.startswith("snnTorch") and case.T > MOST_STEPS_OF_A_LOOP:
            continue
        try:
            passes = Passes(make(case, card.device), case, card)
        except Exception as error:  # whatever it is: the others still count
            rows.append(row(case, name, "both", error=first_line(error)))
            continue
        for what in ("forward", "backward"):
            try:
                rows.append(row(case, name, what, **measured(card, getattr(passes, what), seconds)))
            except Exception as error:  # one that can't be captured, or finds no memory
                rows.append(row(case, name, what, error=first_line(error)))
    return rows


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def of_copy(card: Card, case: Case, seconds: float) -> list[dict[str, Any]]:
    """A row for each pass: ``copy_`` of the bytes that ours must move."""
    rows = []
    for what, bytes_moved in bytes_of(case).items():
        found = measured(card, copy_of(bytes_moved, card.device), seconds)
        rows.append(row(case, "copy_", what, **found, bytes=bytes_moved, warm=bytes_moved < card.cache_bytes()))
    return rows


def bytes_of(case: Case) -> dict[str, float]:
    """The least that each pass of a layer moves."""
    forward = replace(case, backward=False).ideal_bytes or 0
    both = case.ideal_bytes or 0
    return {"forward": forward * case.neuron_steps, "backward": (both - forward) * case.neuron_steps}


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each row, with the share of ``copy_`` where ours and it were measured."""
    copies = {key(r): r.get("kernel us") for r in rows if r["who"] == "copy_"}
    of_cases = list(dict.fromkeys(map(case_key, rows)))
    lines = [f"{'shape':<20} {'dtype':<9} {'pass':<9} {'who':<18} {'kernel us':>10} {'call us':>10} {'copy_':>6}"]
    for r in sorted(rows, key=lambda r: of_cases.index(case_key(r))):
        kernel, copy = r.get("kernel us"), copies.get(key(r))
        share = f"{copy / kernel:.0%}" if kernel and copy and r["who"] != "copy_" else ""
        times = f"{kernel or float('nan'):>10.1f} {r['call us']:>10.1f} {share:>6}" if "call us" in r else r["error"]
        changed = " ".join(f"{k}={v}" for k, v in r["options"].items())
        lines.append(f"{r['shape']!s:<20} {r['dtype']:<9} {r['pass']:<9} {r['who']:<18} {times} {changed}".rstrip())
    return "\n".join(lines)


def key(r: dict[str, Any]) -> str:
    return case_key(r) + r["pass"]


def case_key(r: dict[str, Any]) -> str:
    return json.dumps([r["shape"], r["dtype"], r["options"]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernels", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="three shapes in float32, against copy_ alone")
    parser.add_argument("--seconds", type=float, default=0.05, help="of each figure (default: %(default)g)")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    card = open_card(args.dry_run)
    seconds = 0.001 if card.dry else args.seconds
    found = cases(args.short, card.dry)
    sweeps = [OURS] if args.short else [OURS, peers(card)]
    planned = [(case, contenders) for contenders in sweeps for case in found]
    rows: list[dict[str, Any]] = []
    # All on one stream, so that a graph can be captured of the way back through what was launched before.
    with snnfast.use_backend("fused"), card.other_stream():
        for done, (case, contenders) in enumerate(planned, 1):
            rows += of_case(card, case, contenders, seconds)
            if contenders is OURS:
                rows += of_copy(card, case, seconds)
            args.json.write_text(
                json.dumps({"on": card.name, "rows": rows, "complete": done == len(planned)}, indent=1)
            )
    print(table(rows))


if __name__ == "__main__":
    main()
