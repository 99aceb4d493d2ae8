"""Reports: what became of a graph, in words."""

import operator
from collections import Counter
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from snnfast.compiler.graph.files import is_in
from snnfast.compiler.graph.nodes import (
    Site,
    aten,
    frames_in,
    is_step,
    is_unroll,
    name_of,
    site_of,
    step_of,
    tensors_of,
)
from snnfast.compiler.loop.layers import GIVEN, SINGLE
from snnfast.compiler.loop.loop import Statement
from snnfast.compiler.parts.base import at_line, steps_of
from snnfast.compiler.parts.distribute import Distributed
from snnfast.compiler.parts.program import Program
from snnfast.compiler.parts.unroll import Unroll


@dataclass
class GraphReport:
    """A report on the graph of a record. ``str`` describes it in a few lines.

    Attributes:
        where: File and line of the first call in the graph.
        merged: One line for each series of calls that was merged into one call for all time steps.
        repeated: One line for each series of calls that is repeated at each time step, with the reason.
        refused: Why the whole graph runs as it is, or ``None``.
        warnings: Messages that are shown as warnings.
        calls_of_loop: How many calls the loop makes, of PyTorch and of neurons.
        calls: How many there are now. Of small networks, the ratio of both tells what to expect.
        stages: The graph after each stage of the compiler, as text by the name of the stage: filled by
            :func:`snnfast.explain`, and where ``SNNFAST_LOG=stages`` is set.
    """

    where: str
    merged: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    refused: str | None = None
    warnings: list[str] = field(default_factory=list)
    calls_of_loop: int = 0
    calls: int = 0
    stages: dict[str, str] = field(default_factory=dict, repr=False)
    # For the compiler itself:
    random: bool = field(default=False, repr=False)  # it draws random numbers

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.where}: runs as it is: {self.refused}"
        lines = [f"{self.where}:"]
        for word, found in (("merged", self.merged), ("repeated", self.repeated)):
            lines += [f"  {word:<9} {line}" + f" ({n} times)" * (n > 1) for line, n in Counter(found).items()]
        lines.append(f"  {self.calls_of_loop} calls of the loop became {self.calls}")
        return "\n".join(lines)


@dataclass
class Explanation:
    """The reports of :func:`snnfast.explain`. ``print`` it.

    Attributes:
        graphs: One :class:`GraphReport` for each record, in order. There are several if the code needs what can't wait
            until its end.
        notes: What was recorded, and why calls were made at once.
    """

    graphs: list[GraphReport]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        alike = Counter(map(str, self.graphs))
        lines = [graph + f"\n  ({n} graphs are alike)" * (n > 1) for graph, n in alike.items()]
        lines += self.notes
        return "\n".join([*lines, *self.advice])

    @property
    def advice(self) -> list[str]:
        """The last lines of the text: the result in short, and remedies."""
        merged = [graph for graph in self.graphs if graph.merged]
        if any(NOTHING_TO_COMPILE in (graph.refused or "") for graph in self.graphs):
            return ["In short: leave snnfast.compile away, the layers run all steps by themselves"]
        if not merged:
            return [
                "In short: nothing is gained, so that calls run as they are. Compile the function that has the loop "
                "over time, or change the import alone (docs/migrate.md)"
            ]
        before, after = sum(graph.calls_of_loop for graph in merged), sum(graph.calls for graph in merged)
        lines = [f"In short: {after} calls instead of {before}. snnfast.status tells what becomes of your own calls"]
        if any(graph.repeated for graph in merged):
            lines.append("What is repeated takes the time that it takes in the loop (docs/time-loop.md says why)")
        if any(note.startswith(ITS_STEPS_ALONE) for note in self.notes):
            lines.append("Each number of steps has a graph of its own: pad batches to a few lengths")
        return lines


ITS_STEPS_ALONE = "for these steps alone: "
"""How the note begins that a graph is for one number of steps."""

NOTHING_TO_COMPILE = "nothing to compile"


def has_neurons(gm: GraphModule) -> bool:
    """Whether there is a step of a neuron of ours in a graph."""
    return any(is_step(n.target) for n in gm.graph.nodes)


def unrolls_of(gm: GraphModule) -> int:
    """How many layers of neurons in a graph run all steps in one call as they stand."""
    return sum(is_unroll(n.target) for n in gm.graph.nodes)


def is_unconverted(gm: GraphModule) -> bool:
    """Whether layers in a graph are snnTorch's own, of those that could be on the kernels."""
    traces = {n.stack_trace or "" for n in gm.graph.nodes}
    neurons = ([file for file, _ in frames_in(trace) if is_in(file, "snntorch", "_neurons")] for trace in traces)
    return any(files and not any(file.endswith(_STAY) for file in files) for files in neurons)


