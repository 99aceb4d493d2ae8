"""Bugs planted in small kernels are caught by the tool that should catch them; the same kernels without them pass."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import skip_unless_required
from emulator.build import HERE, build_program

pytestmark = [pytest.mark.emulated, pytest.mark.thorough]

SOURCES = [HERE / "planted/memory.cu", HERE / "planted/threads.cu"]
ASAN = "ERROR: AddressSanitizer: "
RACE = "WARNING: ThreadSanitizer: data race"
# Bug, the build that catches it, what its report says ({}: file and line of the bug), whether it names the line.
BUGS = [
    ("global_bounds", "address", ASAN + "heap-buffer-overflow", True),
    ("static_shared_bounds", "address", ASAN + "global-buffer-overflow", True),
    ("alignment", "address", "runtime error: reference binding to misaligned address", True),
    ("missing_syncthreads", "thread", RACE, True),
    ("block_race", "thread", RACE, True),
    ("divergent_barrier", "plain", "waits in __syncthreads at {}; thread (16,0,0) of block (0,0,0) has exited", True),
    ("two_barriers", "plain", "thread (16,0,0) of block (0,0,0) waits in __syncthreads at ", True),
    ("block_waits", "plain", "atomicAdd at {}: again and again", True),
    ("unwritten_global", "plain", "poison: element 31 of the output", False),
    ("unwritten_shared", "plain", "poison: element 24 of the output", False),
    ("unwritten_output", "plain", "poison: element 31 of the output", False),
    ("block_size", "plain", "launch: error 9, invalid configuration argument", False),
]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def planted() -> Run:
    """Runs the program with the planted bugs, built with one sanitizer."""

    def run(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            program = build_program("planted", sanitizer)
        except RuntimeError as error:
            skip_unless_required(str(error), "SNNFAST_REQUIRE_EMULATOR")
        # Not with what `make sanitize` preloads into Python: each program has its own sanitizer.
        environment = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    return run


def place_of(bug: str) -> str:
    """File and line of the planted bug, as reports name them."""
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.endswith(f"// planted: {bug}"):
                return f"{path}:{number}"
    raise AssertionError(f"no line is marked as '// planted: {bug}'")


@pytest.mark.parametrize(("bug", "sanitizer", "report", "names_line"), BUGS, ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_reported(bug: str, sanitizer: str, report: str, names_line: bool, planted: Run) -> None:
    result = planted(sanitizer, bug)
    assert result.returncode not in (0, 2)
    if not names_line:
        assert report in result.stderr
        return
    place = place_of(bug)
    assert report.format(place) in result.stderr
    assert re.search(re.escape(place) + r"\b", result.stderr)


def test_every_planted_bug_is_tested() -> None:
    listed = re.findall(r"BUG\((\w+)\)", Path(HERE / "planted/main.cpp").read_text())
    assert sorted(set(listed) - {"NAME"}) == sorted(bug[0] for bug in BUGS)


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_the_clean_twins_pass_with_eight_seeds(sanitizer: str, planted: Run) -> None:
    result = planted(sanitizer, "clean")
    # AddressSanitizer warns of every use of swapcontext; it is told of each switch.
    report = [
        line for line in result.stderr.splitlines() if "doesn't fully support makecontext/swapcontext" not in line
    ]
    assert (result.returncode, report) == (0, [])
