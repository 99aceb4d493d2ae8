"""``list``, ``run``, ``store`` and ``check``: the suites against every implementation that is installed."""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import base, collection, public, report
from .bars import OF_ITSELF, Bar, judge, judge_collection
from .collection import timing
from .peers import PEERS
from .peers.ours import NUMBERS, OURS
from .peers.snntorch_loop import LOOP
from .registry import TUTORIAL5, Case, suites
from .runner import FAILED, Row, run_case

QUICK_SECONDS, SECONDS, GATE_SECONDS = 2.0, 5.0, 3.0
ATTEMPTS = 6  # a neighbour of the machine may slow some of them down
RESULTS = report.ROOT / "benchmarks" / "results"
# Suites that need what is not part of the repository, and so run only where they are asked for.
ON_REQUEST = {
    "collection": (collection.cases, "programs after public code"),
    "public": (public.cases, "benchmarks of others, as they are"),
}

Plan = Mapping[Case, Sequence[str]]


def named(name: str) -> list[str]:
    """Peers with this name, or all whose names begin so; the case of letters does not matter then."""
    found = [peer for peer in PEERS if peer == name] or [p for p in PEERS if p.lower().startswith(name.lower())]
    if not found:
        raise argparse.ArgumentTypeError(f"{name}: there are {', '.join(PEERS)}")
    return found


def list_cases(args: argparse.Namespace) -> list[Bar]:
    device = _device(args)
    known = _known(args, device)
    for suite in args.suite or known:
        print(f"suite {suite}:")
        for case in known[suite]:
            if args.case in case.name:
                print(f"  {'*' if case.quick else ' '} {case.name}")
    for suite, (_, text) in ON_REQUEST.items():
        print(f"suite {suite}: {text}")
    print("\n* runs without --suite and --case\n\npeers:")
    for peer in PEERS.values():
        problem = peer.missing(device)
        state = problem or (peer.version() if peer.version() != "not installed" else "installed")
        print(f"    {peer.name:<{max(map(len, PEERS))}}  {state}")
    return []


def run(args: argparse.Namespace) -> list[Bar]:
    device = _device(args)
    known = _known(args, device)
    chosen = bool(args.suite or args.case)
    selected = [
        case
        for suite in args.suite or known
        for case in known[suite]
        if args.case in case.name and (chosen or case.quick)
    ]
    if not selected:
        args.error("no case is left of --suite and --case")
    if args.seconds is None:
        args.seconds = SECONDS if chosen else QUICK_SECONDS
    wanted = [name for names in args.peer or () for name in names]
    plan = {case: wanted or peers_of(case, chosen, device) for case in selected}
    header = _header(plan, device)
    old = None
    if args.base:
        options = ["--seconds", str(args.seconds), "--device", device.type, "--case", args.case]
        options += ["--suite", *args.suite] if args.suite else []
        options += ["--threads", str(args.threads)] if args.threads else []
        try:
            old = base.results(args.base, options, device.type == "cuda")
        except ValueError as error:
            args.error(str(error))
    asked = [*OF_ITSELF, *wanted] if chosen else []
    rows, bars = measure_all(plan, asked, device, args, args.json, header)
    report.print_gains(rows)
    bars += judge_collection(rows)
    if old is not None:
        report.print_base(old, rows)
    return bars


def plan_to_store(device: torch.device) -> Plan:
    """Cases with their peers; of the networks, only tutorial 5 also under torch.compile, which takes minutes."""
    cases = [case for known in suites(device.type).values() for case in known if case.quick or case.stored]
    return {case: peers_of(case, case == TUTORIAL5, device) for case in cases}


def store(args: argparse.Namespace) -> list[Bar]:
    """All that README and the docs show beside the collection, ``lengths`` and others' networks, into one file."""
    device = _device(args)
    plan = plan_to_store(device)
    header = _header(plan, device)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name_of(header)}.json"
    _, bars = measure_all(plan, (), device, args, file, header)
    print(f"wrote {file}\n")
    return bars


