"""The machine code and the PTX of the kernels: out of the library as it was built, and by nvcc where it lacks some."""

import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import setup

_CUBIN = re.compile(r"\.sm_(\d+)(\d)\.cubin$")


@dataclass
class Unit:
    """The machine code of one source for one architecture. Most sources are compiled once for each neuron."""

    architecture: str
    cubin: Path


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


def taken_out(cuobjdump: str, library: Path, folder: Path) -> tuple[list[Unit], list[Path]]:
    """Extract the machine code and the PTX of a library into ``folder``."""
    for kind in ("-xelf", "-xptx"):
        subprocess.run([cuobjdump, kind, "all", library.resolve()], cwd=folder, capture_output=True, check=True)
    units = [Unit(f"{m[1]}.{m[2]}", path) for path in sorted(folder.iterdir()) if (m := _CUBIN.search(path.name))]
    return units, sorted(folder.glob("*.ptx"))


def code_bytes(library: Path) -> int:
    """How much of a library is code for GPUs, as compressed."""
    sizes = subprocess.run(["size", "-A", library], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^\.nv_fatbin\s+(\d+)", sizes, flags=re.MULTILINE)
    return int(found[1]) if found else 0


def machine_code(toolkit: Path, architectures: list[str], folder: Path) -> list[Unit]:
    """Compile every source for every architecture. An error or a warning of nvcc ends the program."""
    units, jobs = [], []
    for architecture in architectures:
        for source, name, flags in setup.cuda_sources():
            units.append(Unit(architecture, folder / f"{name}.sm_{architecture.replace('.', '')}.cubin"))
            jobs.append((source, ["-cubin", *setup.gencode([architecture]), *flags], units[-1].cubin))
    _compile(toolkit, jobs)
    return units


def ptx(toolkit: Path, architecture: str, folder: Path) -> list[Path]:
    """Compile every source to the PTX of one architecture. An error or a warning of nvcc ends the program."""
    jobs = [
        (source, ["-ptx", f"-arch={setup.virtual(architecture)}", *flags], folder / f"{name}.ptx")
        for source, name, flags in setup.cuda_sources()
    ]
    _compile(toolkit, jobs)
    return [target for *_, target in jobs]


def _compile(toolkit: Path, jobs: list[tuple[Path, list[str], Path]]) -> None:
    def run(job: tuple[Path, list[str], Path]) -> None:
        source, flags, target = job
        words = [word for flag in flags for word in shlex.split(flag)]  # the build quotes its flags for a shell
        nvcc = [str(toolkit / "bin/nvcc"), *setup.NVCC_FLAGS, "-Werror", "all-warnings"]
        done = subprocess.run([*nvcc, *words, source, "-o", target], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{target.name}: {done.stderr.strip()[-2000:]}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, jobs))
