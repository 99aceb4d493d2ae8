"""Runs steps, each in a process of its own and within its own time."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GRACE = 10.0  # seconds between the request to end and the end
TAIL = 4000  # characters of output that are kept


@dataclass(frozen=True)
class Step:
    """A command, and where it leaves its results."""

    name: str
    command: Sequence[str]
    seconds: float  # the most that it may take
    gating: bool = False  # nothing else runs if it fails
    results: Path | None = None
    read: Callable[[str], Any] = json.loads  # of the text in ``results``
    complete: Callable[[Any], bool] | None = None  # where results, and not the exit code, tell whether all was done
    tool: str = ""  # a program outside of Python that it needs
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    verdict: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    output: str = ""  # the end of it
    results: Any = None


def run(step: Step, seconds: float) -> Outcome:
    """Run a step for at most ``seconds``, or its own limit if that is less."""
    limit = min(step.seconds, seconds)
    if step.tool and shutil.which(step.tool) is None:
        return Outcome(step.name, "skipped", output=f"{step.tool} was not found")
    if limit <= 0:
        return Outcome(step.name, "skipped", output="no time was left")
    start = time.monotonic()
    # A session of its own, so that what the command starts ends with it.
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**os.environ, **step.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        # A shell lets what it starts in the background ignore interrupts. _end needs one that is heard.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        output, _ = process.communicate(timeout=limit)
        verdict = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        output, verdict = _end(process), "timed out"
    except BaseException:  # Ctrl-C reaches this process alone
        _end(process)
        raise
    taken = time.monotonic() - start
    results = None
    try:
        results = _results(step)
    except Exception as error:  # a file that was cut off, a report of another form: the other steps still run
        verdict, output = "failed", f"{output}\nits results can't be read: {type(error).__name__}: {error}"
    if verdict == "failed" and step.complete is not None and results is not None and step.complete(results):
        verdict = "passed"
    return Outcome(step.name, verdict, round(taken, 1), public(output)[-TAIL:], results)


def _end(process: subprocess.Popen[str]) -> str:
    """Ask a command to end, as by Ctrl-C, so that it reports what it has; then end it."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=GRACE)
            return output
    return ""


def _results(step: Step) -> Any:
    if step.results is None or not step.results.is_file():
        return None
    return step.read(public(step.results.read_text()))


def public(text: str) -> str:
    """Text without the paths and the kernel of this machine."""
    text = text.replace(platform.release(), "KERNEL")
    for path, name in (
        (ROOT, "."),
        (Path(sys.prefix), "PREFIX"),
        (Path(sys.base_prefix), "PYTHON"),
        (Path.home(), "~"),
    ):
        if len(path.parts) > 1:
            text = text.replace(str(path), name)
    return text
