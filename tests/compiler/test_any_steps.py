"""A graph that was emitted for some number of steps runs for any other."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.internals import BACKEND
from helpers import THOROUGH
from torch import Tensor
from torch.fx import Graph, GraphModule

import snnfast
from benchmarks import collection
from snnfast.compiler.any_steps import AnySteps
from snnfast.compiler.backend import for_any_steps
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.report import GraphReport

pytestmark = [pytest.mark.usefixtures("nothing_compiled"), pytest.mark.needs_extension]
programs = collection.programs()

QUICK = ("recurrent-student", "static-image")

SEVERAL = {
    **dict.fromkeys(
        ["active-neurons", "prints", "prints-sometimes", "spike-counts"],
        "the calls that make numbers are in no statement",
    ),
    "truncated": "its states are detached every ten steps",
}
"""Programs that have another graph for another number of steps, and why."""

NONE = {
    **dict.fromkeys(["early-exit", "episodes", "loop-outside", "stream"], "torch.compile sees one step at a time"),
    "progress-bar": "torch.compile does not trace the bar",
}
"""Programs without a graph in which something is merged, and why."""

STEPS: dict[str, tuple[int, ...]] = {
    "edges": (14, 11, 37),
    "sequential-function": (14, 8, 16),
    "spatio-temporal": (13, 9, 37),
}
"""Other numbers of steps: a size of the program is one of the usual, or a loss that is summed in float32 rounds."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[AnySteps]:
    """Graphs for any number of steps, each of which runs in place of those that are alike."""
    found: list[AnySteps] = []

    def merge(gm: GraphModule) -> tuple[GraphModule, GraphReport]:
        try:
            made, steps, report = for_any_steps(gm)
        except RefusedError as refusal:
            gm.recompile()
            return gm, GraphReport("a graph", refused=str(refusal))
        run = next((before for before in found if before.is_like(made)), made)
        if run is made:
            found.append(made)
        graph = Graph()
        inputs = [graph.placeholder(node.name) for node in gm.graph.find_nodes(op="placeholder")]

        def call(*inputs: Any) -> list[Any]:
            return run(steps, inputs)

        graph.output(graph.call_function(call, tuple(inputs)))
        return GraphModule(gm, graph), report

    monkeypatch.setattr(BACKEND, "merge", merge)
    return found


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in programs]
)
def test_programs_do_what_their_loops_do_for_other_numbers_of_steps(name: str, known: list[AnySteps]) -> None:
    first, *others = STEPS.get(name, (14, 9, 37)) if THOROUGH else (14, 9, 18)
    assert not list(collection.differences(programs[name], first, 3, calls=1))
    graphs = len(known)
    assert bool(graphs) == (name not in NONE)
    for T in others:
        torch._dynamo.reset()
        assert not list(collection.differences(programs[name], T, 3, calls=1))
    assert (len(known) == graphs) == (name not in SEVERAL)


def spikes(factor: float = 0.5, layers: int = 1, made: Callable[[Any], Any] = torch.stack, **options: Any) -> Any:
    """A loop of leaky neurons behind one another, and what is made of its spikes."""
    neurons = [snnfast.Leaky(beta=0.9, **options) for _ in range(layers)]

    def loop(x: Tensor) -> Any:
        mems, out = [neuron.reset_mem() for neuron in neurons], []
        for t in range(len(x)):
            spk = x[t] * factor
            for i, neuron in enumerate(neurons):
                spk, mems[i] = neuron(spk, mems[i])
            out.append(spk)
        return made(out)

    return loop


@pytest.mark.parametrize(
    ("loop", "other", "width", "options"),
    [
        (spikes(), spikes(0.6), 2, {}),
        (spikes(), spikes(reset_mechanism="zero"), 2, {}),
        (spikes(), spikes(layers=2), 2, {}),
        (spikes(), spikes(), 2, {"requires_grad": True}),
        (spikes(made=lambda out: torch.stack([t * spk for t, spk in enumerate(out)])),
         spikes(made=lambda out: torch.stack([float(t) * spk for t, spk in enumerate(out)])), 2, {}),
    ],
    ids=["constant", "option", "layers", "gradient", "numbers"],
)  # fmt: skip
def test_a_loop_that_differs_by_more_than_its_steps_has_another_graph(
    loop: Any, other: Any, width: int, options: dict[str, Any], known: list[AnySteps]
) -> None:
    for which, T, size, given in [(loop, 7, 2, {}), (loop, 9, 2, {}), (other, 7, width, options)]:
        torch._dynamo.reset()
        torch.compile(which, backend="snnfast")(torch.rand(T, size, **given))
    assert len(known) == 2


@pytest.mark.parametrize(
    ("made", "records", "graphs"),
    [
        (list, True, 1),
        (list, False, 3),  # each entry is detached by a call of its own
        (torch.stack, True, 1),
        (sum, True, 1),
        (lambda out: (out[0], out[-1]), True, 1),
        (lambda out: torch.stack(out[-3:]), True, 1),
    ],
    ids=["list", "detached", "stack", "sum", "ends", "last"],
)
def test_results_of_another_number_of_steps(
    made: Callable[[Any], Any], records: bool, graphs: int, known: list[AnySteps]
) -> None:
    loop = spikes(2.0, made=made)
    for T in (9, 6, 17):
        torch._dynamo.reset()
        x = torch.rand(T, 4, requires_grad=records)
        torch.testing.assert_close(torch.compile(loop, backend="snnfast")(x), loop(x), rtol=0, atol=0)
    assert len(known) == graphs


def test_a_loop_of_few_steps_has_a_graph_of_its_own(known: list[AnySteps]) -> None:
    loop = spikes(2.0, made=lambda out: out)
    for T in (2, 7, 3):
        torch._dynamo.reset()
        x = torch.rand(T, 4, requires_grad=True)
        torch.testing.assert_close(torch.compile(loop, backend="snnfast")(x), loop(x), rtol=0, atol=0)
    assert len(known) == 2  # that of seven steps runs for three, too


def summed(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], Tensor]:
    """A stack of results, each of which needs the one before."""
    return lambda out: torch.stack(list(itertools.accumulate(out, function)))


class Share(torch.autograd.Function):
    """A function that is not elementwise. PyTorch gives each call of it a graph of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / (1 + x.sum())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize(
    ("function", "graphs"), [(torch.logaddexp, 1), (lambda a, b: Share.apply(a + b), 2)], ids=["loop", "calls"]
)
def test_what_is_repeated_is_a_loop_where_that_is_possible(
    function: Callable[[Tensor, Tensor], Tensor], graphs: int, known: list[AnySteps]
) -> None:
    loop = spikes(2.0, made=summed(function))
    for T in (7, 19):
        torch._dynamo.reset()
        x = torch.rand(T, 4, requires_grad=True)
        torch.testing.assert_close(torch.compile(loop, backend="snnfast")(x), loop(x), rtol=0, atol=0)
    assert len(known) == graphs
