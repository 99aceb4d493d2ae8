"""One wheel, built with nvcc against the oldest torch, tried in clean environments with the oldest and the newest one.

These are PyPI's, which on Linux are CUDA builds. Then a wheel without CUDA kernels, which says why it has none. The
step ``cpu`` tries the first wheel with a CPU build of torch as well, where ``--cpu-torch`` names one that pip finds:
``--cpu-torch torch==2.13.0+cpu``. Downloads gigabytes; the folder that holds everything is deleted afterwards, unless
``--folder`` names one, which later runs with other ``--steps`` go on with.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.environments import ROOT, build_requirements, environment, newest_torch, oldest_torch, run

PROBE = ROOT / "tools/wheel_probe.py"
# pip without the settings of this machine, which may prefer a CPU build of torch.
PYPI = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
STEPS = ("build", "oldest", "newest", "plain", "cpu")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "wheel-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="default: all, and cpu only with --cpu-torch")
    parser.add_argument("--cpu-torch", metavar="REQUIREMENT", help="a CPU build of torch, for the step cpu")
    parser.add_argument("--folder", type=Path, help="where to work, and what to keep")
    args = parser.parse_args(argv)
    steps = args.steps or [step for step in STEPS if step != "cpu" or args.cpu_torch]
    if "cpu" in steps and not args.cpu_torch:
        parser.error("the step cpu needs --cpu-torch")
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="snnfast-wheel-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in steps:
            print(f"=== {step}", flush=True)
            take(step, folder, args.cpu_torch)
    except subprocess.CalledProcessError as error:
        print(f"wheel-check FAILS: {' '.join(map(str, error.cmd))} returned {error.returncode}", file=sys.stderr)
        return 1
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print("wheel-check holds")
    return 0


def take(step: str, folder: Path, cpu_torch: str | None) -> None:
    cuda_wheel, plain_wheel, kernels = folder / "cuda-wheel", folder / "plain-wheel", ("--kernels", "CPU", "CUDA")
    if step == "build":
        wheel(oldest(folder), cuda_wheel, "1")
    elif step == "oldest":
        probe(oldest(folder), cuda_wheel, "--torch-cuda", *kernels)
    elif step == "newest":
        probe(newest(folder), cuda_wheel, "--torch-cuda", *kernels)
    elif step == "plain":
        wheel(oldest(folder), plain_wheel, "0")
        probe(newest(folder), plain_wheel, "--torch-cuda", "--kernels", "CPU")
    elif step == "cpu":
        assert cpu_torch is not None
        probe(environment(folder / "cpu-torch", [cpu_torch, "numpy"]), cuda_wheel, *kernels)


def oldest(folder: Path) -> Path:
    """The interpreter that builds: it has what a build takes, which :func:`newest` has not."""
    return environment(folder / "oldest-torch", [oldest_torch(), "numpy", *build_requirements()], "--isolated", **PYPI)


def newest(folder: Path) -> Path:
    return environment(folder / "newest-torch", [newest_torch(), "numpy"], "--isolated", **PYPI)


def wheel(python: Path, folder: Path, cuda: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    build: list[str | Path] = [python, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    run([*build, "-w", folder, ROOT], {"SNNFAST_REQUIRE_EXT": "1", "SNNFAST_CUDA": cuda})
    for file in folder.iterdir():
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def probe(python: Path, wheels: Path, *arguments: str) -> None:
    (file,) = wheels.glob("*.whl")
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*install, "--no-deps", "--force-reinstall", file])
    run([python, "-I", PROBE, *arguments], cwd=wheels)


if __name__ == "__main__":
    sys.exit(main())
