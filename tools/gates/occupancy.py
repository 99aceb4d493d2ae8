"""How many of its threads a card can hold at once, from registers, shared memory and block size."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import setup


class Card(NamedTuple):
    """Limits of one multiprocessor: the CUDA C++ Programming Guide 13.0, technical specifications per capability."""

    name: str
    architecture: str  # of setup.py
    threads: int
    registers: int
    shared: int  # KiB
    shared_of_block: int  # KiB, the most


CARDS = (
    Card("T4", "7.5", 1024, 65536, 64, 64),
    Card("A100", "8.0", 2048, 65536, 164, 163),
    Card("H100", "9.0", 2048, 65536, 228, 227),
    Card("B200", "10.0", 2048, 65536, 228, 227),
    Card("RTX 5090", "12.0", 1536, 65536, 100, 99),
)


class Block(NamedTuple):
    """What a block of threads of a kernel takes."""

    threads: int
    registers: int  # per thread
    shared: int  # bytes


def build(toolkit: Path, folder: Path) -> Path:
    """The calculator in the toolkit's headers, compiled for this machine's processor."""
    program = folder / "occupancy"
    source = Path(__file__).parent / "occupancy.cpp"
    command = [*shlex.split(setup.compiler()), "-std=c++20", "-isystem", str(toolkit / "include"), str(source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


def blocks(program: Path, card: Card, asked: Sequence[Block]) -> list[int]:
    """Blocks of each kind that one multiprocessor of the card holds; 0 where it can't run one."""
    limits = f"{card.architecture.replace('.', ' ')} {card.threads} {card.registers}"
    limits += f" {card.shared * 1024} {card.shared_of_block * 1024}"
    lines = "".join(f"{limits} {block.threads} {block.registers} {block.shared}\n" for block in asked)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]
