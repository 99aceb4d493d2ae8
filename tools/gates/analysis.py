"""From what the compiler made of the sources to one record for each kernel and architecture."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from . import arithmetic, budgets, kernels, memory, occupancy, sass
from .compile import Unit

_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_THREADS = re.compile(r"^\.(?:visible \.)?entry (\w+)\(|^\.maxntid (\d+)", re.MULTILINE)


class Resources(NamedTuple):
    registers: int  # per thread
    stack: int  # bytes per thread
    shared: int  # bytes per block


@dataclass
class Measured:
    """One kernel on one architecture."""

    name: str
    architecture: str
    resources: Resources
    accesses: memory.Accesses
    looped: int  # instructions in loops
    roundings: Sequence[str]  # what rounds otherwise than PyTorch's operators, in machine code

    @property
    def taken(self) -> budgets.Taken:
        narrow = len(self.accesses.narrow) if kernels.width(self.name) > 1 else 0
        of = self.resources
        return budgets.Taken(of.registers, self.accesses.spilled, of.stack, of.shared, narrow, self.looped)

    @property
    def per_neuron_step(self) -> float | None:
        """Instructions of the loop over time that a thread issues, where every call goes the same way through it."""
        steps = kernels.steps(self.name)
        return None if steps is None else self.looped / steps / kernels.width(self.name)

    def occupied(self, threads: int) -> float:
        """The share of a multiprocessor's threads that blocks of so many threads keep occupied."""
        return self._held(threads) * threads / occupancy.CARDS[self.architecture].threads

    def wave(self, threads: int) -> int:
        """The neurons that a card runs at once, in blocks of so many threads: a few more would run alone at the end."""
        neurons = threads * kernels.width(self.name)
        return occupancy.CARDS[self.architecture].multiprocessors * self._held(threads) * neurons

    def _held(self, threads: int) -> int:
        """Blocks of so many threads that a multiprocessor holds."""
        return occupancy.blocks(self.architecture, threads, self.resources.registers, self.resources.shared)


def analyse(units: Iterable[Unit], nvdisasm: str, cuobjdump: str) -> list[Measured]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [found for of_unit in pool.map(partial(_analyse, nvdisasm, cuobjdump), units) for found in of_unit]


def code(units: Iterable[Unit], nvdisasm: str) -> list[sass.Kernel]:
    """The machine code of all kernels of some units."""
    commands = [[nvdisasm, "-c", str(unit.cubin)] for unit in units]
    texts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return [kernel for text in texts for kernel in sass.parse(text)]


def _analyse(nvdisasm: str, cuobjdump: str, unit: Unit) -> list[Measured]:
    file = str(unit.cubin)
    commands = [nvdisasm, "-c", file], [cuobjdump, "-res-usage", file]
    texts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return records(unit.architecture, texts[0], resources(unit.architecture, texts[1]))


def resources(architecture: str, usage: str) -> dict[str, Resources]:
    """By symbol of the kernel, from what ``cuobjdump -res-usage`` printed."""
    # From 9.0 on, the compiler counts in what the driver keeps of each block that has shared memory.
    reserved = occupancy.reserved(architecture) if int(architecture.split(".")[0]) >= 9 else 0
    return {
        symbol: Resources(int(registers), int(stack), max(int(shared) - reserved, 0))
        for symbol, registers, stack, shared in _USAGE.findall(usage)
    }


def records(architecture: str, disassembly: str, resources: Mapping[str, Resources]) -> list[Measured]:
    """The kernels of one source on one architecture; an error where the two reports do not tell of the same ones."""
    code = {kernel.symbol: kernel for kernel in sass.parse(disassembly)}
    if code.keys() != resources.keys():
        raise ValueError(f"{architecture}: cuobjdump and nvdisasm tell of different kernels")
    found = []
    for symbol, name in kernels.names(code).items():
        kernel, has_loop = code[symbol], kernels.has_loop(name)
        looped = kernel.longest_loop() if has_loop else set(range(len(kernel.instructions)))
        accesses = memory.accesses(kernel, looped, kernels.access(name), once=not has_loop)
        divides = any(neuron in name for neuron in arithmetic.DIVIDING) and "_plain<" not in name
        roundings = arithmetic.fused(kernel) if name.startswith("forward") and not divides else []
        found.append(Measured(name, architecture, resources[symbol], accesses, len(looped), roundings))
    return found


def threads(ptx: str) -> dict[str, int]:
    """Threads of a block by symbol of the kernel: its launch bound, which is the size that it is launched with."""
    found = _THREADS.findall(ptx)
    return {symbol: int(bound) for (symbol, _), (_, bound) in zip(found[::2], found[1::2], strict=True)}
