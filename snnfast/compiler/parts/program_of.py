"""Make a program of statements that wait for one another: where its steps begin, and which of them are alike.

A step of the program need not begin where the body of the loop does. ``spk = f(mem); mem = g(mem, spk, x)`` has one
state if a step begins with ``spk``, and two if it begins with ``mem``.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._program.engines import ENGINES
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.nodes import LEAST, are_same, is_whole, product_of, signature_of, tensors_of, value
from snnfast.compiler.loop.loop import Each, Of, Same, Statement
from snnfast.compiler.parts.between import is_piece
from snnfast.compiler.parts.first_step import take_in_first
from snnfast.compiler.parts.integers import is_small
from snnfast.compiler.parts.program import UNLIKE, Program, Row

_TRIES = 12
"""So many programs of a loop are asked whether they take in its first step, which is traced for each."""


def program_of(statements: Sequence[Statement], order: dict[Node, int], is_free: Callable[[Node], bool]) -> Program:
    """Make a program of statements that wait for one another.

    ``is_free`` says whether it may take a node that belongs to none of the statements.

    Raises:
        UnmergedError: There is none. The message is the reason.
    """
    if not statements:
        raise UnmergedError(f"it has fewer than {LEAST} steps that are alike")
    try:
        return _best(statements, order, is_free, set())
    except UnmergedError as error:
        products = {s for s in statements if product_of(s.node) is not None or is_piece(s.node)}
        if not products or len(products) == len(statements):
            raise
        try:
            return _best(statements, order, is_free, products)
        except UnmergedError as other:
            raise (error if str(other) == UNLIKE else other) from None


def _best(
    statements: Sequence[Statement], order: dict[Node, int], is_free: Callable[[Node], bool], products: set[Statement]
) -> Program:
    """The program with the most calls; of those with as many, the one with the fewest states."""
    _check([s for s in statements if s not in products], alike=not products)
    loops = {s.loop for s in statements}
    if len(loops) > 1:
        raise UnmergedError(UNLIKE)
    found: list[tuple[_Steps, Program]] = []
    reason = UNLIKE
    leaves = {n: pytree.tree_leaves((n.args, n.kwargs)) for s in statements for n in s.calls}
    for begin in range(len(statements)):
        try:
            steps = _Steps(statements, begin, order, products, leaves)
            found.append((steps, steps.program()))
        except UnmergedError as error:
            reason = str(error) if reason == UNLIKE else reason
    calls = sum(len(s.calls) for s in statements)
    best: Program | None = None
    found.sort(key=lambda f: (len(f[1].states), -f[1].steps, -len(f[1].calls())))
    for i, (steps, made) in enumerate(found):
        if not products and i < _TRIES:  # a first step is found by its instructions, and a product has none
            take_in_first(made, steps.rows.get(steps.first - 1, {}), is_free)
        if best is None or (made.steps, len(made.calls())) > (best.steps, len(best.calls())):
            best = made
        if len(best.calls()) >= calls:
            break
    if best is None:
        raise UnmergedError(reason)
    best.check()
    return best


def _check(statements: Sequence[Statement], alike: bool) -> None:
    tensors = [t for s in statements for t in tensors_of(s.node)]
    devices = {t.device for t in tensors}
    if len(devices) != 1:
        raise UnmergedError("they are on several devices")
    (device,) = devices
    if device.type not in ENGINES:
        raise UnmergedError(f"it is on {device.type}, for which there are no kernels of programs")
    shapes = dict.fromkeys(f"[{', '.join(map(str, t.shape))}]" for t in tensors)
    if alike and len(shapes) != 1:
        raise UnmergedError(f"a step computes tensors of several shapes: {', '.join(list(shapes)[:3])}")
    if any(s.node.meta["context"].blocks for s in statements):
        raise UnmergedError("it runs under autocast or inference mode")
    dtypes = {t.dtype for t in tensors} - {torch.bool}
    floats = dtypes - {torch.int32, torch.int64}
    if len(floats) != 1 or not floats < {torch.float32, torch.float64}:
        found = ", ".join(sorted(map(_short, dtypes or {torch.bool})))
        raise UnmergedError(f"a program has one dtype, float32 or float64, and a step computes in {found}")


class _Steps:
    """The calls of statements by steps that begin with the statement number ``begin``, and what each step reads."""

    def __init__(
        self,
        statements: Sequence[Statement],
        begin: int,
        order: dict[Node, int],
        products: set[Statement],
        leaves: dict[Node, list[Any]],
    ) -> None:
        body = sorted(statements, key=statements[0].loop.statements.index)  # type: ignore[union-attr]
        self.products, self._leaves = products, leaves
        self.rows: dict[int, Row] = {}
        self.at: dict[Node, tuple[Statement, int]] = {}
        for statement in statements:
            later = statement in body[:begin]
            for node, step in zip(statement.calls, statement.steps, strict=True):
                self.rows.setdefault(step - later, {})[statement] = node
                self.at[node] = statement, step - later
        complete = sorted(t for t in self.rows if len(self.rows[t]) == len(statements))
        middle = [t for t in complete if t - 1 in complete]
        if len(middle) < LEAST - 1:
            raise UnmergedError(UNLIKE)
        self.model = middle[len(middle) // 2]
        self.first = self.model  # of the steps of the program
        row = self.rows[self.model]
        self.statements = sorted(statements, key=lambda s: order[row[s]])
        self.sources = {s: [self._source(a, self.model) for a in leaves[row[s]]] for s in self.statements}
        if any(s is not None and s[1] not in (0, 1) for found in self.sources.values() for s in found):
            raise UnmergedError("it reads a result of more than one step before")

    def _source(self, a: Any, t: int) -> tuple[Statement, int] | None:
        """The statement that returned an argument of step ``t``, and how many steps before."""
        found = self.at.get(a) if isinstance(a, Node) else None
        return (found[0], t - found[1]) if found is not None else None

    def _is_alike(self, t: int, first: bool = False) -> bool:
        """Whether a step reads what the other steps read. The ``first`` one may read others in place of states."""
        for statement, node in self.rows.get(t, {}).items():
            leaves, sources = self._leaves[node], self.sources[statement]
            if len(leaves) != len(sources):  # the call of a first step that was taken in
                return False
            for a, source in zip(leaves, sources, strict=True):
                if first and source is not None and source[1] == 1:
                    fits = isinstance(a, Node) or a is None
                else:
                    fits = self._source(a, t) == source
                if not fits:
                    return False
        return t in self.rows

    def _is_whole(self, t: int, first: bool = False) -> bool:
        """Whether a step has a call of every statement, and is alike."""
        return len(self.rows.get(t, ())) == len(self.statements) and self._is_alike(t, first)

    def program(self) -> Program:
        last = first = self.model
        while self._is_whole(last + 1):
            last += 1
        while self._is_whole(first - 1):
            first -= 1
        self.first = first - self._is_whole(first - 1, first=True)
        # The last step may lack calls: where it begins in the midst of the loop's, the loop ends in its midst.
        if self.rows.get(last + 1) and self._is_alike(last + 1):
            with contextlib.suppress(UnmergedError):
                return self._until(last + 1)
        return self._until(last)

    def _until(self, last: int) -> Program:
        """The program from the first step to the ``last`` one."""
        if last - self.first + 1 < LEAST:
            raise UnmergedError(UNLIKE)
        rows = [self.rows[t] for t in range(self.first, last + 1)]
        made = Program(self.statements, rows, self.rows[self.model], self.products)
        for statement in self.statements:
            columns = zip(*(self._leaves[row[statement]] for row in rows if statement in row), strict=True)
            args: list[Any] = []
            for column, source in zip(columns, self.sources[statement], strict=True):
                if source is None:
                    args.append(_given(made, column))
                elif source[1] == 0:
                    args.append(Of(source[0], 0))
                else:
                    begin = 0.0 if column[0] is None else column[0]  # as a step of a neuron without a state begins
                    args.append(Of(source[0], 1, (begin,)))
            made.args[statement] = args
        self._fill_last(made)
        for begin in made.begins():
            if isinstance(begin, Node) and not (is_whole(begin) and is_small(begin)):
                _check_given(made, begin)
        if self.products:
            made.arrange()
        return made

    def _fill_last(self, made: Program) -> None:
        """Let a statement that the last step lacks read there what another one reads."""
        whole = {a.rows[:-1]: a for a in made.series if len(a.rows) == made.steps}
        for statement, args in made.args.items():
            short = [isinstance(a, Each) and len(a.rows) < made.steps for a in args]
            if any(b and a.rows not in whole for a, b in zip(args, short, strict=True)):
                raise UnmergedError(UNLIKE)
            made.args[statement] = [whole[a.rows] if b else a for a, b in zip(args, short, strict=True)]


def _given(made: Program, column: Sequence[Any]) -> Any:
    """The argument of a statement that no statement returns."""
    if not isinstance(column[0], Node):
        if not all(are_same(a, column[0]) for a in column):
            raise UnmergedError("a number differs from step to step")
        return column[0]
    if all(a is column[0] for a in column):
        if not _is_scalar(column[0]):
            _check_given(made, column[0])
        return Same(column[0])
    _check_given(made, *column)
    return Each(tuple(column))


def _is_scalar(node: Node) -> bool:
    """Whether a tensor is one number on the CPU, which PyTorch's operators take beside tensors of any dtype."""
    t = value(node)
    return isinstance(t, Tensor) and t.dim() == 0 and t.is_cpu and t.is_floating_point()


def _check_given(made: Program, *nodes: Any) -> None:
    for n in nodes:
        t = value(n) if isinstance(n, Node) else None
        if not isinstance(t, Tensor):
            raise UnmergedError("it takes a number that is not known before the call")
        if t.dtype not in (made.dtype, torch.bool) or t.device != made.device:
            where = f"{_short(t.dtype)} on {t.device}", f"{_short(made.dtype)} on {made.device}"
            raise UnmergedError("it takes a tensor in {}, beside others in {}".format(*where))
        if signature_of(n) != signature_of(nodes[0]):
            raise UnmergedError("its inputs have other shapes at other steps")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
