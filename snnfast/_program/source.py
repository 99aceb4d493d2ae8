"""The code of a program as the text of a CUDA kernel: one thread takes one neuron through all steps.

States stay in registers. Each operation rounds by itself, as on the CPU: the text is compiled without contraction.
NVRTC and, in the tests, g++ compile the same text, which includes no header.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from snnfast._core.ops import opmath_dtype
from snnfast._program.code import Code
from snnfast._program.instructions import NUMBERS

__all__ = ["CHECKPOINT", "NAME", "Kinds", "Source", "backward_source", "forward_source"]

NAME = "snnfast_program"
CHECKPOINT = 16  # the states before every so many steps are kept, as in csrc/cpu/program/program.h
_BATCH = 4  # steps whose loads are issued before the first of them is computed
_THREADS = 128  # of a block, at most
_SHARED_BYTES = 48 * 1024  # that a block may have without asking for more

Kinds = tuple[tuple[str, ...], tuple[str, ...]]
"""The layout of each series: ``rows`` ``[T, N]`` or ``numbers`` ``[T]``; and of each parameter: a ``value`` among the
arguments, one ``number`` in memory, or ``neurons`` ``[N]``.
"""


class Source(NamedTuple):
    text: str
    threads: int  # of a block, at most


# ---- instructions. `f` ends the names of functions of the C library; A is the type of the arithmetic.

_EXPRESSIONS = {
    "move": "{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "rdiv": "{1} / {0}",
    "gt": "A({0} > {1})",
    "ge": "A({0} >= {1})",
    "lt": "A({0} < {1})",
    "le": "A({0} <= {1})",
    "eq": "A({0} == {1})",
    "ne": "A({0} != {1})",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "where": "{0} != A(0) ? {1} : {2}",
    "fma": "fma{f}({0}, {1}, {2})",
    "neg": "-{0}",
    "abs": "fabs{f}({0})",
    "sqrt": "sqrt{f}({0})",
    "floor": "floor{f}({0})",
    "ceil": "ceil{f}({0})",
    "round": "rint{f}({0})",
    "trunc": "trunc{f}({0})",
    "exp": "exp{f}({0})",
    "log": "log{f}({0})",
    "sigmoid": "A(1) / (A(1) + exp{f}(-{0}))",
    "tanh": "tanh{f}({0})",
    "pow": "pow{f}({0}, {1})",
}
_NAMES = list(NUMBERS)


def _statement(instruction: Sequence[int], f: str) -> str:
    number, to, *operands = instruction
    first, _, second = _NAMES[number].partition(" ")
    names = [f"r{r}" for r in operands]
    value = _EXPRESSIONS[first].format(*names, f=f)
    if second:
        value = _EXPRESSIONS[second].format(f"({value})", *names[2:], f=f)
    return f"r{to} = {value};"


def _literal(number: float, f: str) -> str:
    if number != number:
        return f"0.0{f} / 0.0{f}"
    return f"{'-' if number < 0 else ''}1.0{f} / 0.0{f}" if abs(number) == torch.inf else number.hex() + f


# ---- elements in memory. NVRTC has no cuda_fp16.h; what the text needs of it are two instructions.

_SAME = """using S = A;
__device__ inline A widen(S x) { return x; }
__device__ inline S narrow(A x) { return x; }"""
_ELEMENTS = {
    torch.float32: f"using A = float;\n{_SAME}",
    torch.float64: f"using A = double;\n{_SAME}",
    torch.float16: """using A = float;
