"""The checklist of a release: it holds for a tree that is ready, and each line fails for what it is there for."""

import datetime
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import setup
from tools import release_check

WHEEL = "dist/snnfast-1.2.0-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-03-01\n\n### Added\n\n- A thing.\n\n## [1.1.0] - 2026-01-01\n"
)


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def pack(root: Path, name: str = WHEEL, library: bytes = b"ELF .nv_fatbin") -> None:
    """The wheel of the sources as they are."""
    for old in (root / "dist").glob("*.whl"):
        old.unlink()
    with zipfile.ZipFile(root / name, "w") as archive:
        for path in (root / "snnfast").glob("*.py"):
            archive.write(path, path.relative_to(root).as_posix())
        if library:
            archive.writestr(setup.LIBRARY, library)


def pack_sources(root: Path) -> None:
    with tarfile.open(root / "dist/snnfast-1.2.0.tar.gz", "w:gz") as archive:
        for name in ("README.md", "CHANGELOG.md", "docs/page.md", "snnfast/_version.py"):
            archive.add(root / name, f"snnfast-1.2.0/{name}")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A repository that can be released as 1.2.0."""
    write(tmp_path, "snnfast/_version.py", '"""The version."""\n\n__version__ = "1.2.0"\n')
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "README.md", "See [the page](docs/page.md#there) and [a site](https://example.org).\n")
    write(tmp_path, "docs/page.md", "[back](../README.md)\n")
    write(tmp_path, ".gitignore", "dist/\n")
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    git(tmp_path, "tag", "v1.1.0")
    (tmp_path / "dist").mkdir()
    pack(tmp_path)
    pack_sources(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "commit")


def change(name: str, before: str, after: str) -> Callable[[Path], None]:
    def changed(root: Path) -> None:
        text = (root / name).read_text()
        assert before in text
        write(root, name, text.replace(before, after))
        commit(root)

    return changed


def test_a_tree_that_is_ready_holds_line_by_line(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check.check(ready, ready / "dist") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in printed[:-1]] == ["[x] "] * 6
    assert printed[-1] == "6 of 6 hold"


TOMORROW = (datetime.date.today() + datetime.timedelta(days=1)).isoformat()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        pytest.param(lambda root: git(root, "tag", "v1.2.0"), "there is a tag v1.2.0", id="released"),
        pytest.param(lambda root: git(root, "tag", "v1.10.0"), "there is a tag v1.10.0", id="newer"),
        pytest.param(
            change("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- A thing.\n"),
            "there are entries under Unreleased",
            id="unreleased",
        ),
        pytest.param(change("CHANGELOG.md", "[1.2.0]", "[1.3.0]"), "there is no section [1.2.0]", id="section"),
        pytest.param(
            change("CHANGELOG.md", "2026-03-01", "soon"), "its heading is '[1.2.0] - soon', not", id="no date"
        ),
        pytest.param(change("CHANGELOG.md", "2026-03-01", TOMORROW), "is in the future", id="future"),
        pytest.param(change("CHANGELOG.md", "- A thing.", "A thing."), "it has no entries", id="empty"),
        pytest.param(lambda root: (root / WHEEL).unlink(), "has 0 of them: make wheel", id="no wheel"),
        pytest.param(
            lambda root: pack(root, WHEEL.replace("py3-none", "cp311-cp311")), "is not for every Python", id="python"
        ),
        pytest.param(
            lambda root: pack(root, "dist/snnfast-1.2.0-py3-none-linux_x86_64.whl"),
            "or not for many Linuxes",
            id="linux",
        ),
        pytest.param(lambda root: pack(root, library=b""), f"it has no {setup.LIBRARY}", id="library"),
        pytest.param(lambda root: pack(root, library=b"ELF"), "has no kernels for CUDA", id="cuda"),
        pytest.param(
            lambda root: pack(root, library=b".nv_fatbin" * 1_300_000), "it has 13.0 MB, more than 12", id="large"
        ),
        pytest.param(
            change("snnfast/_version.py", "The version", "Another"), "_version.py is another one than", id="stale"
        ),
        pytest.param(
            lambda root: (root / "dist/snnfast-1.2.0.tar.gz").unlink(), "python -m build --sdist", id="no sources"
        ),
        pytest.param(
            lambda root: [write(root, "docs/new.md", ""), commit(root)], "it has no docs/new.md", id="forgotten"
        ),
        pytest.param(
            change("docs/page.md", "../README", "README"), "docs/page.md links to README.md, which is not", id="link"
        ),
        pytest.param(lambda root: git(root, "checkout", "-q", "-b", "other"), "other is checked out", id="branch"),
        pytest.param(lambda root: write(root, "new.txt", ""), "not committed: new.txt", id="uncommitted"),
    ],
)
def test_each_line_fails_for_what_it_is_there_for(
    broken: Callable[[Path], object], problem: str, ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(ready)
    assert release_check.check(ready, ready / "dist") == 1
    printed = capsys.readouterr().out
    assert printed.endswith("\n5 of 6 hold\n"), printed
    assert problem in printed


@pytest.mark.parametrize("version", ["1.2.0.dev1", "1.2"])
def test_only_three_numbers_are_a_version(version: str, tmp_path: Path) -> None:
    (problem,) = release_check.new_version(tmp_path, version)
    assert problem == f"{version} in snnfast/_version.py is not three numbers"
