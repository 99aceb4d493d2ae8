"""A call as one node of the graph that ``torch.compile`` makes: the ops ``snnfast::step`` and ``snnfast::unroll``.

Without them, torch.compile would trace the checks and the autograd function of every call. That takes long in a loop
over time. And each call of a traced autograd function makes a new class, which costs more than a small unroll. They
are composite ops, so that any compiler finds the kernels in them. The backend in :mod:`snnfast.compiler` looks for
steps.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from snnfast import surrogate
from snnfast._core import backend as _backend
from snnfast._core.linear import Linear
from snnfast._core.norm import Norm
from snnfast._core.ops import (
    CONSTANT,
    NAMESPACE,
    NEURONS,
    RESET_MECHANISMS,
    SEQUENCE,
    SURROGATE_AT,
    Neuron,
    opmath_dtype,
    unpack,
)
from snnfast._unroll import connected, reference
from snnfast._unroll import state_gradients as _gradients
from snnfast._unroll.call import ONE_STEP, Options, Request, UnrollCall, make_request
from snnfast._unroll.checks import check_current, check_options
from snnfast._unroll.run import run


def _spec(neuron: str) -> Neuron:
    """The neuron of a name that anybody may have written."""
    found = NEURONS.get(neuron)
    if found is None:
        raise ValueError(f"neuron: expected one of {', '.join(NEURONS)}, got {neuron!r}")
    return found


@lru_cache
def _options_of(packed: int, surrogate_field: int, p0: float, p1: float) -> Options:
    """The options that ``Options.packed`` and ``Options.derivative`` hold."""
    kind = surrogate.of_kernel(surrogate_field >> SURROGATE_AT, p0, p1)
    reset, delay = RESET_MECHANISMS[unpack(packed, "reset")], bool(unpack(packed, "reset_delay"))
    return check_options(kind, reset, delay, False, None)


def unroll_steps(
    neuron: str,
    x: Tensor,  # [T, *], or [*] of a constant current
    tensors: list[Tensor | None],  # states, then parameters
    options: int,
    surrogate_field: int,
    p0: float,
    p1: float,
    backend: str,
    steps: int | None,  # of a constant current
    record: int,  # states to return of every step, as bits
    reduce: bool,  # sum the spikes over time
    weight: Tensor | None = None,  # [O, N] of a linear layer that alone reads the spikes
    bias: Tensor | None = None,  # [O]
    dims: int = 1,  # of a step, from the last: N is their product
    norm: Norm | None = None,  # before the neurons; nothing is recorded
) -> list[Tensor | None]:
    """Unroll steps that follow one another in a graph: the spikes, the record of each state, the states at the end.

    A state that is not recorded has ``None`` in the place of its record. With a ``weight``, the output of the linear
    layer ``[T, *, O]`` takes the place of the spikes. Numbers and dtypes are those of the steps: for a half-precision
    current, the states have the opmath dtype.
    """
    wide = x.to(opmath_dtype(x.dtype)) if record else x
    asked = tensors, options, surrogate_field, p0, p1, backend, steps, record, True, reduce
    if wide.dtype == x.dtype:
        spk, *rest = unroll(neuron, x, *asked, weight, bias, dims, norm)
    else:
        spk, *rest = unroll(neuron, wide, *asked)
        spk = spk.to(x.dtype)
        spk = spk if weight is None else Linear(weight, bias, dims).of_spikes(spk)
    found = iter(rest)
    records = [next(found) if record >> i & 1 else None for i in range(len(NEURONS[neuron].states))]
    return [spk, *records, *found]


def step(
    neuron: str,
    x: Tensor,  # [*]
    tensors: list[Tensor | None],  # states, then parameters
    options: int,
    surrogate_field: int,
    p0: float,
    p1: float,
    backend: str,
    *,
    state_gradients: bool = False,  # the choice of use_state_gradients
    sources: str = "",  # a part of the graph's key in caches on the disk
) -> list[Tensor]:
    """The op ``snnfast::step``. It checks its tensors, and begins with zeros for a state of another shape."""
    check_current("input_", x)
    asked = neuron, x, of_step(neuron, x, tensors), (options, surrogate_field, p0, p1), backend, ONE_STEP
    if state_gradients == _gradients.setting.value:
        return list(_run(*asked))
    with _gradients.use_state_gradients(state_gradients):  # of a block that was traced
        return list(_run(*asked))


def of_step(neuron: str, x: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors of a step, with ``None`` in the place of a state that has another shape than ``x``."""
    n = len(_spec(neuron).states)
    fit = [t if t is None or t.is_nested or t.shape == x.shape else None for t in tensors[:n]]
    return [*fit, *tensors[n:]]


