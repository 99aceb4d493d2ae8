"""The code of a program as the text of a CUDA kernel: a thread takes one neuron, or several, through all steps.

States stay in registers. So do the inputs of several steps, whose loads are issued before the first of them is
computed. Each operation rounds by itself, as on the CPU: the text is compiled without contraction.
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
_BATCH = CHECKPOINT // 2  # steps whose loads are issued while as many steps before them are computed
_LAST = 4  # the same for the last steps, fewer than CHECKPOINT, of which up to three ask whether they are there
_THREADS = 128  # of a block, at most
_HELD_BYTES = 96 * 4  # of registers, in which the backward kernel has all that it reads between two checkpoints
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
    names = [f"r{r}[v]" for r in operands]
    value = _EXPRESSIONS[first].format(*names, f=f)
    if second:
        value = _EXPRESSIONS[second].format(f"({value})", *names[2:], f=f)
    return f"r{to}[v] = {value};"


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

    Series, states and parameters are numbered; ``r`` and a number is a register for each neuron ``v`` of a thread.
    """

    def __init__(self, code: Code, dtype: torch.dtype, kinds: Kinds, width: int) -> None:
        self.dtype, self.opmath, self.kinds, self.width = dtype, opmath_dtype(dtype), kinds, width
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
        return f"r{len(self.series) + s}[v]"

    def kept(self, s: int) -> str:
        return f"kept[(start / {CHECKPOINT} * {len(self.states)} + {s}) * N + i + v]"

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
        values = {"value": "A(p{0})", "number": "p{0}[0]", "neurons": "p{0}[i + v]"}
        names = [f"r{self.first_parameter + j}[v]" for j in range(self.given)]
        names += [f"v{value}" for value in self.code.functions]
        given = enumerate(zip(names, self.kinds[1], strict=True))
        read = [f"{_declared(name)} = {values[kind].format(j)};" for j, (name, kind) in given]
        read += self.fixed()
        read += [f"r{self.first_constant + c}[v] = {_literal(v, self.f)};" for c, v in enumerate(self.constants)]
        others = [*range(self.first_parameter), *range(self.behind, end)]
        read += [f"r{r}[v] = 0;" for r in others]
        return _lines([*(f"A r{r}[V];" for r in range(end)), _each(read)])

    def fixed(self) -> list[str]:
        """Statements for all that follows from parameters: a value ``v`` for each node of the graph."""
        graph, known, found = self.code.graph, {*self.code.functions}, []
        stack = [*self.code.fixed]
        for value in stack:  # which grows
            if value not in known:
                known.add(value)
                stack += graph.operands(value)
        for value in sorted(known - {*self.code.functions}):
            op, *operands = graph.nodes[value]
            if op == "parameter":
                text = f"r{self.first_parameter + operands[0]}[v]"
            elif op == "constant":
                text = _literal(operands[0], self.f)
            else:
                text = _EXPRESSIONS[op].format(*(f"v{v}" for v in operands), f=self.f)
            found.append(f"const A v{value} = {text};")
        first = self.first_parameter + self.given
        return found + [f"r{first + i}[v] = v{value};" for i, value in enumerate(self.code.fixed)]

    def read(self, grads: int) -> list[tuple[str, int, bool]]:
        """The names of series and of ``grads``, the register of each, and whether there are rows of it."""
        found = [(f"x{k}", k, self.kinds[0][k] == "rows") for k in self.series]
        return found + [(f"g{o}", self.behind + o, True) for o in range(grads)]

    def batches(self, end: str, size: int, grads: int = 0) -> str:
        """Places for what so many steps read; ``end`` ends their names."""
        return _lines(f"{'Row' if rows else 'double'} {name}_{end}[{size}];" for name, _, rows in self.read(grads))

    def loads(self, end: str, j: str, grads: int = 0) -> list[str]:
        """The loads of step ``t`` into places ``j``."""
        row = "*reinterpret_cast<const Row*>({0} + t * {0}_stride + i)"
        return [
            f"{name}_{end}[{j}] = {row.format(name) if rows else f'{name}[t]'};" for name, _, rows in self.read(grads)
        ]

    def uses(self, end: str, j: str, grads: int = 0) -> list[str]:
        return [
            f"r{to}[v] = {f'widen({name}_{end}[{j}].of[v])' if rows else f'A({name}_{end}[{j}])'};"
            for name, to, rows in self.read(grads)
        ]

    def last_steps(self, grads: int, body: str, backwards: bool = False) -> str:
        """The ``steps`` from ``start`` on, fewer than those between two checkpoints: four at a time, and the rest."""

        def batch(size: int, step: str) -> str:
            time = [step, "const long long t = start + k;"]
            return _lines([
                self.batches("last", size, grads), _steps(size, [*time, *self.loads("last", "j", grads)]),
                _steps(size, [*time, _each(self.uses("last", "j", grads)), body]),
            ])  # fmt: skip

        if backwards:
            rest = batch(_LAST - 1, "const int k = steps - 1 - j;\nif (k < first) break;")
            return f"""int first = steps / {_LAST} * {_LAST};
if (first < steps) {{
{rest}
}}
for (first -= {_LAST}; first >= 0; first -= {_LAST}) {{
{batch(_LAST, f"const int k = first + {_LAST - 1} - j;")}
}}"""
        rest = batch(_LAST - 1, "const int k = first + j;\nif (k >= steps) break;")
        return f"""int first = 0;
for (; first + {_LAST} <= steps; first += {_LAST}) {{
{batch(_LAST, "const int k = first + j;")}
}}
if (first < steps) {{
{rest}
}}"""

    def stores(self, values: Iterable[tuple[str, int]]) -> list[str]:
        """Rows of registers to tensors, by their names."""
        return [
            f"{{\nRow row;\n{_each([f'row.of[v] = narrow(r{r}[v]);'])}\n"
            f"*reinterpret_cast<Row*>({name} + t * N + i) = row;\n}}"
            for name, r in values
        ]

    def finish(self, body: str, threads: int = _THREADS) -> Source:
        text = f"""{_ELEMENTS[self.dtype]}
constexpr int V = {self.width};
struct alignas(V * sizeof(S)) Row {{ S of[V]; }};
extern "C" __global__ void __launch_bounds__({threads}) {NAME}({", ".join(self.arguments)}) {{
const long long i = V * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
if (i >= N) return;
{body}
}}
"""
        return Source(text, threads)


