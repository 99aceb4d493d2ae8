"""``list`` and ``run``: the suites against every implementation that is installed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import base, plots, report
from .bars import judge
from .peers import PEERS
from .peers.ours import OURS
from .registry import Case, suites
from .runner import Row, run_case

QUICK_SECONDS, SECONDS = 2.0, 5.0


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = suites(device.type)
    if unknown := [name for name in args.suite or () if name not in known]:
        parser.error(f"--suite {unknown[0]}: there are {', '.join(known)}")
    if unknown := [name for name in args.peer or () if not _named(name)]:
        parser.error(f"--peer {unknown[0]}: there are {', '.join(PEERS)}")
    return _list(args, known, device) if args.action == "list" else _run(args, known, device, parser)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("action", choices=("list", "run"))
    parser.add_argument("--suite", nargs="+", metavar="S", help="whole suites (default: a selection of five minutes)")
    parser.add_argument("--peer", nargs="+", metavar="P", help="implementations, or how their names begin")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with this in their names")
    parser.add_argument("--seconds", type=float, help="per case, beyond the fewest repeats")
    parser.add_argument("--patience", type=float, default=60.0, help="leave out what takes longer per call, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--base", metavar="REV_OR_JSON", help="compare with a file of --json, or a revision of git")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw figures (needs matplotlib)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as PyTorch chooses)")
    return parser


def _named(name: str) -> list[str]:
    """Exactly, or all whose names begin so, in any case of letters; snnfast and snnTorch are told apart by it."""
    exact = [peer for peer in PEERS if peer == name]
    return exact or [peer for peer in PEERS if peer.lower().startswith(name.lower())]


def _selected(args: argparse.Namespace, known: dict[str, list[Case]]) -> list[Case]:
    wanted = args.suite or known
    return [
        case
        for suite in wanted
        for case in known[suite]
        if args.case in case.name and (args.suite or args.case or case.quick)
    ]


def _peers_of(args: argparse.Namespace, case: Case, device: torch.device) -> list[str]:
    """All that the device could run; those for another device would only be in the way."""
    if args.peer:
        return [peer for name in args.peer for peer in _named(name)]
    if not (args.suite or case.peers):
        return [OURS]
    return [peer.name for peer in PEERS.values() if device.type in peer.devices and case.kind in peer.kinds]


def _list(args: argparse.Namespace, known: dict[str, list[Case]], device: torch.device) -> int:
    for suite in args.suite or known:
        print(f"suite {suite}:")
        for case in known[suite]:
            if args.case in case.name:
                print(f"  {'*' if case.quick else ' '} {case.name}")
    print("\n* runs without --suite and --case\n\npeers:")
    for peer in PEERS.values():
        problem = peer.missing(device)
        state = problem or (peer.version() if peer.version() != "not installed" else "installed")
        print(f"    {peer.name:<{max(map(len, PEERS))}}  {state}")
    return 0


def _run(
    args: argparse.Namespace, known: dict[str, list[Case]], device: torch.device, parser: argparse.ArgumentParser
) -> int:
    selected = _selected(args, known)
    if not selected:
        parser.error("no case is left of --suite and --case")
    cases = {case.name: case for case in selected}
    seconds = args.seconds if args.seconds is not None else SECONDS if args.suite or args.case else QUICK_SECONDS
    peers = {case.name: _peers_of(args, case, device) for case in selected}
    used = {name for names in peers.values() for name in names}
    header = report.header(device, [peer for peer in PEERS.values() if peer.name in used])
    report.print_header(header)
    old = None
    if args.base:
        chosen = ["--seconds", str(seconds), "--device", device.type, "--case", args.case]
        chosen += ["--suite", *args.suite] if args.suite else []
        chosen += ["--threads", str(args.threads)] if args.threads else []
        try:
            old = base.results(args.base, chosen, device.type == "cuda")
        except ValueError as error:
            parser.error(str(error))
    rows: list[Row] = []
    with _Progress(len(selected)) as progress:
        for case in selected:
            found = run_case(case, peers[case.name], device, seconds, progress.say, args.patience)
            progress.clear()
            report.print_case(case, found)
            rows += found
            if args.json:  # what a run that is ended early leaves
                report.save(args.json, header, selected, rows, [], complete=False)
            progress.done()
    report.print_notes(rows)
    if old is not None:
        report.print_base(old, rows)
    bars = judge(cases, rows, device.type == "cuda")
    held = report.print_bars(bars)
    if args.json:
        report.save(args.json, header, selected, rows, bars)
    if args.plot:
        for file in plots.draw(args.plot, cases, rows):
            print(f"wrote {file}")
    return 0 if held else 1


class _Progress:
    """A bar on stderr where that is a terminal and tqdm is there; else nothing."""

    def __init__(self, total: int) -> None:
        self.bar = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, file=sys.stderr, leave=False, unit="case")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description(text[:60])

    def clear(self) -> None:
        if self.bar is not None:
            self.bar.clear()

    def done(self) -> None:
        if self.bar is not None:
            self.bar.update()
