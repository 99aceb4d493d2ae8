"""The machine code and the PTX of the kernels: out of the library as it was built, and by nvcc where it lacks some."""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import setup

CLANG_WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
CLANG_VERSIONS = range(22, 18, -1)  # the first that compiles the headers of CUDA 13 is 19
_CUBIN = re.compile(r"\.sm_(\d+)(\d)\.cubin$")


@dataclass
class Unit:
    """The machine code of one source for one architecture; where it is compiled once for each neuron, of one neuron."""

    architecture: str
    cubin: Path


class CompileError(Exception):
    """nvcc has not compiled a source; the message is its own."""


def nvcc_version(toolkit: Path) -> str:
    told = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V([\d.]+)", told)
    return version[1] if version else "unknown"


def is_current(library: Path) -> bool:
    """Whether the library was built, and after the last change of what it is made of."""
    if not library.exists():
        return False
    sources = [setup.ROOT / "setup.py", *(path for path in (setup.ROOT / "csrc").rglob("*") if path.is_file())]
    return library.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def taken_out(cuobjdump: str, library: Path, folder: Path) -> tuple[list[Unit], list[str]]:
    """Machine code and PTX of a library, which are files in ``folder`` then."""
    for kind in ("-xelf", "-xptx"):
        subprocess.run([cuobjdump, kind, "all", library.resolve()], cwd=folder, capture_output=True, check=True)
    units = [Unit(f"{m[1]}.{m[2]}", path) for path in sorted(folder.iterdir()) if (m := _CUBIN.search(path.name))]
    return units, [path.read_text() for path in sorted(folder.glob("*.ptx"))]


def machine_code(toolkit: Path, architectures: list[str], folder: Path) -> list[Unit]:
    """Of every source for every architecture. Raises ``CompileError``, for a warning too."""
    pairs = [(made, architecture) for architecture in architectures for made in setup.cuda_sources()]

    def make(pair: tuple[tuple[Path, str, list[str]], str]) -> Unit:
        made, architecture = pair
        target = folder / f"{made[1]}.sm_{architecture.replace('.', '')}.cubin"
        _compile(toolkit, made, ["-cubin", *setup.gencode([architecture])], target)
        return Unit(architecture, target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(make, pairs))


def ptx(toolkit: Path, architecture: str, folder: Path) -> list[str]:
    """Of every source for one architecture; likewise."""

    def make(made: tuple[Path, str, list[str]]) -> str:
        target = folder / f"{made[1]}.ptx"
        _compile(toolkit, made, ["-ptx", f"-arch={setup.virtual(architecture)}"], target)
        return target.read_text()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(make, setup.cuda_sources()))


def _compile(toolkit: Path, made: tuple[Path, str, list[str]], kind: list[str], target: Path) -> None:
    source, name, flags = made
    command: list[str | Path] = [toolkit / "bin/nvcc", *setup.NVCC_FLAGS, "-Werror", "all-warnings", *kind]
    done = subprocess.run([*command, *_words(flags), source, "-o", target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{name}, {' '.join(kind)}: {done.stderr.strip()[-2000:]}")


def _words(flags: list[str]) -> list[str]:
    """Flags of the build, which are quoted for a shell, as arguments."""
    return [word for flag in flags for word in shlex.split(flag)]


def clang() -> str | None:
    """A clang that knows the toolkit's headers."""
    return next(filter(None, (shutil.which(f"clang++-{version}") for version in CLANG_VERSIONS)), None)


def clang_complaints(compiler: str, toolkit: Path, folder: Path) -> str:
    """What clang's own CUDA front end has to say about the sources."""
    # Headers that clang asks for and CUDA 13 no longer has; nothing in them is used.
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in ("texture_fetch_functions.h", "curand_mtgp32_kernel.h"):
        (stubs / name).touch()
    command = [compiler, "-x", "cuda", f"--cuda-path={toolkit}", "-isystem", str(stubs), "-Wno-unknown-cuda-version"]
    command += ["-fsyntax-only", "--cuda-gpu-arch=sm_90", "-std=c++20", *CLANG_WARNINGS]
    complaints = ""
    for source, _, flags in setup.cuda_sources():
        whole = [*command, *_words(flags), str(source)]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        complaints += done.stderr
        if done.returncode != 0:  # one that was killed says nothing else
            complaints += f"{source.name}: exit code {done.returncode}\n"
    return complaints


def shipped(cuobjdump: str, extension: Path) -> list[str]:
    """``sm_90.cubin`` or ``sm_90.ptx`` and the like: what the built extension contains."""
    command = [cuobjdump, "-lelf", "-lptx", str(extension)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\.(sm_\w+\.(?:cubin|ptx))$", listing, flags=re.MULTILINE)
