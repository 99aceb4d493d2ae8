"""Graphs and calls as text, in names that depend on the calls and their order alone."""

import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from snnfast._core.ops import NEURONS
from snnfast.compiler.graph.nodes import is_step, line_of, name_of, value


class Names:
    """A name for each node: ``W``, then ``W_1``. W and b are parameters, x are other tensors from outside.

    ``first`` is the number of the first of each kind; 0 is not written.
    """

    def __init__(self, first: int = 0) -> None:
        self._first, self._names = first, dict[Node, str]()
        self._counts: Counter[str] = Counter()

    def of(self, node: Node) -> str:
        if node not in self._names:
            base = _base_name(node)
            number = self._first + self._counts[base]
            self._names[node] = f"{base}_{number}" if number else base
            self._counts[base] += 1
        return self._names[node]

    def spelled(self, a: Any) -> str:
        """An argument of a call."""
        if isinstance(a, Node):
            return self.of(a)
        if isinstance(a, list | tuple):
            return f"[{', '.join(map(self.spelled, a))}]"
        return str(a) if isinstance(a, torch.dtype | torch.device) else repr(a)


def print_graph(graph: Graph) -> str:
    """Print a graph, one line a call: ``linear = linear(x, W, b)  # net.py:14``."""
    names, lines = Names(), []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {names.spelled(node.args[0])}")
            continue
        name = names.of(node)
        if not node.op.startswith("call"):
            continue
        text = text_of(node, node.args, node.kwargs, names.spelled)
        context = node.meta.get("context")
        modes = [enter.__name__.removeprefix("_enter_") for enter, *_ in context.blocks] if context else []
        modes += ["no_grad"] if context and not context.grad else []
        lines.append(f"{name} = {text}" + f" under {', '.join(modes)}" * bool(modes) + place_of(node))
    return "\n".join(lines)


def text_of(node: Node, args: Any, kwargs: Any, spelled: Callable[[Any], str]) -> str:
    """A call with these arguments: ``linear(x, W, b)``, ``x[0]`` or ``step[leaky](x, mem)``."""
    if node.target is operator.getitem:
        return f"{spelled(args[0])}[{spelled(args[1])}]"
    name = _call_name(node)
    if is_step(node.target):
        # Behind the states are parameters, of which the weights alone tell steps apart, and packed options.
        neuron, current, tensors = args[:3]
        states = len(NEURONS[neuron].states)
        weights = [a for a in tensors[states:] if isinstance(a, list | tuple)]
        name, args, kwargs = f"{name}[{neuron}]", [current, *tensors[:states], *weights], {}
    elif not isinstance(node.target, OpOverload):
        kwargs = {}
    return f"{name}({', '.join([*map(spelled, args), *(f'{k}={spelled(a)}' for k, a in kwargs.items())])})"


def place_of(node: Node) -> str:
    """The line of a call, as a comment; empty if it is unknown."""
    line = line_of(node, with_code=False)
    return f"  # {Path(line).name}" * bool(line)


def _call_name(node: Node) -> str:
    return name_of(node.target).rpartition(".")[2]


def _base_name(node: Node) -> str:
    if node.op == "placeholder":
        if not isinstance(value(node), Tensor):
            return "size"
        return ("W" if value(node).dim() > 1 else "b") if node.meta.get("parameter") else "x"
    return "constant" if node.op == "get_attr" else _call_name(node)
