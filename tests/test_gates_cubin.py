"""What is read out of an object file of machine code."""

import struct
from pathlib import Path

import pytest

from tools.gates import cubin
from tools.gates.cubin import Resources


def attribute(kind: int, *numbers: int) -> bytes:
    return struct.pack(f"<BBH{len(numbers)}I", 0x04, kind, 4 * len(numbers), *numbers)


def object_file(sections: dict[str, bytes | int]) -> bytes:
    """An ELF file of these sections; of one without contents, its size."""
    names = [".shstrtab", *sections]
    table = b"".join(name.encode() + b"\0" for name in names)
    head, contents, rows = 64, b"", []
    for name, content in {".shstrtab": table, **sections}.items():
        data = content if isinstance(content, bytes) else b""
        size = content if isinstance(content, int) else len(content)
        kind = 8 if isinstance(content, int) else 1
        at = table.index(name.encode() + b"\0")
        rows.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, head + len(contents), size, 0, 0, 1, 0))
        contents += data
    start = struct.pack("<40xQ10xHHH", head + len(contents), 64, len(rows), 0)
    return start + contents + b"".join(rows)


@pytest.fixture
def sections() -> dict[str, bytes | int]:
    """Of two kernels, "a" and "b", and a subroutine."""
    symbols = ["", "a", "b", "$division"]
    names = b"".join(name.encode() + b"\0" for name in symbols)
    places = [0, 1, 3, 5]
    numbers = [attribute(0x11, 3, 0), attribute(0x11, 1, 16), attribute(0x11, 2, 0), attribute(0x2F, 1, 56)]
    # A form whose value lies in the two bytes where others have their size.
    numbers += [struct.pack("<BBH", 0x03, 0x1B, 255), attribute(0x2F, 2, 220)]
    return {
        ".strtab": names,
        ".symtab": b"".join(struct.pack("<I20x", place) for place in places),
        ".nv.info": b"".join(numbers),
        ".nv.info.a": attribute(0x05, 256, 1, 1),
        ".nv.info.b": attribute(0x05, 128, 1, 1),
        ".nv.shared.b": 33792,
        ".nv.constant2.a": b"a table",
    }


def test_registers_stack_shared_memory_and_threads_are_read(sections: dict[str, bytes | int], tmp_path: Path) -> None:
    file = tmp_path / "a.cubin"
    file.write_bytes(object_file(sections))
    assert cubin.resources(file) == {"a": Resources(56, 16, 0, 256), "b": Resources(220, 0, 33792, 128)}
    file.write_bytes(object_file({**sections, ".nv.shared.reserved.0": 0}))
    assert cubin.resources(file)["b"].shared == 32768  # without what the driver keeps
    assert cubin.jump_tables(file) == {"a": b"a table"}


def test_a_kernel_without_launch_bounds_is_an_error(sections: dict[str, bytes | int], tmp_path: Path) -> None:
    file = tmp_path / "a.cubin"
    file.write_bytes(object_file({**sections, ".nv.info.a": b""}))
    with pytest.raises(ValueError, match="a has no __launch_bounds__"):
        cubin.resources(file)