def processor(header: Mapping[str, Any]) -> str:
    """What was measured, without the words that say nothing."""
    found = header["machine"].split(",")[0] if header["device"] == "cpu" else header["device"]
    return " ".join(re.sub(r"\((R|TM)\)|@.*|\b(\d+-Core|CPU|Processor)\b", " ", found).split())


def name_of(header: Mapping[str, Any]) -> str:
    """A name for the file of a result: the processor and, of a CPU, the instructions in use."""
    instructions = re.findall(r"CPU instructions (\w+)", header["versions"]) if header["device"] == "cpu" else []
    return "-".join(re.findall(r"[a-z0-9]+", processor(header).lower()) + instructions)


def measure_all(
    plan: Plan,
    asked: Collection[str],
    device: torch.device,
    args: argparse.Namespace,
    file: Path | None,
    header: Mapping[str, Any],
) -> tuple[list[Row], list[Bar]]:
    """Every case against its peers; ``file`` gets what there is after each, for a run that is ended early."""
    rows: list[Row] = []
    bars: list[Bar] = []
    load = report.Load()

    def save(complete: bool = False) -> None:
        if file is not None:
            report.save(file, {**header, "load": str(load)}, rows, complete)

    try:
        save()  # not only once the first case is measured
    except OSError as error:
        args.error(str(error))
    for case, peers in plan.items():
        found, judged = measure(case, peers, asked, device, args)
        rows += found
        bars += judged
        save()
    save(complete=True)
    print(f"load: {load}\n")
    return rows, bars


def check(args: argparse.Namespace) -> list[Bar]:
    """A few cases against snnTorch and spikes as numbers, within a minute; also bars that are not measured count."""
    device = torch.device("cpu")
    cases = [case for cases in suites("cpu").values() for case in cases if case.gate]
    plan = {case: [NUMBERS] if case.kind == "pair" else [LOOP] for case in cases}
    return measure_all(plan, (*OF_ITSELF, LOOP, NUMBERS), device, args, None, _header(plan, device))[1]


def measure(
    case: Case, peers: Sequence[str], asked: Collection[str], device: torch.device, args: argparse.Namespace
) -> tuple[list[Row], list[Bar]]:
    """A case and its bars, once more where one is missed; what held once, holds. A GPU has no bars yet."""
    bars: list[Bar] = []
    for attempt in range(args.attempts):
        if case.kind == public.KIND:
            rows = public.measure(case, peers, device)
        elif case.kind == timing.KIND:
            rows = timing.measure(case, peers, args.seconds)
        else:
            rows = run_case(case, peers, device, args.seconds, args.patience)
        report.print_case(case, rows)
        judged = judge(case, rows, peers, asked) if device.type == "cpu" else []
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
    if case.kind == public.KIND:
        return public.names_of(case)
    if not (chosen or case.peers):
        return [OURS]
    return [
        peer.name
        for peer in PEERS.values()
        if device.type in peer.devices and peer.fits(case) and (chosen or not peer.slow)
    ]


def _known(args: argparse.Namespace, device: torch.device) -> dict[str, list[Case]]:
    known = suites(device.type)
    return known | {suite: ON_REQUEST[suite][0]() for suite in args.suite or () if suite in ON_REQUEST}


def _header(plan: Plan, device: torch.device) -> dict[str, Any]:
    """Print it as well."""
    used = {name for names in plan.values() for name in names}
    header = report.header(device, [peer for peer in PEERS.values() if peer.name in used])
    if any(case.kind == public.KIND for case in plan):
        header["peers"] |= public.revisions()
    report.print_header(header)
    return header


def _device(args: argparse.Namespace) -> torch.device:
    if args.device == "cuda" and not torch.cuda.is_available():
        args.error("--device cuda: torch sees no CUDA device")
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