def _lines(statements: Iterable[str]) -> str:
    return "\n".join(statements)


def _declared(name: str) -> str:
    return name if name.endswith("]") else f"const A {name}"


def _each(statements: Iterable[str]) -> str:
    """For each neuron of a thread."""
    return f"#pragma unroll\nfor (int v = 0; v < V; ++v) {{\n{_lines(statements)}\n}}"


def _steps(count: int, statements: Iterable[str]) -> str:
    return f"#pragma unroll\nfor (int j = 0; j < {count}; ++j) {{\n{_lines(statements)}\n}}"


def forward_source(code: Code, dtype: torch.dtype, kinds: Kinds, width: int = 1) -> Source:
    """The kernel of all steps.

    Its arguments: T, N, the series (rows with their stride), states, parameters, outputs, last states, and the
    checkpoints or 0. A thread takes ``width`` neurons, so that rows are aligned to as many elements.
    """
    kernel = _Kernel(code, dtype, kinds, width)
    outputs, temporaries, count = kernel.take(3)
    output_at, (state_at,) = kernel.take(outputs), kernel.registers_of_their_own(len(kernel.states))
    kernel.inputs()
    kernel.pointers("const A", "initial", kernel.states)
    kernel.parameters()
    kernel.pointers("S", "output", range(outputs))
    kernel.pointers("A", "last", kernel.states)
    kernel.pointers("A", "kept", [""])
    section = kernel.section(count)
    stores = kernel.stores((f"output{o}", r) for o, r in enumerate(output_at))
    advance = [f"{kernel.state(s)} = r{state_at[s]}[v];" for s in kernel.states]
    step = _lines([_each(section), *stores, _each(advance)])
    keep = f"""if (kept != nullptr) {{
{_each(f"{kernel.kept(s)} = {kernel.state(s)};" for s in kernel.states)}
}}"""

    def batch(end: str, first: int) -> str:
        return _steps(_BATCH, [f"const long long t = start + {first} + j;", _each(kernel.uses(end, "j")), step])

    def loads(end: str, first: int) -> str:
        return _steps(_BATCH, [f"const long long t = start + {first} + j;", *kernel.loads(end, "j")])

    return kernel.finish(f"""{kernel.registers(kernel.behind + temporaries)}
{_each(f"{kernel.state(s)} = initial{s}[i + v];" for s in kernel.states)}
long long start = 0;
{kernel.batches("even", _BATCH)}
{kernel.batches("odd", _BATCH)}
if (T >= {CHECKPOINT}) {{
{loads("even", 0)}
}}
for (; T - start >= {CHECKPOINT}; start += {CHECKPOINT}) {{
{keep}
{loads("odd", _BATCH)}
{batch("even", 0)}
if (T - start >= {2 * CHECKPOINT}) {{
{loads("even", CHECKPOINT)}
}}
{batch("odd", _BATCH)}
}}
if (start < T) {{
const int steps = int(T - start);
{keep}
{kernel.last_steps(0, step)}
}}
{_each(f"last{s}[i + v] = {kernel.state(s)};" for s in kernel.states)}""")


