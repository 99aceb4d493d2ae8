"""What a run prints, and the file that another run, a document or a figure reads."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch

import snnfast

from .bars import Bar, gains_of
from .measure import environment, processor
from .networks import neuron_steps
from .peers import Peer
from .peers.ours import PRODUCTS
from .registry import Case, case_named
from .runner import Row, compare

ROOT = Path(__file__).parent.parent
FORMAT = 4


def header(device: torch.device, peers: Iterable[Peer]) -> dict[str, Any]:
    """Everything that a figure depends on."""
    config = snnfast.config()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "snnfast": f"{snnfast.__version__}, fused on {device.type}: {config[f'fused on {device.type}']}",
        "versions": ", ".join(f"{name} {config[name]}" for name in ("snnfast", "python", "torch", "CPU instructions")),
        "threads": torch.get_num_threads(),
        "load": _load_now(),
        "environment": environment(),
        "peers": {peer.module: peer.version() for peer in peers if peer.module not in ("snnfast", "torch")},
    }


class Load:
    """The number of processors that other programs keep busy, on average since it was made.

    The load average of the system would count the threads of this process as well. What a hypervisor takes for other
    machines counts as other programs. Unknown where there is no ``/proc/stat``.
    """

    MOST = 0.1
    """Share of all processors up to which a machine is quiet."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._times()

    def __str__(self) -> str:
        """A machine that others use as well gives figures that mean little; so it is said."""
        now = self._times()
        if self._start is None or now is None:
            return "unknown"
        every, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        share = max(busy - own, 0) / every if every else 0.0
        noise = ": other programs are running, expect noise" if share > self.MOST else ""
        return f"{share * (os.cpu_count() or 1):.2f} processors{noise}"

    def _times(self) -> tuple[float, float, float] | None:
        """Seconds of all processors, those of them that were busy, and those of this process and its children."""
        try:
            line = self._stat.read_text().splitlines()[0]
        except OSError:
            return None
        ticks = [int(n) for n in line.split()[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
        every, idle = sum(ticks), ticks[3] + ticks[4]
        second = os.sysconf("SC_CLK_TCK")
        return every / second, (every - idle) / second, sum(os.times()[:4])


def _load_now() -> str:
    """While this process waits."""
    load = Load()
    time.sleep(0.5)
    return str(load)


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


# Columns of a table: title, attribute of a row, format and scale. docs/benchmarks.md explains them.
COLUMNS = (
    ("/ ours", "ratio", "{:.2f}x", 1),
    ("repeats", "repeats", "{}", 1),
    ("GB/s", "bandwidth", "{:.1f}", 1e-9),
    ("copy", "share_of_copy", "{:.0%}", 1),
    ("saved", "saved", "{:.2f}", 1),
    ("held", "held", "{:.2f}", 1),
    ("peak", "peak", "{:.1f}", 1),
    ("first s", "first", "{:.2f}", 1),
    ("others ms", "varied", "{:.3f}", 1e3),
)


def print_case(case: Case, rows: Sequence[Row]) -> None:
    """One table, with the columns that any of its rows has."""
    width = max(len(row.peer) for row in rows)
    shown = [column for column in COLUMNS if any(getattr(row, column[1]) for row in rows)]
    # Others count what they time in their own ways.
    print(
        case.name
        if case.kind in ("public", "collection")
        else f"{case.name}: {neuron_steps(case) / 1e6:.4g} M neuron-steps"
    )
    titles = "".join(f"  {title:>8}" for title, *_ in shown)
    print(f"{'':<{width}}  {'median ms':>10}  {'quartiles':>19}{titles}  spikes as ours")
    for row in rows:
        if row.median is None:
            print(f"{row.peer:<{width}}  {row.problem}")
            continue
        quartiles = "-" if row.low is None or row.high is None else f"{row.low * 1e3:>8.3f} - {row.high * 1e3:<8.3f}"
        values = [(getattr(row, name), form, scale) for _, name, form, scale in shown]
        cells = "".join(f"  {'-' if value is None else form.format(value * scale):>8}" for value, form, scale in values)
        agree = "-" if row.agree is None else "all" if row.agree == 1 else f"{min(100 * row.agree, 99.999):.3f} %"
        print(f"{row.peer:<{width}}  {row.median * 1e3:>10.3f}  {quartiles:>19}{cells}  {agree}")
    if rows[0].rates:
        print(f"spikes: {', '.join(f'{rate:.1%}' for rate in rows[0].rates)} of the neuron-steps of the hidden layers")
    print(flush=True)


def print_bars(bars: Sequence[Bar]) -> None:
    """Those that were missed come last, where they are seen."""
    for bar in sorted(bars, key=lambda bar: bar.missed):
        print(bar.text)


def print_gains(rows: Sequence[Row]) -> None:
    """How many times faster each program of the collection is from the 12th call of a shape on, and otherwise."""
    gains, firsts = gains_of(rows), {row.case: row.first for row in rows if row.first is not None}
    ways = {
        "other sizes": gains_of(rows, of="varied"),
        "products alone": gains_of(rows, PRODUCTS),
    }
    for case, gain in gains.items():
        others = [f"{way} {found[case]:.2f}" for way, found in ways.items() if case in found]
        others += [f"first call {firsts[case]:.2f} s"] * (case in firsts)
        print(f"{gain:>7.2f}  {case}" + (f" ({', '.join(others)})" if others else ""))
    if gains:
        below = sum(gain < 1 for gain in gains.values())
        print(f"{median(gains.values()):>7.2f}  is the median, {below} of {len(gains)} are below 1")
        print("".join(f"{median(found.values()):>7.2f}  {way}, median\n" for way, found in ways.items() if found))


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


# ---- the file: a header, and a line for each row with what was measured, by case and peer

DERIVED = ("case", "peer", "ratio", "bandwidth", "share_of_copy")


def save(path: Path, found: Mapping[str, Any], rows: Iterable[Row], complete: bool = True) -> None:
    """Write a run, or with ``complete`` false what there is of it so far."""
    cases = ",\n".join(
        f"  {json.dumps(case)}: {{\n" + ",\n".join(f"   {json.dumps(row.peer)}: {_line(row)}" for row in of) + "\n  }"
        for case, of in groupby(rows, lambda row: row.case)
    )
    head = json.dumps({"format": FORMAT, "complete": complete, "header": found}, indent=1)
    path.write_text(f'{head.removesuffix("}").rstrip()},\n "cases": {{\n{cases}\n }}\n}}\n')


def _line(row: Row) -> str:
    kept = {name: value for name, value in asdict(row).items() if name not in DERIVED and value not in (None, "", [])}
    return json.dumps({name: float(f"{v:.7g}") if isinstance(v, float) else v for name, v in kept.items()})


def load(path: Path) -> dict[str, Any]:
    """As ``save`` wrote it, with all rows as :class:`Row`."""
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: not written by this version of the benchmarks")
    content["rows"] = []
    for name, peers in content.pop("cases").items():
        rows = [Row(name, peer, **fields) for peer, fields in peers.items()]
        if case := case_named(name):
            compare(case, rows)
        content["rows"] += rows
    return content
