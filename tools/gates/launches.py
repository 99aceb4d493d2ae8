"""Whole launches of ordinary calls: the instructions that a warp issues for each neuron and step of a thread.

The calls run in the emulator (docs/emulator.md), which tells the kernels that they launch and their parameters. One
thread then goes through the machine code of each. So loops, what comes before and behind them, and kernels of few steps
are counted as they are called, at few steps as at many.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import snnfast
from snnfast import spikingjelly, surrogate
from snnfast._core import ops
from tools.gates import kernels, thread
from tools.gates.sass import Kernel

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from emulator import build

ARCHITECTURE = "9.0"
STEPS = (4, 10, 16, 25)
NEURONS = 4096


class Call(NamedTuple):
    """An ordinary call, and the most instructions of a neuron and step that it may take."""

    name: str
    run: Callable[[Tensor], Tensor]  # from a current to what has a gradient
    forward: float
    backward: float

    def most(self, direction: str, steps: int) -> float:
        """At ten steps a batch is not full, which takes a few more."""
        of: float = getattr(self, direction)
        return of + (0 if steps != 10 else 2 if direction == "forward" else 5)


def calls() -> Iterator[Call]:
    leaky, sigmoid = partial(_unrolled, {}), {"spike_grad": surrogate.sigmoid()}
    learned, zero = {"beta": torch.tensor([0.9]), "learn_beta": True}, {"reset_mechanism": "zero"}
    yield Call("Leaky, recorded", leaky, 20, 20)
    yield Call("Leaky", partial(leaky, record_mem=False), 20, 28)
    yield Call("Leaky, half", lambda x: leaky(x.half(), record_mem=False), 15, 29)
    yield Call("Leaky, learn_beta", partial(_unrolled, learned, record_mem=False), 22, 34)
    yield Call("Leaky, sigmoid, recorded", partial(_unrolled, sigmoid), 20, 40)
    yield Call("Leaky, zero", partial(_unrolled, zero, record_mem=False), 20, 30)
    yield Call("Leaky, zero, recorded", partial(_unrolled, zero), 45, 40)  # forward the general kernel
    yield Call("Leaky, loss on the membranes", lambda x: snnfast.Leaky(0.9).unroll(x)[1], 20, 40)
    neuron, gradients = spikingjelly.neuron, spikingjelly.surrogate
    for node in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        for gradient in (gradients.Sigmoid, gradients.ATan):
            for reset, v_reset in (("hard", 0.0), ("soft", None)):
                made = partial(node, v_reset=v_reset, surrogate_function=gradient(), step_mode="m")
                yield Call(f"{node.__name__}, {gradient.__name__}, {reset}", partial(_jelly, made), 20, 45)


def _unrolled(layer: dict[str, Any], x: Tensor, **options: Any) -> Tensor:
    return snnfast.Leaky(**{"beta": 0.9, **layer}).unroll(x, **options)[0]


def _jelly(make: Callable[[], Any], x: Tensor) -> Tensor:
    node = make()
    for parameter in node.parameters():
        parameter.data = parameter.data.reshape(1)  # a tensor without dimensions would be a number of the host here
    return node(x)  # type: ignore[no-any-return]


class Counted(NamedTuple):
    """A kernel of a call, and its instructions for each neuron and step of a thread: the mean over the warps."""

    call: str
    steps: int
    direction: str
    kernel: str
    instructions: float


def counted(code: Sequence[Kernel]) -> list[Counted]:
    """What each call takes at each number of steps, by the machine code of the kernels for one architecture."""
    named = {name: kernel for kernel in code for name in kernels.names([kernel.symbol]).values()}
    build.load()
    found = []
    ops.use(build.NAMESPACE)
    with snnfast.use_backend("fused"):
        for call in calls():
            for steps in STEPS:
                x = torch.rand(steps, NEURONS, requires_grad=True)
                build.take_launches()
                call.run(x).sum().backward()
                for direction, launch in zip(("forward", "backward"), build.take_launches(), strict=True):
                    first = range(0, launch.threads, 32)  # the threads that do most of a warp
                    of_warps = [thread.issued(named[launch.kernel], launch, first_one) for first_one in first]
                    each = mean(of_warps) / steps / kernels.width(launch.kernel)
                    found.append(Counted(call.name, steps, direction, launch.kernel, each))
    return found


def table(found: Sequence[Counted]) -> list[list[str]]:
    """A heading, and a row for each call and direction."""
    lines = [["instructions of a neuron and step, whole launch", *(f"T = {steps}" for steps in STEPS), "kernel"]]
    rows: dict[tuple[str, str], list[Counted]] = {}
    for one in found:
        rows.setdefault((one.call, one.direction), []).append(one)
    for (call, direction), of in rows.items():
        lines.append([f"{call}: {direction}", *(f"{one.instructions:.1f}" for one in of), of[0].kernel])
    return lines


def problems(found: Sequence[Counted]) -> list[str]:
    """What takes more than it may."""
    named = {call.name: call for call in calls()}
    return [
        f"{one.call}, {one.direction}, T = {one.steps}: {one.instructions:.1f} instructions of a neuron and step"
        for one in found
        if one.instructions > named[one.call].most(one.direction, one.steps)
    ]
