"""Forms between the stages: who asks for them, how they are printed, and what is checked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compiler.forms import recorded, tensor
from torch import Tensor, nn

import snnfast
from benchmarks.networks import in_loop
from benchmarks.registry import TUTORIAL5
from snnfast.compiler.graph.aten import to_aten
from snnfast.compiler.printing import print_graph
from snnfast.compiler.stages import check

pytestmark = pytest.mark.usefixtures("nothing_compiled")
fc = nn.Linear(2, 3)


def loop(x: Tensor) -> list[Tensor]:
    return [fc(x[t]).exp() for t in range(3)]


def aten_graph() -> Any:
    return to_aten(recorded(loop, tensor(3, 2))).graph


def test_a_graph_is_printed_with_short_names_and_lines() -> None:
    text = print_graph(aten_graph())
    assert "\nlinear = linear(select, W, b)  # test_stages.py:" in text
    assert text.endswith("\nreturn [exp, exp_1, exp_2]")


def test_the_docs_show_the_loop_as_it_is_printed() -> None:
    (graph,) = snnfast.explain(in_loop(TUTORIAL5, lambda: snnfast.Leaky(beta=0.95)), torch.rand(2, 784)).graphs
    page = (Path(__file__).parents[2] / "docs" / "compiler.md").read_text()
    shown = page.partition("```text\n")[2].partition("```")[0].splitlines()
    assert [line.partition("  #")[0] for line in shown] == [
        line.partition("  #")[0] for line in graph.stages["distribute"].splitlines()
    ]


def test_explain_keeps_the_form_after_each_stage_and_does_not_print_it() -> None:
    explanation = snnfast.explain(loop, tensor(3, 2))
    (report,) = explanation.graphs
    assert list(report.stages)[:3] == ["aten", "functionalize", "pairs"]
    assert "exp_1" in report.stages["dead"]
    assert "linear(" not in str(explanation)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_variable_logs_them_and_nothing_is_printed_without(
    wanted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SNNFAST_LOG", "stages" if wanted else "")
    torch.compile(loop, backend="snnfast")(tensor(3, 2))
    assert ("after functionalize:" in caplog.text) == wanted


@pytest.mark.parametrize("fault", ["order", "removed", "context"])
def test_a_check_finds_a_fault_of_a_pass(fault: str) -> None:
    graph = aten_graph()
    first, *_, last = graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    if fault == "order":
        last.append(first)
    elif fault == "removed":
        first.users[next(iter(last.users))] = None
        graph.erase_node(graph.output_node())
        graph.erase_node(next(iter(last.users)))
    else:
        del first.meta["context"]
    with pytest.raises((AssertionError, RuntimeError)):
        check(graph)
