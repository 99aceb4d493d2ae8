"""Runs a program of ``loop_programs`` with snnTorch's layers as it stands, and compiled with ours, and compares."""

import contextlib
import functools
import importlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import snntorch
import torch
from helpers import THOROUGH, assert_bits_equal, assert_close
from loop_programs import MERGED, NOTHING, PARTLY, REFUSED, REPEATED, Program
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import snnfast
import snnfast.snntorch as snn

BACKEND = "snnfast"
backend = importlib.import_module("snnfast.compiler.backend")  # snnfast.compiler.backend is a function of it
CALLS = [(5, 4), (5, 4)]  # T and B; behind them come those that the program names, in a thorough run
STATES = ("syn", "mem", "syn_exc", "syn_inh")


@dataclass
class Call:
    """What one call of a program did."""

    outputs: list[Any]
    grads: dict[str, Tensor | None]
    states: dict[str, Tensor]
    kept: dict[str, Tensor]  # parameters and buffers
    reports: list[Any] = field(default_factory=list)  # of the graphs that were compiled for it


@dataclass
class Built:
    """A program with its layers from one library."""

    net: nn.Module
    function: Any
    call: Callable[..., Any] = field(default=lambda f, *inputs: f(*inputs))

    @classmethod
    def of(cls, program: Program, library: Any) -> "Built":
        torch.manual_seed(0)
        snntorch.SpikingNeuron.instances.clear()  # utils.reset goes through all that there are
        built = program.build(library)
        found = cls(built, built) if isinstance(built, nn.Module) else cls(*built)
        set_weights(found.net, program.simple)
        return found

    def states(self) -> dict[str, Tensor]:
        held = itertools.product(self.layers(), STATES)
        return {f"{name}.{s}": getattr(layer, s).detach() for (name, layer), s in held if hasattr(layer, s)}

    def layers(self) -> Iterator[tuple[str, Any]]:
        return ((name, m) for name, m in self.net.named_modules() if isinstance(m, snntorch.SpikingNeuron))


def set_weights(net: nn.Module, simple: bool) -> None:
    """Weights that make every layer spike; simple ones are multiples of 1/32 (see ``loop_programs.numbers``)."""
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Linear | nn.modules.conv._ConvNd):
                fan_in = m.weight[0].numel()
                m.weight.copy_(1.2 / fan_in + torch.randn_like(m.weight) / fan_in**0.5)
                for p in m.parameters(recurse=False):
                    p.copy_((p * 32).round() / 32 if simple else p)


def inputs_of(program: Program, T: int, B: int) -> list[Any]:
    found = list(program.inputs(T, B))
    for x in found:
        if program.input_grad and isinstance(x, Tensor) and x.is_floating_point():
            x.requires_grad_()
    return found


def run(program: Program, built: Built, function: Any) -> list[Call]:
    """The calls of a program; ``function`` is that of ``built``, or what was made of it."""
    calls = []
    for number, (T, B) in enumerate([*CALLS, *([program.other] if program.other and THOROUGH else [])]):
        torch.manual_seed(number)
        inputs = inputs_of(program, T, B)
        built.net.zero_grad()
        with reporting() as reports:
            calls.append(_called(built, function, inputs))
        calls[-1].reports = reports
    return calls


