"""The graph of a form, and what runs it for any number of steps."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast.compiler.emit.any_steps import AnySteps, ForItsSteps
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.graph.context import BLOCKS
from snnfast.compiler.graph.nodes import is_step
from snnfast.compiler.merge import ForAnySteps, for_any_steps
from snnfast.compiler.record.form import (
    Constant,
    Counted,
    EachGiven,
    Form,
    Given,
    Inside,
    Moving,
    Result,
    Row,
    Rows,
    Size,
    UnknownFormError,
)
from snnfast.compiler.record.kinds import Hole, Kind, Kinds, quiet
from snnfast.compiler.record.lines import Lines
from snnfast.compiler.record.modes import Modes, blocks_between, modes
from snnfast.compiler.report import GraphReport

_FIRST = 6
"""The first number of steps that a graph is made for."""

_ODD_STEPS = 3
"""So many steps may be apart from those of a loop."""

_FEW = 20
"""A loop that always has so many steps, or more, is longer than one over time that a graph is made for."""


class _IsAlsoSizeError(UnknownFormError):
    """A result outside of the loop has a size that is equal to the number of steps, and may not follow from it."""


class Plan(NamedTuple):
    """A graph that runs the records of one form.

    Attributes:
        sizes: What the graph takes, as it follows from the steps; numbers, if it is for these alone.
        loops: How many loops there are.
        report: What became of the calls.
        batch: The size of the batch, if the graph is for any.
    """

    graph: AnySteps
    sizes: Sequence[Any]
    loops: int
    report: GraphReport
    batch: tuple[int, ...] = ()

    @property
    def is_general(self) -> bool:
        """Whether it is for any number of steps."""
        return any(isinstance(size, Size) and size.run < self.loops for size in self.sizes)

    def graph_of(self, form: Form) -> ForItsSteps:
        """A function that runs a record of this form on what it is given."""
        numbers = [*form.steps, *self.batch]
        return ForItsSteps(self.graph, [size.at(numbers) if type(size) is Size else size for size in self.sizes])


def plan_for_any_steps(form: Form, kinds: Kinds, lines: Sequence[Lines]) -> Plan:
    """The graph of a form for any number of steps.

    Raises:
        UnknownFormError: There is none.
        RefusedError: Nothing in it is merged.
    """
    try:
        return _for_any_steps(form, kinds, lines, grow=False)
    except _IsAlsoSizeError:
        return _for_any_steps(form, kinds, lines, grow=True)


def _for_any_steps(form: Form, kinds: Kinds, lines: Sequence[Lines], grow: bool) -> Plan:
    numbers = _Numbers(form)
    steps, more = numbers.draw(), numbers.draw()
    try:
        with quiet():
            first, second = (_graph_at(form, kinds, lines, at, grow) for at in (steps, more))
    except (RefusedError, UnknownFormError):
        raise
    except Exception as error:
        # A number that is equal to that of the steps is not one of steps, or the loop is not one of so few.
        problem = str(error).strip().partition("\n")[0]
        raise UnknownFormError(f"with another number of steps it would fail: {problem}") from None
    if len(first.numbers) != len(second.numbers) or not first.graph.is_like(second.graph):
        raise UnknownFormError("another number of steps has another graph")
    known = {size.at(steps): size for size in reversed(form.sizes)}
    loops = len(form.runs)
    sizes = [
        a if a == b else known.get(a) or _size(a, b, steps[:loops], more[:loops])
        for a, b in zip(first.numbers, second.numbers, strict=True)
    ]
    if None in sizes:
        raise UnknownFormError("a loop of which it is unknown how its length follows from the steps")
    return Plan(first.graph, sizes, loops, first.report)


def plan_for_its_steps(form: Form, kinds: Kinds, lines: Sequence[Lines]) -> Plan:
    """The graph of a form for its own number of steps; errors as of :func:`plan_for_any_steps`."""
    graph, numbers, report = _graph_at(form, kinds, lines, form.steps, grow=False)
    return Plan(graph, numbers, len(form.runs), report)


def _graph_at(form: Form, kinds: Kinds, lines: Sequence[Lines], steps: Sequence[int], grow: bool) -> ForAnySteps:
    return for_any_steps(write(form, steps, kinds, lines, grow), [size.at(steps) for size in form.sizes])


class _Numbers:
    """Numbers of steps that are told from all numbers of a program, and from one another."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._constant = {n for like, n in form.like if like is None}  # loops of the same steps at any number of others
        # Its own steps would not show a size that is equal to them, and does not follow from them.
        self._taken = form.numbers() | set(form.steps) | self._constant

    def draw(self) -> list[int]:
        """Numbers of steps, and a size of a batch, that were not drawn before."""
        found: list[int] = []
        for i, (like, extra) in enumerate(self._form.like):
            found.append(extra if like is None else self._free(i, found) if like == i else found[like] + extra)
        self._taken.update(found)
        return found

    def _free(self, i: int, drawn: list[int]) -> int:
        """A number behind those of the loops before: a graph may follow from the order of their lengths."""
        loops = {n for n in self._constant if n < _FEW} | (set(drawn) - self._constant)
        n = max([_FIRST, *(n + _ODD_STEPS + 1 for n in loops)])
        if i == len(self._form.runs):
            n = max(n, self._form.steps[i])  # a batch
        of_it = {(1, 0), *((size.factor, size.more) for size in self._form.sizes if size.run == i)}
        while not self._taken.isdisjoint(factor * n + more for factor, more in of_it) or any(
            abs(n - constant) <= _ODD_STEPS for constant in self._constant
        ):
            n += 1
        return n


