"""How many of its threads a card can hold at once: the occupancy of the CUDA C++ Programming Guide."""

from typing import NamedTuple

WARP = 32  # threads
_REGISTERS_AT_ONCE = 256  # that a warp is given at once
_PARTS = 4  # of a multiprocessor, each with a quarter of the registers
_SHARED_AT_ONCE = 128  # bytes


class Card(NamedTuple):
    """Limits of one multiprocessor: the guide 13.0, technical specifications per compute capability."""

    name: str
    architecture: str  # of setup.py
    threads: int
    blocks: int
    shared: int  # KiB
    registers: int = 65536


CARDS = (
    Card("T4", "7.5", 1024, 16, 64),
    Card("A100", "8.0", 2048, 32, 164),
    Card("H100", "9.0", 2048, 32, 228),
    Card("B200", "10.0", 2048, 32, 228),
    Card("RTX 5090", "12.0", 1536, 24, 100),
)


def reserved(architecture: str) -> int:
    """Bytes of shared memory that the driver keeps of each block."""
    return 1024 if int(architecture.split(".")[0]) >= 8 else 0


def blocks(card: Card, threads: int, registers: int, shared: int) -> int:
    """Blocks that one multiprocessor holds: of so many threads, registers of a thread, and bytes of shared memory."""
    warps = -(-threads // WARP)
    registers_of_warp = -(-registers * WARP // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = card.registers // _PARTS // registers_of_warp * _PARTS // warps
    taken = -(-(shared + reserved(card.architecture)) // _SHARED_AT_ONCE) * _SHARED_AT_ONCE
    by_shared = card.shared * 1024 // taken if taken else card.blocks
    return min(card.blocks, card.threads // (warps * WARP), by_registers, by_shared)