def _called(built: Built, function: Any, inputs: list[Any]) -> Call:
    outputs, _ = tree_flatten(built.call(function, *inputs))
    states = built.states()  # now: what is computed again in a backward pass may leave others
    asking = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    if asking:
        # Weights that differ, so that a gradient at the wrong time step or neuron shows.
        terms = (t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape) for t in asking)
        sum(t.sum() for t in terms).backward()
    grads = {f"input {i}": x.grad for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    grads |= {name: None if p.grad is None else p.grad.clone() for name, p in built.net.named_parameters()}
    kept = {name: t.detach().clone() for name, t in built.net.state_dict().items()}
    return Call([t.detach() if isinstance(t, Tensor) else t for t in outputs], grads, states, kept)


def snntorchs(program: Program) -> list[Call]:
    """What snnTorch's own layers do, without a compiler; every layer spikes, and not always."""
    built, seen = Built.of(program, snntorch), defaultdict[str, list[Tensor]](list)

    def look(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        seen[name].append(output[0] if isinstance(output, tuple) else output)

    for name, layer in built.layers():
        layer.register_forward_hook(functools.partial(look, name))
    calls = run(program, built, built.function)
    for name, _ in built.layers():
        if name not in program.silent:
            spk = torch.cat([t.flatten() for t in seen[name]]) != 0
            assert 0 < int(spk.sum()) < spk.numel(), f"{name} shows little"
    return calls


def compiled(program: Program, library: Any = snn, change: Callable[[nn.Module], Any] = lambda net: None) -> list[Call]:
    """What the compiled program does; ``change`` is done to its network before."""
    torch._dynamo.reset()
    built = Built.of(program, library)
    change(built.net)
    try:
        return run(program, built, torch.compile(built.function, backend=BACKEND))
    finally:
        torch._dynamo.reset()


# ---- comparison


def _assert_same(actual: Any, expected: Any, program: Program, what: str) -> None:
    if not isinstance(expected, Tensor):
        assert actual == pytest.approx(expected, rel=1e-5), what
        return
    if not program.dtypes:
        actual = actual.to(expected.dtype)
    if program.exact or torch.equal(expected, expected.round()):
        assert_bits_equal(actual + 0.0, expected + 0.0, what)  # -0.0 is as good as 0.0
    else:
        assert_close(actual, expected, min(program.relative, 1e-5), what)


def assert_agree(program: Program, found: list[Call], expected: list[Call]) -> None:
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        where = f"{program.name}, call {number}"
        for i, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True)):
            _assert_same(x, y, program, f"{where}: output {i}")
        for kind in ("states", "kept"):
            x, y = getattr(a, kind), getattr(b, kind)
            assert x.keys() == y.keys()
            for name in y:
                _assert_same(x[name], y[name], program, f"{where}: {name} of {kind}")
        assert a.grads.keys() == b.grads.keys()
        # One that is zero but for rounding, as that of a bias before a batch norm, counts for little.
        least = max((0.1 * g.abs().max().item() for g in b.grads.values() if g is not None and g.numel()), default=0.0)
        for name, grad in b.grads.items():
            assert_close(a.grads[name], grad, program.relative, f"{where}: gradient of {name}", least)


# ---- what the compiler made of it


def happened(reports: list[Any]) -> tuple[str, tuple[str, ...]]:
    """What became of the layers, in a word of ``loop_programs``; and what else is repeated for each step."""
    graphs = [g for g in reports if "no step of a neuron" not in (g.refused or "")]
    merged = any("one unroll" in line for g in graphs for line in g.merged)
    repeated = [line for g in graphs for line in g.repeated]
    left = [line for line in repeated if re.match(r"\d+ steps? of ", line)]
    others = {m[1] for line in repeated if (m := re.match(r"\d+ x (\S+)", line))}
    if merged:
        word = PARTLY if left or any(g.refused for g in graphs) else MERGED
    else:
        word = NOTHING if not graphs else REFUSED if all(g.refused for g in graphs) else REPEATED
    return word, tuple(sorted(others))


@contextlib.contextmanager
def reporting() -> Iterator[list[Any]]:
    """A list of what the backend does with each graph from now on; ``explain`` would compile them once more."""
    reports: list[Any] = []
    merge = backend.merge

    def recording(gm: torch.fx.GraphModule) -> Any:
        merged, report = merge(gm)
        reports.append(report)
        return merged, report

    with mock.patch.object(backend, "merge", recording):
        yield reports


def explained(program: Program) -> Any:
    """The ``Explanation`` of the first call of what is compiled."""
    torch._dynamo.reset()
    built, seen = Built.of(program, snn), []

    def explain(*inputs: Any) -> Any:
        if not seen:
            seen.append(snnfast.explain(built.function, *inputs))
        return built.function(*inputs)

    built.call(explain, *inputs_of(program, *CALLS[0]))
    torch._dynamo.reset()
    return seen[0]
