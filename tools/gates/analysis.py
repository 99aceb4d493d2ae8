"""From what the compiler made of the sources to one record for each kernel and architecture."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import arithmetic, budgets, cost, cubin, kernels, memory, occupancy, sass
from .compile import Unit


@dataclass
class Measured:
    """One kernel on one architecture."""

    name: str
    architecture: str
    resources: cubin.Resources
    accesses: memory.Accesses
    roundings: list[str]  # what rounds otherwise than PyTorch's operators, in machine code
    share: float = 0  # of a multiprocessor's threads that it keeps occupied on the architecture's card
    code: cost.Code | None = None  # of the architecture whose instructions are counted

    @property
    def vector(self) -> bool:
        """Whether a thread takes several neurons at a time."""
        return kernels.width(self.name) > 1

    @property
    def taken(self) -> budgets.Taken:
        of = self.resources
        narrow = len(self.accesses.narrow) if self.vector else 0
        return budgets.Taken(of.registers, self.accesses.spilled, of.stack, of.shared, narrow)

    @property
    def memory_problems(self) -> list[str]:
        found = self.accesses.problems(kernels.width(self.name)) if self.vector else []
        return found + ([f"{self.accesses.local} accesses to local memory"] if self.accesses.local else [])


def analyse(units: Iterable[Unit], nvdisasm: str) -> list[Measured]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [found for of_unit in pool.map(partial(_analyse, nvdisasm), units) for found in of_unit]


def _analyse(nvdisasm: str, unit: Unit) -> list[Measured]:
    done = subprocess.run([nvdisasm, "-hex", "-c", str(unit.cubin)], capture_output=True, text=True, check=True)
    counted = unit.architecture == cost.ARCHITECTURE
    tables = cubin.jump_tables(unit.cubin) if counted else {}
    return records(unit.architecture, done.stdout, cubin.resources(unit.cubin), tables)


def records(
    architecture: str, disassembly: str, resources: Mapping[str, cubin.Resources], tables: Mapping[str, bytes]
) -> list[Measured]:
    """Of one source on one architecture; an error where the two reports do not tell of the same kernels."""
    code = {kernel.symbol: kernel for kernel in sass.parse(disassembly)}
    if code.keys() != resources.keys():
        raise ValueError(f"{architecture}: the object file and nvdisasm tell of different kernels")
    found = []
    for symbol, name in kernels.names(code).items():
        taken = resources[symbol]
        found.append(
            Measured(
                name, architecture, taken,
                memory.accesses(code[symbol], kernels.access(name), kernels.time_loop(name)),
                arithmetic.fused(code[symbol]) if name.startswith("forward") else [],
                code=cost.Code(code[symbol], tables.get(symbol, b""), taken.threads)
                if architecture == cost.ARCHITECTURE else None,
            )
        )  # fmt: skip
    return found


def occupy(measured: Iterable[Measured], toolkit: Path, folder: Path) -> None:
    """Fill in how much of the card of its architecture each kernel keeps occupied."""
    measured = list(measured)
    program = occupancy.build(toolkit, folder)
    for card in occupancy.CARDS:
        here = [m for m in measured if m.architecture == card.architecture]
        asked = [occupancy.Block(m.resources.threads, m.resources.registers, m.resources.shared) for m in here]
        for m, held in zip(here, occupancy.blocks(program, card, asked), strict=True):
            m.share = held * m.resources.threads / card.threads
