"""The steps, in the order of what they are worth if the time runs out."""

import sys
from pathlib import Path

from ..peers.ours import GRAPH, OURS
from ..peers.snntorch_loop import LOOP, NETWORK
from ..peers.spikingjelly import PREFIX as SPIKINGJELLY
from . import bandwidth
from .runner import Step

SHORT = ("environment", "smoke", "kernels")  # three minutes
SANITIZERS = {"memcheck": 60, "racecheck": 50, "synccheck": 30, "initcheck": 30}  # seconds
DRY_CASE = "tutorial5"
WORKERS = 8  # that share a card in the tests


def steps(folder: Path, dry_run: bool = False, wheel: Path | None = None, short: bool = False) -> list[Step]:
    """``folder`` takes what they leave. A dry run has the same steps, on the CPU and in small, and no tools."""

    def own(name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments, *(["--dry-run"] if dry_run else [])]

    def leaving(name: str, command: list[str], seconds: float, gating: bool = False) -> Step:
        file = folder / f"{name}.json"
        return Step(name, [*command, "--json", str(file)], seconds, gating=gating, results=file)

    def sanitizer(name: str) -> Step:
        command = own("workload")
        if not dry_run:
            command = ["compute-sanitizer", "--tool", name, "--error-exitcode", "9", *command]
        # An access beyond a tensor is seen only where that is the end of an allocation.
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        tool = "" if dry_run else "compute-sanitizer"
        return Step(name, command, SANITIZERS[name], tool=tool, variables=variables)

    def tests(name: str, *arguments: str, seconds: float) -> Step:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail=30"]
        variables = {"SNNFAST_DRY_RUN": "1"} if dry_run else {}
        # A module that can't be imported there, for want of a package, keeps no other from running.
        return Step(name, [*command, "--continue-on-collection-errors", *arguments], seconds, variables=variables)

    profiled, report = own("workload", "--profiled"), folder / "bandwidth.csv"
    found = [
        # Takes that long only where there are no kernels for the card yet, and they have to be built.
        leaving("environment", own("environment", *(["--wheel", str(wheel.resolve())] if wheel else [])), 180),
        leaving("smoke", own("smoke"), 60, gating=True),
        leaving("kernels", own("kernels", *(["--short"] if short else [])), 120),
        Step(
            "bandwidth",
            profiled if dry_run else bandwidth.command(profiled, report),
            60,
            results=report,
            read=bandwidth.parse,
            tool="" if dry_run else "ncu",
        ),
        tests("card", "tests/test_gpu.py", seconds=90),
        _suite(folder, dry_run),
        sanitizer("memcheck"),
        # All others that take the fixture `device`; in a dry run there is none for it, but they are found.
        tests(
            "tests",
            *(["--collect-only", "-q"] if dry_run else ["-n", str(WORKERS)]),
            "--ignore=tests/test_gpu.py",  # the step "card"
            "tests",
            seconds=100,
        ),
        *map(sanitizer, list(SANITIZERS)[1:]),
    ]
    return [step for step in found if not short or step.name in SHORT]


def _suite(folder: Path, dry_run: bool) -> Step:
    """The training step of a tutorial, end to end."""
    file = folder / "tutorial5.json"
    command = [sys.executable, "-m", "benchmarks", "run", "--suite", "tutorial5", "--patience", "1"]
    command += [
        "--peer",
        OURS,
        GRAPH,
        LOOP,
        *([] if dry_run else [NETWORK, f"{SPIKINGJELLY}, triton"]),
        "--json",
        str(file),
    ]
    command += ["--device", "cpu", "--case", DRY_CASE, "--seconds", "0.05"] if dry_run else ["--device", "cuda"]
    # The exit code tells of bars, which are those of another machine.
    return Step("tutorial5", command, 60, results=file, complete=lambda found: bool(found["complete"]))
