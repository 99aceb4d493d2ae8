"""Another revision of the library, measured by the benchmarks of this one."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import ROOT, load


def results(base: str, arguments: Sequence[str], cuda: bool) -> dict[str, Any]:
    """Load the results in a file that ``--json`` wrote; or build and measure a revision of git now."""
    if Path(base).is_file():
        return load(Path(base))
    with tempfile.TemporaryDirectory() as folder:
        return _measure(base, Path(folder), arguments, cuda)


def _measure(revision: str, folder: Path, arguments: Sequence[str], cuda: bool) -> dict[str, Any]:
    def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | variables
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    archive, output = folder / "base.tar", folder / "base.json"
    if run("git", "-C", ROOT, "archive", "-o", archive, revision, ":!benchmarks").returncode != 0:
        raise ValueError(f"--base {revision}: neither a file nor a revision of git")
    shutil.unpack_archive(archive, folder, filter="data")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    print(f"building {revision}", file=sys.stderr, flush=True)
    built = run(sys.executable, "setup.py", "build_ext", "--inplace", SNNFAST_REQUIRE_EXT="1", SNNFAST_CUDA=f"{cuda:d}")
    if built.returncode != 0:
        raise ValueError(f"--base {revision}: its build failed:\n{built.stderr[-2000:]}")
    data = os.environ.get("SNNFAST_DATA")
    seen = {"SNNFAST_DATA": str(Path(data).resolve())} if data else {}  # from another folder
    options = ["--peer", "snnfast", "--attempts", "1", "--json", output]
    # The folder comes first in the search path of -m, before an installed package.
    done = run(sys.executable, "-m", "benchmarks", "run", *arguments, *options, **seen)
    # The file tells of a failure; the exit code is also that of a missed bar.
    content = load(output) if output.is_file() else None
    if content is None or not content["complete"]:
        raise ValueError(f"--base {revision}: its measurement failed:\n{done.stderr[-2000:]}")
    content["header"]["commit"] = revision
    return content
