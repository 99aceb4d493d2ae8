"""Whole launches of ordinary calls: the instructions that a warp issues for each neuron and step of a thread.

The calls run in the emulator (docs/emulator.md), which tells the kernels that they launch and their parameters. One
thread then goes through the machine code of each. So loops, what comes before and behind them, and kernels of few steps
are counted as they are called, at few steps as at many.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    """An ordinary call, and the most instructions of a neuron and step that each of its launches may take, in order."""

    name: str
    run: Callable[[Tensor], Tensor]  # from a current to what has a gradient
    bars: Mapping[str, float]
    steps: Sequence[int] = STEPS
    shape: Sequence[int] = (NEURONS,)  # of a step, whose neurons fill all threads
    channels_last: bool = False

    def most(self, launch: str, steps: int) -> float:
        """At ten steps a batch is not full, which takes a few more."""
        return self.bars[launch] + (0 if steps != 10 else 2 if launch == "forward" else 5)


def _both(forward: float, backward: float) -> Mapping[str, float]:
    return {"forward": forward, "backward": backward}


def calls() -> Iterator[Call]:
    leaky, sigmoid = partial(_unrolled, {}), {"spike_grad": surrogate.sigmoid()}
    learned, zero = {"beta": torch.tensor([0.9]), "learn_beta": True}, {"reset_mechanism": "zero"}
    yield Call("Leaky, recorded", leaky, _both(20, 20))
    yield Call("Leaky", partial(leaky, record_mem=False), _both(20, 28))
    yield Call("Leaky, half", lambda x: leaky(x.half(), record_mem=False), _both(15, 29))
    yield Call("Leaky, learn_beta", partial(_unrolled, learned, record_mem=False), _both(22, 34))
    yield Call("Leaky, sigmoid, recorded", partial(_unrolled, sigmoid), _both(20, 40))
    yield Call("Leaky, zero", partial(_unrolled, zero, record_mem=False), _both(20, 30))
    yield Call("Leaky, zero, recorded", partial(_unrolled, zero), _both(38, 40))  # forward the general kernel
    yield Call("Leaky, loss on the membranes", lambda x: snnfast.Leaky(0.9).unroll(x)[1], _both(20, 40))
    neuron, gradients = spikingjelly.neuron, spikingjelly.surrogate
    for node in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        for gradient in (gradients.Sigmoid, gradients.ATan):
            for reset, v_reset in (("hard", 0.0), ("soft", None)):
                made = partial(node, v_reset=v_reset, surrogate_function=gradient(), step_mode="m")
                name = f"{node.__name__}, {gradient.__name__}, {reset}"
                yield Call(name, partial(_jelly, made), _both(20, 45))
                more = 14 if node is neuron.ParametricLIFNode else 0
                yield from _normed(name, partial(_node, made), (14, 21, 48 + more, 42), (14, 24, 62 + more, 55))
    yield from _normed("Leaky", partial(snnfast.Leaky, 0.9), (14, 16, 35, 32), (14, 17, 40, 36))


def _normed(name: str, make: Callable[[], nn.Module], few: Sequence[float], loops: Sequence[float]) -> Iterator[Call]:
    """Behind a batch normalisation, in both orders of images: the bars of four steps, and of loops over chunks of four.

    The loops of nodes ask for the reset, which takes up to a third more in forward and less elsewhere.
    """
    launches = ("statistics", "forward", "sums of backward", "backward")
    for order, by, shape in (("", 1, (16, 2, 16, 16)), (", channels_last", 1.3, (32, 32, 4, 4))):
        for chunks, steps, bars in (("", (4,), few), (", loops", (10, 16), loops)):
            of_launches = {launch: by * bar for launch, bar in zip(launches, bars, strict=True)}
            given = f"{name}, batch normalisation{order}{chunks}", partial(_network, make), of_launches
            yield Call(*given, steps, shape, bool(order))


def _network(make: Callable[[], nn.Module], x: Tensor) -> Tensor:
    return snnfast.MultiStep(nn.BatchNorm2d(x.shape[2]), make(), nn.Identity())(x)[0]


def _unrolled(layer: dict[str, Any], x: Tensor, **options: Any) -> Tensor:
    return snnfast.Leaky(**{"beta": 0.9, **layer}).unroll(x, **options)[0]


def _node(make: Callable[[], Any]) -> Any:
    node = make()
    for parameter in node.parameters():
        parameter.data = parameter.data.reshape(1)  # a tensor without dimensions would be a number of the host here
    return node


def _jelly(make: Callable[[], Any], x: Tensor) -> Tensor:
    return _node(make)(x)  # type: ignore[no-any-return]


class Counted(NamedTuple):
    """A kernel of a call, and its instructions for each neuron and step of a thread: the mean over the warps."""

    call: str
    steps: int
    launch: str
    kernel: str
    instructions: float


def counted(code: Sequence[Kernel]) -> list[Counted]:
    """What each call takes at each number of steps, by the machine code of the kernels for one architecture."""
    named = {name: kernel for kernel in code for name in kernels.names([kernel.symbol]).values()}
    build.load()
    found = []
    ops.use(build.NAMESPACE)
    build.set_norm_blocks(1)
    with snnfast.use_backend("fused"):
        for call in calls():
            for steps in call.steps:
                x = torch.rand(steps, *call.shape)
                x = x.movedim(2, -1).contiguous().movedim(-1, 2) if call.channels_last else x
                x.requires_grad_()
                build.take_launches()
                call.run(x).sum().backward()
                for name, launch in zip(call.bars, build.take_launches(), strict=True):
                    first = range(0, launch.threads, 32)  # the threads that do most of a warp
                    of_warps = [thread.issued(named[launch.kernel], launch, first_one) for first_one in first]
                    each = mean(of_warps) * launch.blocks * launch.threads / x.numel()
                    found.append(Counted(call.name, steps, name, launch.kernel, each))
    return found


def table(found: Sequence[Counted]) -> list[list[str]]:
    """A heading, and a row for each call and direction."""
    lines = [["instructions of a neuron and step, whole launch", *(f"T = {steps}" for steps in STEPS), "kernel"]]
    rows: dict[tuple[str, str], list[Counted]] = {}
    for one in found:
        rows.setdefault((one.call, one.launch), []).append(one)
    for (call, direction), of in rows.items():
        at = {one.steps: f"{one.instructions:.1f}" for one in of}
        lines.append([f"{call}: {direction}", *(at.get(steps, "") for steps in STEPS), of[0].kernel])
    return lines


def problems(found: Sequence[Counted]) -> list[str]:
    """What takes more than it may."""
    named = {call.name: call for call in calls()}
    return [
        f"{one.call}, {one.launch}, T = {one.steps}: {one.instructions:.1f} instructions of a neuron and step"
        for one in found
        if one.instructions > named[one.call].most(one.launch, one.steps)
    ]
