"""Measure snnfast against its alternatives and say which bars hold. Without a command: store."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import (
    compilation,
    docs,
    epoch,
    held,
    kinds,
    loops,
    overhead,
    page,
    parity,
    pool,
    products,
    raster,
    report,
    rounding,
    run,
    store,
)
from .bars import Found
from .measure import machine
from .registry import suites

MEASURING_ONE_THING = (
    "parity", "epoch", "kinds", "compile", "overhead", "loops", "pool", "products", "held", "rounding",
)  # fmt: skip

MEASURING_NOTHING = ("list", "page", "docs")


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], Found], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(function=function, error=added.error)
        return added

    storing = command("store", store.run, "measure all that README and the docs show, and store it; ten minutes")
    listing = command("list", run.list_cases, "list suites, cases and peers (the implementations that are compared)")
    running = command("run", run.run, "measure cases against every installed peer; five minutes by default")
    checking = command("check", run.check, "check a few cases against snnTorch for regressions, within a minute")
    comparing = command("parity", parity.run, "count bits that differ from snnTorch, over random configurations")
    training = command("epoch", epoch.run, "train an epoch on MNIST, also with snnTorch: seconds and accuracy")
    counting = command("kinds", kinds.run, "time one call per step with integer, float64, numpy and half parameters")
    command("compile", compilation.run, "measure what compiling a loop costs: seconds over T, and how often")
    adding = command("overhead", overhead.run, "measure what torch.compile adds where nothing can be merged")
    looping = command("loops", loops.run, "time every loop of the tests compiled and not compiled (needs pytest)")
    command("pool", pool.run, "measure the memory that is kept of freed outputs, and the time that it saves")
    multiplying = command("products", products.run, "time spikes as bits times weights, and PyTorch's dense product")
    command("held", held.run, "count the bytes that networks hold for their backward pass")
    command("rounding", rounding.run, "measure the error of the gradient with membranes kept in bfloat16")
    drawing = command("page", page.run, "draw a result as a Markdown page with figures (needs matplotlib)")
    writing = command("docs", docs.run, "compare the figures in README and docs with the stored results")
    spiking = command("raster", raster.run, "train on MNIST and draw the spikes (needs matplotlib)")

    for each in (listing, running):
        each.add_argument("--suite", nargs="+", choices=list(suites("cpu")), metavar="S", help="whole suites")
        each.add_argument("--case", default="", metavar="TEXT", help="only cases whose names contain TEXT")
        each.add_argument("--device", choices=("cpu", "cuda"), help="the device (default: a GPU if there is one)")
    add = running.add_argument
    add("--peer", nargs="+", type=run.named, metavar="P", help="only these peers, by name or beginning of the name")
    add("--seconds", type=float, help=f"per case (default: {run.SECONDS:g}; selection: {run.QUICK_SECONDS:g})")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE")
    add("--base", metavar="REV_OR_JSON", help="compare with a file of --json, or with a git revision")
    add = storing.add_argument
    add("--out", type=Path, default=store.RESULTS, metavar="FOLDER", help="of the result (benchmarks/results)")
    add("--seconds", type=float, default=store.SECONDS, help="per case (default: %(default)s)")
    checking.add_argument("--seconds", type=float, default=run.GATE_SECONDS, help="per case (default: %(default)s)")
    for each, attempts in ((storing, 1), (running, run.ATTEMPTS), (checking, run.ATTEMPTS)):
        add = each.add_argument
        add("--patience", type=float, default=60.0, help="leave out calls of more seconds (default: %(default)s)")
        add(
            "--attempts",
            type=int,
            choices=range(1, 10),
            metavar="N",
            default=attempts,
            help="measure a case that misses a bar up to N times (default: %(default)s)",
        )
    for each in (storing, comparing):
        each.add_argument("--configurations", type=int, default=400, help="per neuron (default: %(default)s)")
    for each in (storing, training):
        each.add_argument(
            "--seeds", type=int, choices=range(1, 10), metavar="N", default=3, help="default: %(default)s"
        )
    drawing.add_argument("result", type=Path, metavar="RESULT.json", help="as `store` or `run --json` wrote it")
    drawing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the page and its figures go")
    writing.add_argument(
        "--update",
        nargs="?",
        const=docs.SAME,
        metavar="RESULT.json",
        help="write the figures of the named results, or of RESULT.json",
    )
    spiking.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="the figure")
    multiplying.add_argument("--seconds", type=float, default=5.0, help="per share of spikes (default: %(default)s)")
    adding.add_argument("--seconds", type=float, default=20.0, help="per network (default: %(default)s)")
    looping.add_argument("--seconds", type=float, default=0.5, help="per loop (default: %(default)s)")
    counting.add_argument("--seconds", type=float, default=20.0, help="per shape (default: %(default)s)")
    for name, each in commands.choices.items():
        if name not in MEASURING_NOTHING:
            each.add_argument("--threads", type=positive, help="CPU threads (default: as many as PyTorch chooses)")
    return parser.parse_args(argv or ["store"])


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    if args.command in MEASURING_ONE_THING:
        print(machine(), end="\n\n")
    bars = args.function(args).bars
    report.print_bars(bars)
    return 1 if any(bar.missed for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
