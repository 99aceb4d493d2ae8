"""Registers, predicates and constants of one thread, and the instructions that compute with integers."""

import re
import struct
from collections.abc import Callable, Mapping, Sequence

MASK = (1 << 32) - 1
_REGISTER = re.compile(r"(U?R)(\d+|Z)(?:\.\w+)?$")
_PREDICATE = re.compile(r"!?U?P[\dT]$")
_CONSTANT = re.compile(r"c\[0x([0-9a-f]+)\]\[(?:(U?R\w+)\+?)?(?:0x([0-9a-f]+))?\]$")
_NUMBER = re.compile(r"-?(0x[0-9a-f]+|\d+)$")
Value = int | None  # None: unknown


def split(text: str) -> list[str]:
    """Operands at the commas outside of brackets."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found


def signed(value: int) -> int:
    """Of 32 bits."""
    return value - (1 << 32) if value >> 31 & 1 else value


class Operands:
    """The state of one thread. Registers start as 0: whole words of them collect bits before any is read."""

    def __init__(self, constants: Mapping[int, bytes], special: Mapping[str, int]) -> None:
        self._constants = constants
        self._special = special
        self._registers: dict[str, Value] = {}
        self._predicates: dict[str, bool | None] = {}
        self._rules: dict[str, Callable[[list[str], list[str]], None]] = {
            "MOV": self._move, "UMOV": self._move, "LDC": self._constant, "ULDC": self._constant, "R2UR": self._move,
            "S2R": self._read_special, "S2UR": self._read_special, "CS2R": self._clear, "IMAD": self._multiply,
            "UIMAD": self._multiply, "IADD3": self._add, "UIADD3": self._add, "VIADD": self._add,
            "LEA": self._shift_add,
            "ULEA": self._shift_add, "SHF": self._shift, "USHF": self._shift, "LOP3": self._logic, "ULOP3": self._logic,
            "PLOP3": self._logic_of_predicates, "UPLOP3": self._logic_of_predicates, "ISETP": self._compare,
            "UISETP": self._compare, "SEL": self._select, "USEL": self._select, "VIMNMX": self._least,
            "R2P": self._to_predicates,
            "P2R": self._from_predicates, "PRMT": self._permute, "UPRMT": self._permute,
            "HFMA2": self._constant_in_halves,
        }  # fmt: skip

    # ---- reading and writing

    def value(self, text: str, bits: int = 32) -> Value:
        text = text.replace(".reuse", "")
        if number := _NUMBER.match(text):
            found: Value = int(text, 16) if "0x" in number[1] else int(text)
            return None if found is None else found & ((1 << bits) - 1)
        negative, inverted = text.startswith("-"), text.startswith("~")
        text = text.lstrip("-~")
        if register := _REGISTER.match(text):
            found = self._register(register[1], register[2], bits)
        elif constant := _CONSTANT.match(text):
            base = self.value(constant[2]) if constant[2] else 0
            bank = self._constants.get(int(constant[1], 16))
            if base is None or bank is None:
                return None
            at = base + int(constant[3] or "0", 16)
            found = int.from_bytes(bank[at : at + bits // 8], "little")
        else:
            return None
        if found is None:
            return None
        return (-found if negative else ~found if inverted else found) & ((1 << bits) - 1)

    def _register(self, kind: str, number: str, bits: int) -> Value:
        if number == "Z":
            return 0
        words = [self._registers.get(f"{kind}{int(number) + k}", 0) for k in range(bits // 32)]
        total = 0
        for k, word in enumerate(words):
            if word is None:
                return None
            total |= word << 32 * k
        return total

    def predicate(self, text: str) -> bool | None:
        negative, name = text.startswith("!"), text.lstrip("!")
        found = True if name in ("PT", "UPT") else self._predicates.get(name, False)
        return None if found is None else found != negative

    def _set(self, name: str, value: Value, bits: int = 32) -> None:
        register = _REGISTER.match(name)
        if register is None or register[2] == "Z":
            return
        for k in range(bits // 32):
            key = f"{register[1]}{int(register[2]) + k}"
            self._registers[key] = None if value is None else value >> 32 * k & MASK

    def _set_predicate(self, name: str, value: bool | None) -> None:
        if name not in ("PT", "UPT"):
            self._predicates[name] = value

    def forget(self, operands: Sequence[str], opcode: str) -> None:
        """What an instruction wrote is unknown."""
        wide = opcode.startswith(("D", "CS2R", "F2F.F64", "I2F.F64")) or ".WIDE" in opcode or ".64" in opcode
        for k, operand in enumerate(operands[:3]):
            if _PREDICATE.match(operand):
                self._set_predicate(operand.lstrip("!"), None)
            elif k == 0:
                self._set(operand, None, 128 if ".128" in opcode else 64 if wide else 32)
            else:
                break

    def execute(self, name: str, modifiers: list[str], operands: list[str], opcode: str) -> None:
        rule = self._rules.get(name)
        if rule is None:
            self.forget(operands, opcode)
        else:
            rule(modifiers, operands)

    # ---- instructions

    def _move(self, _: list[str], o: list[str]) -> None:
        self._set(o[0], self.value(o[1]))

    def _constant(self, modifiers: list[str], o: list[str]) -> None:
        if "U8" in modifiers:
            whole = self.value(o[1], 8)
            self._set(o[0], whole)
        else:
            bits = 64 if "64" in modifiers else 32
            self._set(o[0], self.value(o[1], bits), bits)

    def _read_special(self, _: list[str], o: list[str]) -> None:
        self._set(o[0], self._special.get(o[1]))

    def _clear(self, _: list[str], o: list[str]) -> None:
        self._set(o[0], 0 if o[1] == "SRZ" else None, 64)

    def _multiply(self, modifiers: list[str], o: list[str]) -> None:
        words = [word for word in o if not _PREDICATE.match(word)]
        predicates = [word for word in o if _PREDICATE.match(word)]
        if "HI" in modifiers:
            self.forget(o, "")
            return
        wide = "WIDE" in modifiers
        x, y, z = self.value(words[1]), self.value(words[2]), self.value(words[3], 64 if wide else 32)
        carry = self.predicate(predicates[-1]) if "X" in modifiers and predicates else False
        if x is None or y is None or z is None or carry is None:
            known_zero = 0 in (x, y) and z is not None and carry is not None
            total = z + bool(carry) if known_zero and z is not None else None
        else:
            if wide and "U32" not in modifiers:
                x, y = signed(x), signed(y)
            total = x * y + z + carry
        self._set(words[0], total, 64 if wide else 32)

    def _add(self, modifiers: list[str], o: list[str]) -> None:
        outputs, words, inputs = [], [], []
        for operand in o[1:]:
            if _PREDICATE.match(operand):
                (inputs if words else outputs).append(operand)
            else:
                words.append(operand)
        values = [self.value(word) for word in words]
        carries = [self.predicate(p) for p in inputs] if "X" in modifiers else []
        if None in values or None in carries:
            self._set(o[0], None)
            for output in outputs:
                self._set_predicate(output, None)
            return
        total = sum(v for v in values if v is not None) + sum(map(bool, carries))
        # -x is ~x + 1, so that -0 carries.
        total += sum(
            1 << 32 for w, v in zip(words, values, strict=True) if w.startswith("-") and v == 0 and w[1] in "RUc"
        )
        self._set(o[0], total)
        for output in outputs:
            self._set_predicate(output, total >> 32 > 0)

    def _shift_add(self, modifiers: list[str], o: list[str]) -> None:
        words = [word for word in o[1:] if not _PREDICATE.match(word)]
        predicates = [word for word in o[1:] if _PREDICATE.match(word)]
        outputs = predicates if "X" not in modifiers else []
        carry = self.predicate(predicates[-1]) if "X" in modifiers and predicates else False
        low, addend = self.value(words[0]), self.value(words[1])
        total: Value = None
        if "HI" in modifiers:
            if "SX32" in modifiers:
                high: Value = None if low is None else (MASK if low >> 31 else 0)
                by = int(words[2], 16)
            else:
                high, by = self.value(words[2]), int(words[3], 16) if len(words) > 3 else 0
            if None not in (low, high, addend, carry):
                total = (((high << 32 | low) << by) >> 32 & MASK) + addend + carry  # type: ignore[operator]
        else:
            by = int(words[2], 16) if len(words) > 2 else 0
            if None not in (low, addend, carry):
                total = ((low << by) & MASK) + addend + carry  # type: ignore[operator]
        self._set(o[0], total)
        for output in outputs[:1]:
            self._set_predicate(output, None if total is None else total >> 32 > 0)

    def _shift(self, modifiers: list[str], o: list[str]) -> None:
        low, by, high = (self.value(word) for word in o[1:4])
        if low is None or by is None or high is None:
            self._set(o[0], None)
            return
        by &= 63
        whole, upper = high << 32 | low, "HI" in modifiers
        if "L" in modifiers:
            total = (whole << by) >> 32 if upper else low << by
        elif "S32" in modifiers and upper:
            total = signed(high) >> min(by, 31)
        elif "S64" in modifiers:
            total = (whole - (1 << 64) if whole >> 63 else whole) >> by >> (32 if upper else 0)
        elif upper:
            total = (whole >> by >> 32) if "U64" in modifiers else high >> by
        else:
            total = whole >> by
        self._set(o[0], total)

    def _logic(self, _: list[str], o: list[str]) -> None:
        output = o.pop(0) if _PREDICATE.match(o[0]) else None
        x, y, z = (self.value(word) for word in o[1:4])
        table = int(o[4], 16)
        total: Value = 0
        for place in range(32):
            seen = {
                table >> (4 * a + 2 * b + c) & 1
                for a in _bits(x, place)
                for b in _bits(y, place)
                for c in _bits(z, place)
            }
            if len(seen) > 1:
                total = None
                break
            total |= seen.pop() << place  # type: ignore[operator]
        self._set(o[0], total)
        if output is not None:
            self._set_predicate(output, None if total is None else total != 0)

    def _logic_of_predicates(self, _: list[str], o: list[str]) -> None:
        kinds = [self.predicate(p) for p in o[2:5]]
        x, y, z = ([False, True] if kind is None else [kind] for kind in kinds)
        for output, table in ((o[0], int(o[5], 16)), (o[1], int(o[6], 16) if len(o) > 6 else 0)):
            seen = {bool(table >> (4 * a + 2 * b + c) & 1) for a in x for b in y for c in z}
            self._set_predicate(output, seen.pop() if len(seen) == 1 else None)

    def _compare(self, modifiers: list[str], o: list[str]) -> None:
        x, y = self.value(o[2]), self.value(o[3])
        with_predicate = self.predicate(o[4]) if len(o) > 4 else True
        result: bool | None = None
        if x is not None and y is not None:
            if "U32" not in modifiers:
                x, y = signed(x), signed(y)
            kind = next(m for m in modifiers if m in ("GE", "GT", "LE", "LT", "EQ", "NE"))
            low = self.predicate(o[5]) if "EX" in modifiers and len(o) > 5 else None
            if "EX" in modifiers and x == y:  # then the comparison of the low words decides
                result = low
            else:
                result = {"GE": x >= y, "GT": x > y, "LE": x <= y, "LT": x < y, "EQ": x == y, "NE": x != y}[kind]
        elif o[2] == "RZ" and "GT" in modifiers and "U32" in modifiers:
            result = False
        if "OR" in modifiers:
            known = True in (result, with_predicate)
            joined = True if known else None if None in (result, with_predicate) else False
        else:
            known = False in (result, with_predicate)
            joined = False if known else None if None in (result, with_predicate) else True
        self._set_predicate(o[0], joined)
        self._set_predicate(o[1], None)

    def _select(self, _: list[str], o: list[str]) -> None:
        chosen = self.predicate(o[3])
        self._set(o[0], None if chosen is None else self.value(o[1] if chosen else o[2]))

    def _least(self, modifiers: list[str], o: list[str]) -> None:
        words = [word for word in o[1:] if not _PREDICATE.match(word)]
        values, least = [self.value(word) for word in words], self.predicate(o[-1])
        if least is None or None in values:
            self._set(o[0], None)
            return
        known = [v if "U32" in modifiers else signed(v) for v in values if v is not None]
        self._set(o[0], min(known) if least else max(known))

    def _to_predicates(self, modifiers: list[str], o: list[str]) -> None:
        """Bits of a byte of a register become predicates."""
        value, mask, shift = self.value(o[1]), self.value(o[2]) or 0, _byte(o[1])
        for k in range(7):
            if mask >> k & 1:
                self._set_predicate(f"P{k}", None if value is None else bool(value >> (shift + k) & 1))

    def _from_predicates(self, modifiers: list[str], o: list[str]) -> None:
        """Predicates become bits of a byte of a register."""
        value, mask, shift = self.value(o[2]), self.value(o[3]) or 0, _byte(o[0])
        for k in range(7):
            if mask >> k & 1 and value is not None:
                bit = self.predicate(f"P{k}")
                value = None if bit is None else value & ~(1 << shift + k) | bit << shift + k
        self._set(o[0], value)

    def _permute(self, _: list[str], o: list[str]) -> None:
        x, selector, y = (self.value(word) for word in o[1:4])
        if x is None or selector is None or y is None:
            self._set(o[0], None)
            return
        pool, total = (y << 32 | x).to_bytes(8, "little"), 0
        for k in range(4):
            nibble = selector >> 4 * k & 15
            byte = pool[nibble & 7]
            total |= ((0xFF if byte & 0x80 else 0) if nibble & 8 else byte) << 8 * k
        self._set(o[0], total)

    def _constant_in_halves(self, _: list[str], o: list[str]) -> None:
        """A product of two zeros and a constant is how the compiler writes the constant."""
        if {o[1].lstrip("-"), o[2].lstrip("-")} == {"RZ"} and len(o) > 4:
            high, low = (int.from_bytes(struct.pack("<e", float(word)), "little") for word in o[3:5])
            self._set(o[0], high << 16 | low)
        else:
            self._set(o[0], None)


def _byte(register: str) -> int:
    """The first bit of the byte that is named, as in ``R5.B1``."""
    return 8 * int(register[-1]) if ".B" in register else 0


def _bits(value: Value, place: int) -> tuple[int, ...]:
    return (0, 1) if value is None else (value >> place & 1,)
