"""How many of its threads a card can hold at once: the occupancy of the CUDA C++ Programming Guide."""

from typing import NamedTuple

WARP = 32  # threads
_REGISTERS_AT_ONCE = 256  # that a warp is given at once
_PARTS = 4  # of a multiprocessor, each with a quarter of the registers
_SHARED_AT_ONCE = 128  # bytes


class Card(NamedTuple):
    """Limits of one multiprocessor: the guide 13.0, technical specifications per compute capability."""

    name: str
    multiprocessors: int
    threads: int
    blocks: int
    shared: int  # KiB
    registers: int = 65536


CARDS = {  # by architecture
    "7.5": Card("T4", 40, 1024, 16, 64),
    "8.0": Card("A100", 108, 2048, 32, 164),
    "9.0": Card("H100", 132, 2048, 32, 228),
    "10.0": Card("B200", 148, 2048, 32, 228),
    "12.0": Card("RTX 5090", 170, 1536, 24, 100),
}


def reserved(architecture: str) -> int:
    """Bytes of shared memory that the driver keeps of each block."""
    return 0 if architecture == "7.5" else 1024


def blocks(architecture: str, threads: int, registers: int, shared: int) -> int:
    """Blocks that one multiprocessor holds: of so many threads, registers of a thread, and bytes of shared memory."""
    card, warps = CARDS[architecture], -(-threads // WARP)
    registers_of_warp = -(-registers * WARP // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = card.registers // _PARTS // registers_of_warp * _PARTS // warps
    taken = -(-(shared + reserved(architecture)) // _SHARED_AT_ONCE) * _SHARED_AT_ONCE
    by_shared = card.shared * 1024 // taken if taken else card.blocks
    return min(card.blocks, card.threads // (warps * WARP), by_registers, by_shared)
