"""Read the graph of a loop: what each node reads and changes, and the chains of steps.

The graph is that of ``normal.py``: a list of ATen calls in the order in which they run.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from snnfast._core.ops import NEURONS, Neuron
from snnfast.compiler.apart import take_products_apart
from snnfast.compiler.connected import absorb_connections
from snnfast.compiler.functionalize import Memory
from snnfast.compiler.inlined import call_again
from snnfast.compiler.nodes import (
    aten,
    body_key,
    fake_call,
    has_effect,
    is_assert,
    is_pointwise,
    is_random,
    is_step,
    line_of,
    literal,
    module_of,
    name_of,
    remove_unused,
    same_context,
    signature_of,
    step_of,
    value,
)

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
    """Clean the graph of a loop, and find out what its nodes do."""
    Memory(graph).without_changes_in_place()
    Memory(graph).without_repeated_changes()
    call_again(graph)
    _repeat_last(graph)
    _merge_equal(graph)
    _merge_counts(graph)
    _merge_asserts(graph)
    absorb_connections(graph)
    take_products_apart(graph)
    memory = Memory(graph)
    effects = {n for n in graph.nodes if has_effect(n)}
    spare = _spare(graph, effects)
    remove_unused(graph, (effects | spare).__contains__)
    _take_apart(graph)
    nodes = list(graph.nodes)
    found = Captured(
        graph,
        nodes,
        {n: i for i, n in enumerate(nodes)},
        memory.order(),
        {n for n in nodes if memory.is_written(n)},
        {n for n in nodes if memory.is_written_untracked(n)},
        effects,
        spare,
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


def _spare(graph: Graph, effects: set[Node]) -> set[Node]:
    """Calls of the last steps that compute what a next step would read. With them, all steps are alike."""
    needed, places = set(effects), set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed |= {node, *node.all_input_nodes}
            places.add((node.stack_trace, name_of(node.target)))
    found: set[Node] = set()
    for node in graph.nodes:
        alike = node.op == "call_function" and (node.stack_trace, name_of(node.target)) in places
        if alike and node not in needed and not is_step(node.target):
            found |= {node} if all(a in needed or a in found for a in node.all_input_nodes) else set()
    return found


def _repeat_last(graph: Graph) -> None:
    """Repeat a tensor behind elementwise calls: ``snntorch.spikegen.rate`` computes on T copies of an image."""
    for node in [n for n in graph.nodes if n.target is aten.repeat.default]:
        while len(node.users) == 1:
            (reader,) = node.users
            if not is_pointwise(reader.target) or reader.all_input_nodes != [node] or has_effect(reader):
                break
            if is_random(reader) or not same_context(node, reader) or not isinstance(value(reader), Tensor):
                break
            args, kwargs = map_arg((reader.args, reader.kwargs), {node: node.args[0]}.get)
            target: Any = reader.target
            found = fake_call(target, args, kwargs, blocks=node.meta["context"].blocks)
            with graph.inserting_before(node):
                early = graph.call_function(target, args, kwargs)
            early.meta = {**node.meta, "example_value": found}
            early.meta.pop("storage", None)
            reader.target, reader.args, reader.kwargs = node.target, (early, *node.args[1:]), node.kwargs
            graph.erase_node(node)
            node = reader


def _merge_equal(graph: Graph) -> None:
    """Replace equal calls by one: the same Linear of the same input at every step, the same index."""
    memory = Memory(graph)
    (output,) = (n for n in graph.nodes if n.op == "output")
    shown = {s for n in output.all_input_nodes for s in memory.storage[n]}
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        found = value(node)
        key: Any
        body = module_of(node)
        if isinstance(body, GraphModule):
            key = "body", body_key(body)
        elif isinstance(body, Tensor) and body.numel() == 1 and not memory.is_written(node):
            key = "number", body.dtype, body.shape, body.device, repr(body.item())
        elif isinstance(found, int | torch.SymInt | torch.Size):
            key = "size", str(found)
        elif has_effect(node) or is_random(node) or is_step(node.target):
            continue
        elif any(map(memory.is_written, (node, *node.all_input_nodes))):
            continue  # the two may see different numbers
        elif node.op != "get_attr" and any(s in shown for s in memory.storage[node]) and not _is_view(node, memory):
            continue  # the caller may change one of the results in place
        else:
            key = node.op, node.target, literal((node.args, node.kwargs)), node.meta["context"]
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


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


def _merge_counts(graph: Graph) -> None:
    """Count once where nobody reads the count in between: batch normalisation in training counts its calls."""
    memory = Memory(graph)
    for node in graph.nodes:
        seen = [n for s in memory.storage[node] for n in memory.sharing[s] if n.op != "placeholder"]
        before = node.args[0] if _counts(node) and all(map(_counts, seen)) else None  # nothing else has its memory
        while isinstance(before, Node) and _counts(before) and len(before.users) == 1 and same_context(before, node):
            node.args = before.args[0], before.args[1] + node.args[1]
            graph.erase_node(before)
            before = node.args[0]


def _merge_asserts(graph: Graph) -> None:
    """Check the conditions of all steps at once, behind the last one."""
    found: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if is_assert(node) and value(node.args[0]).dtype == torch.bool and not value(node.args[0]).dim():
            found.setdefault((line_of(node), node.args[1:], node.meta["context"]), []).append(node)
    for nodes in found.values():
        conditions, last = [node.args[0] for node in nodes], nodes[-1]
        if len(set(conditions)) < 2:
            continue
        with graph.inserting_before(last):
            stacked = graph.call_function(aten.stack.default, (conditions,))
            whole = graph.call_function(aten.all.default, (stacked,))
        for made, target in ((stacked, aten.stack.default), (whole, aten.all.default)):
            made.meta = {**last.meta, "example_value": fake_call(target, made.args, {})}
        last.args = (whole, *last.args[1:])
        for node in nodes[:-1]:
            graph.erase_node(node)


def _counts(node: Node) -> bool:
    """Whether a call adds a whole number to a tensor of whole numbers in place. Its result is that tensor."""
    simple = node.target is aten.add_.Tensor and len(node.args) == 2 and not node.kwargs
    return simple and type(node.args[1]) is int and not value(node).is_floating_point()


def _is_view(node: Node, memory: Memory) -> bool:
    """Whether a node has the memory of an argument: two such nodes share it anyway."""
    given = {s for a in node.all_input_nodes for s in memory.storage[a]}
    return all(s in given for s in memory.storage[node])
