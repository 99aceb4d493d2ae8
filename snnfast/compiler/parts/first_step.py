"""Take in a first step that differs, where it is the same step with numbers, or tensors that broadcast, as states.

Python computes with numbers: after ``mem = 0``, the first ``mem * 0.9 + x`` is a call ``0.0 + x``. After
``mem = torch.zeros(1)``, what the first step computes of the state alone has another shape. It is proven by one trace
of both: equal instructions of equal operands are one value.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._program.trace import Graph, NotElementwiseError, Trace, trace
from snnfast.compiler.graph.nodes import (
    index_of,
    is_number,
    is_pointwise,
    is_whole,
    module_of,
    name_of,
    run_call,
    signature_of,
    site_of,
    value,
)
from snnfast.compiler.loop.loop import Each, Of, Statement
from snnfast.compiler.parts.program import Program, Row, as_of

_STARTS = 64
"""How many combinations of numbers and tensors are tried as first states."""


def take_in_first(program: Program, row: Row, is_free: Callable[[Node], bool]) -> None:
    """Add the step before the first one, of which ``row`` has the calls that are statements of the others, too."""
    begin = [n for n in program.begins() if isinstance(n, Node)]
    if (not row and not begin) or any(map(is_whole, program.samples.values())):  # whole numbers may be too large
        return
    first = None
    for anywhere in (False, True):
        read = _read_by_first(program, row, [*row.values(), *begin], anywhere)
        if read is not None and all(n in (*read[0], *read[1]) for n in begin):
            series, peeled, others = read
            first = _first_states(program, row, series, peeled, others)
            if first is not None or not others:
                break
    if first is None:
        return
    start, of_body, of_calls = first
    members = set(row.values())
    for statement, found in of_body.items():
        same = [n for n, v in of_calls.items() if v == found and n in peeled and n not in members and is_free(n)]
        same = [n for n in same if signature_of(n) == signature_of(program.samples[statement])]
        same = [n for n in same if _cuts(n) == _cuts(statement.node)]
        if statement not in row and found is not None and same:
            row[statement] = same[0]
            members.add(same[0])
    program.rows.insert(0, row)
    now: dict[Any, Any] = {a: Each((n, *a.rows)) for a, n in zip(program.series, series, strict=True)}
    now |= {a: a._replace(first=(c,)) for a, c in zip(program.states, start, strict=True)}
    for args in program.args.values():
        args[:] = [now.get(a, a) if isinstance(a, Each | Of) else a for a in args]


def _first_states(
    program: Program, row: Row, series: list[Node], peeled: list[Node], others: list[Node]
) -> tuple[tuple[Any, ...], dict[Statement, Any], dict[Node, Any]] | None:
    """The numbers and tensors with which the first step is a step of the program, and the values of both."""
    leaves = [float(a) for n in peeled for a in pytree.tree_leaves((n.args, n.kwargs)) if is_number(a)]
    # A sum with -0.0 is the other summand, to the bit. So ``mem = x`` is a step, too.
    choices = [*others, 0.0, -0.0, *dict.fromkeys(a for a in leaves if a)]
    states = program.states
    starts = (s for s in itertools.product(choices, repeat=len(states)) if _one_each([a.statement for a in states], s))
    wanted = [*row.items(), *((a.statement, a.first[0]) for a in states)]
    # A gradient is no part of a value: where the loop detaches a state from some step on, the first step must not.
    if any(_cuts(s.node) != _cuts(n) for s, n in wanted if isinstance(n, Node)):
        return None
    cut = [program.args[s][0] for s in program.statements if _cuts(s.node) and s not in row]
    if not all(isinstance(a, Of) and a in states for a in cut):
        return None
    first = _FirstStep.of(program, series, peeled, others)
    if first is None:
        return None
    for start in itertools.islice(starts, _STARTS):
        if cut and any(isinstance(a, Node) for a in start):
            continue
        if all(first.are_equal(s, n, start) for s, n in wanted):
            return start, *first.values(start)
    return None


def _cuts(node: Node) -> bool:
    """Whether a call cuts its result from the graph of autograd."""
    return name_of(node.target) == "detach"


def _one_each(statements: Sequence[Statement], start: Sequence[Any]) -> bool:
    """Whether the results of a statement begin with one number or tensor. 0.0 and -0.0 differ."""
    return len(set(statements)) == len({(s, repr(number)) for s, number in zip(statements, start, strict=True)})


def _read_by_first(
    program: Program, row: Row, calls: list[Node], anywhere: bool
) -> tuple[list[Node], list[Node], list[Node]] | None:
    """The nodes that the first step reads as series, its calls, each behind what it reads, and tensors that may be its
    first states; ``None``: not known.

    The branch of a first step, as in ``if mem is None: mem = x``, may be ``anywhere`` in the user's code.
    """
    sites, contexts = (
        {_site(n) for n in program.samples.values()},
        [n.meta["context"] for n in program.samples.values()],
    )
    members, every = set(row.values()), program.series
    constants = {a.value for a in program.constants}
    series: list[Node | None] = [None] * len(every)
    peeled: dict[Node, None] = {}
    others: dict[Node, None] = {}

    opened: set[Node] = set()  # calls of the first step, which are peeled once all that they read is known
    rest = list(reversed(calls))
    while rest:
        node = rest.pop()
        if node in opened:
            peeled[node] = None
        if node in peeled or node in others or node in constants:
            continue
        is_read = [
            node not in members and series[i] in (None, node) and _is_before(node, a.rows[0], anywhere)
            for i, a in enumerate(every)
        ]
        if any(is_read):
            series[is_read.index(True)] = node
            continue
        known = node in members or (node.op == "call_function" and _site(node) in sites)
        known = known or (anywhere and is_pointwise(node.target) and node.meta["context"] in contexts)
        if not known:
            others[node] = None
            if not _may_begin(program, node):
                return None
            continue
        opened.add(node)
        if len(opened) > 2 * len(program.statements):
            return None
        rest += [node, *reversed(node.all_input_nodes)]
    if None in series or _wait_for(others, {*members, *peeled}):
        return None
    return series, list(peeled), list(others)  # type: ignore[return-value]


def _may_begin(program: Program, node: Node) -> bool:
    """Whether a tensor may be a first state of a program, that of one neuron or of all."""
    t = value(node)
    if not isinstance(t, Tensor) or t.dtype != program.dtype or t.device != program.device:
        return False
    sizes = list(zip(reversed(t.shape), reversed(program.shape), strict=False))
    return t.dim() <= len(program.shape) and all(isinstance(a, int) and a in (1, b) for a, b in sizes)


def _wait_for(nodes: Iterable[Node], calls: set[Node]) -> bool:
    """Whether one of some nodes is computed of the results of calls."""
    rest, seen = list(nodes), set(nodes)
    while rest:
        found = rest.pop()
        if found in calls:
            return True
        rest += [a for a in found.all_input_nodes if a not in seen]
        seen.update(found.all_input_nodes)
    return False


class _FirstStep:
    """A step of a program, and the calls of the first one, as values of one graph in which the states are leaves.

    Args:
        nodes: The first leaves of the graph. The states are the others.
        traced: The values of both.
        statements, calls: Those of which each is a value.
    """

    def __init__(
        self, nodes: list[Node], traced: Trace, statements: Sequence[Statement], calls: Sequence[Node]
    ) -> None:
        self._nodes, self._instructions = nodes, traced.graph.nodes
        self._of_body: dict[Statement, int] = dict(zip(statements, traced.outputs))  # noqa: B905
        self._of_calls: dict[Node, int] = dict(zip(calls, traced.outputs[len(statements) :], strict=True))
        self._graph = Graph(traced.graph.dtype)  # of the values for all starts, so that equal ones are one
        self._states: list[tuple[int, ...]] = []  # by values: the numbers of the states that they follow from
        for op, *operands in self._instructions:
            if op == "series":
                found = {operands[0] - len(nodes)} if operands[0] >= len(nodes) else set()
            else:
                found = set().union(*(self._states[v] for v in operands)) if op != "constant" else set()
            self._states.append(tuple(sorted(found)))
        self._values: dict[tuple[int, tuple[Any, ...]], int] = {}  # by the value, and by what these states begin with

    @classmethod
    def of(cls, program: Program, series: list[Node], peeled: list[Node], others: list[Node]) -> "_FirstStep | None":
        """Trace both; ``None``: an operator is not elementwise."""
        kept = program.outputs()
        tensors = [n for n in (*peeled, *series) if isinstance(value(n), Tensor)]
        constants, states = program.constants, program.states
        nodes: list[Any] = [*series, *(a.value for a in constants), *others]

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            env: dict[Any, Any] = {node: as_of(node, t) for node, t in zip(nodes, given, strict=False)}
            read = [*given[: len(series) + len(constants)], *given[len(nodes) :]]
            results = program.run(program.layers[0], [*program.series, *constants, *states], read)
            for node in peeled:
                args, kwargs = pytree.tree_map_only(Node, lambda a: env.get(a, module_of(a)), (node.args, node.kwargs))
                env[node] = run_call(node, args, kwargs, program.dtype)
            found = [*(results[Of(s, 0)] for s in kept), *(env[n] for n in tensors)]
            return tuple(t.to(program.dtype).expand_as(given[0]) for t in found)

        try:
            traced = trace(step, (len(nodes) + len(states), 0, 0), program.dtype, len(program.shape))
        except (NotElementwiseError, RuntimeError):  # of an operator that takes tensors of its own sizes alone
            return None
        return cls(nodes, traced, kept, tensors)

    def are_equal(self, statement: Statement, node: Node, start: Sequence[Any]) -> bool:
        """Whether a statement in a step that starts from these states returns what a call of the first step does."""
        body, call = self._of_body.get(statement), self._of_calls.get(node)
        if body is None or call is None:
            return body is call
        return self._value(body, start) == self._value(call, start)

    def values(self, start: Sequence[Any]) -> tuple[dict[Statement, int], dict[Node, int]]:
        """The values of the statements in a step that starts from these states, and the values of the first calls.

        A result that is no tensor has none.
        """
        of_body = {s: self._value(v, start) for s, v in self._of_body.items()}
        return of_body, {n: self._value(v, start) for n, v in self._of_calls.items()}

    def _value(self, wanted: int, start: Sequence[Any]) -> int:
        """A value where the states begin with numbers and tensors."""
        begins = [a if isinstance(a, Node) else repr(a) for a in start]  # 0.0 and -0.0 differ
        keys: dict[int, Any] = {}
        rest = [wanted]
        while rest:
            at = rest[-1]
            op, *operands = self._instructions[at]
            key = keys.setdefault(at, (at, tuple([begins[i] for i in self._states[at]])))
            given = [] if op in ("series", "constant") else operands
            new = [v for v in given if v not in keys or keys[v] not in self._values]
            if key not in self._values and new:
                rest += new
                continue
            rest.pop()
            if key not in self._values:
                values = [self._values[keys[v]] for v in given]
                self._values[key] = self._emit(op, values) if given else self._leaf(op, operands[0], start)
        return self._values[keys[wanted]]

    def _leaf(self, op: str, number: Any, start: Sequence[Any]) -> int:
        if op == "constant":
            return self._graph.constant(number)
        if number >= len(self._nodes):
            state = start[number - len(self._nodes)]
            if not isinstance(state, Node):
                return self._graph.constant(state)
            number = self._nodes.index(state)
        return self._graph.leaf(op, number)

    def _emit(self, op: str, operands: Sequence[Any]) -> int:
        """An instruction. Where a state is a number, ``a - number`` is ``a + -number``, as it is in a first call."""
        graph = self._graph
        if op == "sub" and graph.nodes[operands[1]][0] == "constant":
            return graph.emit("add", operands[0], graph.constant(-graph.nodes[operands[1]][1]))
        return graph.emit(op, *operands)


def _site(node: Node) -> Any:
    """The site and the context of a call, also if it takes a number where another one takes a tensor."""
    return site_of(node).of_any_module, node.meta["context"]


def _is_before(node: Node, first: Node, anywhere: bool) -> bool:
    """Whether a node may be the one before the first of a series."""
    if node.op != "call_function" or node.target is not first.target or signature_of(node) != signature_of(first):
        return False
    part, other = index_of(node), index_of(first)
    alike = part[:2] == other[:2] if part and other else anywhere or site_of(node).trace == site_of(first).trace
    return alike and bool(node.meta["context"] == first.meta["context"])
