"""Whole numbers of a program, such as the steps that a neuron still rests: its registers hold them as other numbers.

These are exact as long as they are small. So each step may change a number by a little at most.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.nodes import arguments, is_whole, name_of, named, value
from snnfast.compiler.loop.loop import Of

_MOST = 64
"""A first value, and what a step adds, is no more. Then float32 is exact for 2**24 / 64 steps."""


class _Bound(NamedTuple):
    """A number is at most the largest state of the step before, if it goes ``on`` from one, plus ``more``."""

    on: bool
    more: int


def check_whole(program: Any) -> None:
    """Check that all whole numbers of a program stay small.

    Raises:
        UnmergedError: It is not known.
    """
    bounds: dict[Any, _Bound] = {}

    def bound(a: Any) -> _Bound:
        if type(a) is int or type(a) is bool:
            return _Bound(False, abs(a))
        node = program.samples[a.statement] if isinstance(a, Of) else None
        dtype = value(node or program.node_of(a)).dtype if not isinstance(a, float) and a is not None else None
        if dtype == torch.bool:
            return _Bound(False, 1)
        if node is None or not is_whole(node):
            raise UnmergedError("it computes whole numbers of others")
        return _Bound(True, 0) if a.back else bounds[a.statement]

    for statement, node in program.samples.items():
        if is_whole(node):
            target: Any = node.target
            args, kwargs = pytree.tree_unflatten(
                program.args[statement], pytree.tree_structure((node.args, node.kwargs))
            )
            form = _FORMS.get(name_of(target))
            if form is None or kwargs.get("dtype") is not None:
                raise UnmergedError(f"{name_of(target)} of whole numbers")
            bounds[statement] = found = form(bound, named(target, args, kwargs))
            if found.more > _MOST:
                raise UnmergedError("whole numbers that may become large")


def is_small(begin: Node) -> bool:
    """Whether the initial value of a state is a small number."""
    given = arguments(begin)
    name = name_of(begin.target)
    if name in ("expand", "clone", "detach"):
        return is_small(given["self"])
    if name in ("full", "full_like", "new_full"):
        return type(given["fill_value"]) is int and abs(given["fill_value"]) <= _MOST
    return name in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones")


_Form = Callable[[Callable[[Any], _Bound], dict[str, Any]], _Bound]


def _sum(bound: Any, given: dict[str, Any]) -> _Bound:
    a, b = bound(given["self"]), bound(given["other"])
    if given["alpha"] != 1 or (a.on and b.on):
        raise UnmergedError("whole numbers that may become large")
    return _Bound(a.on or b.on, a.more + b.more)


def _product(bound: Any, given: dict[str, Any]) -> _Bound:
    a, b = bound(given["self"]), bound(given["other"])
    if (a.on and (b.on or b.more > 1)) or (b.on and a.more > 1):
        raise UnmergedError("whole numbers that may become large")
    return _Bound(True, max(a.more, b.more)) if a.on or b.on else _Bound(False, a.more * b.more)


def _one_of(*names: str) -> _Form:
    """One of several arguments."""

    def form(bound: Any, given: dict[str, Any]) -> _Bound:
        found = [bound(given[name]) for name in names if given.get(name) is not None]
        return _Bound(any(b.on for b in found), max(b.more for b in found))

    return form


_FORMS: dict[str, _Form] = {
    "add": _sum,
    "sub": _sum,
    "rsub": _sum,
    "mul": _product,
    "clamp": _one_of("self", "min", "max"),
    "clamp_min": _one_of("self", "min"),
    "clamp_max": _one_of("self", "max"),
    "relu": _one_of("self"),
    "neg": _one_of("self"),
    "clone": _one_of("self"),
    "detach": _one_of("self"),
    "to": _one_of("self"),
    "maximum": _one_of("self", "other"),
    "minimum": _one_of("self", "other"),
    "where": _one_of("self", "other"),
    "masked_fill": _one_of("self", "value"),
    "full_like": lambda bound, given: bound(given["fill_value"]),
    "zeros_like": lambda bound, given: _Bound(False, 0),
    "ones_like": lambda bound, given: _Bound(False, 1),
}
