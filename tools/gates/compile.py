"""The CUDA sources through nvcc with the flags of the build, and through clang; every warning is an error."""

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


@dataclass
class Unit:
    """One source for one architecture, and where it is compiled once for each neuron, one neuron."""

    source: str  # the name of its object in the build
    architecture: str
    report: str  # of ptxas
    ptx: str = ""
    cubin: Path | None = None  # None: it was not compiled, and the report says why


def nvcc_version(toolkit: Path) -> str:
    told = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V([\d.]+)", told)
    return version[1] if version else "unknown"


def compile_all(toolkit: Path, architectures: list[str], folder: Path) -> list[Unit]:
    """Machine code and PTX of every source for every architecture, host code with g++'s warnings included."""

    def compile_one(made: tuple[Path, str, list[str]], architecture: str) -> Unit:
        source, name, flags = made
        number = architecture.replace(".", "")
        place = folder / f"{name}_{number}"
        place.mkdir()
        command: list[str | Path] = [toolkit / "bin/nvcc", *setup.NVCC_FLAGS, "-Xptxas=-v"]
        command += ["-Werror", "all-warnings", "-Xcompiler=-Werror", "--keep", "--keep-dir", place]
        command.append(f"-gencode=arch=compute_{number},code=[sm_{number},compute_{number}]")
        command += [*_words(flags), "-c", source, "-o", place / "object.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        unit = Unit(name, architecture, done.stderr)
        if done.returncode == 0:
            unit.ptx = (place / f"{source.stem}.ptx").read_text()
            unit.cubin = place / f"{source.stem}.sm_{number}.cubin"
        return unit

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = [(made, architecture) for architecture in architectures for made in setup.cuda_sources()]
        return list(pool.map(lambda pair: compile_one(*pair), pairs))


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
        complaints += subprocess.run(whole, capture_output=True, text=True, check=False).stderr
    return complaints


def shipped(cuobjdump: str, extension: Path) -> list[str]:
    """``sm_90.cubin`` or ``sm_90.ptx`` and the like: what the built extension contains."""
    command = [cuobjdump, "-lelf", "-lptx", str(extension)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\.(sm_\w+\.(?:cubin|ptx))$", listing, flags=re.MULTILINE)
