"""The steps of neuron layers: each takes the states that the one before returned."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.ops import NEURONS
from snnfast.compiler.graph.dependence import cycles
from snnfast.compiler.graph.nodes import is_step, line_of, literal, name_of, signature_of, step_of
from snnfast.compiler.loop.facts import Facts
from snnfast.compiler.loop.loop import Statement

SINGLE = "it runs for a single step"
GIVEN = "it runs for a single step, from a state that was there before"
CHANGED = "its states or parameters are changed between two steps"
"""Why a step is alone: its layer makes a single step, or several."""
FED_BACK = "its input at a step depends on its output at an earlier step"


def states_of(step: Node) -> list[Any]:
    """The states that a step of a layer starts from."""
    tensors: Any = step.args[2]
    return list(tensors[: len(NEURONS[step.args[0]].states)])  # type: ignore[index]


def parameters_of(step: Node) -> list[Any]:
    """The parameters of a step. For connected neurons the entry of ``V`` is (weight, bias, convolution)."""
    tensors: Any = step.args[2]
    return list(tensors[len(NEURONS[step.args[0]].states) :])  # type: ignore[index]


def is_connected(step: Node) -> bool:
    """Whether the neurons are connected to one another: each step takes a product of the spikes before."""
    return NEURONS[step.args[0]].has_spike_feedback and isinstance(parameters_of(step)[0], tuple)  # type: ignore[index]


def output_of(step: Node, state: int) -> int:
    """The number of a state among the results of a step. A last spike, where it is a state, is result 0."""
    return state + 1 - NEURONS[step.args[0]].has_spike_feedback  # type: ignore[index]


def inputs_of_layer(calls: Sequence[Node]) -> list[Node]:
    """The nodes that a layer waits for: all that its first step takes, then the currents. Its states are its own."""
    later = [(step.args[1], parameters_of(step)) for step in calls[1:]]
    return [*calls[0].all_input_nodes, *(a for a in pytree.tree_leaves(later) if isinstance(a, Node))]


def _step_before(step: Node) -> Node | None:
    """The step that returned all states that this one starts from."""
    found: dict[Node, None] = {}
    for i, state in enumerate(states_of(step)):
        source = step_of(state) if isinstance(state, Node) else None
        if source is None or state.args != (source, output_of(step, i)):
            return None
        found[source] = None
    return next(iter(found)) if len(found) == 1 else None


def _goes_on(before: Node, step: Node) -> bool:
    """Whether a step is one of the layer that made the step before, with the same parameters and options."""
    others = [(n.args[0], parameters_of(n), n.args[3:], n.meta["context"]) for n in (before, step)]
    return others[0] == others[1] and signature_of(before.args[1]) == signature_of(step.args[1])


def layers_of(facts: Facts) -> list[Statement]:
    """The steps of neurons, each statement one after the other by their states, and why they may not be merged."""
    of_step: dict[Node, Statement] = {}
    found = []
    for node in facts.nodes:
        if not is_step(node.target):
            continue
        before = _step_before(node)
        layer = of_step.get(before) if before is not None else None
        if layer is None or before is None or layer.calls[-1] is not before or not _goes_on(before, node):
            layer = Statement([])
            found.append(layer)
        layer.calls.append(node)
        of_step[node] = layer
    lines = Counter(line_of(layer.node) for layer in found)
    once = {} if _go_on_within(facts) else _single(found)
    for layer in found:
        results = [u for step in layer.calls for u in step.users]
        if any("hook" in name_of(reader.target) for u in results for reader in u.users):
            layer.reason = "a hook is registered on a result of a step"
        elif any(step.kwargs.get("state_gradients") for step in layer.calls):
            layer.reason = "its states have gradients of their own (use_state_gradients)"
        elif any(u in facts.written for u in results):
            layer.reason = "a result of a step is changed in place"
        elif any(step.args[1] in facts.written_untracked for step in layer.calls):
            layer.reason = "its input is changed in place, through .data"
        elif len(layer.calls) == 1:
            layer.reason = once.get(layer.node, SINGLE if lines[line_of(layer.node)] == 1 else CHANGED)
    of_step = {step: layer for step, layer in of_step.items() if layer.reason is None}
    waits = _waits(facts, of_step)
    for layer in [v for vertices in cycles(waits) for v in vertices if isinstance(v, Statement)]:
        layer.reason = FED_BACK
    return found


def _go_on_within(facts: Facts) -> bool:
    """Whether a step starts from a state that is computed from the results of another one."""
    after: set[Node] = set()
    for node in facts.nodes:
        if is_step(node.target) and not after.isdisjoint(state for state in states_of(node) if isinstance(state, Node)):
            return True
        if is_step(node.target) or not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    return False


def _single(layers: Sequence[Statement]) -> dict[Node, str]:
    """The only steps of layers, which differ by their parameters or by the states that they are given; the reasons.

    Layers in a container have their steps in one line of the program, as the steps of a loop have.
    """
    states = {
        layer.node: [s if isinstance(s, Node) and s.op == "placeholder" else None for s in states_of(layer.node)]
        for layer in layers
    }
    keys = {step: literal((step.args[0], given, parameters_of(step))) for step, given in states.items()}
    times = Counter(keys.values())
    return {step: GIVEN if all(given) else SINGLE for step, given in states.items() if times[keys[step]] == 1}


def _waits(facts: Facts, of_step: dict[Node, Statement]) -> dict[Any, set[Any]]:
    """Each layer, and each node outside of these, with those that it waits for."""
    waits: dict[Any, set[Any]] = defaultdict(set)
    for node in facts.nodes:
        layer = of_step.get(node)
        given = (
            node.all_input_nodes if layer is None else inputs_of_layer(layer.calls) if node is layer.calls[0] else []
        )
        waits[layer or node].update(of_step.get(a, a) for a in [*given, *facts.before.get(node, ())])
    return waits
