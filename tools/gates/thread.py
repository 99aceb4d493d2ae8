"""Runs one thread of a kernel through its machine code, and counts the instructions that it issues.

Only integers are computed: the parameters of the launch, addresses and the numbers of loops. What comes from memory or
is a floating-point number is unknown, unless it is a parameter that is compared. No branch of a plain kernel may depend
on it, so that every thread goes this way.
"""

import re
import struct
from collections.abc import Callable
from operator import eq, ge, gt, le, lt, ne
from typing import Protocol

from .sass import Kernel

_PARAMETERS = 0x210  # where those of a kernel begin in the constant bank, on 9.0
_MASK = 0xFFFFFFFF
_MOST = 2_000_000  # instructions
_COMPARES: dict[str, Callable[[float, float], bool]] = {"LT": lt, "LE": le, "GT": gt, "GE": ge, "EQ": eq, "NE": ne}
_REGISTER = re.compile(r"U?R(Z|\d+)$")
_PREDICATE = re.compile(r"!?U?P(T|\d)$")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]$")
_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?$")
_COMMA = re.compile(r",\s*(?![^\[]*\])")
# What sets no register, and what other threads decide: none of them says that the block is the last one.
_NOTHING = {
    "STG", "ST", "STS", "STL", "BAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "BSSY", "BSYNC", "NOP", "WARPSYNC",
    "BREAK",
}  # fmt: skip
_FALSE = {"FCHK", "B2R"}


class UnknownError(Exception):
    """A branch depends on a number that is not known, or on an instruction that is not."""