UNCONVERTED = (
    "its layers are snnTorch's own; put them on snnfast's kernels with snnfast.compile(net), or with "
    "snnfast.snntorch.convert(net) before torch.compile"
)
_STAY = ("slstm.py", "sconv2dlstm.py")


NO_NEURON = "there is no step of a neuron in it"


def nothing_to_compile(layers: int) -> str:
    """The message for a network whose neurons all run in step mode "m", by ``unroll`` or in a ``MultiStep``."""
    its = f"its {layers} layers of neurons already run" if layers > 1 else "its layer of neurons already runs"
    return f"{its} all steps in one call{' each' * (layers > 1)}: {NOTHING_TO_COMPILE}"


def why_not(report: GraphReport, layers: list[Statement]) -> str:
    """Why nothing was merged, in words."""
    if layers and all(layer.reason == GIVEN for layer in layers):
        return OUTSIDE
    reasons = "; ".join(report.repeated[:3]) or "no call in it is made at every step"
    if all(layer.reason in (SINGLE, GIVEN) for layer in layers):
        reasons += ". " + MAY_BE_OUTSIDE
    return reasons


OUTSIDE = (
    "the loop over time is not in what you compiled. Each layer of neurons runs a single step, from a state that was "
    "there before. Compile the function with the loop, as in snnfast.compile(forward_pass)"
)
"""The reason where the call is one step of a loop of the caller."""

CUT = (
    "each layer of neurons in it runs a single step: the loop over time is outside of what is compiled, or cut by what "
    "torch.compile can't trace"
)
"""The reason for a graph that ``torch.compile`` has made."""

MAY_BE_OUTSIDE = "The loop may be outside of what is compiled: compile the function that has it"
"""Advice where there is a single step, and nobody knows of another one."""


def describe(parts: Distributed, summed: set[Node], report: GraphReport) -> None:
    """Enter what became of the loops into a report."""
    rolled = parts.rolled
    alone: dict[tuple[str, str], int] = {}  # steps by themselves, by their neuron and what is said of them
    for layer in rolled.layers:
        found = rolled.at.get(layer.calls[0])
        if found is not None and layer.reason is None:
            report.merged += found[0].part.describe()
            continue
        if all((entry := rolled.at.get(step)) and isinstance(entry[0].part, Program) for step in layer.calls):
            continue  # it is told below
        name = str(layer.node.args[0])
        if len(layer.calls) == 1:
            key = name, f"{at_line(layer.node)}: {layer.reason}"
            alone[key] = alone.get(key, 0) + 1
        else:
            steps = steps_of(len(layer.calls), name)
            report.repeated.append(f"{steps}{at_line(layer.calls[0])}: {layer.reason}")
            report.warnings.append(
                f"snnfast: in a compiled loop, {steps} run one by one{at_line(layer.calls[0])}: {layer.reason}. "
                "snnfast.explain tells what is merged"
            )
    report.repeated += [f"{steps_of(count, name)}{why}" for (name, why), count in alone.items()]
    for part in parts.parts:
        if isinstance(part, Program):
            report.merged += part.describe()
    apart: dict[tuple[str, str, str], list[str]] = {}  # names of calls, by their number, place and reason
    for statement in rolled.statements:
        if isinstance(statement.part, Unroll | Program) or statement.is_index or step_of(statement.node):
            continue
        if statement.reason is None or summed.issuperset(statement.calls):
            report.merged += statement.part.describe()
        else:
            told = f"{len(statement.calls)} x ", at_line(statement.calls[0]), statement.reason
            apart.setdefault(told, []).append(name_of(statement.node.target))
    for (steps, where, reason), names in apart.items():
        calls = dict.fromkeys(names)
        if len(calls) > 1:
            calls.pop("getitem", None)  # of the results of another one
        report.repeated.append(f"{steps}{', '.join(calls)}{where}: {reason}")
    _describe_others(parts, summed, report)


_FREE = (operator.getitem, aten.slice.Tensor, aten.select.int, aten.stack.default, aten.cat.default)


def _describe_others(parts: Distributed, summed: set[Node], report: GraphReport) -> None:
    """Enter calls that are in no statement, though the same line makes one at each step."""
    rolled, facts = parts.rolled, parts.facts
    alike: dict[Site, list[Node]] = {}
    for node in facts.nodes:
        calls = node.op == "call_function" and bool(tensors_of(node)) and any(map(tensors_of, node.all_input_nodes))
        known = is_step(node.target) or node in rolled.at or node in summed
        if calls and not known and node.target not in _FREE:
            alike.setdefault(site_of(node).of_line, []).append(node)
    steps = max((len(layer.calls) for layer in rolled.layers), default=0)
    for site, nodes in alike.items():
        if 1 < steps <= len(nodes):
            changes = any(n in facts.effects for n in nodes)
            reason = "it changes a tensor in place" if changes else "it differs from step to step"
            report.repeated.append(f"{len(nodes)} x {site.name}{at_line(nodes[0])}: {reason}")
