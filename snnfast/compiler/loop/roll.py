"""Roll a graph up: find the calls that each step of a loop makes, and the step that each of them belongs to.

Calls are found along the dataflow. The search starts at the steps of neuron layers, each of which takes the states that
the one before returned, and at calls of one place in the user's code. It goes backwards to what these read and forwards
to what reads them. So layers that share their lines of code stay apart. The order of the program then tells the steps.
"""

import operator
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.graph.nodes import (
    LEAST,
    Site,
    frames_of,
    index_of,
    literal,
    series_key,
    site_of,
    step_of,
    tensors_of,
    updates_statistics,
)
from snnfast.compiler.loop.facts import Facts
from snnfast.compiler.loop.layers import CHANGED, FED_BACK, is_connected, layers_of, parameters_of
from snnfast.compiler.loop.loop import Loop, Statement, argument_of, is_same, leaves_of


class Rolled:
    """A graph as loops, and calls outside of any.

    Attributes:
        facts: The facts of the calls of the graph.
        loops: With their statements.
        at: The statement of each call that is in one, and the number of the call among those of the statement.
        layers: The steps of each neuron layer, also of those that no unroll can run.
        loose: Steps that no unroll can run, but a program might.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.loops: list[Loop] = []
        self.at: dict[Node, tuple[Statement, int]] = {}
        self.layers: list[Statement] = []
        self.loose: set[Node] = set()

    @property
    def statements(self) -> list[Statement]:
        return list(dict.fromkeys(statement for statement, _ in self.at.values()))

    @property
    def lengths(self) -> list[int]:
        """The different numbers of steps."""
        return list(dict.fromkeys(loop.length for loop in self.loops))

    def enter(self, statement: Statement) -> None:
        self.at |= {node: (statement, row) for row, node in enumerate(statement.calls)}

    def __str__(self) -> str:
        return "\n".join(map(str, self.loops))

    def check(self) -> None:
        """Check that the loops say of each of their calls what the graph says."""
        for loop in self.loops:
            for node, target, args in loop.unrolled():
                found = leaves_of(node)
                same = len(args) == len(found) and all(map(is_same, args, found))
                same = same and (target is node.target or index_of(node) is not None)
                assert same, f"{node.format_node()} is not {args}"

    def add(self, statement: Statement, node: Node, step: int) -> None:
        """Let a node be the call of a statement at a step."""
        both = sorted(zip([*statement.steps, step], [*statement.calls, node], strict=True), key=lambda entry: entry[0])
        statement.steps, statement.calls = [step for step, _ in both], [n for _, n in both]
        self.enter(statement)

    def release(self, nodes: Iterable[Node]) -> None:
        """Take calls out of their statements, which are none of programs."""
        gone = {n for n in nodes if n in self.at}
        for statement in dict.fromkeys(self.at[n][0] for n in gone):
            kept = [(n, step) for n, step in zip(statement.calls, statement.steps, strict=True) if n not in gone]
            statement.calls, statement.steps = [n for n, _ in kept], [step for _, step in kept]
            self.enter(statement)
            if not kept and statement.loop is not None:
                statement.loop.statements.remove(statement)
        for node in gone:
            del self.at[node]


def roll(facts: Facts) -> Rolled:
    rolled = Rolled(facts)
    _Search(rolled).run()
    _find_loops(rolled)
    describe_arguments(rolled, rolled.statements)
    return rolled


# ---- calls that each step makes


class _Search:
    """Finds statements: calls that are alike and follow one another along the dataflow."""

    def __init__(self, rolled: Rolled) -> None:
        self.rolled, self.facts = rolled, rolled.facts
        self._keys: dict[Node, Any] = {}
        self._wanted: deque[list[Any]] = deque()

    def run(self) -> None:
        self.rolled.layers = layers_of(self.facts)
        loose: dict[Any, list[Node]] = defaultdict(list)
        for layer in self.rolled.layers:
            if layer.reason in (CHANGED, FED_BACK) and not is_connected(layer.node):
                for step in layer.calls:
                    loose[literal((step.args[0], parameters_of(step), step.args[3:]))].append(step)
        self._begin_at(layer for layer in self.rolled.layers if layer.reason is None)
        for node in self.facts.nodes:  # and from what is read part by part: a record, such as in a loss over time
            parts = sorted((u for u in node.users if index_of(u) is not None), key=self.facts.order.__getitem__)
            if len(parts) > len(set(map(site_of, parts))):  # else each has a place of its own, and no loop reads them
                self._wanted.append(_in_rows(parts))
        self._find_across_places()
        self._begin_at(layer for layer in self.rolled.layers if layer.reason is not None)
        self.rolled.loose.update(step for steps in loose.values() for step in steps)
        self._wanted.extendleft(loose.values())
        self._wanted.extendleft(self._of_places())
        while self._wanted:
            self._find(self._wanted.popleft())

    def _begin_at(self, layers: Iterable[Statement]) -> None:
        """Search for what the steps of layers read, and for what reads their results."""
        for layer in layers:
            if len(layer.calls) > 1:
                self._wanted.append([step.args[1] for step in layer.calls])
            for i in range(len(tensors_of(layer.node)) if len(layer.calls) > 1 else 0):
                results = [self._result(step, i) for step in layer.calls]
                if layer.reason is None:
                    self.rolled.enter(layer)
                    self.rolled.enter(Statement(results))
                self._follow(results)

    def _find_across_places(self) -> None:
        """Make statements of calls, one of each step of an unroll, where a step has lines of its own.

        As in ``out = net(x[0])``, and ``out += net(x[t])`` in a loop behind it: its calls alone would lack the first.
        """
        rest = []
        while self._wanted:
            nodes = self._wanted.popleft()
            alike = len(set(nodes)) == len(nodes) >= LEAST and all(map(self._is_free, nodes))
            if alike and len(set(map(self._key, nodes))) == 1 and len(set(map(site_of, nodes))) > 1:
                self._make(nodes)
            else:
                rest.append(nodes)
        self._wanted.extend(rest)

    def _result(self, step: Node, number: int) -> Node:
        return next(u for u in step.users if u.target is operator.getitem and u.args[1] == number)

    def _of_places(self) -> list[list[Node]]:
        """The calls of each place in the user's code that runs once a step. The first or last steps may lack one.

        Layers of one class share their lines, but each is a module of its own.
        """
        places: dict[Any, list[Node]] = defaultdict(list)
        for node in self.facts.nodes:
            if self._is_free(node) and node.stack_trace and index_of(node) is None:
                places[site_of(node), self._key(node)].append(node)
        steps = {len(nodes) for nodes in self._wanted if len(nodes) >= LEAST}
        if not steps:
            counts = Counter(len(nodes) for nodes in places.values() if len(nodes) >= LEAST)
            steps = {n for n, _ in counts.most_common(1)}
        return [nodes for nodes in places.values() if steps.intersection(range(len(nodes) - 2, len(nodes) + 3))]

    def _key(self, node: Node) -> Any:
        if node not in self._keys:
            index = index_of(node)
            self._keys[node] = series_key(node) if index is None else ("index", *index[:2], node.meta["context"])
        return self._keys[node]

    def _is_free(self, node: Any) -> bool:
        return isinstance(node, Node) and node not in self.rolled.at and may_roll(self.facts, node, self.rolled.loose)

    def _find(self, nodes: list[Any]) -> None:
        """Make statements of free nodes among these that are alike and follow one another."""
        i = 0
        while i < len(nodes):
            run = [nodes[i]]
            if self._is_free(nodes[i]):
                for node in nodes[i + 1 :]:
                    if not self._is_free(node) or node is run[-1] or self._key(node) != self._key(run[0]):
                        break
                    run.append(node)
                if len(set(run)) != len(run):
                    run = run[:1]
                elif len(run) > 1:
                    self._make(run)
            i += len(run)

    def _make(self, nodes: list[Node]) -> None:
        statement = Statement(nodes)
        if not statement.is_index:
            for given in zip(*(pytree.tree_leaves((n.args, n.kwargs)) for n in nodes), strict=True):
                found = [a for a in given if isinstance(a, Node)]
                if any(a is not found[0] for a in found):
                    self._wanted.append(found)
        self.rolled.enter(statement)
        self._follow(nodes)

    def _follow(self, members: Sequence[Node]) -> None:
        """Search for calls that use the members of a statement, one each."""
        users: dict[Any, list[tuple[int, Node]]] = defaultdict(list)
        for k, node in enumerate(members):
            times: dict[Any, int] = defaultdict(int)
            for user in sorted(node.users, key=self.facts.order.__getitem__):
                if self._is_free(user):
                    key = self._key(user)
                    users[key, times[key]].append((k, user))
                    times[key] += 1
        for found in users.values():
            run: list[tuple[int, Node]] = []
            for k, user in [*found, (-1, found[0][1])]:
                if run and k != run[-1][0] + 1:
                    if len(run) > 1:
                        self._wanted.append([u for _, u in run])
                    run = []
                run.append((k, user))


def _in_rows(parts: list[Node]) -> list[Node]:
    """Parts of a tensor in the order in which a loop reads them, or by their places, where it reads some twice."""
    places = [index_of(node)[2] for node in parts]  # type: ignore[index]
    regular = all(a < b for a, b in pairwise(places)) or all(a > b for a, b in pairwise(places))
    return parts if regular else [node for _, node in sorted(zip(places, parts, strict=True), key=lambda both: both[0])]


def may_roll(facts: Facts, node: Node, loose: set[Node]) -> bool:
    """Whether a node may be a call of a statement."""
    return (
        node.op == "call_function"
        and (node not in facts.effects or updates_statistics(node))
        and node not in facts.written
        and ((made := step_of(node)) is None or made in loose)
        and not node.meta["context"].infers  # a stack there would be an inference tensor, where a view is none
        and bool(tensors_of(node))
    )


# ---- the steps


def _find_loops(rolled: Rolled) -> None:
    """Let each statement be one of a loop: of the longest one whose calls its own calls alternate with."""
    order = rolled.facts.order
    sites: dict[Site, int] = {}  # where each site is reached by a call that is in no statement, as in a first step
    for node in rolled.facts.nodes:
        if node not in rolled.at and node.stack_trace:
            sites.setdefault(site_of(node), order[node])

    def odd(node: Node) -> bool:
        return sites.get(site_of(node), order[node]) < order[node]

    rest = sorted((s for s in rolled.statements if not s.is_index), key=lambda s: (-len(s.calls), order[s.calls[0]]))
    while rest:
        loop, others = Loop(0), []
        begin = sorted(order[n] for n in rest[0].calls)
        for statement in rest:
            steps = _steps([order[n] for n in statement.calls], begin)
            if statement is rest[0]:  # whose calls need not be in the order of the program
                steps = list(range(len(begin)))
            if steps is None:
                others.append(statement)
                continue
            # What runs before the first statement of a step belongs to the next step.
            if steps[-1] + 1 < len(begin) and (
                odd(statement.node) or _comes_before(statement.calls[0], rest[0].calls[0])
            ):
                steps = [step + 1 for step in steps]
            statement.loop, statement.steps = loop, steps
            loop.statements.append(statement)
        rolled.loops.append(loop)
        rest = others
    for statement in rolled.statements:
        if statement.is_index:
            _place_index(statement, rolled)
    for loop in rolled.loops:
        first = min(s.steps[0] for s in loop.statements)
        for statement in loop.statements:
            statement.steps = [step - first for step in statement.steps]
        loop.length = max(s.steps[-1] for s in loop.statements) + 1
        _sort(loop, order)


def _steps(numbers: list[int], begin: list[int]) -> list[int] | None:
    """The steps of calls with these numbers in the program, if steps begin with those; ``None``: they are of no steps.

    A call may be elsewhere in the program than its step: it is the first one of those that were equal.
    """
    found = [bisect_right(begin, number) - 1 for number in numbers]
    ((offset, times),) = Counter(step - row for row, step in enumerate(found)).most_common(1)
    holes = found[-1] - found[0] + 1 - len(found)
    if all(a < b for a, b in pairwise(found)) and 4 * holes <= len(found):
        return found if found[0] >= 0 else [step + 1 for step in found]
    if 2 * times <= len(found):
        return None
    return [row + max(offset, 0) for row in range(len(found))]


def _place_index(statement: Statement, rolled: Rolled) -> None:
    """Let an index be at the steps that read it. Where it stands in the program says nothing."""
    offsets: Counter[tuple[Loop, int]] = Counter()
    for row, node in enumerate(statement.calls):
        for user in node.users:
            reader, number = rolled.at.get(user, (None, 0))
            if reader is not None and reader.loop is not None and not reader.is_index:
                offsets[reader.loop, reader.steps[number] - row] += 1
    if not offsets:
        rolled.loops.append(Loop(0))
        offsets[rolled.loops[-1], 0] = 1
    loop, offset = max(offsets, key=lambda found: (offsets[found], -found[1]))
    statement.loop, statement.steps = loop, [row + offset for row in range(len(statement.calls))]
    loop.statements.append(statement)


def _sort(loop: Loop, order: dict[Node, int]) -> None:
    """Put the statements of a loop in the order of one step; an index in front of what reads it."""
    counts = Counter(step for s in loop.statements for step in s.steps)
    model = max(counts, key=lambda step: (counts[step], -abs(step - loop.length // 2)))
    longest = max(loop.statements, key=lambda s: len(s.calls))
    stride = (order[longest.calls[-1]] - order[longest.calls[0]]) / len(longest.calls)

    def place(statement: Statement) -> tuple[float, bool]:
        """About where the call of the model step is."""
        step = min(statement.steps, key=lambda step: abs(step - model))
        node: Any = statement.at(step)
        nodes = [u for u in node.users if u in order] if statement.is_index else [node]
        return min(order[n] for n in nodes or [node]) + stride * (model - step), not statement.is_index

    loop.statements.sort(key=place)


def describe_arguments(rolled: Rolled, statements: Sequence[Statement]) -> None:
    """Let statements know their arguments."""
    for statement in statements:
        steps = [step for step, _ in statement.alike()]
        statement.args = [argument_of(list(c), steps, statement.loop, rolled.at) for c in statement.columns()]


def _comes_before(a: Node, b: Node) -> bool:
    """Whether a call is in front of another one in the lines that the user wrote."""
    for (file, line), (other_file, other) in zip(frames_of(a), frames_of(b), strict=False):
        if file != other_file:
            return False
        if line != other:
            return line < other
    return False
