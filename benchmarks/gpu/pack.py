"""Make a folder to carry to a machine with a card and no network: a wheel for that card, and packages it may lack.

There, with its files beside a checkout of this revision and nothing compiled or fetched:

    PYTHONPATH=FOLDER/site benchmarks/gpu.sh --wheel FOLDER/*.whl --output OUT
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Of the peers and the tests, without what they need in turn: PyTorch and its company are there.
PACKAGES = ("snntorch==1.0.0", "spikingjelly>=2.0.0", "loguru", "expecttest", "nir>=1.0.6", "nirtorch>=2.0")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
MOST_BYTES = 60 << 20


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="must not be there, or be empty")
    parser.add_argument(
        "--arch", default="9.0", help="compute capability of the card (default: %(default)s: H100, H200)"
    )
    parser.add_argument("--python", default="3.12", help="version of Python there (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    made = wheel(folder, SNNFAST_CUDA="1", TORCH_CUDA_ARCH_LIST=args.arch)
    packages(folder / "site", args.python)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{made.name} and {', '.join(PACKAGES)}\n{size / 2**20:.1f} MiB; at most {MOST_BYTES / 2**20:.0f}")
    return 0 if size <= MOST_BYTES else 1


def wheel(folder: Path, **variables: str) -> Path:
    subprocess.run(["make", "wheel", f"ARGS=--folder '{folder}'"], check=True, cwd=ROOT, env=os.environ | variables)
    (found,) = folder.glob("*.whl")
    return found


def packages(folder: Path, python: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "install", "-q", "--isolated", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--python-version", python, *platforms]
    subprocess.run([*command, "--target", str(folder), *PACKAGES], check=True)


if __name__ == "__main__":
    sys.exit(main())
