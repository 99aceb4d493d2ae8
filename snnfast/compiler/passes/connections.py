"""The recurrent product of connected neurons becomes a part of their step.

It stands in front of the step, which has no ``V`` of its own (see ``snnfast/_unroll/graph.py``). The steps then are a
chain of states alone, and become one unroll::

    linear = linear(spk, V)           step_1 = step(x, [spk, mem, (V, None, None), ...])
    step_1 = step(x, [linear, mem, None, ...])
"""

from typing import Any

from torch.fx import Graph, Node

from snnfast._core.ops import NEURONS
from snnfast._unroll.graph import step
from snnfast.compiler.graph.memory import Memory, erase_unread
from snnfast.compiler.graph.nodes import arguments, aten, is_step, is_zero, name_of, signature_of


def run(graph: Graph) -> None:
    memory = Memory(graph)
    for node in list(graph.nodes):
        found = _connections(node) if is_step(node.target) else None
        if found is None:
            continue
        product, spk, connections = found
        first = None if is_zero(spk) and not memory.is_written(spk) else spk
        tensors: Any = node.args[2]
        v = len(NEURONS[node.args[0]].states)
        node.target = step
        node.args = (*node.args[:2], (first, *tensors[1:v], connections, *tensors[v + 1 :]), *node.args[3:])
        erase_unread(product)


def _connections(node: Node) -> tuple[Node, Node, tuple[Any, ...]] | None:
    """The product that steps alone read, the spikes it takes, and (weight, bias, form of a convolution).

    Several steps read the product of the same first spikes.
    """
    neuron, tensors = NEURONS[node.args[0]], node.args[2]  # type: ignore[index]
    if not neuron.has_spike_feedback or tensors[len(neuron.states)] is not None:  # type: ignore[index]
        return None
    product: Any = tensors[0]  # type: ignore[index]
    name, context = name_of(product.target), node.meta["context"]
    if name not in ("linear", "conv2d") or not all(is_step(u.target) for u in product.users):
        return None
    # Under a block such as autocast, the product has another dtype.
    if product.meta["context"] != context or context.blocks:
        return None
    given = arguments(product)
    form = None
    if name == "conv2d":
        if isinstance(given["padding"], str):
            return None
        form = *(tuple(given[name]) for name in ("stride", "padding", "dilation")), given["groups"]
    spk = given["input"]
    while (
        spk.target in _KEEP_NUMBERS
        and spk.meta["context"] == context
        and signature_of(spk) == signature_of(spk.args[0])
    ):
        spk = spk.args[0]
    if signature_of(spk) != signature_of(node.args[1]):
        return None
    return product, spk, (given["weight"], given["bias"], form)


# An unroll makes these itself where it needs them.
_KEEP_NUMBERS = (aten.to.dtype, aten.contiguous.default, aten.clone.default)
