"""What ``make native`` depends on: whether it has passed since anything of that changed.

``python tools/native.py`` prints what changed, and exits with 1 if anything did. ``--passed`` writes down what there is
now. Needs nothing but Python, so that it can be asked before anything is installed.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PASSED = Path("tools/native.sha256")
FOLDERS = (
    "csrc", "tools/gates", "tests/core", "tests/cuda", "tests/emulator", "tests/images", "tests/new_neuron",
    "tests/program", "tests/spikes", "tests/unroll",
    # What writes the source of a kernel, or calls one.
    "snnfast/_core", "snnfast/_images", "snnfast/_program", "snnfast/_unroll", "snnfast/surrogate",
)  # fmt: skip
FILES = ("setup.py", "constraints.txt", "native.mk", "tools/native.py")
COMPILERS = {"g++": ["g++", "--version"], "nvcc": ["nvcc", "--version"]}
EMULATED = re.compile(r"def test_\w+\((?:[^()]|\([^()]*\))*\bdevice: |emulat")  # in a test that runs in the emulator


def _version_of(command: list[str]) -> str:
    try:
        told = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        return "none"
    return hashlib.sha256(told).hexdigest()


def now(root: Path = ROOT, version_of: Callable[[list[str]], str] = _version_of) -> dict[str, str]:
    """A hash of each input, by its name."""
    found = {folder: _hash(root, sources(root / folder)) for folder in FOLDERS}
    found["other tests"] = _hash(root, other_tests(root))
    found |= {file: _hash(root, [root / file]) for file in FILES}
    return found | {name: version_of(command) for name, command in COMPILERS.items()}


def changed(root: Path = ROOT, version_of: Callable[[list[str]], str] = _version_of) -> list[str]:
    """The names of inputs that are not those that passed."""
    try:
        lines = (root / PASSED).read_text().splitlines()
    except FileNotFoundError:
        return [f"{PASSED} is missing"]
    passed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = now(root, version_of)
    return sorted(name for name in {*found, *passed} if found.get(name) != passed.get(name))


def write(root: Path = ROOT, version_of: Callable[[list[str]], str] = _version_of) -> None:
    """Write down what there is now, which has passed."""
    (root / PASSED).write_text("".join(f"{digest}  {name}\n" for name, digest in now(root, version_of).items()))


def sources(folder: Path) -> list[Path]:
    """Its files, without what a build or a run leaves there."""
    left = {"__pycache__", "_build"}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if left.isdisjoint(path.relative_to(folder).parts)]


def other_tests(root: Path) -> list[Path]:
    """Modules that tests share; and tests of other folders that native.mk names, or that run in the emulator."""
    folders, named = [root / folder for folder in FOLDERS], (root / "native.mk").read_text()
    others = [p for p in sources(root / "tests") if p.suffix == ".py" and not any(p.is_relative_to(f) for f in folders)]
    return [
        path
        for path in others
        if path.parent == root / "tests"
        or path.relative_to(root / "tests").as_posix() in named
        or (path.parent.name != "project" and EMULATED.search(path.read_text()))
    ]


def _hash(root: Path, files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passed", action="store_true", help="write down what there is now: make native has passed")
    if parser.parse_args().passed:
        write()
        return 0
    names = changed()
    print("changed since `make native` passed:", ", ".join(names) or "nothing")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
