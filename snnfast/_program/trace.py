"""Record the elementwise instructions of a step function, and those of its derivative.

PyTorch itself runs the step, on tensors of a few elements, and each of its operators is written down below autograd. So
a step may be written in any of PyTorch's spellings, with writes in place, masks and ``autograd.Function``. Its
derivative is recorded in the same way while autograd runs: all conventions, such as the ends of ``clamp``, are those of
the installed PyTorch.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from snnfast._core.pytorch import unhooked
from snnfast._program.instructions import APPLY

__all__ = ["Graph", "NotElementwiseError", "Place", "Trace", "trace"]

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

    Equal instructions of equal operands are one value.
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

    def copy(self) -> "Graph":
        made = Graph(self.dtype)
        made.nodes, made._numbers, made._binary = [*self.nodes], {**self._numbers}, [*self._binary]
        return made

    def without(self, outputs: Sequence[int], gradients: Sequence[int | None]) -> list[int | None]:
        """Gradients where some outputs have none. As in autograd, nothing is added for these."""
        gone = {self._numbers.get(("grad", repr(i))) for i in outputs}
        found: dict[int, int | None] = {}

        def of(value: int) -> int | None:
            if value not in found:
                found[value] = None if value in gone else self._without(value, [of(v) for v in self.operands(value)])
            return found[value]

        return [None if v is None else of(v) for v in gradients] if gone - {None} else list(gradients)

    def _without(self, value: int, operands: list[int | None]) -> int | None:
        """An instruction whose operands may be gone; ``None``: it is gone itself."""
        op, *before = self.nodes[value]
        if self.is_leaf(value) or operands == before:
            return value
        if op in ("add", "sub") and None in operands:
            first, second = operands
            return second if first is None and op == "add" else first if second is None else self.emit("neg", second)
        if op == "fma" and None in operands:
            return operands[2] if operands[0] is None else self.emit("mul", operands[0], before[1])
        if op in ("neg", "mul", "move") or (op == "div" and operands[0] is None):
            if None in operands:
                return None
        elif op == "where" and all(v is None or self.is_constant(v, 0.0) for v in operands[1:]):
            return None
        return self.emit(op, *(self.constant(0) if v is None else v for v in operands))

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
        differentiable: Which outputs and new states, in this order, require a gradient. Those that are detached, or
            made of comparisons, do not.
        asks: Whether the step asks its arguments for their sizes or their device. It may compute something else where
            these are others.
    """

    graph: Graph
    outputs: list[int]
    states: list[int]
    gradients: list[int | None]
    differentiable: list[bool]
    asks: bool = False

    def copy(self) -> "Trace":
        """Another one, to whose graph a code may add."""
        return replace(self, graph=self.graph.copy())

    def equals(self, other: "Trace") -> bool:
        """Whether two steps compute the same."""
        # By the text, NaN equals itself, and the zeros are two.
        return repr((self.graph.nodes, self.outputs, self.states, self.gradients)) == repr(
            (other.graph.nodes, other.outputs, other.states, other.gradients)
        )


class Place(NamedTuple):
    """Where a step is traced: the shape of its arguments, and their device."""

    shape: tuple[int, ...]
    device: torch.device


def trace(
    step: Step,
    counts: tuple[int, int, int],  # of series, states and parameters
    dtype: torch.dtype,
    dims: int,
    needs: Sequence[bool] | None = None,
    place: Place | None = None,
    constant: int = 0,
) -> Trace:
    """Trace a step for arguments of so many ``dims``; with ``needs``, also its derivative.

    Args:
        step, counts: The step, and how many series, states and parameters it has.
        dtype, dims: The dtype of its arguments, and how many dimensions they have.
        needs: Which arguments ask for a gradient before the first step; ``None``: the grad mode is off.
        place: Where to trace. ``None``: on a few elements on the CPU.
        constant: How many of the parameters, from the first, are inputs that are the same at each step.

    Raises:
        NotElementwiseError: It can't be a program.
    """
    # No two sizes are equal, and none is one that a step would name.
    made_up = Place((13, 11, 7, 3, *(2,) * (dims - 4))[: max(dims, 1)], torch.device("cpu"))
    asks = needs is not None and list(needs)
    with _undisturbed(needs):
        while True:
            recorder = _Recorder(dtype, place or made_up, place is not None, constant)
            found, needed = _traced(recorder, step, counts, asks)
            if asks == needed:
                return found
            asks = needed  # a state that asks for no gradient in the first step does in the next one


