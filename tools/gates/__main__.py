"""Everything that can be known of the CUDA kernels without a GPU, in one table; the exit code says whether it holds.

Looks at the architectures of ``TORCH_CUDA_ARCH_LIST``; without it, at all that a wheel has. Needs nvcc; and nvdisasm
and cuobjdump, which ``pip install nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump`` brings. Ordinary calls run in the
emulator, so that the instructions of whole launches can be counted.
"""

import argparse
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import setup

from . import analysis, arithmetic, budgets, compile, kernels, launches, occupancy
from .analysis import Measured

MOST_MEGABYTES = 10.2  # of the machine code and PTX of all architectures, as compressed: half of the wheel
LEGEND = """\
under an architecture: registers of a thread, and the share of the card's threads that can be in flight
block: threads; the others are the most of any architecture. shared: bytes of a block; spill, stack: bytes of a thread
narrow: loads and stores in the loops over time under 16 bytes, or 8 where all elements of a thread are 8
looped: instructions in loops, or all of a kernel without a loop over time
each: those in loops of a neuron and step, where every call goes the same way through the loop
wave: neurons that an H100 runs at once, in thousands
"""


class Gate(NamedTuple):
    """Something that must hold."""

    name: str
    problems: Sequence[str]
    absent: str = ""  # what was missing to look at it


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gates", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what the kernels take now as their budgets")
    usual = setup.ROOT / setup.this_machine().library
    parser.add_argument("--library", type=Path, default=usual, help="the built library; that of the package by default")
    update, library = (options := parser.parse_args(argv)).update, options.library
    toolkit, nvdisasm, cuobjdump = setup.cuda_home(), find("nvdisasm"), find("cuobjdump")
    if toolkit is None or nvdisasm is None or cuobjdump is None:
        parser.exit(1, f"nvcc, nvdisasm or cuobjdump was not found: {toolkit}, {nvdisasm}, {cuobjdump}\n")
    architectures, nvcc = wanted(), compile.nvcc_version(toolkit)
    if not architectures:
        parser.exit(1, f"TORCH_CUDA_ARCH_LIST: there are budgets for {', '.join(setup.DEFAULT_ARCHITECTURES)}\n")
    if update and architectures != setup.DEFAULT_ARCHITECTURES:
        parser.exit(1, "TORCH_CUDA_ARCH_LIST: --update needs all architectures; unset it\n")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        units, ptx = compile.taken_out(cuobjdump, library, folder) if compile.is_current(library) else ([], [])
        gates = library_gates(library, units, ptx, architectures)
        there = {unit.architecture for unit in units}
        lacking = [architecture for architecture in architectures if architecture not in there]
        print(f"nvcc {nvcc}; not out of the library, but compiled now: {', '.join(lacking) or 'nothing'}\n")
        units += compile.machine_code(toolkit, lacking, folder)
        ptx = ptx or compile.ptx(toolkit, architectures[-1], folder)
        texts = [path.read_text() for path in ptx]
        asked = [unit for unit in units if unit.architecture in architectures]
        measured = analysis.analyse(asked, nvdisasm, cuobjdump)
        of_launches = [unit for unit in asked if unit.architecture == launches.ARCHITECTURE]
        counted = launches.counted(analysis.code(of_launches, nvdisasm)) if of_launches else []
    measured.sort(key=lambda m: (m.name, architectures.index(m.architecture)))
    bounds = {symbol: bound for text in texts for symbol, bound in analysis.threads(text).items()}
    threads = {name: bounds[symbol] for symbol, name in kernels.names(bounds).items()}
    taken = {(m.name, m.architecture): m.taken for m in measured}
    if update:
        budgets.save(nvcc, taken, budgets.FILE)
    print(LEGEND)
    print_columns(table(measured, threads))
    print()
    print_columns(launches.table(counted))
    print()
    absent = "" if counted else f"TORCH_CUDA_ARCH_LIST: without {launches.ARCHITECTURE}"
    gates.append(Gate("instructions of whole launches of ordinary calls", launches.problems(counted), absent))
    gates += [rounding_gate(texts), budget_gate(nvcc, architectures, taken, budgets.FILE)]
    return 0 if show([*gates, *kernel_gates(measured, threads)]) else 1


def wanted() -> list[str]:
    """The architectures to look at: of those that have budgets, all or the ones that the build was told to have."""
    told = [name.removesuffix("+PTX") for name in setup.wanted_architectures()]
    return [name for name in setup.DEFAULT_ARCHITECTURES if not told or name in told]


