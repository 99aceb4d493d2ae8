"""Record the elementwise instructions of a step function, and those of its derivative.

PyTorch itself runs the step, on tensors of a few elements, and each of its operators is written down below autograd. So
a step may be written in any of PyTorch's spellings, with writes in place, masks and ``autograd.Function``. Its
derivative is recorded in the same way while autograd runs: all conventions, such as the ends of ``clamp``, are those of
the installed PyTorch.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from snnfast._program.instructions import APPLY

__all__ = ["Graph", "NotElementwiseError", "Trace", "trace"]

Step = Callable[..., tuple[Tensor, ...]]
"""``(*series, *states, *parameters)`` to the outputs followed by the new states."""


class NotElementwiseError(ValueError):
    """A step does what no program can do; the message names the operator and the line.

    It is no ``TypeError``: of that, PyTorch's binary operators make another one.
    """

    def __init__(self, problem: str, line: str = "") -> None:
        super().__init__(f"step: {problem}{line}")
        self.problem = problem


class Graph:
    """Values of a step by number. Each is a leaf, such as ``("state", 0)``, or an instruction and its operands.

    The same instruction of the same operands is the same value.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[tuple[Any, ...]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._binary: list[bool] = []

    def leaf(self, kind: str, number: float) -> int:
        # By its text, a constant -0.0 is another than 0.0, and NaN equals itself.
        return self.enter((kind, number), (kind, repr(number)))

    def constant(self, number: float) -> int:
        """A number, rounded to the dtype."""
        return self.leaf("constant", float(torch.tensor(float(number), dtype=self.dtype, device="cpu")))

    def emit(self, op: str, *operands: int) -> int:
        if op == "add" and self._is_negative(operands[0]):
            operands = operands[::-1]
        if op in ("add", "sub") and self._is_negative(operands[1]):  # a + -b is a - b, to the bit
            return self.emit("sub" if op == "add" else "add", operands[0], self.nodes[operands[1]][1])
        if op in ("add", "mul"):  # equal ones are found in either order
            operands = tuple(sorted(operands))
        if op == "mul" and self.is_constant(operands[1], 1.0):
            return operands[0]
        if op == "mul" and self.is_constant(operands[0], 1.0):
            return operands[1]
        if op == "add" and self.is_constant(operands[0], -0.0):  # which a first step without a state starts from
            return operands[1]
        if op in ("add", "sub") and self.is_constant(operands[1], -0.0 if op == "add" else 0.0):
            return operands[0]
        if op in ("where", "gt", "ne") and self.is_binary(operands[0]) and self._repeats(op, *operands[1:]):
            return operands[0]
        if all(self.nodes[x][0] == "constant" for x in operands):
            numbers = [torch.tensor(self.nodes[x][1], dtype=self.dtype, device="cpu") for x in operands]
            return self.constant(float(APPLY[op](*numbers)))
        return self.enter((op, *operands), (op, *operands))

    def is_constant(self, value: int, number: float) -> bool:
        return self.nodes[value][0] == "constant" and repr(self.nodes[value][1]) == repr(number)

    def _is_negative(self, value: int) -> bool:
        return bool(self.nodes[value][0] == "neg")

    def is_leaf(self, value: int) -> bool:
        return self.nodes[value][0] not in APPLY

    def is_binary(self, value: int) -> bool:
        """Whether a value is certainly 0 or 1, in every step and neuron."""
        return self._binary[value]

    def operands(self, value: int) -> tuple[int, ...]:
        return () if self.is_leaf(value) else self.nodes[value][1:]

    def enter(self, node: tuple[Any, ...], key: tuple[Any, ...]) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(node)
            self._binary.append(self._makes_binary(*node))
        return self._numbers[key]

    def _repeats(self, op: str, *others: int) -> bool:
        """Whether an instruction makes 1 of 1, and 0 of 0."""
        numbers = [self.nodes[v][1] for v in others if self.nodes[v][0] == "constant"]
        if op == "where":
            return list(map(repr, numbers)) == ["1.0", "0.0"]
        return bool(numbers) and (numbers[0] == 0 if op == "ne" else 0 <= numbers[0] < 1)

    def _makes_binary(self, op: str, *operands: Any) -> bool:
        if op == "constant":
            return repr(operands[0]) in ("0.0", "1.0")
        if op == "where":
            operands = operands[1:]
        elif op not in ("move", "mul", "maximum", "minimum"):
            return op in ("gt", "ge", "lt", "le", "eq", "ne")
        return all(map(self.is_binary, operands))


@dataclass
class Trace:
    """A step as a graph, with its outputs and new states.

    Attributes:
        gradients: With respect to series, states and parameters, in this order; ``None`` where there is none. A leaf
            ``("grad", i)`` is the gradient of an output, ``("carry", i)`` that of a new state.
    """

    graph: Graph
    outputs: list[int]
    states: list[int]
    gradients: list[int | None]


def trace(
    step: Step,
    counts: tuple[int, int, int],  # of series, states and parameters
    dtype: torch.dtype,
    dims: int,
    given: Sequence[int] | None = None,
) -> Trace:
    """Trace a step for arguments of so many ``dims``; with ``given``, also its derivative.

    ``given`` are the numbers of those outputs that have a gradient.
    """
    names = ("series", "state", "parameter")
    with _disable_current_modes(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        recorder = _Recorder(dtype, (2,) * max(dims, 1))
        leaves = [recorder.argument(name, i) for name, count in zip(names, counts, strict=True) for i in range(count)]
        for leaf in leaves:
            leaf.requires_grad_(given is not None)
        with torch.set_grad_enabled(given is not None), recorder:
            results = step(*(leaf.clone() for leaf in leaves))  # which the step may write to
            if not isinstance(results, tuple) or len(results) < counts[1]:
                raise NotElementwiseError(f"expected a tuple of outputs and {counts[1]} new states")
            values = [recorder.result(t) for t in results]
            gradients = [] if given is None else recorder.derivative(results, leaves, counts[1], given)
    first = len(values) - counts[1]
    return Trace(recorder.graph, values[:first], values[first:], gradients)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph(dtype)
        self.shape = shape
        self.backward = False
        self._values: dict[int, int] = {}  # by the memory of a tensor: those that share it have one value
        self._kept: list[Tensor] = []  # so that memory is not used again

    def argument(self, kind: str, number: int) -> Tensor:
        # Between 0 and 1, and no number twice: nothing overflows.
        with _disable_current_modes():
            values = torch.linspace(0.1, 0.9, 2 ** len(self.shape), dtype=self.graph.dtype, device="cpu")
            values = values.view(self.shape)
        return self._bind(values, self.graph.leaf(kind, number))

    def _bind(self, t: Tensor, value: int) -> Tensor:
        self._values[t.untyped_storage().data_ptr()] = value
        self._kept.append(t)
        return t

    def value(self, operand: Any) -> int:
        if not isinstance(operand, Tensor):
            return self.graph.constant(operand)
        found = self._values.get(operand.untyped_storage().data_ptr())
        if found is None:
            raise self._error("a tensor from outside of the step: pass it as a parameter")
        if not self._fits(operand):
            raise self._error(f"a tensor of another shape, {tuple(operand.shape)}")
        return found

    def _fits(self, t: Tensor) -> bool:
        """Whether a tensor is of one step, or a number of as many dimensions at most."""
        return t.shape == self.shape or (t.numel() == 1 and t.dim() <= len(self.shape))

    def result(self, t: object) -> int:
        if not isinstance(t, Tensor):
            raise NotElementwiseError(f"expected tensors, got {type(t).__name__}")
        if t.shape != self.shape or t.dtype != self.graph.dtype:
            raise NotElementwiseError(
                f"expected results of the shape and dtype of the input, {tuple(self.shape)} {self.graph.dtype}, "
                f"got {tuple(t.shape)} {t.dtype}"
            )
        return self.value(t)

    def derivative(
        self, results: Sequence[Tensor], leaves: list[Tensor], states: int, given: Sequence[int]
    ) -> list[int | None]:
        self.backward = True
        first = len(results) - states
        kinds = [(i, "grad", i) for i in given] + [(first + i, "carry", i) for i in range(states)]
        kinds = [k for k in kinds if results[k[0]].requires_grad]
        if not kinds:
            return [None] * len(leaves)
        seeds = [self.argument(kind, number) for _, kind, number in kinds]
        found = torch.autograd.grad([results[i] for i, _, _ in kinds], leaves, seeds, allow_unused=True)
        return [None if g is None else self.value(g) for g in found]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        name = name.removesuffix("_")  # a write in place gives the memory another value
        if name == "_local_scalar_dense" and self.graph.nodes[self.value(args[0])][0] == "constant":
            return func(*args, **kwargs)  # ``item`` of a number that the step made a tensor of
        record = _OPERATORS.get(name)
        if record is None:
            raise self._error(f"torch.{name} is not elementwise, or is not known to programs")
        if record is not _made:
            for operand in args:
                if isinstance(operand, Tensor):
                    self.value(operand)  # before PyTorch finds that its shape is another one
        out = func(*args, **kwargs)
        value = record(self, out, *args, **kwargs)
        if value is None:
            raise self._error(f"torch.{name} with these arguments is not elementwise, or is not known to programs")
        self._check(name, out, args)
        self._bind(out, value)
        return out

    def _check(self, name: str, out: Tensor, args: Any) -> None:
        if not self._fits(out):
            raise self._error(f"torch.{name} makes a tensor of shape {tuple(out.shape)}")
        if out.dtype in (self.graph.dtype, torch.bool):
            return
        truth = name == "_to_copy" and args[0].dtype == torch.bool  # as integers
        if not (truth or _OPERATORS[name] is _made):
            raise self._error(f"torch.{name} computes in {out.dtype}, not in the dtype of the input")

    def _error(self, problem: str) -> NotElementwiseError:
        return NotElementwiseError(f"{problem}{' (in its derivative)' if self.backward else ''}", _line())


def _line() -> str:
    """The line of the step that runs."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("snnfast", "torch"):
            return f", {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# ---- what is recorded of PyTorch's operators: (recorder, result, *arguments of the operator) to a value

Record = Callable[..., int | None]
Kind = TypeVar("Kind", bound=Record)

_OPERATORS: dict[str, Record] = {}


def _operator(*names: str) -> Callable[[Kind], Kind]:
    def enter(record: Kind) -> Kind:
        _OPERATORS.update(dict.fromkeys(names, record))
        return record

    return enter


def _plain(op: str) -> Record:
    """An operator that is one instruction of its operands, without options such as ``rounding_mode``."""

    def record(r: _Recorder, out: Tensor, *operands: Any, **options: Any) -> int | None:
        return r.graph.emit(op, *map(r.value, operands)) if not any(options.values()) else None

    return record


for _op in ("neg", "abs", "sqrt", "exp", "log", "sigmoid", "tanh", "floor", "ceil", "round", "trunc"):
    _OPERATORS[_op] = _plain(_op)
for _op in ("mul", "div", "gt", "ge", "lt", "le", "eq", "ne", "maximum", "minimum", "where"):
    _OPERATORS[_op] = _plain(_op)


def _logical(op: str) -> Record:
    """An operator of truth values, which are the numbers 0 and 1. Any other number but 0 is true."""

    def record(r: _Recorder, out: Tensor, a: Tensor, b: Tensor) -> int:
        return r.graph.emit(op, _truth(r, a), _truth(r, b))

    return record


def _truth(r: _Recorder, x: Tensor) -> int:
    return r.graph.emit("ne", r.value(x), r.graph.constant(0))


for _op, _instruction in (("and", "mul"), ("or", "maximum"), ("xor", "ne")):
    _OPERATORS[f"bitwise_{_op}"], _OPERATORS[f"logical_{_op}"] = _plain(_instruction), _logical(_instruction)


@_operator("logical_not", "bitwise_not")
def _not(r: _Recorder, out: Tensor, x: Tensor) -> int | None:
    return r.graph.emit("eq", r.value(x), r.graph.constant(0)) if out.dtype == torch.bool else None


@_operator("add")
def _add(r: _Recorder, out: Tensor, a: Any, b: Any, *, alpha: float = 1) -> int:
    if out.dtype == torch.bool:
        return r.graph.emit("maximum", r.value(a), r.value(b))
    if alpha == 1:
        return r.graph.emit("add", r.value(a), r.value(b))
    return r.graph.emit("fma", r.value(b), r.graph.constant(alpha), r.value(a))


@_operator("sub")
def _sub(r: _Recorder, out: Tensor, a: Any, b: Any, *, alpha: float = 1) -> int:
    return r.graph.emit("sub", r.value(a), r.value(b)) if alpha == 1 else _add(r, out, a, b, alpha=-alpha)


@_operator("rsub")
def _rsub(r: _Recorder, out: Tensor, a: Any, b: Any, alpha: float = 1) -> int:
    return _sub(r, out, b, a, alpha=alpha)


@_operator("reciprocal")
def _reciprocal(r: _Recorder, out: Tensor, x: Tensor) -> int:
    return r.graph.emit("div", r.graph.constant(1), r.value(x))


@_operator("rsqrt")
def _rsqrt(r: _Recorder, out: Tensor, x: Tensor) -> int:
    return r.graph.emit("div", r.graph.constant(1), r.graph.emit("sqrt", r.value(x)))


@_operator("sign", "sgn")
def _sign(r: _Recorder, out: Tensor, x: Tensor) -> int:
    zero, value = r.graph.constant(0), r.value(x)
    return r.graph.emit("sub", r.graph.emit("gt", value, zero), r.graph.emit("lt", value, zero))


@_operator("pow")
def _pow(r: _Recorder, out: Tensor, x: Any, exponent: Any) -> int:
    g, value = r.graph, r.value(x)
    if isinstance(exponent, Tensor):
        return g.emit("pow", value, r.value(exponent))
    # All of them, as PyTorch computes them; those that are not the result are dropped later.
    one, square, root = g.constant(1), g.emit("mul", value, value), g.emit("sqrt", value)
    special = {
        0: one,
        1: value,
        2: square,
        3: g.emit("mul", square, value),
        0.5: root,
        -0.5: g.emit("div", one, root),
        -1: g.emit("div", one, value),
        -2: g.emit("div", one, square),
    }
    return special[exponent] if exponent in special else g.emit("pow", value, g.constant(exponent))


def _clamped(low: Any, high: Any) -> Record:
    def record(r: _Recorder, out: Tensor, x: Tensor, *ends: Any, **named: Any) -> int:
        minimum, maximum = low(*ends, **named), high(*ends, **named)
        value = r.value(x)
        # In this order of operands, so that of equal zeros x itself is taken, as PyTorch does.
        value = value if minimum is None else r.graph.emit("maximum", r.value(minimum), value)
        return value if maximum is None else r.graph.emit("minimum", r.value(maximum), value)

    return record


_OPERATORS["clamp"] = _clamped(lambda min=None, max=None: min, lambda min=None, max=None: max)
_OPERATORS["hardtanh"] = _clamped(lambda min_val=-1, max_val=1: min_val, lambda min_val=-1, max_val=1: max_val)
_OPERATORS["clamp_min"] = _clamped(lambda min: min, lambda min: None)
_OPERATORS["clamp_max"] = _clamped(lambda max: None, lambda max: max)
_OPERATORS["relu"] = _clamped(lambda: 0, lambda: None)


@_operator("masked_fill")
def _masked_fill(r: _Recorder, out: Tensor, x: Tensor, mask: Tensor, value: Any) -> int:
    return r.graph.emit("where", r.value(mask), r.value(value), r.value(x))


@_operator("index_put", "_index_put_impl")
def _index_put(r: _Recorder, out: Tensor, x: Tensor, indices: Any, value: Tensor, *options: Any) -> int | None:
    mask = indices[0]
    if len(indices) != 1 or mask.dtype != torch.bool or mask.shape != x.shape or value.numel() != 1 or any(options[:1]):
        return None
    return _masked_fill(r, out, x, mask, value)


@_operator("heaviside")
def _heaviside(r: _Recorder, out: Tensor, x: Tensor, at_zero: Tensor) -> int:
    g, value, zero = r.graph, r.value(x), r.graph.constant(0)
    return g.emit("where", g.emit("eq", value, zero), r.value(at_zero), g.emit("gt", value, zero))


@_operator("isnan")
def _isnan(r: _Recorder, out: Tensor, x: Tensor) -> int:
    return r.graph.emit("ne", r.value(x), r.value(x))


@_operator("leaky_relu")
def _leaky_relu(r: _Recorder, out: Tensor, x: Tensor, slope: float = 0.01) -> int:
    return _leaky_relu_backward(r, out, x, x, slope)


# ---- operators of derivatives


@_operator("leaky_relu_backward")
def _leaky_relu_backward(r: _Recorder, out: Tensor, grad: Tensor, x: Tensor, slope: float, *_: Any) -> int:
    g, value = r.graph, r.value(grad)
    positive = g.emit("gt", r.value(x), g.constant(0))
    return g.emit("where", positive, value, g.emit("mul", value, g.constant(slope)))


@_operator("sigmoid_backward")
def _sigmoid_backward(r: _Recorder, out: Tensor, grad: Tensor, y: Tensor) -> int:
    g, value = r.graph, r.value(y)
    return g.emit("mul", g.emit("mul", r.value(grad), g.emit("sub", g.constant(1), value)), value)


@_operator("tanh_backward")
def _tanh_backward(r: _Recorder, out: Tensor, grad: Tensor, y: Tensor) -> int:
    g, value = r.graph, r.value(y)
    return g.emit("mul", r.value(grad), g.emit("sub", g.constant(1), g.emit("mul", value, value)))


@_operator("hardtanh_backward")
def _hardtanh_backward(r: _Recorder, out: Tensor, grad: Tensor, x: Tensor, low: float, high: float) -> int:
    g, value = r.graph, r.value(x)
    outside = g.emit("maximum", g.emit("le", value, g.constant(low)), g.emit("ge", value, g.constant(high)))
    return g.emit("where", outside, g.constant(0), r.value(grad))


@_operator("threshold_backward")
def _threshold_backward(r: _Recorder, out: Tensor, grad: Tensor, x: Tensor, threshold: float) -> int:
    g = r.graph
    return g.emit("where", g.emit("le", r.value(x), g.constant(threshold)), g.constant(0), r.value(grad))


# ---- what makes tensors, copies them, or gives them another name


@_operator("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full")
@_operator("scalar_tensor", "lift_fresh")
def _made(r: _Recorder, out: Tensor, *_: Any, **__: Any) -> int | None:
    first, *others = out.flatten().tolist()
    return r.graph.constant(first) if all(repr(a) == repr(first) for a in others) else None


@_operator("clone", "detach", "alias", "view", "_unsafe_view", "reshape", "expand", "view_as", "_to_copy", "contiguous")
def _same(r: _Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    return _truth(r, x) if out.dtype == torch.bool else r.value(x)


@_operator("select")
def _selected(r: _Recorder, out: Tensor, x: Tensor, *_: Any) -> int | None:
    return r.value(x) if x.numel() == 1 else None


@_operator("copy")
def _copied(r: _Recorder, out: Tensor, to: Tensor, x: Tensor, *_: Any) -> int | None:
    return r.value(x) if x.dtype in (to.dtype, torch.bool) else None


@_operator("fill", "zero")
def _filled(r: _Recorder, out: Tensor, to: Tensor, value: Any = 0) -> int:
    return r.value(value)