def _traced(recorder: "_Recorder", step: Step, counts: tuple[int, int, int], needs: Any) -> tuple[Trace, Any]:
    """The trace of a step, and whether each argument asks for a gradient in the step after it."""
    names = ("series", "state", "parameter")
    kinds = [(name, i) for name, count in zip(names, counts, strict=True) for i in range(count)]
    leaves = [recorder.argument(*kind).requires_grad_(bool(needs and needs[i])) for i, kind in enumerate(kinds)]
    watch = _Watch(recorder)
    gradients: list[int | None] = []
    with recorder, torch.set_grad_enabled(needs is not False):
        given = [leaf.clone() for leaf in leaves]  # which the step may write to
        with watch:
            results = step(*given)
        # A step may catch exceptions. Those of the recorder are not its own, and others may be of made-up sizes.
        if recorder.refused is not None:
            raise recorder.refused
        watch.asks = watch.asks or watch.caught is not None
        if watch.caught is not None and recorder.is_real:
            raise NotElementwiseError(f"it catches {type(watch.caught).__name__}: {watch.caught}")
        values = [recorder.result(t) for t in results]
        first, begin = len(values) - counts[1], counts[0]
        if needs is not False:
            needs = list(needs)
            for i in range(counts[1]):
                needs[begin + i] = needs[begin + i] or results[first + i].requires_grad
            # Anomaly detection looks for NaN in each gradient; the step itself may ask whether it is on.
            with torch.autograd.set_detect_anomaly(False), watch:
                gradients = recorder.derivative(results, leaves, counts[1])
    differentiable = [t.requires_grad for t in results]
    return Trace(recorder.graph, values[:first], values[first:], gradients, differentiable, watch.asks), needs


@contextmanager
def _undisturbed(needs: object) -> Iterator[None]:
    """Without what the caller does to its own operators: modes and hooks of saved tensors."""
    with (
        unhooked(),
        _disable_current_modes(),
        torch.inference_mode(needs is None and torch.is_inference_mode_enabled()),
    ):
        yield


def _getters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names}


_SIZES = {
    *_getters("shape", "ndim", "nbytes"), Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__, torch.numel,
    Tensor.dim, Tensor.ndimension,
}  # fmt: skip
_DEVICES = {
    *_getters("device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"), Tensor.get_device, Tensor.type,
    Tensor.is_pinned,
}  # fmt: skip
_INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
_SIZED_AS = {Tensor.view_as, Tensor.expand_as, Tensor.reshape_as}
_OTHERS = {
    Tensor.stride, Tensor.is_contiguous, Tensor.storage_offset, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage,
    Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__repr__, Tensor.__format__, Tensor.apply_,
    Tensor.map_, Tensor.map2_, Tensor.register_hook, Tensor.requires_grad_, Tensor.retain_grad, Tensor.__deepcopy__,
    Tensor.__reduce_ex__,
    *_getters("requires_grad", "grad_fn", "is_leaf", "grad", "_version"),
}  # fmt: skip
"""Methods that a step can't call: their answer is another one in a loop, or in another of its steps."""