def backward_source(code: Code, dtype: torch.dtype, kinds: Kinds, width: int = 1) -> Source:
    """The kernel of the derivative.

    Its arguments: T, N, the series (rows with their stride), parameters, checkpoints, gradients of outputs (with their
    stride) and of last states; then what it writes: gradients of series, of states, and of parameters, float64 ``[N]``.
    """
    kernel = _Kernel(code, dtype, kinds, width)
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
    taped = [*map(kernel.state, again), *(f"r{r}[v]" for r in saved_at)]
    size, threads = width * CHECKPOINT * len(taped) * kernel.opmath.itemsize, _THREADS
    while threads > 32 and threads * size > _SHARED_BYTES:
        threads //= 2
    shared = threads * size <= _SHARED_BYTES
    rows = CHECKPOINT * len(taped) * width
    place = f"{'__shared__ ' if shared else ''}A tape[{rows}][{threads if shared else 1}];"
    column = "threadIdx.x" if shared else 0
    tape = [f"tape[(k * {len(taped)} + {c}) * V + v][{column}]" for c in range(len(taped))]
    stores = [f"{row} = {register};" for row, register in zip(tape, taped, strict=True)]
    loads = [f"{register} = {row};" for row, register in zip(tape, taped, strict=True)]
    advance = [f"{kernel.state(s)} = r{new_at[s]}[v];" for s in again]
    forward = _each([*stores[: len(again)], *kernel.section(first), *stores[len(again) :], *advance])
    carries = [f"r{kernel.behind + outputs + s}[v]" for s in states]
    # Behind the steps that were computed again, and behind each step of the derivative, a state is that after the step.
    step = [f"r{new_at[s]}[v] = {kernel.state(s)};" for s in again] + loads + kernel.section(second)
    step += [f"sum{j}[v] += r{r}[v];" for j, r in parameter_at.items()]
    carry = [f"{carries[s]} = r{carry_at[s]}[v];" for s in states]
    back = _lines([_each(step), *kernel.stores((f"grad_x{k}", r) for k, r in series_at.items()), _each(carry)])

    def between(steps: str) -> str:
        """The steps behind a checkpoint."""
        return f"""{_each(f"{kernel.state(s)} = {kernel.kept(s)};" for s in again)}
{_lines(f"A sum{j}[V] = {{}};" for j in parameter_at)}
{steps}
{_each(f"total{j}[v] += sum{j}[v];" for j in parameter_at)}"""

    # With all steps between two checkpoints in one piece, all loads come first, and the tape is in registers.
    held = CHECKPOINT * (len(kernel.series) + outputs + len(taped) * width) * kernel.opmath.itemsize
    size = CHECKPOINT if held <= _HELD_BYTES else _BATCH
    up, down, t = "const int k = first + j;", f"const int k = first + {size} - 1 - j;", "const long long t = start + k;"
    all_loads = _steps(size, [up, t, *kernel.loads("all", "j", outputs)])
    of_back = _steps(size, [down, t, _each(kernel.uses("all", f"{size} - 1 - j", outputs)), back])
    if size == CHECKPOINT:
        whole = ["const int first = 0;", kernel.batches("all", size, outputs), all_loads]
        whole += [_steps(size, [up, _each(kernel.uses("all", "j")), forward])] * bool(taped)
        whole += [of_back]
    else:
        loop = "#pragma unroll 1\nfor (int first = {}) {{\n{}\n}}"
        lines = [kernel.batches("all", size), _steps(size, [up, t, *kernel.loads("all", "j")])]
        lines += [_steps(size, [up, _each(kernel.uses("all", "j")), forward])]
        whole = [loop.format(f"0; first < {CHECKPOINT}; first += {size}", _lines(lines))] * bool(taped)
        lines = [kernel.batches("all", size, outputs), all_loads, of_back]
        whole += [loop.format(f"{CHECKPOINT - size}; first >= 0; first -= {size}", _lines(lines))]
    few = [f"{{\n{kernel.last_steps(0, forward)}\n}}"] * bool(taped)
    few += [kernel.last_steps(outputs, back, backwards=True)]
    text = f"""{place if taped else ""}
{kernel.registers(kernel.behind + outputs + len(states) + temporaries)}
{_each(f"{carries[s]} = grad_last{s}[i + v];" for s in states)}
{_lines(f"double total{j}[V] = {{}};" for j in parameter_at)}
long long start = T / {CHECKPOINT} * {CHECKPOINT};
if (start < T) {{
const int steps = int(T - start);
{between(_lines(few))}
}}
for (start -= {CHECKPOINT}; start >= 0; start -= {CHECKPOINT}) {{
{between(_lines(whole))}
}}
{_each(f"grad_initial{s}[i + v] = {carries[s]};" for s in states)}
{_each(f"grad_p{j}[i + v] = total{j}[v];" for j in parameter_at)}"""
    return kernel.finish(text, threads)
