"""Virtual environments with one version of torch each: the oldest and the newest that the package is tested with."""

import os
import re
import subprocess
import tomllib
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What would make a test or a build another one than that of a user.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "SNNFAST_BACKEND", "SNNFAST_EVENTS", "SNNFAST_ISA")


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


def environment(folder: Path, requirements: Sequence[str], *options: str, **variables: str) -> Path:
    """The interpreter of an environment with these packages; made where it is not there, or was made for others.

    ``options`` and ``variables`` go to pip.
    """
    python, made_for = folder / "bin/python", folder / "made-for.txt"
    wanted = "\n".join([*options, *requirements])
    if not made_for.exists() or made_for.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True, symlinks=True)
        run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *options, *requirements], variables)
        made_for.write_text(wanted)
    return python
