"""Read the graph of a loop: what each node reads and changes, the segments it lies in, and the chains of steps.

The graph that comes from dynamo is a list of calls in the order in which they run.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from snnfast._graph_ops import step
from snnfast._loop.memory import Memory, changed
from snnfast._loop.nodes import is_barrier, is_random, literal, looks, named, storage_of, value
from snnfast._ops import NEURONS, Neuron

STEPS = (torch.ops.snnfast.step, torch.ops.snnfast.step.default, step)
_NEURON_OF = {neuron.name: neuron for neuron in NEURONS}


# ---- chains of steps


@dataclass(eq=False)
class Chain:
    """Steps of one layer. Each starts from the states that the step before returned."""

    neuron: Neuron
    steps: list[Node]
    reason: str | None = None  # why it runs step by step

    @property
    def merged(self) -> bool:
        return self.reason is None

    def currents(self) -> list[Node]:
        return [step.args[1] for step in self.steps]  # type: ignore[misc]

    def states(self, number: int) -> list[Any]:
        """The states that a step starts from."""
        return states_of(self.steps[number])

    def parameters(self) -> list[Any]:
        tensors: Any = self.steps[0].args[2]
        return list(tensors[len(self.neuron.states) :])


def is_step(node: Node) -> bool:
    return node.op == "call_function" and node.target in STEPS


def states_of(step: Node) -> list[Any]:
    tensors: Any = step.args[2]
    return list(tensors[: len(_NEURON_OF[step.args[0]].states)])  # type: ignore[index]


def output_of(step: Node, state: int) -> int:
    """Which output of a step a state is: the last spike, where it is one, is the first of them anyway."""
    return state + 1 - _NEURON_OF[step.args[0]].fed_back  # type: ignore[index]


def _step_before(step: Node) -> Node | None:
    """The step that returned all states that this one starts from."""
    before = None
    for i, state in enumerate(states_of(step)):
        if not (isinstance(state, Node) and state.target is operator.getitem):
            return None
        source, place = state.args
        if not (isinstance(source, Node) and is_step(source) and place == output_of(step, i)):
            return None
        if before is not None and source is not before:
            return None
        before = source
    return before


def _same_layer(a: Node, b: Node) -> bool:
    n = len(states_of(a))
    others_a: Any = (a.args[0], *a.args[2][n:], *a.args[3:])  # type: ignore[index,misc]
    others_b: Any = (b.args[0], *b.args[2][n:], *b.args[3:])  # type: ignore[index,misc]
    return bool(others_a == others_b)


@dataclass
class Captured:
    """A graph ready to be merged, and facts about its nodes."""

    graph: Graph
    nodes: list[Node]
    order: dict[Node, int]
    segment: dict[Node, int]
    before: dict[Node, list[Node]]  # nodes that must run before, beside the arguments
    written: set[Node]  # their memory is changed in place by somebody
    effects: set[Node]  # they change something, or what follows them
    chains: list[Chain] = field(default_factory=list)


def capture(gm: GraphModule) -> Captured:
    """Copy the graph, clean the copy, and find out what its nodes do."""
    graph = Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    Memory(graph).without_changes_in_place()
    segment = _segments(graph)
    _pass_through(graph)
    _merge_equal(graph, segment)
    memory = Memory(graph)
    effects = {n for n in graph.nodes if memory.changed_by(n) or is_barrier(n) or n.is_impure()}
    graph.eliminate_dead_code(is_impure_node=lambda n: n in effects or n.op in ("placeholder", "output"))
    nodes = list(graph.nodes)
    found = Captured(
        graph,
        nodes,
        {n: i for i, n in enumerate(nodes)},
        segment,
        memory.order(),
        {n for n in nodes if memory.is_written(n)},
        effects,
    )
    found.chains = _chains(found)
    return found


def _chains(captured: Captured) -> list[Chain]:
    chain_of: dict[Node, Chain] = {}
    chains = []
    for node in captured.nodes:
        if not is_step(node):
            continue
        before = _step_before(node)
        chain = chain_of.get(before) if before is not None else None
        if (
            chain is None
            or chain.steps[-1] is not before
            or not _same_layer(before, node)
            or captured.segment[before] != captured.segment[node]
            or looks(before.args[1]) != looks(node.args[1])
        ):
            chain = Chain(_NEURON_OF[node.args[0]], [])  # type: ignore[index]
            chains.append(chain)
        chain.steps.append(node)
        chain_of[node] = chain
    for chain in chains:
        if any(u in captured.written for step in chain.steps for u in step.users):
            chain.reason = "a result of a step is changed in place"
    return chains


# ---- segments and equal calls


def _segments(graph: Graph) -> dict[Node, int]:
    """Number the segments: it grows wherever the meaning of all later calls changes. A barrier is its own segment."""
    segment, now = {}, 0
    for node in graph.nodes:
        if is_barrier(node):
            now += 2
            segment[node] = now - 1
        else:
            segment[node] = now
    return segment


_CONVERSIONS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "cpu", "cuda")


def _pass_through(graph: Graph) -> None:
    """Remove conversions that change nothing."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target in _CONVERSIONS and isinstance(node.args[0], Node):
            before, after = value(node.args[0]), value(node)
            if isinstance(before, Tensor) and isinstance(after, Tensor) and storage_of(before) == storage_of(after):
                node.replace_all_uses_with(node.args[0])


def _merge_equal(graph: Graph, segment: dict[Node, int]) -> None:
    """Replace equal calls by one: the same Linear of the same input at every step, the same index."""
    memory = Memory(graph)
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method", "get_attr"):
            continue
        found = value(node)
        key: Any
        if isinstance(found, int | torch.SymInt | torch.Size):
            key = "size", str(found)
        elif changed(node) or is_random(node) or is_barrier(node) or node.is_impure():
            continue
        elif any(map(memory.is_written, (node, *node.all_input_nodes))):
            continue  # the two may see different numbers
        elif is_step(node) or any(u.op == "output" for u in node.users):
            continue  # whoever calls may change one of the results
        else:
            key = node.op, named(node.target), literal((node.args, node.kwargs)), segment[node]
        first = seen.setdefault(key, node)
        if first is not node and all(u.op != "output" for u in first.users):
            node.replace_all_uses_with(first)
            graph.erase_node(node)
