"""The wheel in clean environments, without a compiler: the oldest and the newest torch, and another Python.

These torches are PyPI's, which on Linux are CUDA builds. The step ``cpu`` tries a CPU build of torch as well, where
``--cpu-torch`` names one that pip finds: ``--cpu-torch torch==2.13.0+cpu``. The step ``sdist`` packs the sources,
unpacks them elsewhere and builds a wheel without CUDA kernels from them, which says why it has none. Downloads
gigabytes. The folder that holds everything is deleted afterwards, unless ``--folder`` names one, which later runs with
other ``--steps`` go on with.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.environments import PYPI, ROOT, environment, newest_torch, oldest_torch, other_python, run
from tools.wheel import wheel

PROBE = ROOT / "tools/wheel_probe.py"
STEPS = ("build", "oldest", "newest", "python", "cpu", "sdist")
MOST_SECONDS = 5.0  # that pip takes to install the wheel, torch being there


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "wheel-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="default: all, and cpu only with --cpu-torch")
    parser.add_argument("--wheel", type=Path, help="with CUDA kernels; default: the step build builds it")
    parser.add_argument("--cpu-torch", metavar="REQUIREMENT", help="a CPU build of torch, for the step cpu")
    parser.add_argument("--folder", type=Path, help="where to work, and what to keep")
    args = parser.parse_args(argv)
    steps = args.steps or [step for step in STEPS if step != "cpu" or args.cpu_torch]
    if "cpu" in steps and not args.cpu_torch:
        parser.error("the step cpu needs --cpu-torch")
    if args.wheel is not None and "build" not in steps:
        parser.error("--wheel is of the step build")
    needing = [step for step in steps if step not in ("build", "sdist")]
    built = args.folder is not None and any(args.folder.glob("wheel/*.whl"))
    if needing and "build" not in steps and not built:
        parser.error(f"the step {needing[0]} needs the step build, or the --folder of an earlier one")
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="snnfast-wheel-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in steps:
            print(f"=== {step}", flush=True)
            take(step, folder, args.wheel, args.cpu_torch)
    except (subprocess.CalledProcessError, CheckError) as error:
        print(f"wheel-check FAILS: {error}", file=sys.stderr)
        return 1
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print("wheel-check holds")
    return 0


class CheckError(Exception):
    """Something does not hold."""


def take(step: str, folder: Path, built: Path | None, cpu_torch: str | None) -> None:
    wheels, kernels = folder / "wheel", ("--kernels", "CPU", "CUDA")
    if step == "build":
        shutil.rmtree(wheels, ignore_errors=True)
        if built is None:
            wheel(wheels, SNNFAST_CUDA="1")
        else:
            wheels.mkdir()
            shutil.copy(built, wheels)
    elif step == "oldest":
        probe(clean(folder / "oldest-torch", oldest_torch()), wheels, "--torch-cuda", *kernels)
    elif step == "newest":
        probe(newest(folder), wheels, "--torch-cuda", *kernels)
    elif step == "python":
        other = other_python()
        if other is None:
            print(f"not checked: no other Python from 3.11 on was found beside {sys.version.split()[0]}")
        else:
            probe(clean(folder / "other-python", newest_torch(), other), wheels, "--torch-cuda", *kernels)
    elif step == "cpu":
        assert cpu_torch is not None
        probe(environment(folder / "cpu-torch", [cpu_torch, "numpy"]), wheels, *kernels)
    elif step == "sdist":
        plain = folder / "plain-wheel"
        shutil.rmtree(plain, ignore_errors=True)
        wheel(plain, unpacked(folder), SNNFAST_CUDA="0")
        probe(newest(folder), plain, "--torch-cuda", "--kernels", "CPU")


def clean(folder: Path, torch: str, python: str = sys.executable) -> Path:
    return environment(folder, [torch, "numpy"], "--isolated", python=python, **PYPI)


def newest(folder: Path) -> Path:
    return clean(folder / "newest-torch", newest_torch())


def unpacked(folder: Path) -> Path:
    """The sources as a user unpacks them, in a folder that holds nothing else."""
    packer, packed, elsewhere = environment(folder / "packer", ["build"]), folder / "sdist", folder / "elsewhere"
    for stale in (packed, elsewhere):
        shutil.rmtree(stale, ignore_errors=True)
    run([packer, "-m", "build", "--sdist", "-o", packed, ROOT], stdout=subprocess.DEVNULL)
    (archive,) = packed.glob("*.tar.gz")
    print(f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB")
    with tarfile.open(archive) as sources:
        sources.extractall(elsewhere, filter="data")
    (tree,) = elsewhere.iterdir()
    return tree


def probe(python: Path, wheels: Path, *arguments: str) -> None:
    """Install the wheel beside torch, and look at it where no compiler is to be found."""
    (file,) = wheels.glob("*.whl")
    bare = {"PATH": str(python.parent)}
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "uninstall", "-qq", "-y", "snnfast"], bare)
    start = time.monotonic()
    run([*pip, "install", "-q", file], bare)
    seconds = time.monotonic() - start
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB, installed in {seconds:.1f} s (at most {MOST_SECONDS:.0f})")
    if seconds > MOST_SECONDS:
        raise CheckError(f"the installation took {seconds:.1f} s")
    run([python, "-I", PROBE, *arguments], bare, cwd=wheels)


if __name__ == "__main__":
    sys.exit(main())