class _Watch(TorchFunctionMode):
    """Sees what a step asks its tensors for, beside what they hold.

    Attributes:
        asks: Whether it asks for sizes or a device.
        caught: An exception of one of its operators. If the step returns, it has caught it.
    """

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.asks = False
        self.caught: Exception | None = None
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _asker(func) not in ("torch", "snnfast"):
            sized = args[0] if func in _SIZES else args[1] if func in _SIZED_AS and len(args) > 1 else None
            if sized is not None and self._recorder.is_parameter(sized):
                raise self._recorder.error("asks for the size of a parameter")
            if func in _INDEXES and self._recorder.is_parameter(args[0]):
                raise self._recorder.error("indexes a parameter, whose size is another one in a program")
            sets = getattr(func, "__name__", "") == "__set__"
            if func in _OTHERS or sets:
                name = func.__self__.__name__ if sets or func.__name__ == "__get__" else func.__name__
                raise self._recorder.error(f"{'changes the' if sets else 'asks a tensor for its'} {name}")
            self.asks = self.asks or func in _SIZES or func in _DEVICES
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            self.caught = error
            raise


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, dtype: torch.dtype, place: Place, is_real: bool, constant: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph(dtype)
        self._constant = constant
        self.shape, self.device = place
        self.is_real = is_real
        self.backward = False
        self._values: dict[int, int] = {}  # by the memory of a tensor: those that share it have one value
        self._kept: list[Tensor] = []  # so that memory is not used again
        self.refused: NotElementwiseError | None = None

    def argument(self, kind: str, number: int) -> Tensor:
        # Between 0 and 1, and no number twice: nothing overflows.
        with _disable_current_modes():
            values = torch.linspace(0.1, 0.9, math.prod(self.shape), dtype=self.graph.dtype, device=self.device)
            values = values.view(self.shape)
        return self._bind(values, self.graph.leaf(kind, number))

    def is_parameter(self, t: Tensor) -> bool:
        """Whether a tensor follows from parameters, whose shapes are not those of a step."""
        with torch._C.DisableTorchFunction():
            value = self._values.get(t.untyped_storage().data_ptr())
        found, stack = False, [] if value is None else [value]
        while stack:
            value = stack.pop()
            kind, *operands = self.graph.nodes[value]
            of_inputs = kind == "parameter" and operands[0] < self._constant
            if self.graph.is_leaf(value) and (of_inputs or kind not in ("parameter", "constant")):
                return False
            found = found or kind == "parameter"
            stack += self.graph.operands(value)
        return found

    def _bind(self, t: Tensor, value: int) -> Tensor:
        self._values[t.untyped_storage().data_ptr()] = value
        self._kept.append(t)
        return t

    def value(self, operand: Any) -> int:
        if not isinstance(operand, Tensor):
            return self.graph.constant(operand)
        found = self._values.get(operand.untyped_storage().data_ptr())
        if found is None:
            raise self.error("a tensor from outside of the step: pass it as a parameter")
        if not self._fits(operand):
            raise self.error(f"a tensor of another shape, {tuple(operand.shape)}")
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

    def derivative(self, results: Sequence[Tensor], leaves: list[Tensor], states: int) -> list[int | None]:
        self.backward = True
        first = len(results) - states
        kinds = [(i, "grad", i) for i in range(first)] + [(first + i, "carry", i) for i in range(states)]
        kinds = [k for k in kinds if results[k[0]].requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not kinds or not wanted:
            return [None] * len(leaves)
        seeds = [self.argument(kind, number) for _, kind, number in kinds]
        outputs = tuple(results[i] for i, _, _ in kinds)
        # ``torch.autograd.grad`` would run it without the mode that watches.
        found = iter(
            _engine_run_backward(
                outputs, tuple(seeds), False, False, tuple(wanted), allow_unreachable=True, accumulate_grad=False
            )
        )
        gradients = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return [None if g is None else self.value(g) for g in gradients]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # what is asked here is not the step's question
            return self._record(func, args, kwargs or {})

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func._schema.name.removeprefix("aten::")
        name = name.removesuffix("_")  # a write in place gives the memory another value
        if name == "_local_scalar_dense" and self.graph.nodes[self.value(args[0])][0] == "constant":
            return func(*args, **kwargs)  # ``item`` of a number that the step made a tensor of
        record = _OPERATORS.get(name)
        if record is None:
            raise self.error(f"torch.{name} is not elementwise, or is not known to programs")
        if record not in (_made, _empty):
            for operand in args:
                if isinstance(operand, Tensor):
                    self.value(operand)  # before PyTorch finds that its shape is another one
        tensors = [t for t in args if isinstance(t, Tensor)]
        of_parameters = [self.is_parameter(t) for t in tensors]
        # A parameter may be a number, which decides no dtype beside a tensor.
        narrow = [t.dim() > 0 and t.is_floating_point() and t.dtype != self.graph.dtype for t in tensors]
        if any(of_parameters) and any(n and not p for n, p in zip(narrow, of_parameters, strict=True)):
            raise self.error(f"torch.{name} computes in a dtype that depends on the shape of a parameter")
        # A tensor of zeros without memory is one that has it.
        out = torch.zeros(*args, **kwargs) if name == "_efficientzerotensor" else func(*args, **kwargs)
        value = record(self, out, *args, **kwargs)
        if value is None:
            raise self.error(f"torch.{name} with these arguments is not elementwise, or is not known to programs")
        self._check(name, out, args)
        self._bind(out, value)
        return out

    def _check(self, name: str, out: Tensor, args: Any) -> None:
        if not self._fits(out):
            raise self.error(f"torch.{name} makes a tensor of shape {tuple(out.shape)}")
        if out.dtype in (self.graph.dtype, torch.bool):
            return
        truth = name == "_to_copy" and args[0].dtype == torch.bool  # as integers
        if not (truth or _OPERATORS[name] in (_made, _empty)):
            raise self.error(f"torch.{name} computes in {out.dtype}, not in the dtype of the input")

    def error(self, problem: str) -> NotElementwiseError:
        self.refused = NotElementwiseError(f"{problem}{' (in its derivative)' if self.backward else ''}", _line())
        return self.refused


def _package(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _asker(func: Any) -> str:
    """The package that asks a tensor for something, by calling ``func``."""
    frame: Any = sys._getframe(2)
    code = getattr(func, "__code__", None)
    while code is not None and frame is not None and frame.f_back is not None:  # PyTorch's function asks again
        found, frame = frame.f_code is code, frame.f_back
        if found:
            break
    return _package(frame)


def _line() -> str:
    """The line of the step that runs."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if _package(frame) not in ("snnfast", "torch"):
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
@_operator("scalar_tensor", "lift_fresh", "_efficientzerotensor")
def _made(r: _Recorder, out: Tensor, *_: Any, **__: Any) -> int | None:
    flat = out.flatten()
    first = flat[0].item()
    equal = flat.isnan() if first != first else (flat == first) & (flat.signbit() == flat[0].signbit())
    return r.graph.constant(first) if bool(equal.all()) else None


@_operator("empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty")
def _empty(r: _Recorder, out: Tensor, *_: Any, **__: Any) -> int:
    return r.graph.constant(0)  # whatever the memory held: it is written before it is read


@_operator("as_strided")
def _as_strided(r: _Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> int | None:
    return r.value(x) if out.shape == x.shape and out.stride() == x.stride() else None


@_operator("clone", "detach", "alias", "expand", "_to_copy", "contiguous")
def _same(r: _Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    return _truth(r, x) if out.dtype == torch.bool else r.value(x)


@_operator("view", "_unsafe_view", "reshape", "view_as")
def _view(r: _Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> int | None:
    return None if r.is_parameter(x) else r.value(x)  # the sizes of a parameter are others


@_operator("select")
def _selected(r: _Recorder, out: Tensor, x: Tensor, *_: Any) -> int | None:
    return r.value(x) if x.numel() == 1 else None


@_operator("copy")
def _copied(r: _Recorder, out: Tensor, to: Tensor, x: Tensor, *_: Any) -> int | None:
    return r.value(x) if x.dtype in (to.dtype, torch.bool) else None


@_operator("fill", "zero")
def _filled(r: _Recorder, out: Tensor, to: Tensor, value: Any = 0) -> int:
    return r.value(value)
