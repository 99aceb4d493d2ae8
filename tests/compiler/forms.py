"""The printed form of a loop after a stage of the compiler."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import snnfast
from snnfast.compiler.aten import to_aten
from snnfast.compiler.passes import run_passes
from snnfast.compiler.stages import Stages
from snnfast.compiler.tracing import tracing


def after(name: str, function: Callable[..., Any], *inputs: Any) -> str:
    """The form after a pass, without the lines of the user's code."""
    return _without_lines(stages_of(function, *inputs)[name])


def after_merging(name: str, function: Callable[..., Any], *inputs: Any) -> str:
    """The form after a stage behind the passes."""
    (report,) = snnfast.explain(function, *inputs).graphs
    return _without_lines(report.stages[name])


def stages_of(function: Callable[..., Any], *inputs: Any) -> dict[str, str]:
    with snnfast.compiler.stages.kept():
        stages = Stages("here")

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        graph = to_aten(gm).graph
        stages.after("aten", graph)
        run_passes(graph, stages.after)
        return gm

    with tracing:
        torch.compile(function, backend=backend)(*inputs)  # type: ignore[no-untyped-call]
    return stages.forms


def _without_lines(form: str) -> str:
    return re.sub(" *# .*", "", form)


def x(*shape: int) -> Tensor:
    return torch.rand(shape or (2,))


def xs(*shape: int) -> list[Tensor]:
    """The input of two steps."""
    return [x(*shape), x(*shape)]


def asserting(xs: list[Tensor]) -> list[Tensor]:
    """A loop with asserts, which pytest would write anew in a test."""
    found = []
    for x in xs:
        assert (x >= 0).all(), "negative"
        found.append(x.sin())
    return found
