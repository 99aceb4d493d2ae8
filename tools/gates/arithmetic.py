"""What decides a spike is rounded as PyTorch's operators round it: nothing is contracted, approximated or flushed.

PTX, of every kernel, for one architecture (no source asks which, but for its launch bounds): no fused multiply-add; and
each addition, subtraction and product names its rounding, for then ptxas must not contract it ("add" and "mul" in the
PTX ISA). Divisions stay whole there, so that this holds for the backward kernels as well, which decide spikes again but
divide in the surrogate.

The plain backward kernels, and those behind a batch normalisation, fuse and approximate in the adjoint. There no
comparison may depend on what was fused or approximated, through registers or shared memory, but for equality and for
the bound of csrc/cuda/fused.cuh. So what decides a spike is rounded as everywhere.

Machine code, of the forward kernels: no fused multiply-add of floating-point numbers at all. They divide integers only,
for which the compiler takes none. In a backward kernel, and in a neuron that divides (``DIVIDING``), those of an exact
division can't be told from others.
"""

import re

from .sass import Kernel

_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*)((?:\.[a-z0-9_]+)+)\s", re.MULTILINE)
_ENTRY = re.compile(r"\.entry (\w+)\(")
_FLOATS = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64")
_FUSED = re.compile(r"[FDH]FMA(2|32I)?$")
# A product of two zero registers: how the compiler writes a constant into a register.
_CONSTANT = re.compile(r"\w+, -?RZ, RZ, ")
_STATEMENT = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*)((?:\.[a-z0-9_:]+)+)\s+([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"%[a-z]+\d+")
_BOUND = "0f7E800000"  # 2^126
_ADJOINTS = ("backward_plain", "backward_norm")
DIVIDING = ("IFNode",)
"""Neurons whose step divides floating-point numbers, but in a plain kernel."""


def ptx_problems(ptx: str) -> dict[str, list[str]]:
    """Find the instructions of one source that round otherwise: each kind once, by symbol of the kernel."""
    parts = _ENTRY.split(ptx)
    found = {}
    for symbol, text in zip(parts[1::2], parts[2::2], strict=True):
        kinds = sorted({(match[1], match[2]) for match in _INSTRUCTION.finditer(text)})
        problems = [(name, rest, why) for name, rest in kinds if (why := _ptx_problem(name, rest))]
        if any(name in symbol for name in _ADJOINTS):
            problems = [(name, rest, why) for name, rest, why in problems if not _for_gradients(name, rest)]
        found[symbol] = [f"PTX {name}{rest}: {why}" for name, rest, why in problems] + inexact_decisions(text)
    return found


def _for_gradients(name: str, rest: str) -> bool:
    approximate = name in ("rcp", "ex2") and rest == ".approx.ftz.f32"
    return (name == "fma" and rest in (".rn.f32", ".rn.f64")) or approximate


def inexact_decisions(text: str) -> list[str]:
    """Comparisons that depend on a fused or approximate result, in the PTX of one kernel."""
    statements = [(m[1], m[2], m[3]) for m in _STATEMENT.finditer(text)]
    inexact: set[str] = set()
    before = -1
    while len(inexact) > before:  # until nothing more depends on it; loops lead back
        before = len(inexact)
        for name, rest, operands in statements:
            targets, sources = _targets_and_sources(name, rest, operands)
            if _for_gradients(name, rest) or any(source in inexact for source in sources):
                inexact.update(targets)
    return [
        f"PTX {name}{rest} {operands}: decides by what is fused or approximate"
        for name, rest, operands in statements
        if name == "setp" and set(rest.split(".")) & {"f32", "f64"} and not set(rest.split(".")) & {"eq", "neu", "ne"}
        and _BOUND not in operands and any(register in inexact for register in _REGISTER.findall(operands)[1:])
    ]  # fmt: skip


def _targets_and_sources(name: str, rest: str, operands: str) -> tuple[list[str], list[str]]:
    """Registers, and shared memory, that an instruction writes and reads.

    Shared memory counts by the type of its numbers: recomputed steps are floats, and sums over neurons doubles.
    """
    registers = _REGISTER.findall(operands)
    shared = [f"shared {rest.split('.')[-1]}"] if ".shared" in rest else []
    if name == "st":
        return shared, registers
    first = operands.split("}")[0] if operands.startswith("{") else operands.split(",")[0]
    targets = _REGISTER.findall(first)
    return targets, registers[len(targets) :] + (shared if name == "ld" else [])


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
        for opcode, operands, *_ in kernel.instructions
        if _FUSED.match(opcode.split(".")[0]) and not _CONSTANT.match(operands)
    ]
    return [f"{len(found)} fused multiply-adds in machine code: {found[0]}"] if found else []
