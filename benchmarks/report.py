"""What a run prints, and the file that another run or a plot reads."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import snnfast

from .bars import Bar
from .measure import machine
from .peers import PEERS, Peer
from .registry import Case
from .runner import Row

ROOT = Path(__file__).parent.parent
FORMAT = 3


def header(device: torch.device, peers: Iterable[Peer]) -> dict[str, Any]:
    """Everything that a figure depends on."""
    lines = machine().splitlines()
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": lines[0],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "snnfast": f"{snnfast.__version__}, fused on {device.type}: {snnfast.config()[f'fused on {device.type}']}",
        "versions": lines[-2],
        "threads": torch.get_num_threads(),
        "load": _load(),
        "environment": lines[-1].removeprefix("environment: "),
        "peers": {peer.package: peer.version() for peer in peers if peer.package != "snnfast"},
    }
    return found


def _load() -> str:
    """A machine that others use as well gives figures that mean little; so it is said."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return "unknown"
    busy = load > 0.5 * (os.cpu_count() or 1)
    return f"{load:.2f}" + (": other programs are running, expect noise" if busy else "")


def print_header(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name + ':':<13}{text}")
    print()


def commit() -> str:
    """The revision of the source tree, with ``-dirty`` where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "-C", ROOT, "diff", "--quiet", "HEAD"], check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip() + ("-dirty" if changed else "")


def print_case(case: Case, rows: Sequence[Row]) -> None:
    """One table. The columns are explained in docs/benchmarks.md."""
    width = max(len(row.peer) for row in rows)
    print(f"{case.name}: {rows[0].neuron_steps / 1e6:.4g} M neuron-steps")
    print(
        f"{'':<{width}}  {'median ms':>10}  {'quartiles':>19}  {'/ ours':>7}  {'repeats':>7}  {'worth B':>7}"
        f"  {'GB/s':>6}  {'copy':>5}  {'saved':>6}  {'held':>6}  {'peak':>6}  spikes as ours"
    )
    for row in rows:
        print(_line(row, width), flush=True)
    if rows[0].rates:
        print(f"spikes: {', '.join(f'{rate:.1%}' for rate in rows[0].rates)} of the neuron-steps of the hidden layers")
    for row in rows:
        if row.largest_T is not None:
            print(f"{row.peer}: about {row.largest_T} steps fit into 1 GiB beyond the inputs")
    print()


def _line(row: Row, width: int) -> str:
    if row.median is None or row.low is None or row.high is None:
        return f"{row.peer:<{width}}  {row.problem}"

    def show(value: float | None, form: str, scale: float = 1) -> str:
        return "-" if value is None else format(value * scale, form)

    agree = "-" if row.agree is None else "all" if row.agree == 1 else f"{min(100 * row.agree, 99.999):.3f} %"
    return (
        f"{row.peer:<{width}}  {row.median * 1e3:>10.3f}  {row.low * 1e3:>8.3f} - {row.high * 1e3:<8.3f}"
        f"  {show(row.ratio, '.2f') + 'x':>7}  {row.repeats:>7}  {show(row.bytes_worth, '.1f'):>7}"
        f"  {show(row.bandwidth, '.1f', 1e-9):>6}  {show(row.share_of_copy, '.0%'):>5}  {show(row.saved, '.2f'):>6}"
        f"  {show(row.held, '.2f'):>6}  {show(row.peak, '.1f'):>6}  {agree}"
    )


def print_notes(rows: Iterable[Row]) -> None:
    """Where the models and their use differ, of those that took part."""
    seen = {row.peer for row in rows if row.median is not None}
    notes: dict[str, list[str]] = {}
    for peer in PEERS.values():
        if peer.name in seen and peer.note:
            notes.setdefault(peer.note, []).append(peer.name)
    for note, names in notes.items():
        print(f"{'; '.join(names)}: {note}.")
    print()


def print_bars(bars: Sequence[Bar]) -> None:
    """Those that were missed come last, where they are seen."""
    for bar in sorted(bars, key=lambda bar: bar.missed):
        print(bar.text)


def save(
    path: Path,
    found: Mapping[str, Any],
    cases: Iterable[Case],
    rows: Iterable[Row],
    bars: Sequence[Bar],
    complete: bool = True,
    parts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write a run, or with ``complete`` false what there is of it so far; ``parts`` are rows of other commands."""
    content = {
        "format": FORMAT,
        "complete": complete,
        "header": found,
        "cases": {case.name: asdict(case) for case in cases},
        "rows": [asdict(row) for row in rows],
        "bars": [{**asdict(bar), "verdict": bar.verdict} for bar in bars],
        "parts": parts or {},
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """As ``save`` wrote it, rows as :class:`Row`."""
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: not written by this version of the benchmarks")
    content["rows"] = [Row(**row) for row in content["rows"]]
    return content


def print_base(old: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Old time / new time of every case that both have: above 1 is faster than before."""
    before = {(row.case, row.peer): row for row in old["rows"] if row.median is not None}
    pairs = [(before[row.case, row.peer], row) for row in rows if row.median and (row.case, row.peer) in before]
    print(f"against {old['header']['commit']} ({old['header']['machine']}); above 1: faster now")
    print(f"{'old ms':>10}  {'new ms':>10}  {'old / new':>9}")
    for then, now in pairs:
        ratio = then.median / now.median
        print(f"{then.median * 1e3:>10.3f}  {now.median * 1e3:>10.3f}  {ratio:>9.2f}  {now.peer}: {now.case}")
    print()
