"""The printed form of a loop after a stage of the compiler."""

import re
from collections.abc import Callable
from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor

import snnfast
from snnfast.compiler.aten import to_aten
from snnfast.compiler.facts import facts_of
from snnfast.compiler.passes import run_passes
from snnfast.compiler.roll import Rolled, roll
from snnfast.compiler.stages import Stages, kept
from snnfast.compiler.tracing import tracing


class Form(str):
    """A printed form, without the lines of the user's code."""

    def expect(self, text: str) -> None:
        """Compare it; ``EXPECTTEST_ACCEPT=1`` writes it into the test instead."""
        assert_expected_inline(self, text, skip=1)


def after(name: str, function: Callable[..., Any], *inputs: Any) -> Form:
    """The form after a pass."""
    with kept():
        stages = Stages("here")

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        graph = to_aten(gm).graph
        stages.after("aten", graph)
        run_passes(graph, stages.after)
        return gm

    with tracing:
        torch.compile(function, backend=backend)(*inputs)
    return _form(stages.forms[name])


def after_merging(name: str, function: Callable[..., Any], *inputs: Any) -> Form:
    """The form after a stage that follows the passes."""
    return _form(snnfast.explain(function, *inputs, by="tracing").graphs[0].stages[name])


def rolled(function: Callable[..., Any], *inputs: Any) -> Rolled:
    """A loop as the compiler rolls it up."""
    found: list[Rolled] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        graph = to_aten(gm).graph
        run_passes(graph, Stages("here").after)
        found.append(roll(facts_of(graph)))
        return gm

    with tracing:
        torch.compile(function, backend=backend)(*inputs)
    return found[0]


def _form(text: str) -> Form:
    return Form(re.sub(" *# .*", "", text))


def tensor(*shape: int) -> Tensor:
    return torch.rand(shape or (2,))


def steps(*shape: int) -> list[Tensor]:
    """The input of two steps."""
    return [tensor(*shape), tensor(*shape)]


def asserting(xs: list[Tensor]) -> list[Tensor]:
    """A loop with asserts, which pytest would write anew in a test."""
    found = []
    for x in xs:
        assert (x >= 0).all(), "negative"
        found.append(x.sin())
    return found


def leaky(
    current: Callable[[Tensor, int], Tensor] = lambda x, t: x[t], made: Callable[[Any], Any] = list, T: int = 5
) -> Callable[[Tensor], Any]:
    """A loop of leaky neurons, with the input of each step and what is made of all spikes."""
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Any:
        mem, out = lif.reset_mem(), []
        for t in range(T):
            spk, mem = lif(current(x, t), mem)
            out.append(spk)
        return made(out)

    return loop
