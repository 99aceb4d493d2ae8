"""The steps, in the order of what they are worth if the time runs out."""

import sys
from pathlib import Path

from ..peers.ours import OURS
from ..peers.snntorch_loop import LOOP
from . import bandwidth
from .runner import Step

SUITES = {"lif": 60, "tutorial5": 25, "framework": 40}  # seconds
SANITIZERS = {"memcheck": 35, "racecheck": 40, "synccheck": 30, "initcheck": 35}
DRY_CASES = {
    "lif": "lif [1, 1, 10] float32, forward + backward",
    "tutorial5": "tutorial5",
    "framework": "framework [500, 16, 256] float32, Linear hoisted",
}


def steps(folder: Path, dry_run: bool = False, wheel: Path | None = None) -> list[Step]:
    """``folder`` takes what they leave. A dry run has the same steps, on the CPU and in small, and no tools."""

    def own(name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments, *(["--dry-run"] if dry_run else [])]

    def leaving(name: str, command: list[str], seconds: float, gating: bool = False) -> Step:
        file = folder / f"{name}.json"
        return Step(name, [*command, "--json", str(file)], seconds, gating=gating, results=file)

    def suite(name: str) -> Step:
        file = folder / f"{name}.json"
        command = [*_suite(name, dry_run), "--json", str(file)]
        # The exit code tells of bars, which are those of another machine.
        return Step(name, command, SUITES[name], results=file, complete=lambda found: bool(found["complete"]))

    profiled, report = own("workload", "--large"), folder / "bandwidth.csv"
    watched = own("workload")
    variables = {"SNNFAST_DRY_RUN": "1"} if dry_run else {}
    tests = ["tests/test_gpu.py"] if dry_run else ["tests/test_gpu.py", "tests"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail=30", *tests]
    return [
        # Takes that long only where there are no kernels for the card yet, and they have to be built.
        leaving("environment", own("environment", *(["--wheel", str(wheel.resolve())] if wheel else [])), 180),
        leaving("smoke", own("smoke"), 90, gating=True),
        suite("lif"),
        Step(
            "bandwidth",
            profiled if dry_run else bandwidth.command(profiled, report),
            45,
            results=report,
            read=bandwidth.parse,
            tool="" if dry_run else "ncu",
        ),
        Step("tests", pytest, 180, variables=variables),
        suite("tutorial5"),
        suite("framework"),
        *(
            Step(
                tool,
                watched if dry_run else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *watched],
                seconds,
                tool="" if dry_run else "compute-sanitizer",
                # An access beyond a tensor is seen only where that is the end of an allocation.
                variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
            for tool, seconds in SANITIZERS.items()
        ),
    ]


def _suite(name: str, dry_run: bool) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", "run", "--suite", name, "--peer", OURS, LOOP, "--patience", "1"]
    if dry_run:
        return [*command, "--device", "cpu", "--case", DRY_CASES[name], "--seconds", "0.05"]
    return [*command, "--device", "cuda", "--seconds", "0.5"]
