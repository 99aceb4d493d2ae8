"""What decides whether the checks of the machine code run again: an input that changed, or one that is not known."""

from pathlib import Path

import pytest

from tools import native

TREE = {
    **{f"{folder}/a.txt": folder for folder in native.FOLDERS},
    **{file: file for file in native.FILES},
    "tests/helpers.py": "",
    "native.mk": "TESTS := with_snntorch/test_c.py",
    "tests/with_snntorch/test_c.py": "def test(): ...",
    "tests/compiler/test_a.py": "def test_on(x: tuple[()], device: torch.device): ...",
    "tests/compiler/test_b.py": "def test(): ...",
}


def version(command: list[str]) -> str:
    return f"{command[0]} 12"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    native.write(tmp_path, version)
    return tmp_path


def test_nothing_changes_by_itself(tree: Path) -> None:
    assert native.changed(tree, version) == []
    for left in ("csrc/__pycache__/a.pyc", "tests/emulator/_build/plain/a.o", "README.md", "tests/compiler/test_d.py"):
        (tree / left).parent.mkdir(parents=True, exist_ok=True)
        (tree / left).write_text("left")
    assert native.changed(tree, version) == []


@pytest.mark.parametrize("name", TREE)
def test_a_file_that_changes_is_seen(name: str, tree: Path) -> None:
    (tree / name).write_text(TREE[name] + "another")
    changed = native.changed(tree, version)
    if name == "tests/compiler/test_b.py":
        assert changed == []
    else:
        assert len(changed) == 1
        assert name.startswith(changed[0]) or changed[0] == "other tests"


def test_a_file_that_comes_or_goes_or_has_another_name_is_seen(tree: Path) -> None:
    (tree / "csrc/b.h").write_text("")
    assert native.changed(tree, version) == ["csrc"]
    (tree / "csrc/b.h").unlink()
    (tree / "csrc/a.txt").rename(tree / "csrc/c.txt")
    assert native.changed(tree, version) == ["csrc"]
    (tree / "csrc/c.txt").unlink()
    assert native.changed(tree, version) == ["csrc"]


def test_another_compiler_is_seen(tree: Path) -> None:
    assert native.changed(tree, lambda command: "g++ 13" if command[0] == "g++" else version(command)) == ["g++"]


def test_what_is_not_written_down_is_not_known_to_have_passed(tree: Path) -> None:
    stored = (tree / native.PASSED).read_text().splitlines()
    (tree / native.PASSED).write_text("\n".join(stored[1:]))
    assert len(native.changed(tree, version)) == 1
    (tree / native.PASSED).write_text("not of this form\n")
    assert native.changed(tree, version)
    (tree / native.PASSED).unlink()
    assert native.changed(tree, version) == ["tools/native.sha256 is missing"]


def test_every_input_is_in_the_repository() -> None:
    assert all(native.sources(native.ROOT / folder) for folder in native.FOLDERS)
    assert all((native.ROOT / file).is_file() for file in native.FILES)
    others = {path.name for path in native.other_tests(native.ROOT)}
    assert {"helpers.py", "test_parity.py", "test_normed_programs.py"} <= others
    assert not {"test_replay.py", "test_native.py"} & others
