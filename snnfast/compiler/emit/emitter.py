"""Write the new graph: each part of a loop as one call for all steps, all other calls as they are."""

import operator
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from snnfast._unroll.graph import as_function
from snnfast.compiler.emit.sums import terms_of
from snnfast.compiler.emit.writer import Writer
from snnfast.compiler.graph.context import Context
from snnfast.compiler.graph.memory import memory_of
from snnfast.compiler.graph.nodes import (
    are_alike,
    arguments,
    aten,
    dtype_of_numbers,
    fake_call,
    fake_mode_of,
    index_of,
    is_opaque,
    is_zero,
    may_alias,
    signature_of,
    size_of,
    storage_of,
    tensors_of,
    value,
)
from snnfast.compiler.loop.loop import Argument, Count, Statement
from snnfast.compiler.loop.roll import Rolled


class Piece(NamedTuple):
    """Results of consecutive steps of a statement, or a single node outside of any."""

    statement: Statement | None
    first: int  # the number of the first of them
    nodes: list[Node]


class Emitter(Writer):
    """The new graph, and where it has the results of the old one.

    Attributes:
        new: The node of a single call.
        returned: The nodes that the old graph returns.
        records: Whether any call may record gradients.
        copies: Stacks that are copied because they are returned.
        in_place_of: The source of such a copy, if the copy turned out not to be needed.
        summed: Additions of the old graph that became one sum.

    Args:
        numbers: Those that follow from the numbers of steps, and become inputs; none for a graph of these steps alone.
    """

    def __init__(self, rolled: Rolled, numbers: Sequence[int] = ()) -> None:
        self.rolled, self.facts = rolled, rolled.facts
        nodes = self.facts.nodes
        super().__init__(fake_mode_of([value(node) for node in nodes]), nodes[0].meta["context"], bool(numbers))
        self.new: dict[Node, Any] = {}
        (output,) = (n for n in nodes if n.op == "output")
        self.returned = set(output.all_input_nodes)
        self.records = any(n.meta["context"].records for n in nodes)
        self.copies: list[Node] = []
        self.in_place_of: dict[Any, Node] = {}
        self.summed: set[Node] = set()
        self._shown = {memory for n in self.returned for memory in memory_of(n)}
        self._wholes: dict[Statement, Node] = {}
        self._rows: dict[Node, Node] = {}  # of results of all steps: those of each step
        self._stacked: dict[tuple[tuple[Node, ...], Context], Node] = {}
        self._results: dict[Node, dict[int, Node]] = defaultdict(dict)
        self._numbers: dict[int, Node] = {}  # the inputs that are numbers of steps
        for number in numbers:
            self._numbers[number] = self.graph.placeholder(f"steps_{len(self._numbers)}")
            self._numbers[number].meta |= {"example_value": number, "context": self.context}

    # ---- single calls

    def single(self, node: Node) -> None:
        """Write a call that is in no part, unless it is a result of one, which is made when somebody asks."""
        if self.place(node) is None:
            made = self._stack(node) if node not in self.facts.written else None
            self.new[node] = made or self._sum(node) or self.copy(node)

    def copy(self, node: Node) -> Any:
        if node.target is operator.getitem and isinstance(source := self.get(node.args[0]), tuple):  # type: ignore[arg-type]
            return source[node.args[1]]  # type: ignore[index]
        made = self.graph.node_copy(node, self.get)
        if self._numbers and node not in self.rolled.at:
            made.args, made.kwargs = self.with_numbers(self._from_the_end(made))
        of = next((a for a in node.all_input_nodes if any(s in memory_of(a) for s in memory_of(node))), None)
        if is_opaque(node):
            if of is not None and signature_of(of) == signature_of(node):
                now = iter(tensors_of(self.get(of)))
                made.meta["example_value"] = pytree.tree_map_only(Tensor, lambda _: next(now), value(node))
        elif (node.target is operator.getitem and of is not None) or may_alias(node.target):
            # It shares the memory of a tensor of the new graph.
            found = self.tried(node, made)
            made.meta["example_value"] = found
            given = {storage_of(t) for a in made.all_input_nodes for t in tensors_of(a)}
            if of is None and isinstance(found, Tensor) and storage_of(found) in given:
                made = self.call(aten.clone.default, made)  # such as ``contiguous``, where it copied in the loop
        elif isinstance(node.target, OpOverload) and any(map(self._lies_otherwise, node.all_input_nodes)):
            made.meta["example_value"] = self.tried(node, made)  # whose order in memory follows that of the arguments
        as_function(made)
        if node in self.facts.effects:
            self.effects.add(made)
        return made

    def with_numbers(self, tree: Any) -> Any:
        numbers = self._numbers
        return map_aggregate(tree, lambda a: numbers.get(a, a) if type(a) is int and a >= LEAST_NUMBER else a)

    def _from_the_end(self, made: Node) -> tuple[Any, Any]:
        """The arguments of a call, in which a late index of a dimension that grows with the steps is negative."""
        index = index_of(made) if made.target is aten.select.int else None
        size = None if index is None else size_of(value(index[0]), index[1])
        if index is None or size not in self._numbers or 2 * index[2] < size:
            return made.args, made.kwargs
        return (*index[:2], index[2] - size), {}

    def _lies_otherwise(self, node: Node) -> bool:
        """Whether the result of a single step has another order in memory than in the loop."""
        before, now = value(node), self.get(node)
        return isinstance(before, Tensor) and value(now).stride() != before.stride()

    def tried(self, node: Node, made: Node) -> Any:
        """The result of a copied call in the new graph. Where strides differ there, ``view`` becomes ``reshape``."""
        target: Any = made.target
        try:
            return fake_call(target, made.args, made.kwargs, self.mode, self.context.blocks)
        except (RuntimeError, ValueError):
            if target is not aten.view.default or node in self.facts.written:
                raise
        made.target = aten.reshape.default
        return fake_call(aten.reshape.default, made.args, made.kwargs, self.mode, self.context.blocks)

    def is_shown(self, memory: list[int]) -> bool:
        """Whether the caller gets a tensor with some of this memory."""
        return not self._shown.isdisjoint(memory)

    # ---- results of single steps

    def place(self, node: Node) -> tuple[Statement, int] | None:
        """The statement whose result for all steps has that of a node, and the number of its step there."""
        found = self.rolled.at.get(node)
        return found if found is not None and found[0].is_merged else None

    def get(self, node: Node) -> Any:
        """The node in the new graph of a node in the old graph: the result of a single step."""
        if node in self.new:
            return self.in_place_of.get(self.new[node], self.new[node])
        place = self.place(node)
        assert place is not None, f"{node} is needed before it is there"
        statement, number = place
        last = None
        if number == statement.part.length(statement) - 1:
            last = statement.part.last(statement, self)
        return self._row(statement.part.each(statement, self), number) if last is None else last

    def _row(self, rows: Any, number: int) -> Any:
        """The results of one step."""
        if isinstance(rows, tuple):
            return tuple(self._row(some, number) for some in rows)
        length = len(value(rows))
        return self.result_of(rows, number if 2 * number < length else number - length)

    def unbound(self, whole: Node) -> Any:
        """The rows of a tensor, or of each of several, by one unbind. The gradient of that is one stack.

        Its context is that of the whole: whether a step has a gradient must not depend on its first reader.
        """
        if not isinstance(value(whole), Tensor):
            return tuple(self.unbound(self.result_of(whole, i)) for i in range(len(value(whole))))
        if whole not in self._rows:
            self._rows[whole] = self.behind(whole, aten.unbind.int, whole, 0)
        return self._rows[whole]

    def result_of(self, call: Node, number: int) -> Node:
        """One of several results of a call, directly behind it."""
        results = self._results[call]
        if number not in results:
            results[number] = self.behind(call, operator.getitem, call, number)
        return results[number]

    # ---- results of all steps

    def enter(self, statement: Statement, whole: Node) -> None:
        """Let a node be the results ``[T, *]`` of a statement."""
        self._wholes[statement] = whole

    def whole(self, statement: Statement) -> Node:
        """The results ``[T, *]`` of a statement."""
        if statement not in self._wholes:
            self._wholes[statement] = statement.part.whole(statement, self)
        return self._wholes[statement]

    def times(self, statement: Statement, more: int = 0) -> Any:
        """How many steps there are results of a statement for, and some ``more``: a number, or its node."""
        count, loop = statement.part.length(statement) + more, statement.loop
        if loop is None or loop.length not in self._numbers:
            return count
        number = self._numbers[loop.length]
        return number if count == loop.length else self.call(operator.add, number, count - loop.length)

    def is_zeros(self, node: Node, shape: Any, dtype: torch.dtype) -> bool:
        """Whether a state outside of the loop is zeros of a shape and dtype, which nothing changes.

        What begins with zeros need not read them, and they have no order in memory that would have to be changed.
        """
        t = value(node)
        if not isinstance(t, Tensor) or t.dtype != dtype or list(map(str, t.shape)) != list(map(str, shape)):
            return False
        while node not in self.facts.written and not value(node).requires_grad:
            if is_zero(node):
                return True
            if node.target not in _KEEP_ZEROS:
                break
            node = cast(Node, node.args[0])
        return False

    def numbers(self, a: Argument, statement: Statement) -> Node:
        """``[T, 1, ...]`` of a number that differs from step to step."""
        found, dtype = value(statement.node), dtype_of_numbers(statement.node)
        if isinstance(a, Count):
            numbers = self.call(_counted, a.start, a.stride, self.times(statement), dtype, found.device)
        else:
            numbers = self.call(torch.tensor, list(a.rows), dtype=dtype, device=found.device)  # type: ignore[union-attr]
        return self.call(aten.view.default, numbers, (-1, *(1,) * found.dim()))

    def over_time(self, nodes: list[Node]) -> Node:
        """``[T, *]`` of one node per time step."""
        key = tuple(nodes), self.context
        if key in self._stacked:
            return self._stacked[key]
        found: list[Node] = []
        alone = 1 if len(nodes) > 1 else 0  # a single row of a tensor is stacked with its neighbours
        for stacked, pieces in groupby(self._pieces(nodes), lambda p: p.statement is None or len(p.nodes) == alone):
            if stacked:
                found.append(self.call(aten.stack.default, [self.get(n) for piece in pieces for n in piece.nodes]))
            else:
                found += map(self._rows_of, pieces)
        made = found[0] if len(found) == 1 else self.call(aten.cat.default, found)
        if not any(n in self.facts.written for n in nodes):
            self._stacked[key] = made
        return made

    def _rows_of(self, piece: Piece) -> Node:
        statement, first, nodes = piece
        assert statement is not None
        whole, length = self.whole(statement), statement.part.length(statement)
        if len(nodes) == length:
            return whole
        return self.call(operator.getitem, whole, span(first, first + len(nodes), length))

    def _pieces(self, nodes: list[Node]) -> list[Piece]:
        found: list[Piece] = []
        for node in nodes:
            statement, number = self.place(node) or (None, 0)
            last = found[-1] if found else Piece(None, 0, [])
            if statement is not None and (statement, number) == (last.statement, last.first + len(last.nodes)):
                last.nodes.append(node)
            else:
                found.append(Piece(statement, number, [node]))
        return found

    def are_one_whole(self, nodes: Any) -> bool:
        """Whether nodes are the results of all steps of one statement."""
        pieces = self._pieces(list(nodes))
        statement = pieces[0].statement
        whole = len(pieces) == 1 and statement is not None and statement.reason is None
        return whole and len(nodes) == statement.part.length(statement)  # type: ignore[union-attr]

    # ---- what is made of results of all steps

    def _stack(self, node: Node) -> Node | None:
        """``torch.stack`` or ``torch.cat`` of results of a statement."""
        if node.target not in (aten.stack.default, aten.cat.default, aten.concat.default):
            return None
        nodes, dim = arguments(node)["tensors"], arguments(node)["dim"]
        if len(nodes) < 2 or len(set(nodes)) < len(nodes) or not value(node).dim():
            return None
        pieces = self._pieces(list(nodes))
        if 2 * len(pieces) > len(nodes) or not are_alike(nodes):  # cat takes several sizes
            return None
        whole = self.over_time(list(nodes))
        if value(whole).dtype != value(node).dtype:
            return None
        dim %= value(node).dim()
        if dim != 0:
            whole = self.call(aten.movedim.int, whole, 0, dim)
        if node.target is not aten.stack.default:
            whole = self.call(aten.flatten.using_ints, whole, dim, dim + 1)
        # The loop makes a new tensor: without a gradient under no_grad, and with its own memory if it is returned.
        if not self.context.records:
            whole = self.call(aten.detach.default, whole)
        if self.is_shown(memory_of(node)):
            self.copies.append(self.call(aten.clone.default, whole))
            return self.copies[-1]
        return whole

    def _sum(self, node: Node) -> Node | None:
        """A sum that grew in the loop, as one call."""
        terms, parts = terms_of(node, lambda n: self.place(n) is None and n not in self.facts.written)
        if len(terms) < 2:
            return None
        members: dict[Statement, list[Node]] = {}
        others = []
        for term in terms:
            place = self.place(term) if isinstance(term, Node) else None
            if place is None:
                others.append(term)
            else:
                members.setdefault(place[0], []).append(term)
        dtype = value(node).dtype
        sums: list[Any] = []
        for some in members.values():
            if len(some) < 2 or len(set(some)) < len(some):
                others += some
                continue
            whole = self.over_time(some)
            asked = {} if value(whole).dtype == dtype else {"dtype": dtype}
            sums.append(self.call(aten.sum.dim_IntList, whole, [0], **asked))
        if not sums:
            return None
        total: Any = None
        for term in [self.get(t) if isinstance(t, Node) else t for t in others if t != 0 or isinstance(t, Node)] + sums:
            total = term if total is None else self.call(aten.add.Tensor, total, term)
        if value(total).shape != value(node).shape or value(total).dtype != dtype:
            return None
        self.summed.update(parts)
        return total  # type: ignore[no-any-return]


_KEEP_ZEROS = {getattr(aten, name).default for name in ("expand", "clone", "detach", "real", "imag")}


def span(first: int, stop: int, length: int) -> slice:
    """Rows of a tensor of ``length`` rows, told from the end that is nearer: so they are the same for any length."""
    return slice(
        first if 2 * first < length else first - length,
        None if stop == length else stop if 2 * stop < length else stop - length,
    )


LEAST_NUMBER = 5
"""A smaller number may be one of a dimension."""


def _counted(start: Any, stride: Any, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that grow with the steps, as the loop computes them."""
    return torch.tensor([start + stride * row for row in range(count)], dtype=dtype, device=device)