def _size(a: int, b: int, steps: Sequence[int], more: Sequence[int]) -> Size | None:
    """How a length of a loop follows from the numbers of steps: it is ``a`` for the first ones, ``b`` for others."""
    found: set[Size] = set()
    for run, (n, m) in enumerate(zip(steps, more, strict=True)):
        if n != m and n not in steps[:run]:
            factor, rest = divmod(b - a, m - n)
            if not rest and factor > 0 and abs(a - factor * n) <= _ODD_STEPS * factor:
                found.add(Size(run, factor, a - factor * n))
    return found.pop() if len(found) == 1 else None


def write(form: Form, steps: Sequence[int], kinds: Kinds, lines: Sequence[Lines], grow: bool = False) -> GraphModule:
    """A form as the graph of all calls of so many steps.

    ``grow``: results of neuron layers and functions outside of the loop have rows for its steps.

    Raises:
        UnknownFormError: It has no such graph.
    """
    return _Writer(form, steps, kinds, lines, grow).module


class _Writer:
    """Writes a form as the graph of all calls of so many steps."""

    def __init__(
        self, form: Form, steps: Sequence[int], kinds: Kinds, lines: Sequence[Lines], grow: bool = False
    ) -> None:
        self._form, self._steps, self._kinds, self._lines, self._grow = form, steps, kinds, lines, grow
        self._graph = Graph()
        self._made: dict[Any, Node] = {}  # by place, or by loop, step and offset
        self._results: dict[tuple[Node, int], Node] = {}
        self._kinds_of: dict[Node, Kind] = {}
        self._root = nn.Module()
        self._inputs = [self._input(i, n) for i, n in enumerate(form.inputs)]
        self._grad = torch.is_grad_enabled()
        self._ambient = self._modes = modes()
        self._entered: list[tuple[Any, Node]] = []
        self._write()
        self._switch(torch.is_grad_enabled(), None)
        self._graph.output(tuple(self._entries(form.outputs, None, 0)))
        self.module = GraphModule(self._root, self._graph)

    def _input(self, number: int, given: Any) -> Node:
        form = self._form
        node = self._graph.placeholder(f"given_{number}")
        like = form.input_at(number, self._steps)
        if isinstance(given, list):
            shape = (self._steps[form.each[number]], *like.shape)
            stride = torch.empty(shape, device="meta").stride()
            like = like.but(shape=shape, stride=stride, is_leaf=not like.requires_grad)
        t = self._kinds.fake(like)
        node.meta["example_value"] = nn.Parameter(t, like.requires_grad) if like.kind is nn.Parameter else t
        return node

    def _write(self) -> None:
        form = self._form
        place = 0
        while place < len(form.calls):
            run = form.calls[place].run
            if run is None:
                self._made["at", place] = self._call(place, None, 0)
                place += 1
                continue
            period = form.runs[run].period
            for q in range(self._steps[run]):
                for j in range(period):
                    self._made["row", run, q, j] = self._call(place + j, run, q)
            place += period

    # ---- calls

    def _call(self, place: int, run: int | None, q: int) -> Node:
        form = self._form
        call = form.calls[place]
        self._switch(call.grad, call.modes)
        args, kwargs = self._argument(call.args, run, q), self._argument(call.kwargs, run, q)
        func: Any = call.func
        if getattr(func, "__name__", "") == "__get__":
            func, args = getattr, (args[0], func.__self__.__name__)
        func = {Tensor.__getitem__: operator.getitem, Tensor.__setitem__: operator.setitem}.get(func, func)
        node = self._graph.call_function(func, tuple(args), kwargs)
        number = form.at[place]
        kind = form.kinds[number]
        # A constructor takes its sizes from its arguments. Other calls that stay are mostly those of one step.
        is_constructor = func in (torch.zeros, torch.ones)
        grows = call.run is None and (is_constructor or (self._grow and not is_step(func)))
        lines = self._lines[number]
        if number not in form.apart:  # else calls of one place would be taken for steps
            node.meta["stack_trace"] = lines.trace
        node.meta["modules"] = lines.modules
        self._kinds_of[node] = kind
        if getattr(func, "computes", None) is not None or _is_op(func) or func in (torch.zeros, torch.ones):
            likes = form.results_at(place, self._steps, grows)
            if not grows and likes != form.results_at(place, self._steps, True):
                raise _IsAlsoSizeError("the number of steps is also a size of a call")
            fakes = iter([self._kinds.fake(like) for like in likes])
            if kind.spec is None:
                node.meta["example_value"] = next(fakes, None)
            else:
                node.meta["example_value"] = pytree.tree_unflatten(
                    [next(fakes) if c is Hole else c for c in kind.leaves], kind.spec
                )
        return node

    def _switch(self, grad: bool, wanted: Modes | None) -> None:
        """Enter the modes of a call; ``None``: those around the record."""
        wanted = wanted or self._ambient
        if wanted != self._modes:
            for leave, entered in reversed(self._entered):
                self._graph.call_function(leave, (entered,))
            blocks = blocks_between(self._ambient, wanted)
            self._entered = [(BLOCKS[enter], self._graph.call_function(enter, given)) for enter, given in blocks]
            self._modes = wanted
        elif grad is self._grad:
            return
        self._graph.call_function(torch._C._set_grad_enabled, (grad,))
        self._grad = grad

    # ---- arguments

    def _argument(self, a: Any, run: int | None, q: int) -> Any:
        t = type(a)
        if t is Constant:
            return a.value
        if t is Inside:
            entries = self._entries(a.entries, run, q)
            if type(a.kind) is tuple:
                return dict(zip(a.kind, entries, strict=True))
            if a.kind is slice:
                return slice(*entries)
            return a.kind(entries)
        if t is Size:
            return a.at(self._steps)
        if t is Counted:
            first = a.first.at(self._steps) if type(a.first) is Size else a.first
            return first + a.stride * q
        return self._tensor(a, run, q)

    def _entries(self, entries: Sequence[Any], run: int | None, q: int) -> list[Any]:
        found: list[Any] = []
        for a in entries:
            if type(a) is Rows:
                rows = range(a.first, self._steps[a.run] + a.last + 1)
                found += [self._row(a.run, a.offset, step, a.number) for step in (reversed(rows) if a.back else rows)]
            else:
                found.append(self._argument(a, run, q))
        return found

    def _tensor(self, a: Any, run: int | None, q: int) -> Any:
        t = type(a)
        if t is Given:
            return self._inputs[a.number]
        if t is EachGiven:
            return self._graph.call_function(operator.getitem, (self._inputs[a.number], q))
        if t is Result:
            return self._result(self._made["at", a.place], a.number + a.stride * q)
        if t is Row:
            return self._row(a.run, a.offset, a.step if a.step >= 0 else self._steps[a.run] + a.step, a.number)
        assert t is Moving
        step = self._steps[a.run] - 1 - q + a.step if a.back else q + a.step
        return self._row(a.run, a.offset, step, a.number)

    def _row(self, run: int, offset: int, step: int, number: int) -> Node:
        """A result of a step of a loop. Steps before the first and behind the last one are outside of it."""
        steps, loop = self._steps[run], self._form.runs[run]
        if 0 <= step < steps:
            made: Any = self._made.get(("row", run, step, offset))
        elif step < 0:
            made = self._made_near(run, loop.start + step * loop.period + offset)
        else:
            made = self._made_near(run, loop.end + (step - steps) * loop.period + offset)
        if made is None:
            raise UnknownFormError("it reads a step that is apart from those of the loop")
        return self._result(made, number)

    def _made_near(self, run: int, number: int) -> Node | None:
        """A call in front of a loop or behind it, by its number in the record. It may be of the loop next to it."""
        form, loop = self._form, self._form.runs[run]
        inside = form.folded.run_at(number)
        for i, other in enumerate(form.runs):
            between = other.end > min(number, loop.start) and other.start < max(number + 1, loop.end)
            if i not in (run, inside) and between and self._steps[i] != other.steps:
                return None
        if inside is None:
            return self._made.get(("at", form.folded.place(number)))
        other = form.runs[inside]
        step, offset = divmod(number - other.start, other.period)
        if number < loop.start:  # it is counted from the end that is next to the loop
            step += self._steps[inside] - other.steps
        return self._made.get(("row", inside, step, offset))

    def _result(self, made: Node, number: int) -> Node:
        kind = self._kinds_of[made]
        if kind.spec is None:
            return made
        if kind.spec.num_nodes != len(kind.leaves) + 1:
            raise UnknownFormError("a call that returns tensors in a structure")
        key = made, number
        if key not in self._results:
            at = number if number < 0 or all(c is Hole for c in kind.leaves) else kind.places[number]
            self._results[key] = self._graph.call_function(operator.getitem, (made, at))
        return self._results[key]


def _is_op(func: Any) -> bool:
    return str(getattr(func, "__module__", "")).startswith("torch._ops")
