"""Where the compiled kernels are missing, the tests of them are skipped; or fail, where the kernels are required."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# Tests with the marker, with the fixture "device" and with the fixture "backend".
FILES = ("core/test_config.py", "unroll/test_autograd.py", "unroll/test_varying.py")
RUN = """
import pathlib, sys, pytest
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: path.stem != "_kernels" and exists(path)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize(("required", "outcome"), [("", "skipped"), ("1", "errors")])
def test_a_missing_extension_skips_or_fails(required: str, outcome: str) -> None:
    arguments = ["-q", "--tb=no", "-rN", "-p", "no:cacheprovider", "-m", "needs_extension and not gpu and not emulated"]
    command = [sys.executable, "-c", RUN, *arguments, *(str(TESTS / name) for name in FILES)]
    environment = {**os.environ, "SNNFAST_REQUIRE_EXT": required}
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    summary = done.stdout.splitlines()[-1]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", summary)}
    assert counts.pop("deselected")
    assert set(counts) == {outcome}, summary
    assert counts[outcome] > len(FILES)


def test_only_the_marker_asks_whether_there_is_an_extension() -> None:
    # A test that asks itself may skip where the extension is required.
    asks = re.compile(r"extension is (not )?None|not _ops\.extension\b(?!\.)|extension is not built")
    others = [path for path in TESTS.rglob("test_*.py") if path.name != Path(__file__).name]
    assert [path.name for path in others if asks.search(path.read_text())] == []
