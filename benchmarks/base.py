"""Another revision of the library, measured by the benchmarks of this one."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report

ROOT = Path(__file__).parent.parent


def results(base: str, arguments: Sequence[str], cuda: bool) -> dict[str, Any]:
    """Load the results in a file that ``--json`` wrote; or build and measure a revision of git now."""
    if Path(base).is_file():
        return report.load(Path(base))
    with tempfile.TemporaryDirectory() as folder:
        return _measure(base, Path(folder), arguments, cuda)


def _measure(revision: str, folder: Path, arguments: Sequence[str], cuda: bool) -> dict[str, Any]:
    found = subprocess.run(["git", "-C", ROOT, "archive", revision], capture_output=True, check=False)
    if found.returncode != 0:
        raise ValueError(f"--base {revision}: neither a file nor a revision of git")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    shutil.rmtree(folder / "benchmarks", ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    print(f"building {revision}", file=sys.stderr, flush=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "SNNFAST_REQUIRE_EXT": "1", "SNNFAST_CUDA": "1" if cuda else "0"}
    build = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if build.returncode != 0:
        raise ValueError(f"--base {revision}: its build failed:\n{build.stderr[-2000:]}")
    output = folder / "base.json"
    # The folder comes first in the search path of -m, before an installed package.
    command = [sys.executable, "-m", "benchmarks", "run", *arguments, "--peer", "snnfast"]
    command += ["--attempts", "1", "--json", str(output)]
    environment = dict(os.environ)
    if data := environment.get("SNNFAST_DATA"):
        environment["SNNFAST_DATA"] = str(Path(data).resolve())  # seen from another folder
    # The file tells of a failure; the exit code is also that of a missed bar.
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    content = report.load(output) if output.is_file() else None
    if content is None or not content["complete"]:
        raise ValueError(f"--base {revision}: its measurement failed")
    content["header"]["commit"] = revision
    return content
