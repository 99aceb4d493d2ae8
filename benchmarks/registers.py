"""Registers, spills and shared memory of every CUDA kernel, as ptxas reports them. Needs nvcc, not a GPU."""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import setup  # the flags of the build itself

ROOT = Path(__file__).parent.parent


class Kernel(NamedTuple):
    name: str
    registers: int
    spilled: int  # bytes
    stack: int  # bytes
    shared: int  # bytes


def run(args: argparse.Namespace) -> bool:
    """A table, one row per kernel and one column per architecture; the bar is no spill at all."""
    home = setup.cuda_home()
    if home is None:
        print("nvcc was not found; set CUDA_HOME\n")
        return False
    columns = {arch: _compile(home, arch) for arch in args.architectures}
    first = columns[args.architectures[0]]
    width = max(len(kernel.name) for kernel in first)
    print(
        f"registers (shared bytes) per thread of {len(first)} kernels; spills and stack are added where there are any"
    )
    print(f"{'':<{width}}  " + "  ".join(f"{f'sm_{arch}':>11}" for arch in columns))
    spills = 0
    for rows in zip(*columns.values(), strict=True):
        cells = []
        for kernel in rows:
            bad = f" SPILL {kernel.spilled} STACK {kernel.stack}" if kernel.spilled or kernel.stack else ""
            spills += bool(bad)
            cells.append(f"{f'{kernel.registers} ({kernel.shared}){bad}':>11}")
        print(f"{rows[0].name:<{width}}  " + "  ".join(cells))
    print(f"kernels with spills: {spills}, bar 0: {'MISSED' if spills else 'holds'}\n")
    return spills == 0


def _compile(home: Path, arch: str) -> list[Kernel]:
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            command = [home / "bin/nvcc", *setup.NVCC_FLAGS, "-Xptxas=-v", "-Werror", "all-warnings", "-c", source]
            command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", Path(folder, "kernel.o")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            kernels += _parse(done.stderr)
    return sorted(kernels)


def _parse(report: str) -> list[Kernel]:
    kernels = []
    for block in report.split("Compiling entry function '")[1:]:
        stack, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block).groups(),
        )
        shared = re.search(r"(\d+) bytes smem", block)
        kernels.append(
            Kernel(
                _demangle(block[: block.index("'")]),
                int(re.search(r"Used (\d+) registers", block)[1]),
                stores + loads,
                stack,
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def _demangle(symbol: str) -> str:
    """E.g. ``lif_backward<float, 4 neurons, recorded>`` from the mangled name of a kernel."""
    name, dtype, vector, recorded = re.search(
        r"(lif_(?:forward|backward))_kernelI(?:NS0_\d+)?(BFloat16|Half|f|d)E?Li(\d+)E(Lb[01])?", symbol
    ).groups()
    dtype = {"f": "float32", "d": "float64", "Half": "float16", "BFloat16": "bfloat16"}[dtype]
    trajectory = {None: "", "Lb0": ", recomputed", "Lb1": ", recorded"}[recorded]
    return f"{name} {dtype} x {vector}{trajectory}"
