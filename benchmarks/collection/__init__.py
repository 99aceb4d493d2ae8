"""Programs condensed after public code that uses snnTorch, each written as its kind of user writes it.

A program is a network of snnTorch's layers, its inputs, and a function ``train(net, *inputs)`` that returns a loss, or
a loss and other results. What its user compiles is the network; or ``train``, where ``whole`` says so.
"""

import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

import snnfast
from snnfast.neurons.network import convert

from ..peers.ours import DEFAULT, SWAPPED
from ..registry import Case
from .comparison import TOLERANCES, Seen, difference, gradients, leaves, seen

KINDS = (
    "dense", "recurrent", "vision", "convolutional", "statistics", "weights", "states", "cells", "surrogates",
    "attention", "agents", "neurons", "feedback",
)  # fmt: skip
LIBRARIES = ("spikingjelly", "norse")  # where they are installed


@dataclass(frozen=True)
class Program:
    """One program. Its network, its inputs for T steps and a batch of B, and the sizes at which it is measured."""

    name: str
    kind: str  # the module that it is in
    net: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Any, ...]]
    train: Callable[..., Any]
    whole: bool
    T: int
    B: int
    dtype: torch.dtype  # in which it is compared


_programs: dict[str, Program] = {}


@cache
def programs() -> dict[str, Program]:
    """All programs by their names. They import snnTorch; some are of SpikingJelly and Norse, where these are there."""
    for kind in (*KINDS, *filter(find_spec, LIBRARIES)):
        importlib.import_module(f".{kind}", __name__)
    return _programs


def of_rate(net: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    """Cross-entropy of the spike counts: what most of the programs train with."""
    outputs = net(x)
    spk_rec = outputs[0] if isinstance(outputs, tuple) else outputs
    return F.cross_entropy(spk_rec.sum(0), y), outputs


def program(
    inputs: Callable[[int, int], tuple[Any, ...]],
    train: Callable[..., Any] = of_rate,
    T: int = 25,
    B: int = 32,
    whole: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Callable[[Any], Any]:
    """Enter a class of networks, or a function that makes one."""

    def enter(net: Any) -> Any:
        name = re.sub("(?<=[a-z0-9])(?=[A-Z])|_", "-", net.__name__).lower()
        assert name not in _programs, name
        _programs[name] = Program(name, net.__module__.rpartition(".")[2], net, inputs, train, whole, T, B, dtype)
        return net

    return enter


# ---- inputs


def labels(B: int, classes: int = 10) -> Tensor:
    return torch.randint(classes, (B,))


def frames(*shape: int, classes: int = 10) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Another frame at every step ``[T, B, *]``, and labels."""
    return lambda T, B: (torch.rand(T, B, *shape), labels(B, classes))


def events(*shape: int, classes: int = 10) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Spikes ``[T, B, *]``, as an event camera gives them, and labels."""
    return lambda T, B: ((torch.rand(T, B, *shape) < 0.2).to(torch.get_default_dtype()), labels(B, classes))


def images(*shape: int, classes: int = 10) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """The same image at every step ``[B, *]``, and labels."""
    return lambda T, B: (torch.rand(B, *shape), labels(B, classes))


# ---- running them


def built(program: Program, how: str) -> tuple[nn.Module, Callable[..., Any]]:
    """The network of a program, and its ``train`` without the network as a peer has them."""
    torch.manual_seed(0)
    net = program.net()
    with torch.no_grad():
        for p in (p for m in net.modules() if not isinstance(m, nn.RNNCellBase) for p in m.parameters(recurse=False)):
            if p.dim() > 1:  # weights with which every layer spikes
                p.copy_(1.2 / p[0].numel() + torch.randn_like(p) / p[0].numel() ** 0.5)
    function = program.train
    is_compiled = how == DEFAULT
    if how == SWAPPED or (is_compiled and program.whole):
        convert(net)
    if is_compiled and program.whole:
        function = snnfast.compile(function)
    elif is_compiled:
        net = snnfast.compile(net)
    return net, lambda *inputs: function(net, *inputs)


def loss_of(result: Any) -> Tensor:
    found = result[0] if isinstance(result, tuple) else result
    assert isinstance(found, Tensor)
    return found


@contextmanager
def silence() -> Any:
    """Nothing of what programs print, and of the warnings that say why something is not merged."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield printed


def differences(program: Program, T: int | Sequence[int], B: int, calls: int = 2, how: str = DEFAULT) -> Iterable[str]:
    """What a compiled program does otherwise than its loop, in so many calls, or one for each number of steps.

    In float64, where one product of all steps rounds as T products do to far more digits than are compared. snnTorch's
    spikes are always float32, so it is the loop on snnfast's layers, which have the bits of snnTorch's. Dropout does
    not drop, as other masks are drawn for all steps than step by step.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(program.dtype)
    try:
        steps = [T] * calls if isinstance(T, int) else T
        ours, theirs = (_calls(program, steps, B, way) for way in (how, SWAPPED))
    finally:
        torch.set_default_dtype(dtype)
    tolerances = TOLERANCES[str(program.dtype).removeprefix("torch.")]
    for call, (found, wanted) in enumerate(zip(ours, theirs, strict=True)):
        if differs := difference(found, wanted, tolerances):
            yield f"call {call}: {differs}"


def _calls(program: Program, steps: Sequence[int], B: int, how: str) -> list[Seen]:
    net, train = built(program, how)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found = []
    for call, T in enumerate(steps):
        torch.manual_seed(call)
        inputs = deepcopy(program.inputs(T, B))
        net.zero_grad()
        with silence() as printed:
            result = train(*inputs)
            loss_of(result).backward()
        # A tensor may be made by another call of PyTorch.
        prints = re.sub(r", grad_fn=<\w+>", "", printed.getvalue())
        others = [*leaves("input", inputs), *net.state_dict().items(), ("prints", prints)]
        asking = ((name, (p, p.grad)) for name, p in net.named_parameters())
        found.append([*seen(result, others=others), *gradients(asking)])
    return found


# ---- as cases of the benchmarks


def cases() -> list[Case]:
    return [Case("collection", "collection", p.T, p.B, (), variant=f"{p.kind}: {p.name}") for p in programs().values()]


def forget_layers() -> None:
    """Forget the layers of the programs before: ``utils.reset`` goes through all that a process ever made."""
    from snnfast.snntorch import Leaky

    Leaky.init()
