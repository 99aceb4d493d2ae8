"""What the build is told to do, and what an installation does where the extension can't be built."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools

import setup
import snnfast

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "SNNFAST_BUILD", "SNNFAST_REQUIRE_EXT", "SNNFAST_WERROR", "SNNFAST_CUDA", "CXX", "LDFLAGS", "MAX_JOBS",
    "TORCH_CUDA_ARCH_LIST", "SNNFAST_TARGET",
)  # fmt: skip
LIBRARY = setup.this_machine().library


def build(
    tree: Path, *options: str, command: Sequence[str] = ("build_ext", "--inplace"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run setup.py with options of the interpreter, a command of setuptools, and variables."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    line, env = [sys.executable, *options, "setup.py", *command], {**clean, **environment}
    return subprocess.run(line, cwd=tree, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources in a folder with a space in its name."""
    copy = tmp_path / "a copy"
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copytree(ROOT / "snnfast", copy / "snnfast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


WITHOUT = "WITHOUT the compiled kernels: "
# Variables, whether the build succeeds, and what it says. "." stands for a folder that has nothing but setuptools.
FAILING: dict[str, tuple[dict[str, str], bool, str]] = {
    "no compiler": ({"PATH": "."}, True, f"{WITHOUT}no C++ compiler: g++ was not found"),
    "no compilation": ({"SNNFAST_CUDA": "0", "CXX": "false"}, True, f"{WITHOUT}compilation failed, see above"),
    "no torch": ({"PYTHONPATH": "."}, True, f"{WITHOUT}the build saw no torch; install torch and build with"),
    "required": ({"PATH": ".", "SNNFAST_REQUIRE_EXT": "1"}, False, "g++ was not found"),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("variables", "succeeds", "said"), FAILING.values(), ids=FAILING)
def test_an_installation_without_kernels_says_so_and_leaves_no_stale_ones(
    variables: dict[str, str], succeeds: bool, said: str, tree: Path, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (packages / name).symlink_to(Path(setuptools.__file__).parent.parent / name)
    (tree / LIBRARY).write_bytes(b"of an earlier build")
    options = ["-S"] if "PYTHONPATH" in variables else []  # as in an isolated build
    done = build(tree, *options, **{k: str(packages) if v == "." else v for k, v in variables.items()})
    assert (done.returncode == 0) == succeeds, done.stderr
    assert said in done.stderr
    assert not succeeds or not list(tree.rglob("*.so"))


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("system", ["aix", "freebsd14"])
def test_systems_without_kernels_get_the_reference_path_and_are_told(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "sys", SimpleNamespace(platform=system, executable=sys.executable, stderr=sys.stderr))
    monkeypatch.setattr(setup, "ROOT", tmp_path)  # where a library of an earlier build is removed

    def built() -> setup.NinjaBuild:
        command = setup.NinjaBuild(setuptools.Distribution({"packages": ["snnfast"], "ext_modules": [setup.EXTENSION]}))
        command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
        command.ensure_finalized()
        command.run()
        return command

    assert built().get_outputs() == []
    reason = f"there are kernels for Linux, macOS and Windows, and this is {system}"
    assert f"WITHOUT the compiled kernels: {reason}" in capsys.readouterr().err
    monkeypatch.setenv("SNNFAST_REQUIRE_EXT", "1")
    with pytest.raises(SystemExit, match=f"the kernels were not built: {reason}"):
        built()


@pytest.mark.parametrize(
    ("platform", "said"),
    [
        ("linux", "g++ was not found; on Debian and Ubuntu: apt install g++; on Fedora: dnf install gcc-c++"),
        ("darwin", "clang++ was not found; xcode-select --install"),
        ("win32", "zig was not found; pip install ziglang"),
    ],
)
def test_where_no_compiler_is_each_system_is_told_what_to_install(
    platform: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("SNNFAST_TARGET", raising=False)
    monkeypatch.setattr(setup.sys, "platform", platform)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup.BuildError, match=rf"^no C\+\+ compiler: {re.escape(said)}$"):
        setup.compiler()


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("tag", "zig", "library", "sets"),
    [
        ("linux_aarch64", "aarch64-linux-gnu.2.28", "snnfast/_kernels.so", ["baseline"]),
        ("macosx_11_0_arm64", "aarch64-macos.11.0", "snnfast/_kernels.so", ["baseline"]),
        ("win_amd64", "x86_64-windows-gnu", "snnfast/_kernels.dll", ["avx512", "avx2", "baseline"]),
    ],
)
def test_zig_builds_for_other_systems(
    tag: str, zig: str, library: str, sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNFAST_TARGET", tag)
    monkeypatch.setenv("SNNFAST_CUDA", "0")
    monkeypatch.setattr(setup, "this_machine", lambda: setup.Target("linux", "x86_64"))
    find_spec = setup.importlib.util.find_spec
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: name == "ziglang" or find_spec(name))
    assert (setup.target().tag, setup.target().library) == (tag, library)
    setup.write_ninja(tmp_path / "build.ninja", tmp_path / Path(library).name)
    written = (tmp_path / "build.ninja").read_text()
    assert f"-m ziglang c++ -target {zig}\n" in written
    assert [isa for isa in setup.INSTRUCTION_SETS if f"-DSNN_ISA={isa}" in written] == sets
    assert "-march=x86-64-v3" not in written


@pytest.mark.thorough
@pytest.mark.parametrize("built", [True, False])
def test_a_wheel_fits_every_python_and_without_kernels_every_system(tree: Path, tmp_path: Path, built: bool) -> None:
    """Without kernels it takes none of an earlier build from the source tree, and leaves them there."""
    (tree / LIBRARY).write_bytes(b"of an earlier build")
    # The compiler is a script, and what it "links" is enough for a wheel.
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; touch "$2"\n' if built else "#!/bin/sh\nexit 1\n"
    )
    compiler.chmod(0o755)
    done = build(tree, command=("bdist_wheel",), SNNFAST_CUDA="0", CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").iterdir()
    platform = sysconfig.get_platform().replace("-", "_") if built else "any"
    assert wheel.name == f"snnfast-{snnfast.__version__}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
        assert f"Root-Is-Purelib: {'false' if built else 'true'}" in archive.read(record).decode()
        assert [name for name in archive.namelist() if ".so" in name] == ([LIBRARY] if built else [])
    assert (tree / LIBRARY).read_bytes() == b"of an earlier build"


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("variables", "cards", "reason"),
    [
        ({"SNNFAST_CUDA": "0"}, ["9.0"], "SNNFAST_CUDA=0 at install time"),
        ({}, ["9.0"], "no nvcc was found at install time"),
        ({"SNNFAST_BUILD": "all"}, [], "no nvcc was found at install time"),
        ({}, [], "no card was visible at install time; SNNFAST_CUDA=1 builds for all cards"),
    ],
)
def test_a_build_without_cuda_records_why(
    variables: dict[str, str], cards: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setup, "visible_cards", lambda: cards)
    monkeypatch.setattr(setup, "find_toolkit", lambda: None)
    setup.write_ninja(tmp_path / "build.ninja", tmp_path / "_kernels.so")
    written = (tmp_path / "build.ninja").read_text()
    assert f'-DSNN_CUDA_MISSING="{reason}"' in written
    assert "nvcc" not in written.replace(reason, "")


