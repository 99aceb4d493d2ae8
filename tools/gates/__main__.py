"""Everything that can be known of the CUDA kernels without a GPU, in one table; the exit code says whether it holds.

Looks at the architectures of ``TORCH_CUDA_ARCH_LIST``, among them 9.0; without it, at all that a wheel has. Needs nvcc;
and nvdisasm and cuobjdump, which ``pip install nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump`` brings.
"""

import argparse
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import setup

from . import analysis, arithmetic, budgets, cases, compile, cost, cubin, kernels, model, occupancy
from .analysis import Measured
from .report import Gate, print_columns, show

MOST_MEGABYTES = 6.8  # of the machine code and PTX of all architectures, as compressed: half of the wheel


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gates", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what the kernels take now as their budgets")
    update = parser.parse_args(argv).update
    toolkit, nvdisasm, cuobjdump = setup.cuda_home(), find("nvdisasm"), find("cuobjdump")
    if toolkit is None:
        parser.exit(1, "nvcc was not found; set CUDA_HOME\n")
    if nvdisasm is None or cuobjdump is None:
        parser.exit(1, "nvdisasm or cuobjdump was not found; pip install nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump\n")
    architectures = wanted()
    if cost.ARCHITECTURE not in architectures:
        parser.exit(1, f"TORCH_CUDA_ARCH_LIST: {cost.ARCHITECTURE} is needed, whose instructions are counted\n")
    if update and architectures != setup.DEFAULT_ARCHITECTURES:
        parser.exit(1, "TORCH_CUDA_ARCH_LIST: --update needs all architectures; unset it\n")
    with tempfile.TemporaryDirectory() as folder:
        gates, measured = measure(toolkit, nvdisasm, cuobjdump, architectures, Path(folder), update)
        if measured:
            predict(measured, Path(folder))
    gates += extension_gates(cuobjdump, architectures)
    return 0 if show(gates, measured, {card.architecture: card.name for card in occupancy.CARDS}) else 1


def wanted() -> list[str]:
    """The architectures to look at: of those that have budgets, all or the ones that the build was told to have."""
    told = [name.removesuffix("+PTX") for name in setup.wanted_architectures()]
    return [name for name in setup.DEFAULT_ARCHITECTURES if not told or name in told]


def find(tool: str) -> str | None:
    """A tool of the toolkit: where its package on PyPI puts it, or on the path."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{tool}"))
    return str(packaged[-1]) if packaged else shutil.which(tool)


def measure(
    toolkit: Path, nvdisasm: str, cuobjdump: str, architectures: list[str], folder: Path, update: bool
) -> tuple[list[Gate], list[Measured]]:
    """Look at what the compiler made of the sources; compile what the library lacks."""
    nvcc, library = compile.nvcc_version(toolkit), setup.ROOT / setup.LIBRARY
    units, ptx = compile.taken_out(cuobjdump, library, folder) if compile.is_current(library) else ([], [])
    units = [unit for unit in units if unit.architecture in architectures]
    there = {unit.architecture for unit in units}
    lacking = [architecture for architecture in architectures if architecture not in there]
    name = f"nvcc {nvcc} for {', '.join(architectures)}; not out of the library: {', '.join(lacking)}"
    try:
        units += compile.machine_code(toolkit, lacking, folder)
        ptx = ptx or compile.ptx(toolkit, architectures[-1], folder)
    except compile.CompileError as error:
        return [Gate(name, [str(error)])], []
    gates = [Gate(name if lacking else name.split(";")[0], []), clang_gate(toolkit, folder), rounding_gate(ptx)]
    units.sort(key=lambda unit: architectures.index(unit.architecture))
    measured = analysis.analyse(units, nvdisasm)
    analysis.occupy(measured, toolkit, folder)
    costs = costs_of(measured, folder)
    print_columns(cost.rows(costs))
    print()
    return [*gates, *budget_gates(nvcc, architectures, measured, costs, update), *kernel_gates(measured)], measured


def costs_of(measured: Sequence[Measured], folder: Path) -> dict[str, cost.Cost]:
    """Of the kernels that there is an ordinary launch for, by name; it prints those whose cost it can't tell."""
    program = cases.build(folder)
    codes = {m.name: m.code for m in measured if m.code is not None}
    found = {case.kernel: cost.cost(program, codes[case.kernel], case) for case in cost.ordinary_cases(list(codes))}
    told = {name: c for name, c in found.items() if c.fixed >= 0}  # else the two runs went different ways
    if untold := sorted(found.keys() - told.keys()):
        print(f"not counted, because a branch depends on numbers: {', '.join(untold)}\n")
    return told


