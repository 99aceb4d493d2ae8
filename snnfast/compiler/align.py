"""Find the steps of a recurrence among calls that are alike: where a step begins, and what each of them reads."""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast._program.run import ENGINES
from snnfast._program.trace import NotElementwiseError, trace
from snnfast.compiler.calls import (
    LEAST,
    index_of,
    is_number,
    is_pointwise,
    module_of,
    name_of,
    product_of,
    run_call,
    signature_of,
    tensors_of,
    value,
)
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.recurrence import Recurrence, Row, Slot, as_of

if TYPE_CHECKING:
    from snnfast.compiler.series import Group

UNLIKE = "its steps are not all alike"

_STARTS = 64
"""How many combinations of numbers are tried as first states."""


def recurrence_of(statements: Sequence[Group], order: dict[Node, int], is_free: Callable[[Node], bool]) -> Recurrence:
    """Make a recurrence of statements that wait for one another.

    ``is_free`` says whether it may take a node that belongs to none of the statements.

    Raises:
        UnmergedError: They are none. The message is the reason.
    """
    if not statements:
        raise UnmergedError(f"it has fewer than {LEAST} steps that are alike")
    try:
        return _aligned(statements, order, is_free, set())
    except UnmergedError as error:
        outside = {s for s in statements if product_of(s.first) is not None}
        if not outside or len(outside) == len(statements):
            raise
        try:
            return _aligned(statements, order, is_free, outside)
        except UnmergedError as other:
            raise (error if str(other) == UNLIKE else other) from None


def _aligned(
    statements: Sequence[Group], order: dict[Node, int], is_free: Callable[[Node], bool], outside: set[Group]
) -> Recurrence:
    """The best recurrence of some statements, of which those ``outside`` are no part of its program."""
    _check([s for s in statements if s not in outside])
    # A step may begin at any statement. The best beginning leaves the fewest states and takes in the most calls.
    aligned: list[tuple[_Steps, Recurrence]] = []
    reason = UNLIKE
    for anchor in statements:
        try:
            steps = _Steps(statements, anchor, order, outside)
            aligned.append((steps, steps.recurrence()))
        except UnmergedError as error:
            reason = str(error)
    calls = sum(len(s.nodes) for s in statements)
    found: Recurrence | None = None
    for steps, made in sorted(aligned, key=lambda a: (len(a[1].states), -a[1].steps, -len(a[1].nodes()))):
        if not outside:  # a first step is found by its instructions, and a product has none
            steps.take_in_first(made, is_free)
        if found is None or (made.steps, len(made.nodes())) > (found.steps, len(found.nodes())):
            found = made
        if len(found.nodes()) >= calls:
            break
    if found is None:
        raise UnmergedError(reason)
    _check_program(found)
    return found


def _check(statements: Sequence[Group]) -> None:
    tensors = [t for s in statements for t in tensors_of(s.first)]
    devices = {t.device for t in tensors}
    if len(devices) != 1:
        raise UnmergedError("they are on several devices")
    (device,) = devices
    if device.type not in ENGINES:
        raise UnmergedError(f"it is on {device.type}, for which there are no kernels of programs")
    shapes = dict.fromkeys(f"[{', '.join(map(str, t.shape))}]" for t in tensors)
    if len(shapes) != 1:
        raise UnmergedError(f"a step computes tensors of several shapes: {', '.join(list(shapes)[:3])}")
    if any(s.first.meta["context"].blocks for s in statements):
        raise UnmergedError("it runs under autocast or inference mode")
    dtypes = {t.dtype for t in tensors} - {torch.bool}
    if len(dtypes) != 1 or not dtypes < {torch.float32, torch.float64}:
        found = ", ".join(sorted(map(_short, dtypes)))
        raise UnmergedError(f"a program has one dtype, float32 or float64, and a step computes in {found}")


