"""Benchmarks that others have published, as they are, with snnfast as one more row of each.

None of their code is here. The variable ``SNNFAST_PUBLIC`` names a folder with checkouts of their repositories;
docs/benchmarks.md has the commands. How snnfast is put in is in ``enter.py``.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch

from ..peers.norse import PEERS as NORSE
from ..peers.ours import BACKEND, COMPILED_LOOP, OURS, SWAPPED
from ..peers.snntorch_loop import LOOP
from ..peers.spikingjelly import PREFIX as JELLY
from ..registry import Case
from ..report import ROOT
from ..runner import FAILED, Row, compare
from .enter import AS_IT_IS, COMPILED, IMPORT, JAXPIKE, SHIM, SPARX, SPIKINGJELLY

KIND = "public"
VARIABLE = "SNNFAST_PUBLIC"
PATIENCE = 3600  # seconds that a process may take
ENTER = Path(__file__).with_name("enter.py")


class Process(NamedTuple):
    """A process that prints times."""

    rows: Mapping[str, str]  # the name of each row, and a pattern of its times
    entry: Sequence[str] = ()  # for enter.py; without, the Python of the checkout runs the file
    unit: float = 1e-3  # of the times, in seconds


class Benchmark(NamedTuple):
    """A file of a repository on GitHub, and what is run of it."""

    repository: str
    file: str
    processes: Sequence[Process]

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    @property
    def folder(self) -> Path:
        return Path(os.environ.get(VARIABLE, ""), self.name)


def _jaxpike(row: str, way: str, library: str) -> Process:
    return Process({row: r"^ +trial \d+: ([\d.]+) s$"}, (JAXPIKE, way, library), 1.0)


def _spikingjelly(row: str, compiled: str, way: str) -> Process:
    modes = {row: "torch backend", compiled: r"torch \+ torch.compile"}
    return Process({name: rf"^{mode} +avg_step= *([\d.]+) ms" for name, mode in modes.items()}, (SPIKINGJELLY, way))


def _sparx(words: str, rows: Mapping[str, str]) -> Benchmark:
    ours = Process({OURS: rf"^{words}: ([\d.]+) ms$"}, (SPARX, AS_IT_IS))
    theirs = Process({f"sparx, {name}": rf"^ +{line} +([\d.]+) ms$" for name, line in rows.items()})
    return Benchmark("AshishKumar4/sparx", "benchmarks/bench_lif.py", [ours, theirs])


BENCHMARKS = {
    Case(KIND, KIND, 256, 256, (128,), variant="jaxpike torch_shd.py"): Benchmark(
        "abdurrezzak/jaxpike",
        "benchmarks/torch_shd.py",
        [
            _jaxpike(OURS, SHIM, "spikingjelly"),
            _jaxpike(COMPILED_LOOP, COMPILED, "snntorch"),
            _jaxpike(SWAPPED, IMPORT, "snntorch"),
            _jaxpike(JELLY, AS_IT_IS, "spikingjelly"),
            _jaxpike(NORSE[0].name, AS_IT_IS, "norse"),
            _jaxpike(LOOP, AS_IT_IS, "snntorch"),
        ],
    ),
    Case(KIND, KIND, 16, 16, (3, 64, 64), variant="SpikingJelly benchmark_train_backends.py"): Benchmark(
        "fangwei123456/spikingjelly",
        "benchmark/benchmark_train_backends.py",
        [_spikingjelly(OURS, BACKEND, SHIM), _spikingjelly(JELLY, f"{JELLY}, compiled", AS_IT_IS)],
    ),
    Case(KIND, KIND, 100, 64, (512,), variant="sparx bench_lif.py, LIF"): _sparx(
        "LIF", {f"unroll={n}": f"unroll={n}" for n in (1, 2, 4, 8, 16)}
    ),
    Case(KIND, KIND, 100, 64, (512,), variant="sparx bench_lif.py, two layers"): _sparx(
        "two layers", {name: name for name in ("folded over time", "per step in the scan")}
    ),
}


def cases() -> list[Case]:
    return list(BENCHMARKS)


def names_of(case: Case) -> list[str]:
    """The names of all rows; ours comes first."""
    return [name for process in BENCHMARKS[case].processes for name in process.rows]


def revisions() -> dict[str, str]:
    """The revisions of the checkouts that there are."""
    found = {}
    for benchmark in BENCHMARKS.values():
        if benchmark.folder.exists():
            command = ["git", "-C", str(benchmark.folder), "rev-parse", "--short=12", "HEAD"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[benchmark.name] = done.stdout.strip() or "unknown"
    return found


def measure(case: Case, names: Collection[str], device: torch.device) -> list[Row]:
    """Run the processes that print these rows, and ours."""
    benchmark = BENCHMARKS[case]
    rows = {name: Row(case.name, name) for name in names_of(case) if name in names or name == OURS}
    for process in benchmark.processes:
        mine = [rows[name] for name in process.rows if name in rows]
        if not mine:
            continue
        if not (benchmark.folder / benchmark.file).exists():
            problem = f"{VARIABLE} has no {benchmark.name}: git clone https://github.com/{benchmark.repository}"
            printed = ""
        else:
            printed, problem = _printed(_command(benchmark, process), device.type, torch.get_num_threads())
        for row in mine:
            taken = [float(time) * process.unit for time in re.findall(process.rows[row.peer], printed, re.MULTILINE)]
            if not taken:
                row.problem = problem or f"{FAILED}: no time was printed"
                continue
            row.median, row.repeats = median(taken), len(taken)
            row.low, _, row.high = quantiles(taken, n=4) if len(taken) > 1 else (taken[0],) * 3
    compare(case, list(rows.values()))
    return list(rows.values())


def _command(benchmark: Benchmark, process: Process) -> tuple[str, ...]:
    if process.entry:
        name, way, *rest = process.entry
        return sys.executable, str(ENTER), name, way, str(benchmark.folder), *rest
    own = benchmark.folder / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    return str(own) if own.exists() else sys.executable, str(benchmark.folder / benchmark.file)


@functools.cache
def _printed(command: Sequence[str], device: str, threads: int) -> tuple[str, str]:
    """What a process prints, and why it failed, if it did."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "", f"{FAILED}: it took longer than {PATIENCE} s"
    if done.returncode:
        return done.stdout, f"{FAILED}: {(done.stderr.strip().splitlines() or ['without a word'])[-1][:160]}"
    return done.stdout, ""
