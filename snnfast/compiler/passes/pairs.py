"""Complex values of a recurrence become pairs of real ones: programs are real.

::

    z_1 = mul(z, a)                   mul = mul(real(z), real(a))
    v = imag(z_1)                     mul_1 = mul(imag(z), imag(a))
                                      sub = sub(mul, mul_1)
                                      mul_2 = mul(real(z), imag(a))
                                      mul_3 = mul(imag(z), real(a))
                                      v = add(mul_2, mul_3)

PyTorch rounds the four products and the two sums of a complex product one by one, and so does this. Calls outside of
recurrences stay complex, and so does a recurrence with a call that has no such form.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfast.compiler.graph.dependence import cycles
from snnfast.compiler.graph.memory import Memory, erase_unread, take_place
from snnfast.compiler.graph.nodes import (
    Site,
    arguments,
    aten,
    insert_call,
    is_number,
    is_opaque,
    site_of,
    value,
)
from snnfast.compiler.passes.unstack import has_hook, reads


def run(graph: Graph) -> None:
    if not any(map(_is_complex, graph.nodes)):
        return
    memory = Memory(graph)
    shown = Counter(s for n in graph.output_node().all_input_nodes for s in memory.storage[n])
    chosen: set[Node] = set()
    for calls in _recurrences(graph):
        blocks = {n.meta["context"].blocks for n in calls}
        if len(blocks) == 1 and all(_has_form(n) and not _is_seen(n, memory, shown) for n in calls):
            chosen.update(calls)
    writer, order = _Writer(), [n for n in graph.nodes if n in chosen]
    for node in order:
        writer.rewrite(node)
    for node in reversed(order):
        writer.remove(node)


def _is_complex(a: Any) -> bool:
    return isinstance(a, Node) and isinstance(value(a), Tensor) and value(a).is_complex()


def _recurrences(graph: Graph) -> Iterator[list[Node]]:
    """The calls of complex values that wait for one another over the steps, and those that read their parts.

    The calls of one line are one vertex: those of all steps.
    """
    at: dict[Site, list[Node]] = defaultdict(list)
    bits: dict[Site, int] = {}
    behind: dict[Node, int] = {}  # of each node, the lines that it waits for, as bits
    waiting: dict[Site, None] = {}  # lines that wait for themselves
    for node in graph.nodes:
        found = 0
        for a in node.all_input_nodes:
            found |= behind[a]
        if node.op == "call_function":
            site = site_of(node)
            at[site].append(node)
            bit = bits.setdefault(site, 1 << len(bits))
            if found & bit:
                waiting[site] = None
            found |= bit
        behind[node] = found
    before = {
        site: dict.fromkeys(s for n in at[site] for a in n.all_input_nodes if (s := site_of(a)) in waiting)
        for site in waiting
    }
    for sites in cycles(before):
        calls = [n for site in sites for n in at[site] if any(map(_is_complex, (n, *n.all_input_nodes)))]
        readers = [u for n in calls if _is_complex(n) for u in n.users if u.target in _READERS]
        if calls:
            yield list(dict.fromkeys([*calls, *readers]))


def _has_form(node: Node) -> bool:
    given = arguments(node)
    if node.target is aten.div.Tensor:
        return is_number(given["other"])
    if node.target is aten.to.dtype:
        return _is_complex(node) and _is_complex(given["self"])
    return node.target in _FORMS and given.get("alpha", 1) == 1


def _is_seen(node: Node, memory: Memory, shown: Counter[int]) -> bool:
    """Whether somebody may notice that other tensors take the place of a result: a write, a hook, or the caller."""
    return (
        any(map(memory.is_written, (node, *node.all_input_nodes)))
        or any(map(is_opaque, node.users))
        or any(shown[s] > (s not in memory.given) for s in memory.storage[node])
    )


class _Pair(NamedTuple):
    """The parts of a value, nodes or numbers. The imaginary part of a real one is ``None``."""

    real: Any
    imag: Any


class _Writer:
    """Writes calls of complex values as calls of their parts."""

    def __init__(self) -> None:
        self._pairs: dict[Node, _Pair] = {}  # of the calls that are written
        self._outside: dict[Any, _Pair] = {}  # of values that stay complex, in a context

    def rewrite(self, node: Node) -> None:
        """Write a call in front of it. What reads a real result reads what is written."""

        def call(target: Any, *args: Any) -> Node:
            return insert_call(node, target, args, like=node)

        def fitted(part: Any, other: Any) -> Node:
            if not isinstance(part, Node):
                return call(aten.full_like.default, other, part)
            if value(part).dtype != value(node).dtype.to_real():
                part = call(aten.to.dtype, part, value(node).dtype.to_real())
            if list(map(str, value(part).shape)) != list(map(str, value(node).shape)):
                part = call(aten.expand_as.default, part, other)
            # Under no_grad, a part that is passed on has no gradient.
            records = part.op != "call_function" or part.meta["context"].records
            return call(aten.detach.default, part) if records and not node.meta["context"].records else part

        given = {name: self._pair(a, node) if _is_complex(a) else a for name, a in arguments(node).items()}
        found = _FORMS[node.target](call, *given.values())
        if isinstance(found, _Pair):
            self._pairs[node] = _Pair(fitted(found.real, found.imag), fitted(found.imag, found.real))
        elif node.target is aten.view_as_real.default:
            node.replace_all_uses_with(found)
            _read_entries(found)
        else:
            node.replace_all_uses_with(fitted(found, found))

    def _pair(self, a: Node, reader: Node) -> _Pair:
        """The parts of a complex argument."""
        if a in self._pairs:
            return self._pairs[a]
        key = a, reader.meta["context"]
        if key not in self._outside:
            parts = (insert_call(reader, part.default, (a,), like=reader) for part in (aten.real, aten.imag))
            self._outside[key] = _Pair(*parts)
        return self._outside[key]

    def remove(self, node: Node) -> None:
        """Remove a call. Those that stay complex read what its parts make up."""
        if node.users:
            take_place(node, insert_call(node, aten.complex.default, self._pairs[node], like=node))
        else:
            erase_unread(node)


def _read_entries(stack: Node) -> None:
    """Let what reads one entry of a stack read what was stacked."""
    entries: Any = stack.args[0]
    for read, index in reads(stack):
        if not has_hook(read):
            take_place(read, entries[index])


# ---- the forms of calls: each is given the arguments of its schema, complex tensors as pairs

_Call = Callable[..., Node]


def _parts(a: Any) -> _Pair:
    if isinstance(a, complex):
        return _Pair(a.real, a.imag)
    return a if isinstance(a, _Pair) else _Pair(a, None)


def _times(call: _Call, a: Any, b: Any) -> Node:
    return call(aten.mul.Tensor, *((a, b) if isinstance(a, Node) else (b, a)))


def _minus(call: _Call, a: Any) -> Any:
    return call(aten.neg.default, a) if isinstance(a, Node) else -a


def _mul(call: _Call, x: Any, y: Any) -> _Pair:
    a, b = _parts(x), _parts(y)
    if a.imag is None or b.imag is None:
        a, factor = (a, b.real) if b.imag is None else (b, a.real)
        return _Pair(_times(call, a.real, factor), _times(call, a.imag, factor))
    real = call(aten.sub.Tensor, _times(call, a.real, b.real), _times(call, a.imag, b.imag))
    return _Pair(real, call(aten.add.Tensor, _times(call, a.real, b.imag), _times(call, a.imag, b.real)))


def _add(call: _Call, x: Any, y: Any, alpha: int) -> _Pair:
    a, b = _parts(x), _parts(y)
    real = call(aten.add.Tensor, a.real, b.real)
    if a.imag is None or b.imag is None:
        return _Pair(real, b.imag if a.imag is None else a.imag)
    return _Pair(real, call(aten.add.Tensor, a.imag, b.imag))


def _sub(call: _Call, x: Any, y: Any, alpha: int) -> _Pair:
    a, b = _parts(x), _parts(y)
    real = call(aten.sub.Tensor, a.real, b.real)
    if a.imag is None:
        return _Pair(real, _minus(call, b.imag))
    return _Pair(real, a.imag if b.imag is None else call(aten.sub.Tensor, a.imag, b.imag))


def _rsub(call: _Call, x: Any, y: Any, alpha: int) -> _Pair:
    a, b = _parts(x), _parts(y)
    real = call(aten.rsub.Scalar, a.real, b.real)
    return _Pair(real, call(aten.neg.default, a.imag) if b.imag is None else call(aten.rsub.Scalar, a.imag, b.imag))


def _div(call: _Call, x: _Pair, number: float) -> _Pair:
    """PyTorch multiplies by the inverse."""
    inverse = (1 / torch.tensor(number, dtype=value(x.real).dtype)).item()
    return _each(aten.mul.Tensor)(call, x, inverse)


def _each(target: Any) -> Callable[..., _Pair]:
    """One call of each of the two parts."""
    return lambda call, x, *others: _Pair(call(target, x.real, *others), call(target, x.imag, *others))


def _where(call: _Call, condition: Node, x: Any, y: Any) -> _Pair:
    def chosen(a: Any, b: Any) -> Node:
        a, b = (0.0 if part is None else part for part in (a, b))
        scalar = aten.where.ScalarOther if isinstance(a, Node) else aten.where.ScalarSelf
        return call(aten.where.self if isinstance(a, Node) and isinstance(b, Node) else scalar, condition, a, b)

    a, b = _parts(x), _parts(y)
    return _Pair(chosen(a.real, b.real), chosen(a.imag, b.imag))


def _masked_fill(call: _Call, x: _Pair, mask: Node, fill: Any) -> _Pair:
    def filled(a: Node, b: Any) -> Node:
        target = aten.masked_fill.Tensor if isinstance(b, Node) else aten.masked_fill.Scalar
        return call(target, a, mask, 0.0 if b is None else b)

    b = _parts(fill)
    return _Pair(filled(x.real, b.real), filled(x.imag, b.imag))


def _conjugate(call: _Call, x: _Pair) -> _Pair:
    return _Pair(x.real, call(aten.neg.default, x.imag))


def _zeros(call: _Call, x: _Pair, *options: Any) -> _Pair:
    zeros = call(aten.zeros_like.default, x.real)
    return _Pair(zeros, zeros)


def _halves(call: _Call, x: Node) -> _Pair:
    return _Pair(call(aten.select.int, x, -1, 0), call(aten.select.int, x, -1, 1))


_READERS: dict[Any, Callable[..., Node]] = {
    aten.real.default: lambda _, x: x.real,
    aten.imag.default: lambda _, x: x.imag,
    aten.view_as_real.default: lambda call, x: call(aten.stack.default, [*x], -1),
}
_FORMS: dict[Any, Callable[..., Any]] = {
    **_READERS,
    aten.mul.Tensor: _mul,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: _rsub,
    aten.div.Tensor: _div,
    aten.neg.default: _each(aten.neg.default),
    aten.complex.default: lambda _, real, imag: _Pair(real, imag),
    aten.view_as_complex.default: _halves,
    aten.detach.default: _each(aten.detach.default),
    aten.clone.default: lambda _, x, *options: x,
    aten.to.dtype: lambda _, x, *options: x,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.zeros_like.default: _zeros,
    aten._conj.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.resolve_conj.default: lambda _, x: x,
    aten.resolve_neg.default: lambda _, x: x,
}
