"""The printed form of a loop after a stage of the compiler."""

import re
from collections.abc import Callable
from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor

import snnfast
from snnfast.compiler.graph.aten import to_aten
from snnfast.compiler.loop.facts import facts_of
from snnfast.compiler.loop.roll import Rolled, roll
from snnfast.compiler.passes import run_passes
from snnfast.compiler.record.form import Form
from snnfast.compiler.record.functions import hook
from snnfast.compiler.record.kinds import Kinds
from snnfast.compiler.record.plans import write
from snnfast.compiler.record.recorded import run_recorded
from snnfast.compiler.record.recorder import Recorder
from snnfast.compiler.stages import Stages, kept


class Printed(str):
    """A printed form, without the lines of the user's code."""

    def expect(self, text: str) -> None:
        """Compare it; ``EXPECTTEST_ACCEPT=1`` writes it into the test instead."""
        assert_expected_inline(self, text, skip=1)


def recorded(function: Callable[..., Any], *inputs: Any) -> torch.fx.GraphModule:
    """The graph of a call."""
    made: list[torch.fx.GraphModule] = []

    def run(recorder: Recorder, alive: list[int]) -> None:
        form = Form(recorder, alive)
        made.append(write(form, form.steps, kinds, recorder.lines))

    kinds = Kinds()
    with hook, Recorder(kinds, run) as recorder:
        result = run_recorded(function, inputs, {})
    recorder.is_over = True
    recorder.flush(as_it_stands=False)
    del result
    (graph,) = made
    return graph


def after(name: str, function: Callable[..., Any], *inputs: Any) -> Printed:
    """The form after a pass."""
    with kept():
        stages = Stages("here")
    graph = to_aten(recorded(function, *inputs)).graph
    stages.after("aten", graph)
    run_passes(graph, stages.after)
    return _form(stages.forms[name])


def after_merging(name: str, function: Callable[..., Any], *inputs: Any) -> Printed:
    """The form after a stage that follows the passes."""
    return _form(snnfast.explain(function, *inputs).graphs[0].stages[name])


def rolled(function: Callable[..., Any], *inputs: Any) -> Rolled:
    """A loop as the compiler rolls it up."""
    graph = to_aten(recorded(function, *inputs)).graph
    run_passes(graph, Stages("here").after)
    return roll(facts_of(graph))


def _form(text: str) -> Printed:
    return Printed(re.sub(" *# .*", "", text))


def tensor(*shape: int) -> Tensor:
    return torch.rand(shape or (2,))


def steps(*shape: int) -> list[Tensor]:
    """The input of two steps."""
    return [tensor(*shape), tensor(*shape)]


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
