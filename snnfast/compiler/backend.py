"""The backend of ``torch.compile``."""

import operator
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule

from snnfast._core import backend as _backend
from snnfast._core.pytorch import unhooked
from snnfast._unroll.graph import as_function
from snnfast.compiler import verify
from snnfast.compiler.any_steps import AnySteps, with_rows_apart, with_rows_together
from snnfast.compiler.aten import to_aten
from snnfast.compiler.calls import LEAST, is_random, line_of, site_of
from snnfast.compiler.distribute import Distributed
from snnfast.compiler.emit import Emitter
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.facts import facts_of
from snnfast.compiler.functions import drop_sizes, record_backward
from snnfast.compiler.lower.asserts import raise_in_python
from snnfast.compiler.lower.bodies import apply_by_classes
from snnfast.compiler.lower.channels_last import use_channels_last
from snnfast.compiler.lower.kernels import use_kernels
from snnfast.compiler.lower.norm import fuse_norms_of_unrolls
from snnfast.compiler.memory import memory_of
from snnfast.compiler.parts.base import Part
from snnfast.compiler.parts.program import Program
from snnfast.compiler.passes import run_passes
from snnfast.compiler.passes.dead import remove_unused
from snnfast.compiler.report import (
    NO_NEURON,
    UNCONVERTED,
    GraphReport,
    describe,
    fail,
    has_neurons,
    is_unconverted,
    leave_alone,
    nothing_to_compile,
    refuse,
    unrolls_of,
    why_not,
)
from snnfast.compiler.results import separate
from snnfast.compiler.roll import Rolled, roll
from snnfast.compiler.stages import Stages

Compiled = Callable[..., Any]


_recording: ContextVar[list[GraphReport] | None] = ContextVar("snnfast_reports", default=None)


@contextmanager
def recorded(reports: list[GraphReport]) -> Iterator[None]:
    """Append the reports of the graphs that are compiled inside to a list, instead of showing their warnings."""
    before = _recording.set(reports)
    try:
        yield
    finally:
        _recording.reset(before)


def enter(report: GraphReport) -> None:
    """Record a report, or show its warnings."""
    recording = _recording.get()
    if recording is not None:
        recording.append(report)
        return
    for message in report.warnings:
        _backend.warn_once(message)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let hooks of saved tensors, such as those of a checkpoint around the call, and anomaly detection see nothing."""
    with unhooked(), torch.autograd.set_detect_anomaly(False):
        yield


def backend(
    gm: GraphModule, example_inputs: Any, *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Compiled:
    """Turn the graph of a loop over time into layers over time: ``torch.compile(..., backend="snnfast")``.

    Args:
        gm: The graph that dynamo made.
        example_inputs: Its inputs.
        options: ``{"inner": name}``: the backend that is given the new graph, such as ``"inductor"``. Without it the
            graph runs as it is, one PyTorch call after the other.
        mode: ``torch.compile`` passes on what it is given. There are no modes here.

    Raises:
        ValueError: An unknown option, or a mode.
    """
    inner = inner_of(options, mode)
    merged, report = merge(gm)
    enter(report)
    compiled = executable(merged).forward if inner is None else inner(merged, example_inputs)
    if verify.is_wanted() and merged is not gm:
        return verify.verified(gm, compiled, report)
    return compiled


def executable(gm: GraphModule) -> GraphModule:
    """A graph that runs as it is, whose calls of functions and asserts are those of Python."""
    apply_by_classes(gm)
    raise_in_python(gm)
    return gm


@_undisturbed()
def merge(gm: GraphModule, unrolls: int = 0) -> tuple[GraphModule, GraphReport]:
    """Merge what can be merged. Returns the new graph, or the old one if nothing can, and a report.

    ``unrolls`` is the number of layers that run all steps in one call and may become one with a norm before them. A
    graph of dynamo has none to give: spelled anew as ATen calls, it would lose the kernels of its images.
    """
    report, neurons = _report_of(gm), has_neurons(gm)
    record_backward(gm)
    try:
        if neurons or unrolls or (_repeats(gm) and not is_unconverted(gm)):
            drop_sizes(gm)
            return _merged(gm, report, unrolls)[0], report
        leave_alone(report, gm)
    except RefusedError as refusal:
        if neurons:
            refuse(report, str(refusal))
        else:
            leave_alone(report, gm, str(refusal))
    except Exception:
        fail(report, traceback.format_exc())
    if [node for node in gm.graph.nodes if as_function(node)]:
        use_kernels(gm.graph)
    gm.recompile()
    return gm, report


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
    if is_unconverted(gm) and not has_neurons(gm):
        raise RefusedError(UNCONVERTED)
    report = _report_of(gm)
    merged, numbers = _merged(gm, report, unrolls_of(gm), sizes)
    return ForAnySteps(AnySteps(executable(merged)), numbers, report)


def _report_of(gm: GraphModule) -> GraphReport:
    first = next((n for n in gm.graph.nodes if n.op.startswith("call") and n.stack_trace), None)
    return GraphReport(line_of(first, with_code=False) or "a graph")


def _repeats(gm: GraphModule) -> bool:
    """Whether a line of the program is in the graph several times, as that of a loop."""
    sites = Counter(site_of(n) for n in gm.graph.nodes if n.op.startswith("call"))
    return any(times >= LEAST for site, times in sites.items() if site.trace)


def _merged(
    gm: GraphModule, report: GraphReport, unrolls: int, sizes: Sequence[int] | None = None
) -> tuple[GraphModule, list[int]]:
    """The new graph of a loop. With ``sizes`` it is for any number of steps, and takes the numbers that are returned.

    Raises:
        RefusedError: Nothing in it is merged.
    """
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
    if sizes is None:
        with_rows_apart(graph)
    else:
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


def inner_of(options: dict[str, Any] | None, mode: str | None) -> Any:
    """The backend that the options of :func:`backend` ask for, or ``None``. It raises the errors of wrong ones."""
    if mode is not None:
        raise ValueError(f"mode: {mode!r} is one of Inductor's, and the backend 'snnfast' has none; leave it out")
    given = dict(options or {})
    name = given.pop("inner", None)
    if given:
        raise ValueError(f"options: expected 'inner' at most, got {', '.join(map(repr, given))}")
    if name is None:
        return None
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(name)
