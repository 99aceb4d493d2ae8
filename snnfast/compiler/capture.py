"""Read the graph of a loop: what each node reads and changes, and the chains of steps.

The graph is that of ``aten.py``, rewritten by ``passes``: a list of ATen calls in the order in which they run.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from snnfast._core.ops import NEURONS, Neuron
from snnfast.compiler.calls import has_effect, is_step, name_of, signature_of, step_of, value
from snnfast.compiler.memory import Memory
from snnfast.compiler.passes.dead import spare

# ---- chains of steps


@dataclass(eq=False)
class Chain:
    """Steps of one layer. Each starts from the states that the step before returned."""

    neuron: Neuron
    steps: list[Node]
    reason: str | None = None  # why it runs step by step

    @property
    def connected(self) -> bool:
        """Whether the neurons are connected to one another: each step takes a product of the spikes before."""
        return self.neuron.has_spike_feedback and isinstance(self.parameters()[0], tuple)

    @property
    def merged(self) -> bool:
        return self.reason is None

    def currents(self) -> list[Node]:
        return [step.args[1] for step in self.steps]  # type: ignore[misc]

    def states(self, number: int) -> list[Any]:
        """The states that a step starts from."""
        return states_of(self.steps[number])

    def parameters(self) -> list[Any]:
        """Of all steps. In the place of ``V``, those of connected neurons have a tuple: weight, bias and form."""
        tensors: Any = self.steps[0].args[2]
        return list(tensors[len(self.neuron.states) :])


def states_of(step: Node) -> list[Any]:
    tensors: Any = step.args[2]
    return list(tensors[: len(NEURONS[step.args[0]].states)])  # type: ignore[index]


def output_of(step: Node, state: int) -> int:
    """The place of a state among the outputs of a step. A last spike, where it is a state, is output 0."""
    return state + 1 - NEURONS[step.args[0]].has_spike_feedback  # type: ignore[index]


def _step_before(step: Node) -> Node | None:
    """The step that returned all states that this one starts from."""
    found: dict[Node, None] = {}
    for i, state in enumerate(states_of(step)):
        source = step_of(state) if isinstance(state, Node) else None
        if source is None or state.args != (source, output_of(step, i)):
            return None
        found[source] = None
    return next(iter(found)) if len(found) == 1 else None


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
    before: dict[Node, list[Node]]  # nodes that must run before, beside the arguments
    written: set[Node]  # their memory is changed in place
    written_untracked: set[Node]  # and autograd may not notice it
    effects: set[Node]  # they change something
    spare: set[Node]  # nobody reads them, but other steps have calls of their place in the user's code
    chains: list[Chain] = field(default_factory=list)


def capture(graph: Graph) -> Captured:
    """Find out what the nodes of a loop do."""
    memory = Memory(graph)
    dead = spare(graph)
    _take_apart(graph)
    nodes = list(graph.nodes)
    found = Captured(
        graph,
        nodes,
        {n: i for i, n in enumerate(nodes)},
        memory.order(),
        {n for n in nodes if memory.is_written(n)},
        {n for n in nodes if memory.is_written_untracked(n)},
        {n for n in nodes if has_effect(n)},
        dead,
    )
    found.chains = _chains(found)
    return found


def _chains(captured: Captured) -> list[Chain]:
    chain_of: dict[Node, Chain] = {}
    chains = []
    for node in captured.nodes:
        if not is_step(node.target):
            continue
        before = _step_before(node)
        chain = chain_of.get(before) if before is not None else None
        if (
            chain is None
            or chain.steps[-1] is not before
            or not _same_layer(before, node)
            or before.meta["context"] != node.meta["context"]
            or signature_of(before.args[1]) != signature_of(node.args[1])
        ):
            chain = Chain(NEURONS[node.args[0]], [])  # type: ignore[index]
            chains.append(chain)
        chain.steps.append(node)
        chain_of[node] = chain
    for chain in chains:
        results = [u for step in chain.steps for u in step.users]
        if any("hook" in name_of(reader.target) for u in results for reader in u.users):
            chain.reason = "a hook is registered on a result of a step"
        elif any(step.kwargs.get("state_gradients") for step in chain.steps):
            chain.reason = "its states have gradients of their own (use_state_gradients)"
        elif any(u in captured.written for u in results):
            chain.reason = "a result of a step is changed in place"
        elif any(x in captured.written_untracked for x in chain.currents()):
            chain.reason = "its input is changed in place, through .data"
    return chains


# ---- calls that are not needed


def _take_apart(graph: Graph) -> None:
    """Add the results of a step that nobody reads: the last step of a loop then has those of the others."""
    for node in list(graph.nodes):
        if not is_step(node.target):
            continue
        read = {user.args[1] for user in node.users if user.target is operator.getitem}
        for place in range(len(value(node))):
            if place not in read:
                with graph.inserting_after(node):
                    made = graph.call_function(operator.getitem, (node, place))
                made.meta = {**node.meta, "example_value": value(node)[place]}