ALL_CARDS = ["7.5", "8.0", "9.0", "10.0", "12.0+PTX"]


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("variables", "cards", "everywhere", "architectures"),
    [
        ({}, [], False, None),
        ({}, ["8.6", "9.0"], False, ["8.6", "9.0"]),
        ({}, ["9.9"], False, ["12.0+PTX"]),  # which this nvcc does not know
        ({"SNNFAST_CUDA": "0"}, ["9.0"], False, None),
        ({"SNNFAST_CUDA": "1"}, [], True, ALL_CARDS),
        ({"SNNFAST_CUDA": "1"}, ["9.0"], True, ALL_CARDS),
        ({"SNNFAST_CUDA": "1", "SNNFAST_BUILD": "here"}, ["9.0"], False, ["9.0"]),
        ({"SNNFAST_BUILD": "all"}, [], True, ALL_CARDS),
        ({"SNNFAST_BUILD": "all", "SNNFAST_CUDA": "0"}, [], True, None),
        ({"TORCH_CUDA_ARCH_LIST": "8.0"}, [], True, ["8.0"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.0", "SNNFAST_BUILD": "here"}, [], False, ["8.0"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.0", "SNNFAST_CUDA": "0"}, [], False, None),
    ],
)
def test_it_is_built_for_this_machine_unless_others_are_asked_for(
    variables: dict[str, str], cards: list[str], everywhere: bool, architectures: list[str] | None,
    nvcc: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    toolkit = nvcc("for a in 75 80 86 90 100 120; do echo compute_$a; done")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setup, "visible_cards", lambda: cards)
    monkeypatch.setattr(setup, "find_toolkit", lambda: toolkit)
    home = setup.cuda_home()
    assert (None if home is None else setup.architectures(home)) == architectures
    assert (list(setup.instruction_sets()) == list(setup.INSTRUCTION_SETS)) == (everywhere and setup.target().x86)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse2 abm", "baseline"), ("sse2 avx2 bmi1 bmi2 f16c fma abm movbe", "avx2"), (None, "avx512")],
)
def test_the_instruction_set_is_the_best_of_the_processor(
    flags: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags or setup.INSTRUCTION_SETS['avx512'][1]}\n")
    monkeypatch.setenv("SNNFAST_BUILD", "here")
    monkeypatch.setattr(setup, "this_machine", lambda: setup.Target("linux", "x86_64"))
    monkeypatch.setattr(setup, "CPUINFO", tmp_path / "cpuinfo")
    assert setup.instruction_sets() == {expected: setup.INSTRUCTION_SETS[expected][0]}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SNNFAST_BUILD", "everything", "expected here or all, got 'everything'"),
        ("SNNFAST_CUDA", "yes", "expected 0 or 1, got 'yes'"),
        ("SNNFAST_REQUIRE_EXT", "true", "expected 0 or 1, got 'true'"),
        ("SNNFAST_WERROR", "2", "expected 0 or 1, got '2'"),
        ("MAX_JOBS", "abc", "expected a number from 1 to 999999, got 'abc'"),
        ("MAX_JOBS", "0", "expected a number from 1 to 999999, got '0'"),
        ("TORCH_CUDA_ARCH_LIST", "8.0;nine", "expected e.g. '8.0;9.0+PTX', got '8.0;nine'"),
        ("TORCH_CUDA_ARCH_LIST", "8.0,9.0", "expected e.g. '8.0;9.0+PTX', got '8.0,9.0'"),
        ("CXX", "", "expected the command of a C++ compiler"),
        ("CXX", "g++ 'x", "No closing quotation"),
        ("CXX", "no-such-compiler", "no-such-compiler was not found"),
        (
            "SNNFAST_TARGET",
            "plan9_mips",
            "expected e.g. linux_aarch64, macosx_11_0_arm64 or win_amd64, got 'plan9_mips'",
        ),
    ],
)
def test_a_wrong_variable_stops_the_build_before_it_begins(variable: str, value: str, message: str, tree: Path) -> None:
    cuda = "" if variable == "TORCH_CUDA_ARCH_LIST" else "0"  # without CUDA it is not read
    done = build(tree, **({"SNNFAST_REQUIRE_EXT": "0", "SNNFAST_CUDA": cuda} | {variable: value}))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"{variable}: {message}")
    assert "Traceback" not in done.stderr
    assert not (tree / "build").exists()


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    for name in set(VARIABLES) - {"CXX"}:
        monkeypatch.setenv(name, "")
    setup.check_variables()