class Launch(Protocol):
    """What a kernel was launched with."""

    @property
    def blocks(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def parameters(self) -> bytes: ...


def issued(kernel: Kernel, launch: Launch, thread: int = 0) -> int:
    """The instructions that a thread of the first block issues; those whose predicate is false are among them."""
    return _Thread(kernel, launch.parameters, launch.blocks, launch.threads, thread).run()


class _Thread:
    def __init__(self, kernel: Kernel, parameters: bytes, blocks: int, threads: int, thread: int) -> None:
        self.kernel, self.thread = kernel, thread
        sizes = struct.pack("<6I", threads, 1, 1, blocks, 1, 1)
        self.bank = sizes.ljust(_PARAMETERS, b"\0") + parameters + bytes(64)
        self.registers: dict[str, int | None] = {}
        self.predicates: dict[str, bool | None] = {}

    def run(self) -> int:
        at, count = 0, 0
        while True:
            opcode, operands, guard = self.kernel.instructions[at]
            count += 1
            if count > _MOST:
                raise UnknownError(f"{self.kernel.symbol}: does not end")
            holds = True if not guard else self.truth(guard)
            name, *modifiers = opcode.split(".")
            of = _COMMA.split(operands.replace("[RZ]", "[0x0]")) if operands else []
            at += 1
            if name in ("BRA", "EXIT", "CALL", "BRX", "RET"):
                if name == "BRA" and _PREDICATE.match(of[0]):
                    also = self.truth(of[0])
                    holds = False if holds is False or also is False else None if None in (holds, also) else True
                # A table only tells the dtype of a number that is loaded, and all ways from it are about as long.
                target = re.search(r"`\((\.L[^)]*)\)|BRANCH_TARGETS (\.L\w+)", operands)
                if holds is None or (holds and name != "EXIT" and target is None):
                    raise UnknownError(f"{self.kernel.symbol}: {guard} {opcode} {operands}")
                if holds and name == "EXIT":
                    return count
                if holds and target is not None:
                    at = self.kernel.labels[target[1] or target[2]]
            elif holds is not False and name not in _NOTHING:
                self.execute(name, modifiers, of, known=holds is True)

    # ---- operands

    def truth(self, text: str) -> bool | None:
        name = text.lstrip("@!")
        value = True if name in ("PT", "UPT") else self.predicates.get(name)
        return value if value is None or "!" not in text else not value

    def value(self, text: str) -> int | None:
        """An operand as an unsigned number; of a negative one what is added, which is 2^32 for -0."""
        text = text.removesuffix(".reuse").removesuffix(".64")
        if text[0] in "-~":
            inner = self.value(text[1:])
            return None if inner is None else (_MASK + 1 - inner if text[0] == "-" else _MASK - inner)
        if found := _CONSTANT.match(text):
            return struct.unpack_from("<I", self.bank, int(found[1], 16))[0]  # type: ignore[no-any-return]
        if _REGISTER.match(text):
            return 0 if text.endswith("Z") else self.registers.get(text)
        return int(text, 0) & _MASK if re.match(r"(0x[0-9a-f]+|\d+)$", text) else None

    def number(self, text: str) -> float | None:
        """An operand as a floating-point number."""
        if _NUMBER.match(text):
            return float(text)
        word = self.value(text) if _CONSTANT.match(text) or _REGISTER.match(text.removesuffix(".reuse")) else None
        return None if word is None else struct.unpack("<f", struct.pack("<I", word & _MASK))[0]  # type: ignore[no-any-return]

    def pair(self, text: str) -> int | None:
        text = text.removesuffix(".reuse").removesuffix(".64")
        low, high = self.value(text), self.value(_next(text))
        return None if low is None or high is None else low | high << 32

    def set(self, name: str, *words: int | None) -> None:
        for word in words:
            if not name.endswith("Z"):
                self.registers[name] = None if word is None else word & _MASK
            name = _next(name)

    # ---- instructions

    def execute(self, name: str, modifiers: list[str], of: list[str], known: bool) -> None:
        name = name[1:] if name[0] == "U" and name not in ("UNPACK",) else name
        targets = [of[0]] if of else []
        while (
            len(targets) < len(of) and _PREDICATE.match(of[len(targets)]) and (len(targets) < 2 or name in ("IADD3",))
        ):
            targets.append(of[len(targets)])
        method = getattr(self, name.lower(), None)
        if known and method is not None:
            method(modifiers, of)
            return
        for target in targets:
            if _PREDICATE.match(target):
                self.predicates[target] = False if name in _FALSE else None
            else:
                wide = {"64": 2, "128": 4, "WIDE": 2}
                self.set(target, *[None] * max([wide.get(m, 1) for m in modifiers], default=1))

    def mov(self, modifiers: list[str], of: list[str]) -> None:
        self.set(of[0], self.value(of[1]))

    r2ur = mov

    def p2r(self, modifiers: list[str], of: list[str]) -> None:
        """Predicates as the bits of a register."""
        mask = self.value(of[3]) or 0
        bits = [self.truth(f"P{i}") if mask >> i & 1 else False for i in range(7)]
        self.set(of[0], None if None in bits else sum(int(bool(bit)) << i for i, bit in enumerate(bits)))

    def hfma2(self, modifiers: list[str], of: list[str]) -> None:
        """A constant, which the compiler writes as two halves beside a product of zeros."""
        constant = of[1:3] == ["-RZ", "RZ"] and all(_NUMBER.match(text) for text in of[3:5])
        halves = struct.pack("<2e", float(of[4]), float(of[3])) if constant else b""
        self.set(of[0], struct.unpack("<I", halves)[0] if constant else None)

    def s2r(self, modifiers: list[str], of: list[str]) -> None:
        self.set(of[0], self.thread if of[1] == "SR_TID.X" else 0)

    s2ur = s2r

    def cs2r(self, modifiers: list[str], of: list[str]) -> None:
        self.set(of[0], *[0 if of[1] == "SRZ" else None] * (1 if "32" in modifiers else 2))

    def ldc(self, modifiers: list[str], of: list[str]) -> None:
        if not _CONSTANT.match(of[1]):
            self.set(of[0], *[None] * (2 if "64" in modifiers else 1))
        elif "64" in modifiers:
            self.set(of[0], self.value(of[1]), self.value(_next(of[1])))
        else:
            value = self.value(of[1])
            self.set(of[0], value if value is None or "U8" not in modifiers else value & 0xFF)

    def sel(self, modifiers: list[str], of: list[str]) -> None:
        which = self.truth(of[3])
        self.set(of[0], None if which is None else self.value(of[1] if which else of[2]))

    def viadd(self, modifiers: list[str], of: list[str]) -> None:
        self.set(of[0], _sum(self.value(of[1]), self.value(of[2])))

    def vimnmx(self, modifiers: list[str], of: list[str]) -> None:
        a, b, least = self.value(of[1]), self.value(of[2]), self.truth(of[3])
        if a is None or b is None or least is None:
            return self.set(of[0], None)
        a, b = (a, b) if "U32" in modifiers else (_signed(a), _signed(b))
        found = min(a, b) if least else max(a, b)
        return self.set(of[0], max(found, 0) if "RELU" in modifiers else found)

    def viaddmnmx(self, modifiers: list[str], of: list[str]) -> None:
        total = _sum(self.value(of[1]), self.value(of[2]))
        self.registers["sum"] = None if total is None else total & _MASK
        self.vimnmx(modifiers, [of[0], "sum", *of[3:]])

    def iadd3(self, modifiers: list[str], of: list[str]) -> None:
        carries = [text for text in of[1:3] if _PREDICATE.match(text)]
        rest = of[1 + len(carries) :]
        into = [self.truth(text) for text in rest[3:]] if "X" in modifiers else []
        total = _sum(*map(self.value, rest[:3]), *(None if bit is None else int(bit) for bit in into))
        self.set(of[0], total)
        for i, name in enumerate(carries):
            self.predicates[name] = None if total is None else total >> 32 > i

    def imad(self, modifiers: list[str], of: list[str]) -> None:
        if "MOV" in modifiers:
            return self.set(of[0], self.value(of[3]))
        wide = "WIDE" in modifiers
        carries = 1 if _PREDICATE.match(of[1]) else 0
        rest = of[1 + carries :]
        a, b, c = self.value(rest[0]), self.value(rest[1]), (self.pair if wide else self.value)(rest[2])
        bit = self.truth(rest[3]) if "X" in modifiers else False
        if carries:
            self.predicates[of[1]] = None
        if a is None or b is None or c is None or bit is None or "HI" in modifiers:
            return self.set(of[0], *[None] * (2 if wide else 1))
        if wide and "U32" not in modifiers:
            a, b = _signed(a), _signed(b)
        total = a * b + c + int(bit)
        return self.set(of[0], *((total, total >> 32) if wide else (total,)))

    def lea(self, modifiers: list[str], of: list[str]) -> None:
        carries = [text for text in of[1:2] if _PREDICATE.match(text)]
        rest = of[1 + len(carries) :]
        a, b, c, bit = self.value(rest[0]), self.value(rest[1]), 0, False
        if "HI" in modifiers:
            c = self.value(rest.pop(2)) if "SX32" not in modifiers else None if a is None else _MASK * (a >> 31)
            bit = self.truth(rest[3]) if "X" in modifiers else False
        by = self.value(rest[2])
        total = None
        if a is not None and b is not None and c is not None and by is not None and bit is not None:
            shifted = (c << 32 | a) << by
            total = ((shifted >> 32 if "HI" in modifiers else shifted) & _MASK) + b + int(bit)
        for name in carries:
            self.predicates[name] = None if total is None else total >> 32 > 0
        self.set(of[0], total)

    def shf(self, modifiers: list[str], of: list[str]) -> None:
        a, by, c = map(self.value, of[1:4])
        if a is None or by is None or c is None:
            return self.set(of[0], None)
        high = "HI" in modifiers
        if "L" in modifiers:
            return self.set(of[0], (c << 32 | a) << by >> 32 if high else a << by)
        of_both = c << 32 | a
        if "S32" in modifiers or "S64" in modifiers:
            of_both -= (c >> 31) << 64
        return self.set(of[0], of_both >> by >> (32 if high else 0))

    def lop3(self, modifiers: list[str], of: list[str]) -> None:
        first = 1 if _PREDICATE.match(of[0]) else 0
        numbers, table = list(map(self.value, of[first + 1 : first + 4])), self.value(of[first + 4])
        if None in numbers or table is None:
            result = None
        else:
            a, b, c = numbers
            each = [(a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8)]  # type: ignore[operator]
            result = sum(bits & _MASK for i, bits in enumerate(each) if table >> i & 1)
        self.set(of[first], result)
        if first:
            self.predicates[of[0]] = None if result is None else result != 0

    def plop3(self, modifiers: list[str], of: list[str]) -> None:
        truths, table = [self.truth(text) for text in of[2:5]], self.value(of[5])
        known = None not in truths and table is not None
        at = sum(int(bool(bit)) << i for bit, i in zip(truths, (2, 1, 0), strict=True))
        self.predicates[of[0]] = bool(table >> at & 1) if known else None  # type: ignore[operator]

    def fsetp(self, modifiers: list[str], of: list[str]) -> None:
        """Of numbers that the host knows."""
        a, b = map(self.number, of[2:4])
        known = a is not None and b is not None and of[4:] == ["PT"] and of[1] == "PT" and modifiers[0] in _COMPARES
        self.predicates[of[0]] = _COMPARES[modifiers[0]](a, b) if known else None  # type: ignore[arg-type]

    def isetp(self, modifiers: list[str], of: list[str]) -> None:
        a, b, other = self.value(of[2]), self.value(of[3]), self.truth(of[4])
        result: bool | None = None
        if a is not None and b is not None:
            a, b = a & _MASK, b & _MASK
            if "U32" not in modifiers:
                a, b = _signed(a), _signed(b)
            result = _COMPARES[modifiers[0]](a, b)
            if "EX" in modifiers:
                low = self.truth(of[5])
                strict = {"LE": lt, "GE": gt}.get(modifiers[0], _COMPARES[modifiers[0]])
                if modifiers[0] == "NE":
                    result = True if a != b else low
                elif a == b:
                    result = low
                else:
                    result = strict(a, b)
        ends = [result, other]
        if "AND" in modifiers:
            result = False if False in ends else None if None in ends else True
        elif "OR" in modifiers:
            result = True if True in ends else None if None in ends else False
        else:
            raise UnknownError(f"ISETP {modifiers}")
        self.predicates[of[0]] = result
        if of[1] not in ("PT", "UPT"):
            self.predicates[of[1]] = None


def _next(name: str) -> str:
    """The register, or the word of the constant bank, that follows."""
    if found := _CONSTANT.match(name):
        return f"c[0x0][{int(found[1], 16) + 4:#x}]"
    found = re.match(r"(U?R)(\d+)$", name)
    return name if found is None else f"{found[1]}{int(found[2]) + 1}"


def _sum(*numbers: int | None) -> int | None:
    return None if None in numbers else sum(numbers)  # type: ignore[arg-type]


def _signed(word: int) -> int:
    return (word & _MASK) - ((word & 0x80000000) << 1)
