"""Measure snnfast against its alternatives and say which bars hold. Without a command: store."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import convolutions, docs, lengths, report, run
from .bars import Bar
from .registry import suites


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], list[Bar]], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(function=function, error=added.error)
        return added

    storing = command("store", run.store, "measure all that README and the docs show, and store it; twenty minutes")
    listing = command("list", run.list_cases, "list suites, cases and peers (the implementations that are compared)")
    running = command("run", run.run, "measure cases against every installed peer; five minutes by default")
    checking = command("check", run.check, "check a few cases against snnTorch for regressions, within a minute")
    varying = command("lengths", lengths.run, "time batches that differ by their numbers of steps; many minutes")
    convolving = command("convolutions", convolutions.run, "time convolutions of spikes, alone and in networks")
    writing = command("docs", docs.run, "compare the figures in README and docs with the stored results")

    for each in (listing, running):
        names = [*suites("cpu"), *run.ON_REQUEST]
        each.add_argument("--suite", nargs="+", choices=names, metavar="S", help="whole suites")
        each.add_argument("--case", default="", metavar="TEXT", help="only cases whose names contain TEXT")
    for each in (listing, running, storing):
        each.add_argument("--device", choices=("cpu", "cuda"), help="the device (default: a GPU if there is one)")
    add = running.add_argument
    add("--peer", nargs="+", type=run.named, metavar="P", help="only these peers, by name or beginning of the name")
    add("--seconds", type=float, help=f"per case (default: {run.SECONDS:g}; selection: {run.QUICK_SECONDS:g})")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE")
    add("--base", metavar="REV_OR_JSON", help="compare with a file of --json, or a git revision")
    storing.add_argument("--out", type=Path, default=run.RESULTS, metavar="FOLDER", help="of the result")
    for each, seconds in ((storing, run.QUICK_SECONDS), (checking, run.GATE_SECONDS)):
        each.add_argument("--seconds", type=float, default=seconds, help="per case (default: %(default)s)")
    for each in (varying, convolving):
        each.add_argument("--case", default="", metavar="TEXT", help="only networks whose names contain TEXT")
        each.add_argument("--json", type=Path, metavar="FILE", help="write all times to FILE")
        each.add_argument("--threads", type=int, help="CPU threads (default: as many as PyTorch chooses)")
    varying.add_argument("--way", nargs="+", choices=lengths.WAYS, metavar="W", help="only snnTorch and these")
    for each, attempts in ((storing, 1), (running, run.ATTEMPTS), (checking, run.ATTEMPTS)):
        add = each.add_argument
        add("--patience", type=float, default=60.0, help="leave out calls of more seconds (default: %(default)s)")
        text = "measure a case that misses a bar up to N times (default: %(default)s)"
        add("--attempts", type=int, choices=range(1, 10), metavar="N", default=attempts, help=text)
        add("--threads", type=int, help="CPU threads (default: as many as PyTorch chooses)")
    writing.add_argument("--update", action="store_true", help="write them anew")
    return parser.parse_args(argv or ["store"])


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if getattr(args, "threads", None) is not None:
        torch.set_num_threads(args.threads)
    bars = args.function(args)
    report.print_bars(bars)
    return 1 if any(bar.missed for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
