"""One wheel, built with nvcc against a CPU build of torch, tried in clean environments with CPU and CUDA builds of it.

Also a wheel without CUDA kernels, which says why it has none. Downloads gigabytes; the folder that holds everything is
deleted afterwards, unless ``--folder`` names one, which later runs with other ``--steps`` go on with.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROBE = ROOT / "tools/wheel_probe.py"
OF_CPU, OF_CUDA = "torch==2.13.*", "torch==2.11.0"
# pip without the settings of this machine: PyPI's own torch for Linux is the CUDA build.
PYPI = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument("--folder", type=Path, help="where to work, and what to keep")
    args = parser.parse_args(argv)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="snnfast-wheel-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in args.steps:
            print(f"=== {step}", flush=True)
            STEPS[step](folder)
    except subprocess.CalledProcessError as error:
        print(f"wheel-check FAILS: {' '.join(map(str, error.cmd))} returned {error.returncode}", file=sys.stderr)
        return 1
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print("wheel-check holds")
    return 0


def run(command: Sequence[str | Path], variables: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
    names = ("PYTHONPATH", "SNNFAST_BACKEND", "SNNFAST_CUDA")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([str(word) for word in command], check=True, cwd=cwd, env=clean | dict(variables or {}))


def wheel(folder: Path, cuda: str) -> None:
    """Build with the torch of the interpreter that runs this."""
    shutil.rmtree(folder, ignore_errors=True)
    build: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    run([*build, "-w", folder, ROOT], {"SNNFAST_REQUIRE_EXT": "1", "SNNFAST_CUDA": cuda})
    for file in folder.iterdir():
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def environment(folder: Path, torch: str, *options: str, **variables: str) -> Path:
    """The interpreter of an environment with this torch, made if it is not there."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *options, torch, "numpy"], variables)
    return python


def probe(python: Path, wheels: Path, *arguments: str) -> None:
    (file,) = wheels.glob("*.whl")
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*install, "--no-deps", "--force-reinstall", file])
    run([python, "-I", PROBE, *arguments], cwd=wheels)


def build_step(folder: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        raise SystemExit(f"wheel-check needs a CPU build of torch to build against; this is {torch.__version__}")
    wheel(folder / "cuda-wheel", "1")


def cpu_step(folder: Path) -> None:
    probe(environment(folder / "cpu-torch", OF_CPU), folder / "cuda-wheel", "--kernels", "CPU", "CUDA")


def cuda_step(folder: Path) -> None:
    python = environment(folder / "cuda-torch", OF_CUDA, "--isolated", **PYPI)
    probe(python, folder / "cuda-wheel", "--torch-cuda", "--kernels", "CPU", "CUDA")


def plain_step(folder: Path) -> None:
    wheel(folder / "plain-wheel", "0")
    probe(environment(folder / "cpu-torch", OF_CPU), folder / "plain-wheel", "--kernels", "CPU")


STEPS = {"build": build_step, "cpu": cpu_step, "cuda": cuda_step, "plain": plain_step}

if __name__ == "__main__":
    sys.exit(main())
