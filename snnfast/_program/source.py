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
"""Of the series: ``rows`` ``[T, N]`` or ``numbers`` ``[T]``. Of the parameters: a ``value`` among the arguments, one
``number`` in memory, or ``neurons`` ``[N]``.
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

_ELEMENTS = {
    torch.float32: "using A = float;\nusing S = float;",
    torch.float64: "using A = double;\nusing S = double;",
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
_PLAIN = "\n__device__ inline A widen(S x) { return x; }\n__device__ inline S narrow(A x) { return x; }"


class _Kernel:
    """The text of a kernel while it is written, and the words of its code."""

    def __init__(self, code: Code, dtype: torch.dtype, kinds: Kinds) -> None:
        self.words = code.words.tolist()
        self.series, self.states, self.parameters, _ = self.take(4)
        self.dtype, self.kinds = dtype, kinds
        self.f = "f" if opmath_dtype(dtype) == torch.float32 else ""
        self.arguments = ["const long long T", "const long long N"]
        self.constants = code.constants.tolist()
        self.first_parameter = self.series + self.states
        self.first_constant = self.first_parameter + self.parameters
        self.behind = self.first_constant + len(self.constants)

    def take(self, count: int) -> list[int]:
        found, self.words = self.words[:count], self.words[count:]
        return found

    def section(self, count: int) -> list[str]:
        return [_statement(self.take(6), self.f) for _ in range(count)]

    def pointers(self, kind: str, name: str, numbers: Iterable[int]) -> None:
        self.arguments += [f"{kind}* __restrict__ {name}{k}" for k in numbers]

    def add_series(self) -> None:
        for k, kind in enumerate(self.kinds[0]):
            if kind == "numbers":
                self.arguments += [f"const double* __restrict__ x{k}"]
            else:
                self.add_rows(f"x{k}")

    def add_rows(self, name: str) -> None:
        self.arguments += [f"const S* __restrict__ {name}", f"const long long {name}_stride"]

    def add_parameters(self) -> list[str]:
        """The statements that read the parameters."""
        lines = []
        for j, kind in enumerate(self.kinds[1]):
            self.arguments.append(f"const double p{j}" if kind == "value" else f"const A* __restrict__ p{j}")
            value = {"value": f"A(p{j})", "number": f"p{j}[0]", "neurons": f"p{j}[i]"}[kind]
            lines.append(f"const A r{self.first_parameter + j} = {value};")
        return lines

    def registers(self, temporaries: int, end: int) -> list[str]:
        """Declarations of what is no parameter; ``end`` is behind all registers."""
        lines = [f"const A r{self.first_constant + c} = {_literal(v, self.f)};" for c, v in enumerate(self.constants)]
        others = [*range(self.first_parameter), *range(self.behind, end + temporaries)]
        return [*lines, *(f"A r{r} = 0;" for r in others)]

    def loop(self, rows: Sequence[tuple[str, int]], body: Iterable[str], backwards: bool = False) -> list[str]:
        """The ``steps`` from ``start`` on: rows, by the names of their arguments, into registers, then the body."""
        at = "steps - 1 - first - j" if backwards else "first + j"
        step = [f"const int k = {at};", "const long long t = start + k;", "if (k < 0 || k >= steps) break;"]
        numbers = {f"x{k}" for k, kind in enumerate(self.kinds[0]) if kind == "numbers"}
        batches = [(name, to, name in numbers) for name, to in rows]
        return [
            f"for (int first = 0; first < steps; first += {_BATCH}) {{",
            *(f"{'double' if number else 'S'} {name}_batch[{_BATCH}];" for name, _, number in batches),
            "#pragma unroll",
            f"for (int j = 0; j < {_BATCH}; ++j) {{",
            *step,
            *(
                f"{name}_batch[j] = {name}[{'t' if number else f't * {name}_stride + i'}];"
                for name, _, number in batches
            ),
            "}",
            "#pragma unroll",
            f"for (int j = 0; j < {_BATCH}; ++j) {{",
            *step,
            *(
                f"r{to} = {f'A({name}_batch[j])' if number else f'widen({name}_batch[j])'};"
                for name, to, number in batches
            ),
            *body,
            "}",
            "}",
        ]

    def finish(self, body: Iterable[str], threads: int = _THREADS) -> Source:
        elements = _ELEMENTS[self.dtype] + (_PLAIN if self.dtype in (torch.float32, torch.float64) else "")
        lines = [
            elements,
            f'extern "C" __global__ void __launch_bounds__({threads}) {NAME}(',
            ",\n".join(self.arguments) + ") {",
            "const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;",
            "if (i >= N) return;",
            *body,
            "}\n",
        ]
        return Source("\n".join(lines), threads)


_STEPS = f"const int steps = T - start < {CHECKPOINT} ? int(T - start) : {CHECKPOINT};"


def forward_source(code: Code, dtype: torch.dtype, kinds: Kinds) -> Source:
    """The kernel of all steps.

    Its arguments: T, N, the series (rows with their stride), states, parameters, outputs, last states, and the
    checkpoints or 0.
    """
    kernel = _Kernel(code, dtype, kinds)
    outputs, temporaries, count = kernel.take(3)
    output_at, state_at = kernel.take(outputs), kernel.take(kernel.states)
    step, states = kernel.section(count), range(kernel.states)
    kernel.add_series()
    kernel.pointers("const A", "initial", states)
    parameters = kernel.add_parameters()
    kernel.pointers("S", "output", range(outputs))
    kernel.pointers("A", "last", states)
    kernel.arguments.append("A* __restrict__ kept")
    at = [kernel.series + s for s in states]
    rows = [(f"x{k}", k) for k in range(kernel.series)]
    step += [f"output{o}[t * N + i] = narrow(r{r});" for o, r in enumerate(output_at)]
    step += [f"r{at[s]} = r{state_at[s]};" for s in states]
    saved = [f"kept[(start / {CHECKPOINT} * {kernel.states} + {s}) * N + i] = r{at[s]};" for s in states]
    body = [
        *parameters,
        *kernel.registers(temporaries, kernel.behind),
        *(f"r{at[s]} = initial{s}[i];" for s in states),
        f"for (long long start = 0; start < T; start += {CHECKPOINT}) {{",
        _STEPS,
        "if (kept != nullptr) {",
        *saved,
        "}",
        *kernel.loop(rows, step),
        "}",
        *(f"last{s}[i] = r{at[s]};" for s in states),
    ]
    return kernel.finish(body)


def backward_source(code: Code, dtype: torch.dtype, kinds: Kinds) -> Source:
    """The kernel of the derivative.

    Its arguments: T, N, the series (rows with their stride), parameters, checkpoints, gradients of outputs (with their
    stride) and of last states; then what it writes: gradients of series, of states, and of parameters, float64 ``[N]``.
    """
    kernel = _Kernel(code, dtype, kinds)
    outputs, count, temporaries, first, second = kernel.take(5)
    states = range(kernel.states)
    new_at, saved_at, carry_at = (kernel.take(n) for n in (kernel.states, count, kernel.states))
    series_at, parameter_at = kernel.take(kernel.series), kernel.take(kernel.parameters)
    again, derivative = kernel.section(first), kernel.section(second)
    of_series = [k for k, r in enumerate(series_at) if r >= 0]
    of_parameters = [j for j, r in enumerate(parameter_at) if r >= 0]
    kernel.add_series()
    parameters = kernel.add_parameters()
    kernel.arguments.append("const A* __restrict__ kept")
    for o in range(outputs):
        kernel.add_rows(f"g{o}")
    kernel.pointers("const A", "grad_last", states)
    kernel.pointers("S", "grad_x", of_series)
    kernel.pointers("A", "grad_initial", states)
    kernel.pointers("double", "grad_p", of_parameters)

    # The tape has the states before a step, and the values that are saved of it. It is in shared memory, a column for
    # each thread, if that holds a warp's.
    taped = [s for s in states if new_at[s] >= 0]
    columns = [kernel.series + s for s in taped] + saved_at
    size = CHECKPOINT * len(columns) * opmath_dtype(dtype).itemsize
    threads = _THREADS
    while threads > 32 and threads * size > _SHARED_BYTES:
        threads //= 2
    shared = threads * size <= _SHARED_BYTES
    tape = [f"tape[k * {len(columns)} + {c}][{'threadIdx.x' if shared else '0'}]" for c in range(len(columns))]
    place = f"{'__shared__ ' if shared else ''}A tape[{CHECKPOINT * len(columns)}][{threads if shared else 1}];"

    rows = [(f"x{k}", k) for k in range(kernel.series)]
    carries = kernel.behind + outputs
    n = len(taped)
    again = [
        *(f"{tape[c]} = r{r};" for c, r in enumerate(columns[:n])),
        *again,
        *(f"{tape[n + v]} = r{r};" for v, r in enumerate(saved_at)),
        *(f"r{kernel.series + s} = r{new_at[s]};" for s in taped),
    ]
    # Behind the steps that were computed again, and behind each step of the derivative, a state is that after the step.
    derivative = [
        *(f"r{new_at[s]} = r{kernel.series + s};" for s in taped),
        *(f"r{r} = {tape[c]};" for c, r in enumerate(columns)),
        *derivative,
        *(f"grad_x{k}[t * N + i] = narrow(r{series_at[k]});" for k in of_series),
        *(f"sum{j} += r{parameter_at[j]};" for j in of_parameters),
        *(f"r{carries + s} = r{carry_at[s]};" for s in states),
    ]
    body = [
        *([place] if columns else []),
        *parameters,
        *kernel.registers(temporaries, carries + kernel.states),
        *(f"r{carries + s} = grad_last{s}[i];" for s in states),
        *(f"double total{j} = 0;" for j in of_parameters),
        f"for (long long start = (T - 1) / {CHECKPOINT} * {CHECKPOINT}; T > 0 && start >= 0; start -= {CHECKPOINT}) {{",
        _STEPS,
        *(f"r{kernel.series + s} = kept[(start / {CHECKPOINT} * {kernel.states} + {s}) * N + i];" for s in taped),
        *(kernel.loop(rows, again) if columns else []),
        *(f"A sum{j} = 0;" for j in of_parameters),
        *kernel.loop([*rows, *((f"g{o}", kernel.behind + o) for o in range(outputs))], derivative, backwards=True),
        *(f"total{j} += sum{j};" for j in of_parameters),
        "}",
        *(f"grad_initial{s}[i] = r{carries + s};" for s in states),
        *(f"grad_p{j}[i] = total{j};" for j in of_parameters),
    ]
    return kernel.finish(body, threads)
