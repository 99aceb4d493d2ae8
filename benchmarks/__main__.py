"""Measure snnfast against its alternatives and say which bars hold. Without a command: run."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import compilation, epoch, held, kinds, parity, pool, products, report, rounding, run
from .bars import Bar
from .measure import machine
from .registry import suites


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], list[Bar]], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(function=function, error=added.error)
        return added

    listing = command("list", run.list_cases, "suites, cases and peers")
    running = command("run", run.run, "cases against every implementation that is installed; five minutes by default")
    checking = command("check", run.check, "a few cases against snnTorch, within a minute: has something become worse?")
    comparing = command("parity", parity.run, "bits that differ from snnTorch over random configurations")
    training = command("epoch", epoch.run, "an epoch on MNIST, beside snnTorch: seconds and test accuracy, over seeds")
    counting = command("kinds", kinds.run, "one call per step with integer, float64, numpy and half numbers")
    command("compile", compilation.run, "what compiling a loop over time costs: seconds over T, and how often")
    command("pool", pool.run, "memory that freed outputs leave idle after steps of varying shapes, and what it saves")
    multiplying = command("products", products.run, "spikes as bits times weights, beside PyTorch's dense product")
    command("held", held.run, "bytes that networks hold for their backward pass, beside others")
    command("rounding", rounding.run, "what membranes kept in bfloat16 do to the gradient")

    for each in (listing, running):
        each.add_argument("--suite", nargs="+", choices=list(suites("cpu")), metavar="S", help="whole suites")
        each.add_argument("--case", default="", metavar="TEXT", help="only cases with this in their names")
        each.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add = running.add_argument
    add("--peer", nargs="+", type=run.named, metavar="P", help="implementations, or how their names begin")
    add("--seconds", type=float, help=f"per case (default: {run.SECONDS:g}, of the selection {run.QUICK_SECONDS:g})")
    add("--json", type=Path, metavar="FILE", help="write the results")
    add("--base", metavar="REV_OR_JSON", help="compare with a file of --json, or with a revision of git")
    add("--plot", type=Path, metavar="DIR", help="draw figures (needs matplotlib)")
    checking.add_argument("--seconds", type=float, default=run.GATE_SECONDS, help="per case (default: %(default)s)")
    for each in (running, checking):
        add = each.add_argument
        add("--patience", type=float, default=60.0, help="leave out a call of more seconds (default: %(default)s)")
        add(
            "--attempts",
            type=int,
            choices=range(1, 10),
            metavar="N",
            default=run.ATTEMPTS,
            help="at a case that misses a bar (default: %(default)s)",
        )
    comparing.add_argument("--configurations", type=int, default=400, help="of each neuron (default: %(default)s)")
    training.add_argument(
        "--data-path",
        type=Path,
        default=os.environ.get("SNNFAST_DATA") or None,
        help="folder with MNIST/raw (default: the environment variable SNNFAST_DATA)",
    )
    training.add_argument("--seeds", type=int, choices=range(1, 10), metavar="N", default=3, help="(%(default)s)")
    multiplying.add_argument("--seconds", type=float, default=5.0, help="per share of spikes (default: %(default)s)")
    counting.add_argument("--seconds", type=float, default=20.0, help="per shape (default: %(default)s)")
    for each in commands.choices.values():
        each.add_argument("--threads", type=int, help="CPU threads (default: as many as PyTorch chooses)")
    return parser.parse_args(argv or ["run"])


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command not in ("list", "run", "check"):  # which print more
        print(machine(), end="\n\n")
    bars = args.function(args)
    report.print_bars(bars)
    return 1 if any(bar.missed for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
