"""What an object file of machine code says of its kernels: registers, stack, shared memory, threads of a block."""

import struct
from pathlib import Path
from typing import NamedTuple

# Attributes in the sections .nv.info, as "cuobjdump -elf" names them.
_MAX_THREADS, _FRAME_SIZE, _REGISTERS = 0x05, 0x11, 0x2F
_SIZED = 0x04  # the format of an attribute with a value of its own size behind it
_RESERVED = 1024  # bytes of shared memory that the driver keeps of a block, counted in where the section below is
_RESERVED_SECTION = ".nv.shared.reserved.0"


class Resources(NamedTuple):
    registers: int  # per thread
    stack: int  # bytes per thread
    shared: int  # bytes per block
    threads: int  # of a block: its launch bound, which is the size that it is launched with


class _Section(NamedTuple):
    size: int
    data: bytes  # empty where the file has none of it


def sections(cubin: Path) -> dict[str, _Section]:
    """By name. In the order of the file, so that places in it are numbers of sections."""
    data = cubin.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, number, names = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, start + k * size) for k in range(number)]
    found = {}
    for name, kind, _, _, at, length, *_ in heads:
        no_bits = kind == 8
        found[_text(data, heads[names][4] + name)] = _Section(length, b"" if no_bits else data[at : at + length])
    return found


def resources(cubin: Path) -> dict[str, Resources]:
    """By symbol of the kernel."""
    of = sections(cubin)
    symbols, names = of[".symtab"].data, of[".strtab"].data
    by_number = [
        _text(names, struct.unpack_from("<I", symbols, at)[0]) for at in range(0, len(symbols), 24)
    ]  # fmt: skip
    numbers: dict[tuple[int, str], int] = {}
    for attribute, value in _attributes(of[".nv.info"].data):
        if attribute in (_FRAME_SIZE, _REGISTERS):
            symbol, number = struct.unpack("<II", value)
            numbers[attribute, by_number[symbol]] = number
    reserved = _RESERVED if _RESERVED_SECTION in of else 0
    found = {}
    for section in of:
        symbol = section.removeprefix(".nv.info.")
        if symbol == section:
            continue
        bounds = [
            struct.unpack("<III", value)[0] for kind, value in _attributes(of[section].data) if kind == _MAX_THREADS
        ]
        if not bounds:
            raise ValueError(f"{symbol} has no __launch_bounds__")
        shared = of.get(f".nv.shared.{symbol}")
        found[symbol] = Resources(
            numbers[_REGISTERS, symbol], numbers[_FRAME_SIZE, symbol],
            shared.size - reserved if shared is not None else 0, bounds[0],
        )  # fmt: skip
    return found


def jump_tables(cubin: Path) -> dict[str, bytes]:
    """By symbol: the second bank of constants."""
    prefix = ".nv.constant2."
    return {name.removeprefix(prefix): s.data for name, s in sections(cubin).items() if name.startswith(prefix)}


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Kind and value of those that have a value of their own size; the others are of no interest here."""
    found, at = [], 0
    while at < len(data):
        form, kind, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _SIZED:
            found.append((kind, data[at : at + size]))
            at += size
    return found


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