using S = unsigned short;
#if defined(__CUDACC_RTC__)
__device__ inline A widen(S x) { A y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
__device__ inline S narrow(A x) { S y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#else
inline A widen(S x) { return __half2float(__ushort_as_half(x)); }
inline S narrow(A x) { return __half_as_ushort(__float2half_rn(x)); }
#endif""",
    torch.bfloat16: """using A = float;
using S = unsigned short;
__device__ inline A widen(S x) { const unsigned bits = (unsigned)x << 16; A y; memcpy(&y, &bits, 4); return y; }
__device__ inline S narrow(A x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, of two the even one
}""",
}


class _Kernel:
    """The text of a kernel while it is written, and the words of its code.

    Series, states and parameters are numbered; ``r`` and a number is a register.
    """

    def __init__(self, code: Code, dtype: torch.dtype, kinds: Kinds) -> None:
        self.dtype, self.opmath, self.kinds = dtype, opmath_dtype(dtype), kinds
        self.f = "f" if self.opmath == torch.float32 else ""
        self.words = code.words.tolist()
        self.series, states, parameters, constants = map(range, self.take(4))
        self.states, self.first_parameter = states, len(self.series) + len(states)
        self.first_constant = self.first_parameter + len(parameters)
        self.behind = self.first_constant + len(constants)  # the number of the first register behind the constants
        self.constants = code.constants.tolist()
        self.code, self.given = code, len(parameters) - len(code.fixed)  # parameters of the step
        self.arguments = ["long long T", "long long N"]

    def take(self, count: int) -> list[int]:
        found, self.words = self.words[:count], self.words[count:]
        return found

    def registers_of_their_own(self, *counts: int) -> list[list[int]]:
        """The registers of values that the next step or the other section reads, in several tables. -1 is none."""
        tables = [self.take(count) for count in counts]
        used = [r for table in tables for r in table if r >= 0]
        if len(set(used)) < len(used):  # which the op of the CPU refuses in these words
            raise RuntimeError("code: a register is used twice")
        return tables

    def section(self, count: int) -> list[str]:
        return [_statement(self.take(6), self.f) for _ in range(count)]

    def state(self, s: int) -> str:
        return f"r{len(self.series) + s}"

    def kept(self, s: int) -> str:
        return f"kept[(start / {CHECKPOINT} * {len(self.states)} + {s}) * N + i]"

    # ---- arguments, in the order of the calls

    def pointers(self, kind: str, name: str, numbers: Iterable[object]) -> None:
        self.arguments += [f"{kind}* __restrict__ {name}{k}" for k in numbers]

    def rows(self, name: str) -> None:
        self.arguments += [f"const S* __restrict__ {name}", f"long long {name}_stride"]

    def inputs(self) -> None:
        for k, kind in enumerate(self.kinds[0]):
            if kind == "rows":
                self.rows(f"x{k}")
            else:
                self.pointers("const double", "x", [k])

    def parameters(self) -> None:
        for j, kind in enumerate(self.kinds[1]):
            self.arguments.append(f"double p{j}" if kind == "value" else f"const A* __restrict__ p{j}")

    # ---- statements

    def registers(self, end: int) -> str:
        """All registers; ``end`` is behind the last of them."""
        values = {"value": "A(p{0})", "number": "p{0}[0]", "neurons": "p{0}[i]"}
        names = [f"r{self.first_parameter + j}" for j in range(self.given)] + [f"v{v}" for v in self.code.functions]
        given = enumerate(zip(names, self.kinds[1], strict=True))
        read = [f"const A {name} = {values[kind].format(j)};" for j, (name, kind) in given]
        read += self.fixed()
        read += [f"const A r{self.first_constant + c} = {_literal(v, self.f)};" for c, v in enumerate(self.constants)]
        others = [*range(self.first_parameter), *range(self.behind, end)]
        return _lines([*read, *(f"A r{r} = 0;" for r in others)])

    def fixed(self) -> list[str]:
        """What follows from parameters: the value ``v`` of each node of the graph on the way to it."""
        graph, known, found = self.code.graph, {*self.code.functions}, []
        stack = [*self.code.fixed]
        for value in stack:  # which grows
            if value not in known:
                known.add(value)
                stack += graph.operands(value)
        for value in sorted(known - {*self.code.functions}):
            op, *operands = graph.nodes[value]
            if op == "parameter":
                text = f"r{self.first_parameter + operands[0]}"
            elif op == "constant":
                text = _literal(operands[0], self.f)
            else:
                text = _EXPRESSIONS[op].format(*(f"v{v}" for v in operands), f=self.f)
            found.append(f"const A v{value} = {text};")
        first = self.first_parameter + self.given
        return found + [f"const A r{first + i} = v{value};" for i, value in enumerate(self.code.fixed)]

    def loop(self, grads: int, body: Iterable[str], backwards: bool = False) -> str:
        """The steps between two checkpoints: series and ``grads`` into registers, then the body."""
        inputs = [(f"x{k}", k, self.kinds[0][k] == "rows") for k in self.series]
        inputs += [(f"g{o}", self.behind + o, True) for o in range(grads)]
        step = f"""const int k = {"steps - 1 - first - j" if backwards else "first + j"};
const long long t = start + k;
if (k < 0 || k >= steps) break;"""
        places = [f"{'S' if rows else 'double'} {name}_batch[{_BATCH}];" for name, _, rows in inputs]
        loads = [f"{n}_batch[j] = {f'{n}[t * {n}_stride + i]' if rows else f'{n}[t]'};" for n, _, rows in inputs]
        uses = [f"r{to} = {'widen' if rows else 'A'}({name}_batch[j]);" for name, to, rows in inputs]
        return f"""for (int first = 0; first < steps; first += {_BATCH}) {{
{_lines(places)}
#pragma unroll
for (int j = 0; j < {_BATCH}; ++j) {{
{step}
{_lines(loads)}
}}
#pragma unroll
for (int j = 0; j < {_BATCH}; ++j) {{
{step}
{_lines([*uses, *body])}
}}
}}"""

    def finish(self, body: str, threads: int = _THREADS) -> Source:
        text = f"""{_ELEMENTS[self.dtype]}
extern "C" __global__ void __launch_bounds__({threads}) {NAME}({", ".join(self.arguments)}) {{
const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
if (i >= N) return;
{body}
}}
"""
        return Source(text, threads)


def _lines(statements: Iterable[str]) -> str:
    return "\n".join(statements)


_STEPS = f"const int steps = T - start < {CHECKPOINT} ? int(T - start) : {CHECKPOINT};"


def forward_source(code: Code, dtype: torch.dtype, kinds: Kinds) -> Source:
    """The kernel of all steps.

    Its arguments: T, N, the series (rows with their stride), states, parameters, outputs, last states, and the
    checkpoints or 0.
    """
    kernel = _Kernel(code, dtype, kinds)
    outputs, temporaries, count = kernel.take(3)
    output_at, (state_at,) = kernel.take(outputs), kernel.registers_of_their_own(len(kernel.states))
    kernel.inputs()
    kernel.pointers("const A", "initial", kernel.states)
    kernel.parameters()
    kernel.pointers("S", "output", range(outputs))
    kernel.pointers("A", "last", kernel.states)
    kernel.pointers("A", "kept", [""])
    step = kernel.section(count)
    step += [f"output{o}[t * N + i] = narrow(r{r});" for o, r in enumerate(output_at)]
    step += [f"{kernel.state(s)} = r{state_at[s]};" for s in kernel.states]
    return kernel.finish(f"""{kernel.registers(kernel.behind + temporaries)}
{_lines(f"{kernel.state(s)} = initial{s}[i];" for s in kernel.states)}
for (long long start = 0; start < T; start += {CHECKPOINT}) {{
{_STEPS}
if (kept != nullptr) {{
{_lines(f"{kernel.kept(s)} = {kernel.state(s)};" for s in kernel.states)}
}}
{kernel.loop(0, step)}
}}
{_lines(f"last{s}[i] = {kernel.state(s)};" for s in kernel.states)}""")


def backward_source(code: Code, dtype: torch.dtype, kinds: Kinds) -> Source:
    """The kernel of the derivative.

    Its arguments: T, N, the series (rows with their stride), parameters, checkpoints, gradients of outputs (with their
    stride) and of last states; then what it writes: gradients of series, of states, and of parameters, float64 ``[N]``.
    """
    kernel = _Kernel(code, dtype, kinds)
    states, parameters = kernel.states, kernel.given + len(code.fixed)
    outputs, saved, temporaries, first, second = kernel.take(5)
    new_at, saved_at, carry_at = kernel.registers_of_their_own(len(states), saved, len(states))
    series_at = {k: r for k, r in enumerate(kernel.take(len(kernel.series))) if r >= 0}
    parameter_at = {j: r for j, r in enumerate(kernel.take(parameters)) if r >= 0}
    kernel.inputs()
    kernel.parameters()
    kernel.pointers("const A", "kept", [""])
    for o in range(outputs):
        kernel.rows(f"g{o}")
    kernel.pointers("const A", "grad_last", states)
    kernel.pointers("S", "grad_x", series_at)
    kernel.pointers("A", "grad_initial", states)
    kernel.pointers("double", "grad_p", parameter_at)

    # The tape has the states before a step that are computed again, and the values that are saved of it. It is in
    # shared memory, a column for each thread, if that holds the columns of a warp.
    again = [s for s in states if new_at[s] >= 0]
    taped = [*map(kernel.state, again), *(f"r{r}" for r in saved_at)]
    size, threads = CHECKPOINT * len(taped) * kernel.opmath.itemsize, _THREADS
    while threads > 32 and threads * size > _SHARED_BYTES:
        threads //= 2
    shared = threads * size <= _SHARED_BYTES
    place = f"{'__shared__ ' if shared else ''}A tape[{CHECKPOINT * len(taped)}][{threads if shared else 1}];"
    tape = [f"tape[k * {len(taped)} + {c}][{'threadIdx.x' if shared else 0}]" for c in range(len(taped))]
    stores = [f"{row} = {register};" for row, register in zip(tape, taped, strict=True)]
    loads = [f"{register} = {row};" for row, register in zip(tape, taped, strict=True)]
    advance = [f"{kernel.state(s)} = r{new_at[s]};" for s in again]
    forward = kernel.loop(0, [*stores[: len(again)], *kernel.section(first), *stores[len(again) :], *advance])
    carries = [f"r{kernel.behind + outputs + s}" for s in states]
    # Behind the steps that were computed again, and behind each step of the derivative, a state is that after the step.
    step = [f"r{new_at[s]} = {kernel.state(s)};" for s in again] + loads + kernel.section(second)
    step += [f"grad_x{k}[t * N + i] = narrow(r{r});" for k, r in series_at.items()]
    step += [f"sum{j} += r{r};" for j, r in parameter_at.items()]
    step += [f"{carries[s]} = r{carry_at[s]};" for s in states]
    text = f"""{place if taped else ""}
{kernel.registers(kernel.behind + outputs + len(states) + temporaries)}
{_lines(f"{carries[s]} = grad_last{s}[i];" for s in states)}
{_lines(f"double total{j} = 0;" for j in parameter_at)}
for (long long start = (T - 1) / {CHECKPOINT} * {CHECKPOINT}; T > 0 && start >= 0; start -= {CHECKPOINT}) {{
{_STEPS}
{_lines(f"{kernel.state(s)} = {kernel.kept(s)};" for s in again)}
{forward if taped else ""}
{_lines(f"A sum{j} = 0;" for j in parameter_at)}
{kernel.loop(outputs, step, backwards=True)}
{_lines(f"total{j} += sum{j};" for j in parameter_at)}
}}
{_lines(f"grad_initial{s}[i] = {carries[s]};" for s in states)}
{_lines(f"grad_p{j}[i] = total{j};" for j in parameter_at)}"""
    return kernel.finish(text, threads)
