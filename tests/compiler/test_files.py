"""Lines of the user's program, wherever it lies: in ``explain``, in warnings, and where a loop is verified."""

import linecache
import ntpath
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import snntorch
import torch
from internals import rules

import snnfast
from snnfast.compiler.graph import files

pytestmark = pytest.mark.usefixtures("nothing_compiled")

PROGRAM = """\
import torch
import snnfast

fc, back, lif = torch.nn.Linear(3, 5), torch.nn.Linear(5, 5), snnfast.Leaky(beta=0.9)

def loop(x):
    mem, spk, rec = lif.reset_mem(), torch.zeros(x.shape[1], 5), []
    for x_t in x:
        spk, mem = lif(fc(x_t) + back(spk).softmax(-1), mem)
        rec.append(spk)
    return torch.stack(rec)
"""
STEP = PROGRAM.splitlines().index("        spk, mem = lif(fc(x_t) + back(spk).softmax(-1), mem)") + 1


def in_folder(tmp_path: Path, name: str) -> tuple[CodeType, str]:
    path = tmp_path / name / "program.py"
    path.parent.mkdir(parents=True)
    path.write_text(PROGRAM)
    return compile(PROGRAM, path, "exec"), str(path)


def through_a_link(tmp_path: Path) -> tuple[CodeType, str]:
    in_folder(tmp_path, "torch")
    (tmp_path / "link").symlink_to(tmp_path / "torch")
    path = tmp_path / "link" / "program.py"
    return compile(PROGRAM, path, "exec"), str(path)


def of_a_string(tmp_path: Path) -> tuple[CodeType, str]:
    return compile(PROGRAM, "<string>", "exec"), "<string>"


def in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CodeType, str]:
    """A string's code has no folder, also if a package's is where it runs."""
    monkeypatch.chdir(Path(snnfast.__file__).parent)
    return compile(PROGRAM, "<a string>", "exec"), "<a string>"


def of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CodeType, str]:
    """As IPython runs a cell: the file is not there, and its lines are."""
    name = str(tmp_path / "ipykernel_12" / "345.py")
    lines = PROGRAM.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, name, (len(PROGRAM), None, lines, name))
    return compile(PROGRAM, name, "exec"), name


PLACES = {
    **{name: lambda tmp, patch, name=name: in_folder(tmp, name) for name in (
        "snnfast", "torch", "snntorch/examples", "snntorch/_neurons", "with a space"
    )},
    "through a link": lambda tmp, patch: through_a_link(tmp),
    "a string": lambda tmp, patch: of_a_string(tmp),
    "a string, in a package": in_a_package,
    "a cell of a notebook": of_a_cell,
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_users_line_is_told_wherever_it_is(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, name = PLACES[place](tmp_path, monkeypatch)
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(code, program)
    loop, x = program["loop"], torch.rand(4, 2, 3)
    at, somewhere = re.escape(f"{name}:{STEP}"), re.escape(name) + r":\d+"
    with pytest.warns(UserWarning, match=rf"4 steps of leaky run one by one \({at}\)"):
        (graph,) = snnfast.explain(loop, x).graphs
    (layer,) = [line for line in graph.repeated if "leaky" in line]
    assert re.search(rf"4 steps of leaky \({at}\)", layer)
    monkeypatch.setitem(rules.RULES, "linear", lambda step: step.emit(torch.flip, rules.with_batch(step), [0]))
    monkeypatch.setenv("SNNFAST_VERIFY", "1")
    with pytest.raises(RuntimeError, match=rf"of the loop at {somewhere} is not what the loop"):
        snnfast.compile(loop)(x)


@pytest.mark.thorough  # a process of its own
def test_a_command_line_has_lines() -> None:
    program = f"{PROGRAM}\nprint(snnfast.explain(loop, torch.rand(4, 2, 3)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"4 steps of leaky (<string>:{STEP})" in ran.stdout


def test_files_of_libraries_are_not_the_users() -> None:
    for module in (torch.nn, snnfast, snntorch.surrogate, snnfast.losses):
        assert not files.is_users(str(module.__file__))


@pytest.mark.parametrize("windows", [False, True])
def test_the_folder_of_a_library_may_be_a_link(windows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if windows:
        installed, program = "C:\\Users\\me\\Lib\\torch\\", "C:\\Users\\me\\torch\\train.py"
        monkeypatch.setattr(files, "path", ntpath)
    else:
        (tmp_path / "torch").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "torch")
        installed, program = f"{tmp_path}/link/", f"{tmp_path}/train.py"
    files.is_in.cache_clear()
    monkeypatch.setattr(torch, "__file__", f"{installed}__init__.py")
    assert not files.is_users(f"{installed}functional.py")
    assert files.is_users(program)
    if windows:
        assert not files.is_users(f"{installed}functional.py".upper())
    else:
        assert not files.is_users(f"{tmp_path}/torch/functional.py")
    files.is_in.cache_clear()
