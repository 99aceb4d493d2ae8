"""The script for a GPU, on a machine without one: its steps by commands that stand in, and the arithmetic of times."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import workload
from benchmarks.registry import Case
from snnfast import use_backend

pytestmark = pytest.mark.thorough
SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu.sh"
CASE = Case("lif", "layer", 100, 128, (1024,))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Run:
    """Run it with commands that print what they are asked. The sanitizer fails where it is asked for memcheck."""
    for name in ("python", "compute-sanitizer", "ncu", "nvidia-smi"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*"\ncase "$*" in *memcheck*) exit 9;; esac\n')
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = ["bash", SCRIPT, *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    return run


def test_steps_after_one_that_failed_run_and_all_logs_are_kept(script: Run, tmp_path: Path) -> None:
    done = script(tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("=== failed: memcheck\n")
    steps = [line.removeprefix("=== ") for line in done.stdout.splitlines() if line.startswith("=== ")]
    assert len(steps) == 11
    for step in steps[:-1]:
        log = (tmp_path / "out" / f"{step}.log").read_text()
        assert log
        assert log in done.stdout
    assert "--junitxml" in (tmp_path / "out/tests.log").read_text()


def test_named_steps_alone_run_and_an_unknown_one_fails(script: Run, tmp_path: Path) -> None:
    done = script(tmp_path, "card", "racecheck")
    assert (done.returncode, done.stdout.count("=== ")) == (0, 3)
    assert script(tmp_path, "no-such-step").returncode == 1
    assert (script().returncode != 0, script().stdout) == (True, "")


@pytest.mark.needs_extension
def test_the_workload_calls_layers_as_they_are() -> None:
    calls = [call for call in workload.watched() if call[1:4] == (18, 37, torch.float32)]
    with use_backend("fused"):
        for call in calls:
            workload.run(call, "cpu")
    assert len(calls) == len(workload.LAYERS) * len(workload.OPTIONS) + 1