def _check_program(found: Recurrence) -> None:
    try:
        found.program(found.outputs()).check(found.dtype, len(found.shape), found.context.records)
    except NotElementwiseError as error:
        raise UnmergedError(error.problem) from None
    except RuntimeError as error:  # of an operator: a program is traced with tensors of other sizes
        raise UnmergedError(f"an operator takes tensors of its own sizes alone: {str(error).splitlines()[0]}") from None


class _Steps:
    """The calls of statements by steps, each of which begins with a call of one of them, and what each step reads."""

    def __init__(self, statements: Sequence[Group], anchor: Group, order: dict[Node, int], outside: set[Group]) -> None:
        begin = [order[n] for n in anchor.nodes]
        self.rows: dict[int, Row] = {t: {} for t in range(-1, len(begin))}
        self.place: dict[Node, tuple[Group, int]] = {}
        for statement in statements:
            for node in statement.nodes:
                t = bisect_right(begin, order[node]) - 1
                if statement in self.rows[t]:
                    raise UnmergedError("a step makes several")
                self.rows[t][statement] = node
                self.place[node] = statement, t
        complete = [t for t in self.rows if len(self.rows[t]) == len(statements)]
        middle = [t for t in complete if t - 1 in complete]
        if len(middle) < LEAST - 1:
            raise UnmergedError(UNLIKE)
        self.model = middle[len(middle) // 2]
        self.first = self.model  # of the steps of the recurrence
        row = self.rows[self.model]
        self.statements = sorted(statements, key=lambda s: order[row[s]])
        self.sources = {s: [self.source(a, self.model) for a in _leaves(row[s])] for s in self.statements}
        if any(s is not None and s[1] not in (0, 1) for found in self.sources.values() for s in found):
            raise UnmergedError("it reads a result of more than one step before")
        self.outside = outside

    def source(self, a: Any, t: int) -> tuple[Group, int] | None:
        """The statement that returned an argument of step ``t``, and how many steps before."""
        found = self.place.get(a) if isinstance(a, Node) else None
        return (found[0], t - found[1]) if found is not None else None

    def is_alike(self, t: int, first: bool = False) -> bool:
        """Whether a step reads what the other steps read. The ``first`` one may read others in place of states."""
        for statement, node in self.rows.get(t, {}).items():
            leaves, sources = _leaves(node), self.sources[statement]
            if len(leaves) != len(sources):  # the call of a first step that was taken in
                return False
            for a, source in zip(leaves, sources, strict=True):
                if first and source is not None and source[1] == 1:
                    fits = isinstance(a, Node) or a is None
                else:
                    fits = self.source(a, t) == source
                if not fits:
                    return False
        return t in self.rows

    def is_whole(self, t: int, first: bool = False) -> bool:
        """Whether a step has a call of every statement, and is alike."""
        return len(self.rows.get(t, ())) == len(self.statements) and self.is_alike(t, first)

    def recurrence(self) -> Recurrence:
        last = first = self.model
        while self.is_whole(last + 1):
            last += 1
        while self.is_whole(first - 1):
            first -= 1
        first -= self.is_whole(first - 1, first=True)
        self.first = first
        # The last step may lack calls: where it begins in the midst of the loop's, the loop ends in its midst.
        if self.rows.get(last + 1) and self.is_alike(last + 1):
            with contextlib.suppress(UnmergedError):
                return self.until(last + 1)
        return self.until(last)

    def until(self, last: int) -> Recurrence:
        """The recurrence from the first step to the ``last`` one."""
        if last - self.first + 1 < LEAST:
            raise UnmergedError(UNLIKE)
        rows = [self.rows[t] for t in range(self.first, last + 1)]
        calls = [self.rows[self.model][s] for s in self.statements]
        made = Recurrence(self.statements, calls, rows, between=self.outside)
        number = {s: i for i, s in enumerate(self.statements)}
        for statement in self.statements:
            nodes = [row[statement] for row in rows if statement in row]
            spec = pytree.tree_structure((nodes[0].args, nodes[0].kwargs))
            columns = zip(*map(_leaves, nodes), strict=True)
            slots = []
            for column, source in zip(columns, self.sources[statement], strict=True):
                if source is None:
                    slots.append(self.given(made, list(column)))
                elif source[1] == 0:
                    slots.append(Slot("statement", number[source[0]]))
                else:
                    begin = 0.0 if column[0] is None else column[0]  # as a step of a neuron without a state begins
                    slots.append(Slot("state", _enter(made.states, (source[0], begin))))
            made.slots[statement] = slots, spec
        for _, begin in made.states:
            if isinstance(begin, Node):
                _check_given(made, begin)
        for statement in self.outside:
            made.product(statement)
        return made

    # ---- a first step that differs

    def take_in_first(self, made: Recurrence, is_free: Callable[[Node], bool]) -> None:
        """Add the step before the first one, if it is the same step with numbers as states.

        dynamo computes with numbers as it traces: after ``mem = 0``, the first ``mem * 0.9 + x`` is a call ``0.0 + x``.
        """
        row = self.rows.get(self.first - 1, {})
        begin = [n for _, n in made.states if isinstance(n, Node)]
        if not row and not begin:
            return
        for anywhere in (False, True):
            read = self._read_by_first(made, [*row.values(), *begin], anywhere)
            if read is not None and all(n in itertools.chain(*read) for n in begin):
                break
        else:
            return
        series, peeled = read
        members = set(row.values())
        leaves = [float(a) for n in peeled for a in _leaves(n) if is_number(a)]
        # A sum with -0.0 is the other summand, to the bit. So ``mem = x`` is a step, too.
        numbers = [0.0, -0.0, *dict.fromkeys(a for a in leaves if a)]
        starts = itertools.product(numbers, repeat=len(made.states))
        for start in itertools.islice(starts, _STARTS):
            values = self._values_of_first(made, series, peeled, start)
            if values is None:
                return
            of_body, of_calls = values
            if all(of_body[s] == of_calls[n] for s, n in (*row.items(), *made.states)):  # type: ignore[index]
                break
        else:
            return
        for statement, found in of_body.items():
            same = [n for n, v in of_calls.items() if v == found and n in peeled and n not in members and is_free(n)]
            call = made.calls[made.statements.index(statement)]
            same = [n for n in same if signature_of(n) == signature_of(call)]
            if statement not in row and found is not None and same:
                row[statement] = same[0]
                members.add(same[0])
        made.rows.insert(0, row)
        made.series = [[n, *nodes] for n, nodes in zip(series, made.series, strict=True)]
        made.states = [(s, c) for (s, _), c in zip(made.states, start, strict=True)]

    def _read_by_first(
        self, made: Recurrence, calls: list[Node], anywhere: bool
    ) -> tuple[list[Node], list[Node]] | None:
        """What the first step reads of each series, and its calls, each behind what it reads; ``None``: not known.

        The branch of a first step, as in ``if mem is None: mem = x``, may be ``anywhere`` in the user's code.
        """
        places, contexts = {_place(n) for n in made.calls}, [n.meta["context"] for n in made.calls]
        members = set(self.rows.get(self.first - 1, {}).values())
        series: list[Node | None] = [None] * len(made.series)
        peeled: dict[Node, None] = {}

        def visit(node: Node) -> bool:
            if len(peeled) > 2 * len(made.statements):
                return False
            if node in peeled or node in made.constants or isinstance(module_of(node), GraphModule):
                return True
            for i, nodes in enumerate(made.series):
                if node not in members and series[i] in (None, node) and _is_before(node, nodes[0], anywhere):
                    series[i] = node
                    return True
            known = node in members or (node.op == "call_function" and _place(node) in places)
            known = known or (anywhere and is_pointwise(node.target) and node.meta["context"] in contexts)
            if not known or not all(map(visit, node.all_input_nodes)):
                return False
            peeled[node] = None
            return True

        if not all(map(visit, calls)) or None in series:
            return None
        return series, list(peeled)  # type: ignore[return-value]

    def _values_of_first(
        self, made: Recurrence, series: list[Node], peeled: list[Node], start: Sequence[float]
    ) -> tuple[dict[Group, Any], dict[Node, Any]] | None:
        """What the statements compute in a step that starts from these numbers, and what the first calls compute.

        Both are values of one trace: equal instructions of equal operands are one value. What is no tensor has none.
        """
        kept = [s for s in made.statements if s in made.outputs()]
        tensors = [n for n in (*peeled, *series) if isinstance(value(n), Tensor)]

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            states = [torch.full_like(given[0], number) for number in start]
            slots = [slot for kind in ("series", "state", "constant") for slot in made.slots_of(kind)]
            results = made.run([*given[: len(series)], *states, *given[len(series) :]], slots)
            nodes: list[Any] = [*series, *made.constants]
            env: dict[Any, Any] = {node: as_of(node, t) for node, t in zip(nodes, given, strict=True)}
            for node in peeled:
                args, kwargs = pytree.tree_map_only(Node, lambda a: env.get(a, module_of(a)), (node.args, node.kwargs))
                env[node] = run_call(node, args, kwargs)
            found = [*(results[Slot("statement", made.statements.index(s))] for s in kept), *(env[n] for n in tensors)]
            return tuple(t.to(made.dtype).expand_as(given[0]) for t in found)

        try:
            found = trace(step, (len(series) + len(made.constants), 0, 0), made.dtype, len(made.shape)).outputs
        except (NotElementwiseError, RuntimeError):  # of an operator that takes tensors of its own sizes alone
            return None
        of_body = dict.fromkeys(made.statements) | dict(zip(kept, found))  # noqa: B905
        of_calls = dict.fromkeys(peeled) | dict(zip(tensors, found[len(kept) :], strict=True))
        return of_body, of_calls

    def given(self, made: Recurrence, column: list[Any]) -> Any:
        """The argument of a statement that no statement returns."""
        if not isinstance(column[0], Node):
            if any(a != column[0] for a in column):
                raise UnmergedError("a number differs from step to step")
            return column[0]
        if all(a is column[0] for a in column) and isinstance(body := module_of(column[0]), GraphModule):
            return body
        if all(a is column[0] for a in column):
            if not _is_scalar(column[0]):
                _check_given(made, column[0])
            return Slot("constant", _enter(made.constants, column[0]))
        _check_given(made, *column)
        if len(column) < made.steps:
            column = next((nodes for nodes in made.series if nodes[:-1] == column), column)
        if len(column) < made.steps:
            raise UnmergedError(UNLIKE)
        return Slot("series", _enter(made.series, column))


def _is_scalar(node: Node) -> bool:
    """Whether a tensor is one number on the CPU, which PyTorch's operators take beside tensors of any dtype."""
    t = value(node)
    return isinstance(t, Tensor) and t.dim() == 0 and t.is_cpu and t.is_floating_point()


def _check_given(made: Recurrence, *nodes: Any) -> None:
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


def _place(node: Node) -> Any:
    """What calls of one place in the user's code share, also if one takes a number where another takes a tensor."""
    return node.stack_trace, name_of(node.target), node.meta["context"]


def _is_before(node: Node, first: Node, anywhere: bool) -> bool:
    """Whether a node may be the one before the first of a series."""
    if node.op != "call_function" or node.target is not first.target or signature_of(node) != signature_of(first):
        return False
    part, other = index_of(node), index_of(first)
    alike = part[:2] == other[:2] if part and other else anywhere or node.stack_trace == first.stack_trace
    return alike and bool(node.meta["context"] == first.meta["context"])


def _enter(found: list[Any], entry: Any) -> int:
    if entry not in found:
        found.append(entry)
    return found.index(entry)


def _leaves(node: Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))
