"""What an installation does where the extension can't be built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    names = ("SNNFAST_REQUIRE_EXT", "SNNFAST_CUDA", "CXX")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=tree, env={**clean, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources in a folder with a space in its name."""
    copy = tmp_path / "a copy"
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copytree(ROOT / "snnfast", copy / "snnfast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_without_a_compiler_the_installation_succeeds_and_says_so(tree: Path) -> None:
    done = build(tree, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "WITHOUT the compiled kernels: no C++ compiler: no-such-compiler was not found" in done.stderr
    assert not list(tree.rglob("*.so"))


@pytest.mark.parametrize(
    ("variable", "reason"), [("0", "SNNFAST_CUDA=0 at install time"), ("", "no nvcc was found at install time")]
)
def test_a_build_without_cuda_records_why(
    variable: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import setup

    monkeypatch.setenv("SNNFAST_CUDA", variable)
    if not variable:
        monkeypatch.setattr(setup, "cuda_home", lambda: None)
    setup.write_ninja(tmp_path / "build.ninja", tmp_path / "_C.so", "include")
    written = (tmp_path / "build.ninja").read_text()
    assert f'-DSNN_CUDA_MISSING="{reason}"' in written
    assert "nvcc" not in written.replace(reason, "")


def test_a_failed_build_leaves_no_stale_extension(tree: Path) -> None:
    suffix = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tree / "snnfast" / f"_C{suffix}").write_bytes(b"of an earlier build")
    assert build(tree, CXX="no-such-compiler").returncode == 0
    assert not list(tree.rglob("*.so"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler was not found"),
        ({"SNNFAST_CUDA": "yes"}, "SNNFAST_CUDA: expected 0 or 1"),
    ],
)
def test_a_required_extension_that_cannot_be_built_is_an_error(
    tree: Path, environment: dict[str, str], reason: str
) -> None:
    done = build(tree, SNNFAST_REQUIRE_EXT="1", **environment)
    assert done.returncode != 0
    assert reason in done.stderr
