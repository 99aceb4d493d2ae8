"""The checklist of a release: version, changelog, wheel, sources, documents, clean tree. Each line is checked.

The files come from `make wheel` and `python -m build --sdist`, or from the workflow "wheels", and lie in dist/.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import setup
from tools.environments import ROOT
from tools.wheel import MOST_BYTES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "release-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the files are; default: %(default)s")
    args = parser.parse_args(argv)
    return check(ROOT, args.dist)


def check(root: Path, dist: Path) -> int:
    """Print the list for the sources in ``root``; 0 if all of it holds."""
    version = version_of(root)
    checks: dict[str, Callable[[], Iterator[str]]] = {
        f"{version} is a version that is not released yet": lambda: new_version(root, version),
        f"CHANGELOG.md has a section {version} with a date, and nothing is left under Unreleased": (
            lambda: changelog(root, version)
        ),
        "one wheel for every Python on many Linuxes, small, with kernels for CPU and CUDA and these sources": (
            lambda: wheel(root, dist, version)
        ),
        "one archive of sources, which has all that git has": lambda: sources(root, dist, version),
        "links between the documents lead somewhere": lambda: links(root),
        "main is checked out, and nothing is uncommitted": lambda: clean(root),
    }
    failed = 0
    for name, problems in checks.items():
        found = list(problems())
        failed += bool(found)
        print(f"[{' ' if found else 'x'}] {name}")
        for problem in found:
            print(f"      {problem}")
    print(f"{len(checks) - failed} of {len(checks)} hold")
    return 1 if failed else 0


def version_of(root: Path) -> str:
    (found,) = re.findall(r'^__version__ = "(.*)"$', (root / "snnfast/_version.py").read_text(), re.MULTILINE)
    return str(found)


def git(root: Path, *words: str) -> list[str]:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()


def new_version(root: Path, version: str) -> Iterator[str]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"{version} in snnfast/_version.py is not three numbers"
        return
    for tag in git(root, "tag", "--list", "v*"):
        if numbers(tag[1:]) >= numbers(version):
            yield f"there is a tag {tag}"


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def changelog(root: Path, version: str) -> Iterator[str]:
    _, *parts = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    sections = dict(part.partition("\n")[::2] for part in parts)
    if re.search(r"^- ", sections.get("[Unreleased]", ""), re.MULTILINE):
        yield "there are entries under Unreleased"
    headings = [heading for heading in sections if heading.startswith(f"[{version}]")]
    if not headings:
        yield f"there is no section [{version}]"
        return
    date = headings[0].removeprefix(f"[{version}] - ")
    try:
        if datetime.date.fromisoformat(date) > datetime.date.today():
            yield f"{date} is in the future"
    except ValueError:
        yield f"its heading is {headings[0]!r}, not [{version}] - YYYY-MM-DD"
    if not re.search(r"^- ", sections[headings[0]], re.MULTILINE):
        yield "it has no entries"


def wheel(root: Path, dist: Path, version: str) -> Iterator[str]:
    found = sorted(dist.glob(f"snnfast-{version}-*.whl"))
    wheels = [file for file in found if "none-any" not in file.name]  # that one is for systems without kernels
    if len(wheels) != 1:
        yield f"{dist} has {len(wheels)} of them: make wheel"
        return
    if not re.fullmatch(rf"snnfast-{re.escape(version)}-py3-none-(manylinux_\d+_\d+_\w+\.?)+\.whl", wheels[0].name):
        yield f"{wheels[0].name} is not for every Python, or not for many Linuxes"
    if wheels[0].stat().st_size > MOST_BYTES:
        yield f"it has {wheels[0].stat().st_size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}"
    with zipfile.ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
        if setup.LIBRARY not in names:
            yield f"it has no {setup.LIBRARY}"
        elif b".nv_fatbin" not in archive.read(setup.LIBRARY):
            yield f"its {setup.LIBRARY} has no kernels for CUDA"
        for path in sorted(root.glob("snnfast/**/*.py")):
            name = path.relative_to(root).as_posix()
            if name not in names:
                yield f"it has no {name}"
            elif archive.read(name) != path.read_bytes():
                yield f"its {name} is another one than that of the sources"


def sources(root: Path, dist: Path, version: str) -> Iterator[str]:
    path = dist / f"snnfast-{version}.tar.gz"
    if not path.exists():
        yield f"there is no {path}: python -m build --sdist"
        return
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for name in git(root, "ls-files"):
        # What belongs to the repository alone begins with a dot.
        if not name.startswith(".") and name not in packed:
            yield f"it has no {name}"


def links(root: Path) -> Iterator[str]:
    for name in git(root, "ls-files", "*.md"):
        page = root / name
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                yield f"{name} links to {target}, which is not there"


def clean(root: Path) -> Iterator[str]:
    (branch,) = git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if branch != "main":
        yield f"{branch} is checked out"
    for line in git(root, "status", "--porcelain"):
        yield f"not committed: {line[3:]}"


if __name__ == "__main__":
    sys.exit(main())
