"""The graph of a loop becomes one of layers over time: the order of all stages."""

import operator
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.fx import Graph, GraphModule

from snnfast._core.pytorch import unhooked
from snnfast.compiler.emit.any_steps import AnySteps, with_rows_together
from snnfast.compiler.emit.channels_last import use_channels_last
from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.emit.kernels import use_kernels
from snnfast.compiler.emit.norm import fuse_norms_of_unrolls
from snnfast.compiler.emit.results import separate
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.graph.aten import to_aten
from snnfast.compiler.graph.memory import memory_of
from snnfast.compiler.graph.nodes import is_random, line_of
from snnfast.compiler.loop.facts import facts_of
from snnfast.compiler.loop.roll import Rolled, roll
from snnfast.compiler.parts.base import Part
from snnfast.compiler.parts.distribute import Distributed
from snnfast.compiler.parts.program import Program
from snnfast.compiler.passes import run_passes
from snnfast.compiler.passes.dead import remove_unused
from snnfast.compiler.report import (
    NO_NEURON,
    UNCONVERTED,
    GraphReport,
    describe,
    has_neurons,
    is_unconverted,
    nothing_to_compile,
    unrolls_of,
    why_not,
)
from snnfast.compiler.stages import Stages


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let hooks of saved tensors, such as those of a checkpoint around the call, and anomaly detection see nothing."""
    with unhooked(), torch.autograd.set_detect_anomaly(False):
        yield


@_undisturbed()
def explained(gm: GraphModule) -> GraphReport:
    """Report on the graph of a recorded loop, for its own number of steps."""
    report = _report_of(gm)
    try:
        _merged(gm, report)
    except RefusedError as refusal:
        report.refused = str(refusal)
    except Exception:
        report.refused = f"the pass failed, a fault of snnfast: {traceback.format_exc()}"
    return report


class ForAnySteps(NamedTuple):
    """The graph of a loop as one for any number of steps.

    Attributes:
        numbers: What it takes for this number of steps: the lengths of the loops, and those that were given.
        report: What became of the loop.
    """

    graph: AnySteps
    numbers: list[int]
    report: GraphReport


def for_any_steps(gm: GraphModule, sizes: Sequence[int]) -> ForAnySteps:
    """The graph of a recorded loop as one for any number of steps. ``sizes`` of the program follow from these.

    Raises:
        RefusedError: Nothing in it is merged.
    """
    report = _report_of(gm)
    merged, numbers = _merged(gm, report, sizes)
    return ForAnySteps(AnySteps(merged), numbers, report)


def _report_of(gm: GraphModule) -> GraphReport:
    first = next((n for n in gm.graph.nodes if n.op.startswith("call") and n.stack_trace), None)
    return GraphReport(line_of(first, with_code=False) or "a graph")


def _merged(gm: GraphModule, report: GraphReport, sizes: Sequence[int] | None = None) -> tuple[GraphModule, list[int]]:
    """The new graph of a loop. With ``sizes`` it is for any number of steps, and takes the numbers that are returned.

    Raises:
        RefusedError: Nothing in it is merged.
    """
    if is_unconverted(gm) and not has_neurons(gm):
        raise RefusedError(UNCONVERTED)
    unrolls = unrolls_of(gm)  # they may become one call with a norm before them
    found, stages = to_aten(gm), Stages(report.where)
    report.stages, report.calls_of_loop = stages.forms, _calls(found.graph)
    stages.after("aten", found.graph)
    run_passes(found.graph, stages.after)
    rolled = roll(facts_of(found.graph))
    stages.after("roll", rolled)
    parts = Distributed(rolled)
    stages.after("distribute", rolled)
    report.random = any(map(is_random, found.graph.nodes))
    if not has_neurons(gm) and not any(isinstance(part, Program) for part in parts.parts):
        if not unrolls:
            reasons = dict.fromkeys(s.reason for s in rolled.statements if s.reason is not None)
            raise RefusedError("; ".join([NO_NEURON, *list(reasons)[:2]]))
        rolled = Rolled(rolled.facts)  # calls that are alike are those of layers: no loop is over time
        parts = Distributed(rolled)
    numbers = [] if sizes is None else list(dict.fromkeys([*rolled.lengths, *sizes]))
    emitter = Emitter(rolled, numbers)
    graph = write(parts, emitter)
    stages.after("emit", graph)
    describe(parts, emitter.summed, report)
    report.merged += fuse_norms_of_unrolls(emitter)
    stages.after("norms", graph)
    outside = {memory for node in parts.facts.nodes if node.op == "placeholder" for memory in memory_of(node)}
    if all(outside.issuperset(memory_of(node)) for node in parts.facts.written):
        # A program that writes to its inputs would otherwise write to a copy in another order.
        convolutions = use_channels_last(graph)
        stages.after("channels_last", graph)
        if unrolls and convolutions:
            report.merged.append(f"{convolutions} x conv2d: the channels of a pixel side by side")
    if not report.merged:
        raise RefusedError(nothing_to_compile(unrolls) if unrolls else why_not(report, rolled.layers))
    use_kernels(graph)
    stages.after("kernels", graph)
    with_rows_together(graph)
    report.calls = _calls(graph)
    return GraphModule(found, graph), numbers


def write(parts: Distributed, emitter: Emitter) -> Graph:
    """Write the new graph."""
    written = []
    for vertex in parts.in_order():
        if isinstance(vertex, Part):
            emitter.switch_to(vertex.context)
            vertex.emit(emitter)
            written.append(vertex)
        else:
            emitter.switch_to(vertex.meta["context"])
            if vertex.op == "output":
                emitter.graph.output(separate(emitter, vertex))
            else:
                emitter.single(vertex)
    # A call that was tried in vain, or that is not needed, must not count as a reader.
    remove_unused(emitter.graph, emitter.effects.__contains__)
    for part in dict.fromkeys(s.part for vertex in written for s in vertex.statements):
        part.finish(emitter)
    emitter.graph.lint()
    return emitter.graph


def _calls(graph: Graph) -> int:
    return sum(n.op.startswith("call") and n.target is not operator.getitem for n in graph.nodes)