def elementwise_step(
    neuron: str, x: Tensor, tensors: list[Tensor | None], *options: Any, state_gradients: bool = False, **_: str
) -> list[Tensor]:
    """:func:`step` in PyTorch's operators."""
    n, tensors = len(NEURONS[neuron].states), of_step(neuron, x, tensors)
    if NEURONS[neuron].has_spike_feedback and tensors[n] is None:  # the last spikes are behind their product
        tensors[n] = torch.ones_like(x)
    states, parameters = tuple(tensors[:n]), tuple(p for p in tensors[n:] if p is not None)
    asked = _options_of(*options[:-1])  # the last one is the backend
    with _gradients.use_state_gradients(state_gradients):
        return list(reference.unroll(UnrollCall(NEURONS[neuron], asked, ONE_STEP, x, states, parameters)))


def unroll(
    neuron: str,
    x: Tensor,  # [T, *], or [*] of a constant current
    tensors: list[Tensor | None],  # states, then parameters
    options: int,
    surrogate_field: int,
    p0: float,
    p1: float,
    backend: str,
    steps: int | None,  # of a constant current
    record: int,  # states to return of every step, as bits
    last: bool,  # return all states after the last step
    reduce: bool,  # sum the spikes over time
    weight: Tensor | None = None,  # [O, N] of a linear layer that alone reads the spikes
    bias: Tensor | None = None,  # [O]
    dims: int = 1,  # of a step, from the last: N is their product
    norm: Norm | None = None,
    *,
    sources: str = "",
) -> list[Tensor]:
    """The op ``snnfast::unroll``: a call of all time steps, whose arguments are checked already."""
    time, steps = (SEQUENCE, x.shape[0]) if steps is None else (CONSTANT, steps)
    request = make_request(time, steps, record, last, reduce)
    linear = None if weight is None else Linear(weight, bias, dims)
    return list(_run(neuron, x, tensors, (options, surrogate_field, p0, p1), backend, request, linear, norm))


def _run(
    name: str,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    options: tuple[Any, ...],
    backend: str,
    request: Request,
    linear: Linear | None = None,
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    neuron, asked = _spec(name), _options_of(*options)
    n = len(neuron.states)
    states: Any = tuple(tensors[:n])
    parameters: Any = tuple(tensors[n:])
    if neuron.has_spike_feedback and not isinstance(parameters[0], Tensor):
        parameters = connected.in_place_of_v(parameters[0], x), *parameters[1:]
    call = UnrollCall(neuron, asked, request, x, states, parameters, linear, None, norm)
    if backend == _backend.current_backend():
        return run(call)
    with _backend.use_backend(backend):  # of a block that was traced, which is not there when its graph runs
        return run(call)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_OPTIONS = "int options, int surrogate, float p0, float p1, str backend"
_library.define(  # type: ignore[no-untyped-call]
    f"step(str neuron, Tensor x, Tensor?[] tensors, {_OPTIONS}, *, bool state_gradients, str sources) -> Tensor[]"
)
_library.define(  # type: ignore[no-untyped-call]
    f"unroll(str neuron, Tensor x, Tensor?[] tensors, {_OPTIONS}, SymInt? steps, int record, bool last, bool reduce, "
    "Tensor? weight=None, Tensor? bias=None, int dims=1, *, str sources) -> Tensor[]"
)
_library.impl("step", step, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("unroll", unroll, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

_FUNCTIONS: dict[Any, Any] = {}
for _op, _function in ((torch.ops.snnfast.step, step), (torch.ops.snnfast.unroll, unroll)):
    _FUNCTIONS |= {_op: _function, _op.default: _function}


def as_function(node: torch.fx.Node) -> bool:
    """Make a node call the function that its op calls: the dispatch of a composite op takes microseconds.

    Returns:
        Whether it is a node of these ops.
    """
    is_ours = node.op == "call_function" and node.target in _FUNCTIONS
    if is_ours:
        node.target = _FUNCTIONS[node.target]
    return is_ours