def find(tool: str) -> str | None:
    """A tool of the toolkit: where its package on PyPI puts it, or on the path."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{tool}"))
    return str(packaged[-1]) if packaged else shutil.which(tool)


def library_gates(
    library: Path, units: Sequence[compile.Unit], ptx: Sequence[Path], architectures: Sequence[str]
) -> list[Gate]:
    """The built library has machine code for the architectures, and PTX for what comes later."""
    name = f"the built library has {', '.join(architectures)}, and PTX"
    if not units:
        return [Gate(name, [], "no CUDA kernels of these sources are built: python setup.py build_ext --inplace")]
    problems = [f"{one} is missing" for one in architectures if one not in {unit.architecture for unit in units}]
    problems += [] if ptx else ["PTX is missing"]
    size = compile.code_bytes(library) / 1e6
    too_large = [f"{size:.2f} MB"] if size > MOST_MEGABYTES else []
    return [Gate(name, problems), Gate(f"its code for GPUs takes {MOST_MEGABYTES} MB at most", too_large)]


def rounding_gate(ptx: Sequence[str]) -> Gate:
    problems = {symbol: found for text in ptx for symbol, found in arithmetic.ptx_problems(text).items() if found}
    names = kernels.names(problems)
    return Gate(
        "PTX: every product, sum and difference rounded by itself, exactly, with subnormal numbers",
        [f"{names.get(symbol, symbol)}: {why}" for symbol, found in problems.items() for why in found],
    )


def budget_gate(nvcc: str, architectures: Sequence[str], taken: budgets.Table, file: Path) -> Gate:
    budgeted_with, budget = budgets.load(file)
    of = file.name + ("" if budgeted_with == nvcc else f" (of nvcc {budgeted_with})")
    return Gate(
        f"registers, spills, stack, shared memory, narrow accesses and instructions in loops within {of}",
        budgets.problems(taken, {key: allowed for key, allowed in budget.items() if key[1] in architectures}),
    )


def kernel_gates(measured: Sequence[Measured], threads: Mapping[str, int]) -> list[Gate]:
    def gate(name: str, problems: Callable[[Measured], Sequence[str]]) -> Gate:
        return Gate(name, [f"{m.name}, {m.architecture}: {why}" for m in measured for why in problems(m)])

    return [
        gate("machine code of forward: no multiply-add of floating-point numbers", lambda m: m.roundings),
        gate(
            "vector kernels: 16 bytes, or all of a thread, at a time in loops over time",
            lambda m: m.accesses.problems(kernels.width(m.name)),
        ),
        gate("no local memory", lambda m: m.accesses.local),
        gate("a block fits on the card", lambda m: [] if m.occupied(threads[m.name]) else ["no block fits"]),
    ]


def show(gates: Sequence[Gate]) -> bool:
    """Print the gates; return whether none fails."""
    for gate in gates:
        verdict = f"FAILS, {len(gate.problems)} times" if gate.problems else gate.absent or "holds"
        print(f"{gate.name}: {verdict}")
        for problem in gate.problems:
            print(f"    {problem}")
    return not any(gate.problems for gate in gates)


def table(measured: Iterable[Measured], threads: Mapping[str, int]) -> list[list[str]]:
    """A heading, and a row for each kernel with a column for each architecture."""
    rows: dict[str, dict[str, Measured]] = {}
    for m in measured:
        rows.setdefault(m.name, {})[m.architecture] = m
    cards = [f"{card.name} {architecture}" for architecture, card in occupancy.CARDS.items()]
    most = ("shared", "spill", "stack", "narrow", "looped")
    lines = [["kernel", "block", *cards, *most, "each", "wave"]]
    for name, per in rows.items():
        of = list(per.values())
        lines.append([name, str(threads[name])])
        for here in map(per.get, occupancy.CARDS):
            cell = "-" if here is None else f"{here.resources.registers} {here.occupied(threads[name]):>4.0%}"
            lines[-1].append(cell)
        lines[-1] += [str(max(getattr(m.taken, field) for m in of)) for field in most]
        each = [m.per_neuron_step for m in of if m.per_neuron_step is not None]
        lines[-1].append(f"{max(each):.1f}" if each else "")
        lines[-1].append(f"{per['9.0'].wave(threads[name]) / 1e3:.0f}" if "9.0" in per else "")
    return lines


def print_columns(lines: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  " + "  ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
