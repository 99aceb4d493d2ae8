"""``list``, ``run`` and ``check``: the suites against every implementation that is installed."""

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from . import base, report
from .bars import BARS, OF_ITSELF, Bar, Found, judge
from .peers import PEERS
from .peers.ours import NUMBERS, OURS, lacking
from .peers.snntorch_loop import LOOP
from .registry import Case, suites
from .runner import FAILED, Row, run_case

QUICK_SECONDS, SECONDS, GATE_SECONDS = 2.0, 5.0, 3.0
ATTEMPTS = 6  # a neighbour of the machine may slow some of them down


def named(name: str) -> list[str]:
    """Peers with this name, or all whose names begin so; the case of letters does not matter then."""
    found = [peer for peer in PEERS if peer == name] or [p for p in PEERS if p.lower().startswith(name.lower())]
    if not found:
        raise argparse.ArgumentTypeError(f"{name}: there are {', '.join(PEERS)}")
    return found


def list_cases(args: argparse.Namespace) -> Found:
    device = _device(args)
    known = suites(device.type)
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
    return Found()


def run(args: argparse.Namespace) -> Found:
    device = _device(args)
    known = suites(device.type)
    chosen = bool(args.suite or args.case)
    selected = [
        case
        for suite in args.suite or known
        for case in known[suite]
        if args.case in case.name and (chosen or case.quick)
    ]
    if not selected:
        args.error("no case is left of --suite and --case")
    seconds = args.seconds or (SECONDS if chosen else QUICK_SECONDS)
    wanted = [name for names in args.peer or () for name in names]
    plan = {case: wanted or peers_of(case, chosen, device) for case in selected}
    header = header_of(plan, device)
    old = None
    if args.base:
        options = ["--seconds", str(seconds), "--device", device.type, "--case", args.case]
        options += ["--suite", *args.suite] if args.suite else []
        options += ["--threads", str(args.threads)] if args.threads else []
        try:
            old = base.results(args.base, options, device.type == "cuda")
        except ValueError as error:
            args.error(str(error))
    asked = [*OF_ITSELF, *wanted] if chosen else []

    def save(rows: Sequence[Row], bars: Sequence[Bar], complete: bool = False) -> None:
        if args.json:
            report.save(args.json, header, plan, rows, bars, complete)

    try:
        save([], [])  # not only once the first case is measured
    except OSError as error:
        args.error(f"--json: {error}")
    rows, bars = measure_all(plan, asked, device, seconds, args, save)
    if old is not None:
        report.print_base(old, rows)
    if not chosen and device.type == "cpu":
        bars += not_measured(plan, wanted or None)
    save(rows, bars, complete=True)
    return Found(bars)


def header_of(plan: Mapping[Case, Sequence[str]], device: torch.device) -> dict[str, Any]:
    """Print it as well."""
    used = {name for names in plan.values() for name in names}
    header = report.header(device, [peer for peer in PEERS.values() if peer.name in used])
    report.print_header(header)
    return header


def measure_all(
    plan: Mapping[Case, Sequence[str]],
    asked: Collection[str],
    device: torch.device,
    seconds: float,
    args: argparse.Namespace,
    save: Callable[[Sequence[Row], Sequence[Bar]], None],
) -> tuple[list[Row], list[Bar]]:
    """Every case against its peers; ``save`` gets what there is after each, for a run that is ended early."""
    rows: list[Row] = []
    bars: list[Bar] = []
    with _Progress(len(plan)) as progress:
        for case, peers in plan.items():
            found, judged = measure(case, peers, asked, device, seconds, args, progress)
            rows += found
            bars += judged
            save(rows, bars)
            progress.done()
    report.print_notes(rows)
    return rows, bars


def not_measured(plan: Mapping[Case, Sequence[str]], peers: Collection[str] | None = None) -> list[Bar]:
    """Bars of the cases that are not in a plan."""
    measured = {case.name for case in plan}
    return [bar for name in BARS if name not in measured for bar in judge(name, [], peers)]


def check(args: argparse.Namespace) -> Found:
    """A few cases against snnTorch and spikes as numbers, within a minute; also bars that are not measured count."""
    device = torch.device("cpu")
    report.print_header(report.header(device, [PEERS[LOOP]]))
    cases = [case for cases in suites("cpu").values() for case in cases if case.gate and not lacking(case)]
    bars = []
    with _Progress(len(cases)) as progress:
        for case in cases:
            peers = [NUMBERS] if case.kind == "pair" else [LOOP]
            bars += measure(case, peers, (*OF_ITSELF, *peers), device, args.seconds, args, progress)[1]
            progress.done()
    return Found(bars)


def measure(
    case: Case,
    peers: Sequence[str],
    asked: Collection[str],
    device: torch.device,
    seconds: float,
    args: argparse.Namespace,
    progress: "_Progress",
) -> tuple[list[Row], list[Bar]]:
    """A case and its bars, once more where one is missed; what held once, holds. A GPU has no bars yet."""
    bars: list[Bar] = []
    for attempt in range(args.attempts):
        rows = run_case(case, peers, device, seconds, progress.say, args.patience)
        progress.clear()
        report.print_case(case, rows)
        judged = judge(case.name, rows, peers, asked) if device.type == "cpu" else []
        bars = [old if old.verdict == "holds" else new for old, new in zip(bars or judged, judged, strict=True)]
        missed = [bar for bar in bars if bar.verdict == "MISSED"]
        if not missed:
            break
        report.print_bars(missed)
        if attempt + 1 < args.attempts:
            print("once more, in case the machine was busy\n")
    if rows[0].problem.startswith(FAILED):
        bars.append(Bar(f"{case.name}: {rows[0].peer}", None, 0, detail=rows[0].problem))
    return rows, bars


def peers_of(case: Case, chosen: bool, device: torch.device) -> list[str]:
    """All that the device could run; those for another device would only be in the way."""
    if not (chosen or case.peers):
        return [OURS]
    return [
        peer.name
        for peer in PEERS.values()
        if device.type in peer.devices and peer.fits(case) and (chosen or not peer.slow)
    ]


def _device(args: argparse.Namespace) -> torch.device:
    if args.device == "cuda" and not torch.cuda.is_available():
        args.error("--device cuda: torch sees no CUDA device")
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


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
