"""What decides a spike is rounded as PyTorch's operators round it: nothing is contracted, approximated or flushed.

PTX, of every kernel: no fused multiply-add; and each addition, subtraction and product names its rounding, for then
ptxas must not contract it ("add" and "mul" in the PTX ISA). Divisions stay whole there, so that this holds for the
backward kernels as well, which decide spikes again but divide in the surrogate.

Machine code, of the forward kernels: no fused multiply-add of floating-point numbers at all. They divide integers only,
for which the compiler takes none. In a backward kernel those of an exact division can't be told from others.
"""

import re

from .sass import Kernel

_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*)((?:\.[a-z0-9_]+)+)\s", re.MULTILINE)
_ENTRY = re.compile(r"\.entry (\w+)\(")
_FLOATS = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64")
_FUSED = re.compile(r"[FDH]FMA(2|32I)?$")
# A product of two zero registers: how the compiler writes a constant into a register.
_CONSTANT = re.compile(r"\w+, -?RZ, RZ, ")


def ptx_problems(ptx: str) -> dict[str, list[str]]:
    """By symbol of the kernel: instructions that round otherwise, each kind once."""
    parts = _ENTRY.split(ptx)
    found = {}
    for symbol, text in zip(parts[1::2], parts[2::2], strict=True):
        kinds = sorted({(match[1], match[2]) for match in _INSTRUCTION.finditer(text)})
        found[symbol] = [f"PTX {name}{rest}: {why}" for name, rest in kinds if (why := _ptx_problem(name, rest))]
    return found


def _ptx_problem(name: str, rest: str) -> str:
    modifiers = rest.split(".")[1:]
    if not set(modifiers) & set(_FLOATS):
        return ""
    if name in ("fma", "mad"):
        return "a fused multiply-add"
    if name in ("add", "sub", "mul") and "rn" not in modifiers:
        return "may be contracted"
    if "ftz" in modifiers:
        return "flushes to zero"
    if "approx" in modifiers or "full" in modifiers:
        return "approximates"
    return ""


def fused(kernel: Kernel) -> list[str]:
    """Fused multiply-adds of floating-point numbers in the machine code: how many, and the first."""
    found = [
        f"{opcode} {operands}"
        for opcode, operands, _ in kernel.instructions
        if _FUSED.match(opcode.split(".")[0]) and not _CONSTANT.match(operands)
    ]
    return [f"{len(found)} fused multiply-adds in machine code: {found[0]}"] if found else []
