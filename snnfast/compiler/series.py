"""Find the series in a graph: the same call at every step of a loop.

The search starts at the chains of steps. It goes backwards to the inputs of a layer at its steps, and forwards to the
calls that use its spikes and states. Calls that wait for one another, such as a running mean, are no series: they are
taken apart again. Nothing is built here.
"""

import heapq
import operator
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.align import recurrence_of
from snnfast.compiler.calls import (
    LEAST,
    index_of,
    is_pointwise,
    line_of,
    literal,
    name_of,
    same_context,
    series_key,
    step_of,
    tensors_of,
    updates_statistics,
    value,
)
from snnfast.compiler.capture import Captured, Chain
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.recurrence import Recurrence

SINGLE = "it runs for a single step"
CHANGED = "its states or parameters are changed between two steps"
"""Why a step is alone in its chain: its layer makes a single step, or several."""
FED_BACK = "its input at a step depends on its output at an earlier step"
WAITS = "each call needs the result of an earlier one"
SUMS = "each call takes its own result of the step before, as a running sum does"

_ODD_STEPS = 4
"""How many of the first and last steps may differ from the others."""


class Group:
    """Calls that become one call."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.reason: str | None = None  # why they stay one by one
        self.recurrence: Recurrence | None = None  # that they are a statement of

    @property
    def first(self) -> Node:
        return self.nodes[0]

    def drop(self, node: Node) -> None:
        self.nodes.remove(node)


class IndexGroup(Group):
    """``x[0]``, ``x[1]``, ...: slices of one tensor along ``dim``."""

    def __init__(self, nodes: list[Node], base: Node, dim: int, places: list[int]) -> None:
        super().__init__(nodes)
        self.base, self.dim, self.places = base, dim, places

    def drop(self, node: Node) -> None:
        del self.places[self.nodes.index(node)]
        super().drop(node)


Place = tuple[Any, int]
"""The place of a node: its group, or ``(chain, output)``, and its number in that."""


class Series:
    """All groups of a captured graph, and the order in which they and all other nodes can run."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.chain_of = {step: chain for chain in captured.chains for step in chain.steps}
        self.group_of: dict[Node, Group] = {}
        self._number = {step: k for chain in captured.chains for k, step in enumerate(chain.steps)}
        self.recurrences: list[Recurrence] = []
        self._keys: dict[Node, Any] = {}
        self._wanted: deque[list[Node]] = deque()
        layers = Counter(line_of(chain.steps[0]) for chain in captured.chains)
        for chain in captured.chains:
            if len(chain.steps) == 1 and chain.reason is None:
                chain.reason = SINGLE if layers[line_of(chain.steps[0])] == 1 else CHANGED
        self._split(Chain, FED_BACK)
        loose = self._loose_steps()
        self._loose = {step for steps in loose.values() for step in steps}
        for chain in captured.chains:
            if len(chain.steps) > 1:
                self._wanted.append(chain.currents())
                for i in range(1 + len(chain.neuron.states)):
                    self._follow([self._output(step, i) for step in chain.steps])
        for node in captured.nodes:  # and from what is read part by part: a record, such as in a loss over time
            parts = [user for user in node.users if index_of(user) is not None]
            if len(parts) > 1:
                self._wanted.append(sorted(parts, key=captured.order.__getitem__))
        self._wanted.extendleft(loose.values())
        self._wanted.extendleft(self._places())
        while self._wanted:
            self._find(self._wanted.popleft())
        self._recur()
        self._split(Group, WAITS)
        if self._join():
            self._split(Group, WAITS)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Drop the spare calls of the last steps, except those of recurrences and what these read."""
        captured = self.captured
        needed: set[Node] = set()
        rest = [captured.nodes[-1], *captured.effects]
        while rest:
            node = rest.pop()
            if node not in needed:
                needed.add(node)
                vertex = self.vertex(node)
                rest += vertex.nodes() if isinstance(vertex, Recurrence) else ()
                rest += node.all_input_nodes
        dropped = captured.spare - needed
        for node in reversed([n for n in captured.nodes if n in dropped]):
            group = self.group_of.pop(node, None)
            if group is not None:
                group.drop(node)
                self._number |= {n: k for k, n in enumerate(group.nodes)}
            captured.graph.erase_node(node)
        captured.nodes[:] = [n for n in captured.nodes if n not in dropped]
        for node, before in captured.before.items():
            captured.before[node] = [n for n in before if n not in dropped]
        for node in [n for n, group in self.group_of.items() if len(group.nodes) == 1]:
            del self.group_of[node]

    # ---- what runs before what

    def vertex(self, node: Node) -> Any:
        """The vertex of a node: a merged chain, a group, or the node itself."""
        chain = self.chain_of.get(node)
        if chain is not None and chain.merged:
            return chain
        group = self.group_of.get(node)
        return node if group is None or group.reason is not None else group.recurrence or group

    def members(self, vertex: Any) -> list[Node]:
        if isinstance(vertex, Chain):
            return vertex.steps
        if isinstance(vertex, Recurrence):
            return vertex.nodes()
        return vertex.nodes if isinstance(vertex, Group) else [vertex]

    def before(self, vertex: Any) -> Iterator[Any]:
        """The vertices that a vertex waits for; itself, if it does."""
        if isinstance(vertex, Recurrence):
            yield from map(self.vertex, vertex.inputs())
        for n, node in enumerate(self.members(vertex)):
            given = node.all_input_nodes
            if isinstance(vertex, Recurrence):  # what it takes is above
                given = []
            elif isinstance(vertex, Chain) and n > 0:  # its states are the chain's own
                given = [a for a in pytree.tree_leaves((node.args[1], vertex.parameters())) if isinstance(a, Node)]
            yield from map(self.vertex, given)
            for a in self.captured.before.get(node, ()):
                # A merged batch normalisation updates its running averages in the order of its own calls.
                if not (updates_statistics(node) and self.vertex(a) is vertex):
                    yield self.vertex(a)

    def in_order(self) -> list[Any]:
        """The vertices, each behind all that it waits for, otherwise in the order of the old graph."""
        sorter = TopologicalSorter(self._graph())
        sorter.prepare()
        found: list[Any] = []
        ready: list[tuple[int, Any]] = []
        while sorter.is_active():
            for vertex in sorter.get_ready():
                heapq.heappush(ready, (self.captured.order[self.members(vertex)[0]], vertex))
            found.append(heapq.heappop(ready)[1])
            sorter.done(found[-1])
        return found

    def _graph(self) -> dict[Any, set[Any]]:
        """Each vertex with those that it waits for."""
        return {vertex: set(self.before(vertex)) for vertex in dict.fromkeys(map(self.vertex, self.captured.nodes))}

    def _split(self, kind: type[Chain] | type[Group], reason: str) -> None:
        """Give up the chains, or the groups and recurrences, that wait for themselves."""
        for vertex, alone in [(v, len(vertices) == 1) for vertices in cycles(self._graph()) for v in vertices]:
            if isinstance(vertex, kind):
                vertex.reason = SUMS if alone and reason == WAITS else reason
            elif isinstance(vertex, Recurrence):
                self.recurrences.remove(vertex)
                for group in vertex.statements:
                    group.reason, group.recurrence = reason, None

    # ---- recurrences

    def _recur(self) -> None:
        """Let calls that wait for one another run as programs, where they are elementwise."""
        for vertices in cycles(self._graph()):
            groups = [v for v in vertices if type(v) is Group]
            if len(groups) < 2 or any(isinstance(v, Chain) for v in vertices):
                continue
            # Those of fewer calls are of steps that differ from the others.
            most = max(len(g.nodes) for g in groups)
            statements = [g for g in groups if len(g.nodes) >= max(LEAST, most - _ODD_STEPS)]
            try:
                self._recurs(statements)
            except UnmergedError as error:
                for group in groups:
                    group.reason = f"{WAITS}: {error}"
        for group in dict.fromkeys(self.group_of.values()):
            # No rule merges these. A program of one statement does, if they are elementwise.
            whole = group.reason is None and group.recurrence is None
            if whole and (step_of(group.first) or name_of(group.first.target) == "autograd_function_apply"):
                try:
                    self._recurs([group])
                except UnmergedError as error:
                    group.reason = str(error)

    def _join(self) -> bool:
        """Let recurrences take in one another, and elementwise calls that are beside them. Returns whether any did.

        What is between two of them is then never written for all steps.
        """
        rest, joined = list(self.recurrences), False
        while rest:
            found = rest.pop()
            for other in self._beside(found) if found in self.recurrences else ():
                parts = [found, other] if isinstance(other, Recurrence) else [found]
                try:
                    whole = self._recurs([*found.statements, *(other.statements if other in parts else [other])], parts)
                except UnmergedError:
                    continue
                rest.append(whole)
                joined = True
                break
        return joined

    def _beside(self, found: Recurrence) -> Iterator[Any]:
        """Recurrences and elementwise calls that read a recurrence, or that it reads, with nothing between them."""
        before = self._graph()
        after = _reversed(before)
        for other in [*dict.fromkeys(self.before(found)), *after[found]]:
            group = type(other) is Group and is_pointwise(other.first.target) and len(other.nodes) >= LEAST
            if not group and not isinstance(other, Recurrence):
                continue
            first, second = (other, found) if other in before[found] else (found, other)
            if not any(second in _reached(vertex, after) for vertex in after[first] if vertex is not second):
                yield other

    def _recurs(self, groups: list[Group], parts: Sequence[Recurrence] = ()) -> Recurrence:
        """Let groups be the statements of a recurrence, in place of others that had some of them.

        Raises:
            UnmergedError: They are none, or one that lacks a call of those that it is in place of.
        """
        groups = groups + self._taken_apart(groups)
        found = recurrence_of(groups, self.captured.order, self._is_free)
        if parts and not set(found.nodes()).issuperset(n for g in groups for n in g.nodes):
            raise UnmergedError("its steps are not those of the other")
        if found.context.records and any(n in self.captured.written_untracked for n in found.inputs()):
            raise UnmergedError("its inputs are changed in place, through .data")
        for group in groups:
            for node in group.nodes:
                del self.group_of[node], self._number[node]
            numbers = found.number_of(group)
            group.nodes, group.recurrence, group.reason = list(numbers), found, None
            self.group_of |= dict.fromkeys(numbers, group)
            self._number |= numbers
        self.recurrences = [r for r in self.recurrences if r not in parts] + [found]
        return found

    def _taken_apart(self, groups: list[Group]) -> list[Group]:
        """The groups that take the results of a call, such as an autograd.Function, apart."""
        several = [g for g in groups if not isinstance(value(g.first), Tensor)]
        users = dict.fromkeys(u for g in several for n in g.nodes for u in n.users)
        for user in users:  # what only a record reads of the last step
            like = [u for u in users if u.args[1:] == user.args[1:] and u in self.group_of]
            if like and self._is_free(user) and self._key(user) == self._key(like[0]):
                group = self.group_of[user] = self.group_of[like[0]]
                group.nodes = sorted([*group.nodes, user], key=self.captured.order.__getitem__)
                self._number |= {n: k for k, n in enumerate(group.nodes)}
        if not all(u in self.group_of for u in users):
            raise UnmergedError("some of its results are read at some steps only")
        return [g for g in dict.fromkeys(self.group_of[u] for u in users) if g not in groups]

    # ---- searching

    def _loose_steps(self) -> dict[Any, list[Node]]:
        """By layers, the steps that no unroll can run. They may be parts of recurrences."""
        found: dict[Any, list[Node]] = defaultdict(list)
        for chain in self.captured.chains:
            if chain.reason in (CHANGED, FED_BACK) and not chain.connected:
                for step in chain.steps:
                    found[literal((step.args[0], chain.parameters(), step.args[3:]))].append(step)
        return found

    def _places(self) -> list[list[Node]]:
        """The calls of each place in the user's code that runs once a step. The first or last steps may lack one.

        Layers of one class share their lines, but each is a module of its own.
        """
        places: dict[Any, list[Node]] = defaultdict(list)
        for node in self.captured.nodes:
            if self._is_free(node) and node.stack_trace and index_of(node) is None:
                places[node.stack_trace, node.meta.get("modules"), self._key(node)].append(node)
        steps = {len(nodes) for nodes in self._wanted if nodes[0] is not None and len(nodes) >= LEAST}
        if not steps:
            counts = Counter(len(nodes) for nodes in places.values() if len(nodes) >= LEAST)
            steps = {n for n, _ in counts.most_common(1)}
        return [nodes for nodes in places.values() if steps.intersection(range(len(nodes) - 2, len(nodes) + 3))]

    def _output(self, step: Node, i: int) -> Node | None:
        return next((u for u in step.users if u.target is operator.getitem and u.args[1] == i), None)

    def _key(self, node: Node) -> Any:
        if node not in self._keys:
            self._keys[node] = series_key(node)
        return self._keys[node]

    def _is_free(self, node: Any) -> bool:
        """Whether a node may become a part of a group."""
        return (
            isinstance(node, Node)
            and node.op == "call_function"
            and node not in self.group_of
            and (node not in self.captured.effects or updates_statistics(node))
            and node not in self.captured.written
            and ((made := step_of(node)) is None or made in self._loose)
            and not node.meta["context"].infers  # a stack there would be an inference tensor, where a view is none
            and bool(tensors_of(node))
        )

    def _find(self, nodes: list[Node]) -> None:
        """Group free nodes among these that are alike and follow one another."""
        i = 0
        while i < len(nodes):
            run = [nodes[i]]
            if self._is_free(nodes[i]):
                index = index_of(nodes[i])
                for node in nodes[i + 1 :]:
                    if not self._is_free(node) or node in run[-1:]:
                        break
                    if index is not None:
                        other = index_of(node)
                        if other is None or other[:2] != index[:2] or not same_context(node, run[0]):
                            break
                    elif self._key(node) != self._key(run[0]):
                        break
                    run.append(node)
                if len(set(run)) != len(run):
                    run = run[:1]
                elif len(run) > 1:
                    self._make(run)
            i += len(run)

    def _make(self, nodes: list[Node]) -> None:
        index = index_of(nodes[0])
        if index is not None:
            base, dim, _ = index
            group: Group = IndexGroup(nodes, base, dim, [index_of(n)[2] for n in nodes])  # type: ignore[index]
        else:
            group = Group(nodes)
            for given in zip(*(pytree.tree_leaves((n.args, n.kwargs)) for n in nodes), strict=True):
                found = [a for a in given if isinstance(a, Node)]
                if any(a is not found[0] for a in found):
                    self._wanted.append(found)
        for k, node in enumerate(nodes):
            self.group_of[node], self._number[node] = group, k
        self._follow(nodes)

    def _follow(self, members: Sequence[Node | None]) -> None:
        """Search for calls that use the members of a series, one each."""
        users: dict[Any, list[tuple[int, Node]]] = defaultdict(list)
        for k, node in enumerate(members):
            times: dict[Any, int] = defaultdict(int)
            for user in sorted(node.users, key=self.captured.order.__getitem__) if node is not None else ():
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

    # ---- asking

    def place(self, node: Node) -> Place | None:
        """Where a node is found among the merged ones."""
        group = self.group_of.get(node)
        if group is not None:
            return (group, self._number[node]) if group.reason is None else None
        if node.target is operator.getitem and isinstance(node.args[0], Node):
            chain = self.chain_of.get(node.args[0])
            if chain is not None and chain.merged:
                return (chain, node.args[1]), self._number[node.args[0]]
        return None


def _reversed(before: dict[Any, set[Any]]) -> dict[Any, list[Any]]:
    after: dict[Any, list[Any]] = defaultdict(list)
    for vertex, others in before.items():
        for other in others:
            after[other].append(vertex)
    return after


def _reached(start: Any, edges: Mapping[Any, Iterable[Any]]) -> set[Any]:
    """The vertices that edges lead to from one; the one itself if it is in a cycle."""
    found: set[Any] = set()
    rest = [start]
    while rest:
        new = [v for v in edges.get(rest.pop(), ()) if v not in found]
        found.update(new)
        rest += new
    return found


def cycles(before: Mapping[Any, Iterable[Any]]) -> list[list[Any]]:
    """The sets of vertices that lead to each other (R. Tarjan, 1972), and single ones that lead to themselves."""
    number: dict[Any, int] = {}
    lowest: dict[Any, int] = {}
    open_: dict[Any, None] = {}
    found: list[list[Any]] = []
    for start in before:
        work = [(start, iter(before[start]))] if start not in number else []
        if work:
            number[start] = lowest[start] = len(number)
            open_[start] = None
        while work:
            vertex, others = work[-1]
            for other in others:
                if other not in number:
                    number[other] = lowest[other] = len(number)
                    open_[other] = None
                    work.append((other, iter(before[other])))
                    break
                if other in open_:
                    lowest[vertex] = min(lowest[vertex], number[other])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[vertex])
                if lowest[vertex] == number[vertex]:
                    found.append([])
                    while not found[-1] or found[-1][-1] is not vertex:
                        found[-1].append(open_.popitem()[0])
    return [vertices for vertices in found if len(vertices) > 1 or vertices[0] in set(before[vertices[0]])]