@pytest.fixture
def nvcc(tmp_path: Path) -> Callable[[str], Path]:
    """Puts a compiler into a toolkit, whose folder is returned."""

    def put(script: str) -> Path:
        path = tmp_path / "bin/nvcc"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return tmp_path

    return put


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where nothing has a ``bin/nvcc``."""
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    exists = Path.exists
    monkeypatch.setattr(setup.Path, "exists", lambda path: path.name != "nvcc" and exists(path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("no_toolkit")
def test_cuda_that_is_demanded_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFAST_CUDA", "1")
    with pytest.raises(SystemExit, match=r"^SNNFAST_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME$"):
        setup.check_variables()


def test_an_architecture_unknown_to_nvcc_fails(nvcc: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFAST_BUILD", "all")
    toolkit = nvcc("echo compute_80; echo compute_90")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a+PTX")
    assert setup.architectures(toolkit) == ["8.0", "9.0a+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.9")
    with pytest.raises(SystemExit, match=r"^TORCH_CUDA_ARCH_LIST: nvcc in .* does not know 9\.9$"):
        setup.architectures(toolkit)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    assert setup.architectures(toolkit) == ["8.0", "9.0+PTX"]


def test_the_oldest_torch_that_is_installed_with_the_package_is_the_one_that_it_is_built_for() -> None:
    oldest = ".".join(map(str, setup.TORCH_TARGET))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"] == [f"torch>={oldest}"]


def test_torch_calls_the_library_only_through_what_catches_exceptions() -> None:
    """Kernels of ops through csrc/op/guard.h, and the parts of threads through csrc/cpu/parallel.h."""
    sources = [path for folder in ("csrc/op", "csrc/cpu") for path in (ROOT / folder).rglob("*.*")]
    texts = {path.name: path.read_text() for path in sources}
    assert [name for name, text in texts.items() if "TORCH_BOX(" in text] == ["guard.h"]
    assert [name for name, text in texts.items() if "parallel_for(" in text] == ["parallel.h"]
    kernels = [line for text in texts.values() for line in text.splitlines() if "m.impl(" in line]
    assert len(kernels) > 10
    assert [line for line in kernels if not re.search(r"SNN_BOX\(|&guarded<", line)] == []