def predict(measured: Sequence[Measured], folder: Path) -> None:
    """Print what the model says of the shapes of the benchmark."""
    codes = {m.name: m.code for m in measured if m.code is not None}
    card = next(card for card in occupancy.CARDS if card.architecture == cost.ARCHITECTURE)
    resident = {m.name: round(m.share * card.threads / model.LANES) for m in measured if m.code is not None}
    print_columns(model.rows(model.predict(folder / "arguments", codes, resident)))
    print()


def rounding_gate(ptx: Sequence[str]) -> Gate:
    problems = {symbol: found for text in ptx for symbol, found in arithmetic.ptx_problems(text).items() if found}
    names = kernels.names(problems)
    return Gate(
        "PTX: every product, sum and difference rounded by itself, exactly, with subnormal numbers",
        [f"{names.get(symbol, symbol)}: {why}" for symbol, found in problems.items() for why in found],
    )


def clang_gate(toolkit: Path, folder: Path) -> Gate:
    compiler = compile.clang()
    if compiler is None:
        return Gate("a second compiler, no warning", [], "not installed: apt-get install clang-19")
    complaints = compile.clang_complaints(compiler, toolkit, folder).strip()
    return Gate(f"{Path(compiler).name}, no warning", [complaints[:4000]] if complaints else [])


def budget_gates(
    nvcc: str,
    architectures: Sequence[str],
    measured: Sequence[Measured],
    costs: Mapping[str, cost.Cost],
    update: bool,
) -> list[Gate]:
    taken: dict[str, dict[str, budgets.Taken]] = {}
    for m in measured:
        taken.setdefault(m.name, {})[m.architecture] = m.taken
    spent = {name: budgets.Spent(round(c.per_neuron_step, 2), c.startup) for name, c in costs.items()}
    if update:
        budgets.save(nvcc, taken, spent)
    budgeted_with, budget, allowed_cost = budgets.load()
    allowed = {name: {a: per[a] for a in architectures if a in per} for name, per in budget.items()}
    of = budgets.FILE.name + ("" if budgeted_with == nvcc else f" (of nvcc {budgeted_with})")
    found = budgets.problems(taken, allowed), budgets.overspent(spent, allowed_cost)
    names = (
        f"registers, spills, stack, shared memory and narrow accesses within {of}",
        f"instructions of a neuron and step, and cycles before the first load, within {of}",
    )
    return [
        Gate(name, [f"{kernel}: {why}" for kernel, whys in problems.items() for why in whys])
        for name, problems in zip(names, found, strict=True)
    ]


def kernel_gates(measured: Sequence[Measured]) -> list[Gate]:
    roundings = [f"{m.name}, {m.architecture}: {why}" for m in measured for why in m.roundings]
    accesses = [f"{m.name}, {m.architecture}: {why}" for m in measured for why in m.memory_problems]
    blocked = [f"{m.name}, {m.architecture}: no block fits" for m in measured if m.share == 0]
    return [
        Gate("machine code of forward: no multiply-add of floating-point numbers", roundings),
        Gate("16 bytes, or all of a thread, at a time in loops over time of vector kernels, no local memory", accesses),
        Gate("a block of every kernel fits on its card", blocked),
    ]


def extension_gates(cuobjdump: str, architectures: Sequence[str]) -> list[Gate]:
    """The built extension has machine code for the architectures, and PTX of the last for what comes later."""
    name = f"the extension as built has {', '.join(architectures)}"
    extension = setup.ROOT / setup.LIBRARY
    if not extension.exists():
        return [Gate(name, [], "not built: python setup.py build_ext --inplace")]
    names = [f"sm_{architecture.replace('.', '')}" for architecture in architectures]
    ptx = setup.virtual(architectures[-1]).replace("compute", "sm") + ".ptx"
    wanted = [*(f"{name}.cubin" for name in names), ptx]
    there = compile.shipped(cuobjdump, extension)
    size = cubin.sections(extension)[".nv_fatbin"].size / 1e6
    return [
        Gate(name, [f"{one} is missing" for one in wanted if one not in there]),
        Gate(f"their code takes {MOST_MEGABYTES} MB at most", [f"{size:.2f} MB"] if size > MOST_MEGABYTES else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
