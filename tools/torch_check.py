"""Build the extension and run the tests with the oldest and the newest torch, each in an environment of its own.

The oldest is the lower bound in pyproject.toml, the newest that in constraints.txt. The sources are copied, so that the
extension in the source tree stays as it is. What is no option of this command goes to pytest: ``-m "not emulated"``, or
``tests/test_forward.py``. The folder is kept, and a second run does only what has changed. SNNFAST_CUDA=0 saves time.
"""

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, CalledProcessError
from xml.etree import ElementTree

from tools.environments import ROOT, build_requirements, environment, extra_requirements, newest_torch, oldest_torch
from tools.environments import run as run_command

TORCH = {"oldest": oldest_torch, "newest": newest_torch}
# A build without the kernels is a failure here, and so is a test that is skipped for want of them.
REQUIRED = {"SNNFAST_REQUIRE_EXT": "1"}


@dataclass
class Outcome:
    """How far one torch came, and what its tests said."""

    torch: str
    built: bool = False
    loaded: bool = False
    tests: dict[str, int] = field(default_factory=dict)  # how many "passed", "failed" and were "skipped"
    holds: bool = False
    seconds: float = 0.0

    def line(self) -> str:
        tests = ", ".join(f"{count} {what}" for what, count in self.tests.items()) or "not run"
        words = [f"built: {_yes(self.built)}", f"loaded: {_yes(self.loaded)}", f"tests: {tests}"]
        return "  ".join([self.torch, *words, f"{self.seconds:.0f} s", "holds" if self.holds else "FAILS"])


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "torch-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--torch", choices=[*TORCH, "both"], default="both", help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build/torch-check", help="where to work; default: %(default)s"
    )
    args, for_pytest = parser.parse_known_args(argv)
    outcomes = []
    for name in TORCH if args.torch == "both" else [args.torch]:
        print(f"=== {name}: {TORCH[name]()}", flush=True)
        outcomes.append(check(TORCH[name](), args.folder.resolve() / name, for_pytest))
    for outcome in outcomes:
        print(outcome.line())
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def check(torch: str, folder: Path, for_pytest: Sequence[str]) -> Outcome:
    """Everything for one torch; a step that fails ends it."""
    start, outcome = time.monotonic(), Outcome(torch)
    # Within the environment, so that what was built goes where that is made anew, for other packages.
    tree, results = folder / "tree", folder / "tests.xml"
    results.unlink(missing_ok=True)
    try:
        packages = [torch, *build_requirements(), *extra_requirements("test")]
        python = environment(folder, packages)
        copy_sources(tree)
        run_command([python, "setup.py", "-q", "build_ext", "--inplace"], REQUIRED, tree)
        outcome.built = True
        version = run_command([python, "-c", LOAD], REQUIRED, tree, PIPE).stdout.strip()
        outcome.loaded, outcome.torch = True, f"torch {version}"
        run_command([python, "-m", "pytest", f"--junitxml={results}", *for_pytest], REQUIRED, tree)
        outcome.holds = True
    except CalledProcessError as error:
        print(f"{shlex.join(map(str, error.cmd))} returned {error.returncode}", file=sys.stderr, flush=True)
    if results.exists():
        outcome.tests = counts(results)
    outcome.seconds = time.monotonic() - start
    return outcome


LOAD = """
import torch
from snnfast import _ops
assert _ops.extension is not None, _ops.missing
print(torch.__version__)
"""


def copy_sources(tree: Path) -> None:
    """The files that git does not ignore, as they are here. What was built in an earlier copy of them stays."""
    listed = run_command(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=PIPE)
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    before = tree / ".copied"
    for name in set(before.read_text().splitlines() if before.exists() else ()) - names:
        (tree / name).unlink(missing_ok=True)
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)  # with its time, by which ninja knows what has changed
    before.write_text("\n".join(sorted(names)))


def counts(results: Path) -> dict[str, int]:
    """Tests by outcome, from the file that pytest wrote."""
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    ran, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {"passed": ran - failed - skipped, "failed": failed, "skipped": skipped}


if __name__ == "__main__":
    sys.exit(main())
