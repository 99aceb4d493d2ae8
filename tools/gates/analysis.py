"""From what the compiler made of the sources to one record for each kernel and architecture."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import arithmetic, budgets, cost, kernels, memory, occupancy, sass
from .compile import Unit


@dataclass
class Measured:
    """One kernel on one architecture."""

    name: str
    architecture: str
    threads: int  # of a block
    resources: kernels.Resources
    accesses: memory.Accesses
    roundings: list[str]  # what rounds otherwise than PyTorch's operators
    share: float = 0  # of a multiprocessor's threads that it keeps occupied on the architecture's card
    code: cost.Code | None = None  # of the architecture whose instructions are counted

    @property
    def vector(self) -> bool:
        """Whether a thread takes several neurons at a time."""
        return kernels.width(self.name) > 1

    @property
    def taken(self) -> budgets.Taken:
        return budgets.Taken(*self.resources, narrow=len(self.accesses.narrow) if self.vector else 0)

    @property
    def memory_problems(self) -> list[str]:
        found = self.accesses.problems(kernels.width(self.name)) if self.vector else []
        return found + ([f"{self.accesses.local} accesses to local memory"] if self.accesses.local else [])


def analyse(units: Iterable[Unit], nvdisasm: str) -> list[Measured]:
    found = []
    for unit in units:
        done = subprocess.run([nvdisasm, "-hex", "-c", str(unit.cubin)], capture_output=True, text=True, check=True)
        found += records(unit, done.stdout)
    return found


def records(unit: Unit, disassembly: str) -> list[Measured]:
    """Of one source on one architecture; an error where the reports do not tell of the same kernels."""
    code = {kernel.symbol: kernel for kernel in sass.parse(disassembly)}
    taken, bounds = kernels.resources(unit.report), kernels.threads(unit.ptx)
    roundings = arithmetic.ptx_problems(unit.ptx)
    counted = unit.architecture == cost.ARCHITECTURE
    tables = cost.jump_tables(unit.cubin) if counted and unit.cubin is not None else {}
    if not code.keys() == taken.keys() == bounds.keys() == roundings.keys():
        raise ValueError(f"{unit.source}, {unit.architecture}: ptxas, PTX and nvdisasm tell of different kernels")
    found = []
    for symbol, name in kernels.names(code).items():
        fused = arithmetic.fused(code[symbol]) if name.startswith("forward") else []
        found.append(
            Measured(
                name, unit.architecture, bounds[symbol], taken[symbol],
                memory.accesses(code[symbol], kernels.access(name), kernels.time_loop(name)), roundings[symbol] + fused,
                code=cost.Code(code[symbol], tables.get(symbol, b""), bounds[symbol]) if counted else None,
            )
        )  # fmt: skip
    return found


def occupy(measured: Iterable[Measured], toolkit: Path, folder: Path) -> None:
    """Fill in how much of the card of its architecture each kernel keeps occupied."""
    measured = list(measured)
    program = occupancy.build(toolkit, folder)
    for card in occupancy.CARDS:
        here = [m for m in measured if m.architecture == card.architecture]
        asked = [occupancy.Block(m.threads, m.resources.registers, m.resources.shared) for m in here]
        for m, held in zip(here, occupancy.blocks(program, card, asked), strict=True):
            m.share = held * m.threads / card.threads
