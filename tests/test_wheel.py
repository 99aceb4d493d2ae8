"""The library that fits every Python, and the tools that make and try the wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnfast import _library, _ops
from tools import environments, wheel, wheel_check

ROOT = Path(__file__).parent.parent


@pytest.mark.needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_library_needs_no_symbol_of_python() -> None:
    command = ["nm", "-D", "--undefined-only", _ops.extension.path]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "aoti_torch_empty_strided" in names
    assert not [name for name in names if name.startswith(("Py", "_Py"))]


def test_a_file_that_cannot_be_loaded_is_an_import_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_text("no library")
    torch_version = re.escape(torch.__version__)
    with pytest.raises(
        ImportError, match=rf"loaded with torch {torch_version}: .*_kernels\.so: .*torch 2\.11 or newer"
    ):
        _library.Library(tmp_path / "_kernels.so")


def test_a_library_without_the_functions_is_an_import_error_that_says_so() -> None:
    (other,) = Path(torch.__file__).parent.glob("lib/libc10.so")
    with pytest.raises(
        ImportError, match=r"libc10\.so was built from other sources than the Python files.*snnfast_facts"
    ):
        _library.Library(other)


@pytest.mark.needs_extension
def test_a_wrong_instruction_set_that_is_set_after_the_import_is_an_error_and_no_crash() -> None:
    code = (
        "import os, snnfast; os.environ['SNNFAST_ISA'] = 'mmx'\n"
        "try: snnfast.config()\nexcept RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "SNNFAST_ISA: 'mmx' is not available" in done.stdout, done.stderr


LISTING = """
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.2.5) free
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.14) memcpy
0000000000000000      DF *UND*\t0000000000000000  GLIBC_2.14  dlsym
0000000000000000      DF *UND*\t0000000000000000 (GLIBCXX_3.4.9) std::ostream& std::ostream::_M_insert<long>(long)
0000000000000000      DO *UND*\t0000000000000000 (GLIBCXX_3.4) std::cout
0000000000000000      DF *UND*\t0000000000000000  Base        aoti_torch_empty_strided
0000000000011070 g    DF .text\t0000000000000113  Base        snnfast_isa
"""


def test_the_newest_symbols_that_a_library_needs_are_those_of_the_highest_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = subprocess.CompletedProcess([], 0, stdout=LISTING)
    monkeypatch.setattr(wheel.subprocess, "run", lambda *args, **kwargs: listing)
    assert wheel.newest_symbols(Path("_kernels.so")) == {
        "GLIBC": ("2.14", ["memcpy", "dlsym"]),
        "GLIBCXX": ("3.4.9", ["std::ostream& std::ostream::_M_insert<long>(long)"]),
    }


@pytest.mark.parametrize(
    ("size", "code", "said"), [(9_000_000, 0, "9.0 MB; at most 12.0: holds"), (12_000_001, 1, "FAILS")]
)
def test_a_wheel_that_is_too_large_fails(
    size: int, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.whl").write_bytes(bytes(size))
    monkeypatch.setattr(wheel, "wheel", lambda folder, tree: folder / "a.whl")
    assert wheel.main(["--folder", str(tmp_path)]) == code
    assert said in capsys.readouterr().out


def test_another_python_is_of_another_version_from_3_11_on_and_can_make_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = sys.version_info.minor

    def interpreter(minor: int, code: int) -> None:
        path = tmp_path / f"python3.{minor}"
        path.write_text(f"#!/bin/sh\necho {path}\nexit {code}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environments.Path, "home", lambda: tmp_path)
    interpreter(this, 0)
    interpreter(10, 0)
    assert environments.other_python() is None
    interpreter(this + 2, 1)  # has no venv
    assert environments.other_python() is None
    interpreter(this + 1, 0)
    assert environments.other_python() == str(tmp_path / f"python3.{this + 1}")


def test_a_machine_with_one_python_is_told_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel/a.whl").touch()
    monkeypatch.setattr(wheel_check, "other_python", lambda: None)
    assert wheel_check.main(["--folder", str(tmp_path), "--steps", "python"]) == 0
    assert "not checked: no other Python from 3.11 on was found" in capsys.readouterr().out


def test_an_installation_that_takes_too_long_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel/a.whl").touch()
    monkeypatch.setattr(wheel_check, "clean", lambda *args: tmp_path / "bin/python")
    monkeypatch.setattr(wheel_check, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(wheel_check, "MOST_SECONDS", -1.0)
    assert wheel_check.main(["--folder", str(tmp_path), "--steps", "newest"]) == 1
    assert "wheel-check FAILS: the installation took 0.0 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "oldest", "sdist"], "the step oldest needs the step build, or the --folder of an earlier one"),
        (["--steps", "sdist", "--wheel", "a.whl"], "--wheel is of the step build"),
        (["--steps", "cpu"], "the step cpu needs --cpu-torch"),
    ],
    ids=["no wheel", "wheel without build", "no torch"],
)
def test_steps_that_cannot_be_taken_are_an_error_before_anything_is_downloaded(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheel_check, "take", None)
    with pytest.raises(SystemExit, match="2"):
        wheel_check.main(arguments)
    assert said in capsys.readouterr().err
