"""Virtual environments with one version of torch each: the oldest and the newest that the package is tested with."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What would make a test or a build another one than that of a user.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "SNNFAST_BACKEND", "SNNFAST_EVENTS", "SNNFAST_ISA")

# pip without the settings of this machine, which may prefer a CPU build of torch.
PYPI = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def oldest_torch() -> str:
    """The requirement of the oldest torch, from the lower bound in pyproject.toml: ``torch==2.11.*``."""
    return _series(project()["project"]["dependencies"], r"torch>=([\d.]+)")


def newest_torch() -> str:
    """The requirement of the newest torch, from the lower bound in constraints.txt."""
    return _series((ROOT / "constraints.txt").read_text().splitlines(), r"torch>=([\d.]+),<.+")


def _series(lines: Sequence[str], pattern: str) -> str:
    (version,) = [found[1] for line in lines if (found := re.fullmatch(pattern, line))]
    return f"torch=={version}.*"


def build_requirements() -> list[str]:
    """What a build takes beside torch."""
    return list(project()["build-system"]["requires"])


def extra_requirements(name: str) -> list[str]:
    """The optional dependencies of an extra, and of the extras that it names."""
    extras = project()["project"]["optional-dependencies"]
    found: list[str] = []
    for requirement in extras[name]:
        inner = re.fullmatch(r"snnfast\[(\w+)\]", requirement)
        found += extra_requirements(inner[1]) if inner else [requirement]
    return found


def run(
    command: Sequence[str | Path],
    variables: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    stdout: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command without what this shell may have set for others; raise CalledProcessError where it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in FOREIGN} | dict(variables or {})
    return subprocess.run([str(word) for word in command], check=True, cwd=cwd, env=clean, stdout=stdout, text=True)


def other_python() -> str | None:
    """The newest interpreter from 3.11 on that is of another version than this one and can make environments."""
    installed = Path.home() / ".pyenv/versions"  # which are not all on the path
    for minor in range(20, 10, -1):
        places = [shutil.which(f"python3.{minor}"), *installed.glob(f"3.{minor}.*/bin/python")]
        for place in places if minor != sys.version_info.minor else ():
            if place:
                code = "import ensurepip, sys, venv; print(sys.executable)"
                told = subprocess.run([place, "-c", code], capture_output=True, text=True, check=False)
                if told.returncode == 0:
                    return told.stdout.strip()
    return None


def environment(
    folder: Path, requirements: Sequence[str], *options: str, python: str = sys.executable, **variables: str
) -> Path:
    """The interpreter of an environment with these packages; made where it is not there, or was made for others.

    ``python`` makes it; ``options`` and ``variables`` go to pip.
    """
    made, made_for = folder / "bin/python", folder / "made-for.txt"
    wanted = "\n".join([python, *options, *requirements])
    if not made_for.exists() or made_for.read_text() != wanted:
        run([python, "-m", "venv", "--clear", folder])
        run([made, "-m", "pip", "install", "-q", "--disable-pip-version-check", *options, *requirements], variables)
        made_for.write_text(wanted)
    return made
