"""Under torch.compile a call has no graph breaks, and the numbers of the eager one; meta tensors give the shapes."""

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from helpers import (
    COMBINATIONS,
    NEURONS,
    Case,
    assert_bits_equal,
    assert_close,
    every_other,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)
from torch import Tensor, nn

from snnfast import MultiStep, use_backend
from snnfast.surrogate import DISABLED

FAST = "leaky"  # The other neurons share its code, and belong to a thorough run.


def thorough(neuron: str, *values: Any) -> Any:
    return pytest.param(
        neuron, *values, id="-".join((neuron, *values)), marks=[pytest.mark.thorough] * (neuron != FAST)
    )


neurons = pytest.mark.parametrize("neuron", map(thorough, NEURONS))
# No layer or callable can be made in compiled code. For steps see below, for callables test_callables.py.
FUNCTIONS = [(n, v) for n, v in COMBINATIONS if "step" not in v and "callable" not in v]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def trained(function: Any, tensors: dict[str, Tensor | None]) -> list[tuple[str, Tensor]]:
    """Outputs and gradients of a function of tensors by name, and their names."""
    outputs = function(tensors)
    losses = [(t * (2 + i)).sum() + t.square().sum() for i, t in enumerate(outputs.values()) if t.requires_grad]
    asking = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(sum(losses), list(asking.values()))
    return [*outputs.items(), *((f"grad of {name}", g) for name, g in zip(asking, grads, strict=True))]


@pytest.mark.parametrize(("neuron", "variant"), [thorough(*both) for both in FUNCTIONS])
def test_a_call_equals_the_eager_one(neuron: str, variant: str, device: torch.device) -> None:
    shared = {"steps": (20,), "shape": ((3, 10),), "parameters": ("neuron",), "states": (True,)}
    number = 2 if neuron == "leaky" and variant in ("unroll", "count") else 1
    for case in random_cases(number, 1, neuron=(neuron,), variant=(variant,), **shared):
        eager = functools.partial(fused, case=case)
        function = compiled(eager)
        for seed in (0, 1):
            pairs = zip(
                *(trained(f, leaves(inputs(case, device, seed), case.wrt)) for f in (eager, function)), strict=True
            )
            for (name, a), (_, b) in pairs:
                if name.startswith("grad"):
                    assert_close(b, a, 1e-2 if case.dtype.itemsize == 2 else 1e-6, f"{case}: {name}")
                else:
                    assert_bits_equal(b, a, f"{case}: {name}")


@neurons
def test_inference_equals_the_eager_call(neuron: str, device: torch.device) -> None:
    case = Case(neuron, "constant", 20)
    tensors, eager = inputs(case, device), functools.partial(fused, case=case)
    with torch.no_grad():
        outputs = compiled(eager)(tensors)
        for name, t in eager(tensors).items():
            assert_bits_equal(outputs[name], t)


@neurons
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_steps_of_a_layer_equal_the_eager_ones(delay: bool, neuron: str, device: torch.device) -> None:
    for spike_grad in every_other((Case().spike_grad, DISABLED), neuron, delay):
        case = Case(neuron, "step", 2, delay=delay, parameters="neuron", spike_grad=spike_grad)
        states = case.kind.ops.states

        def two_steps(tensors: dict[str, Tensor], layer: Any = None, states: Any = states) -> dict[str, Tensor]:
            first, *now = layer(tensors["current"][0], *(tensors[s] for s in states))
            second, *now = layer(tensors["current"][1], *now)
            return {"first": first, "second": second, **dict(zip(states, now, strict=True))}

        results = []
        for wrap in (lambda f: f, compiled):
            tensors = leaves(inputs(case, device), ("current", *states))
            layer = layer_of(case, tensors)
            results.append(trained(wrap(functools.partial(two_steps, layer=layer)), tensors))
        for (name, a), (_, b) in zip(*results, strict=True):
            if name.startswith("grad"):
                assert_close(b, a, 1e-6, name)
            else:
                assert_bits_equal(b, a, name)


@pytest.mark.parametrize(
    "neuron", map(thorough, ["leaky", "synaptic"])
)  # the layer Lapicque is in test_drop_in_compile.py
@pytest.mark.parametrize("name", ["forward", "forward_held", "unroll", "unroll_held", "multistep"])
def test_layers_compile_without_graph_breaks(name: str, neuron: str, device: torch.device) -> None:
    if name == "multistep" and neuron != "leaky":
        pytest.skip("a sequence is tested with Leaky")
    x = (torch.rand(7, 3, 10) * 2).to(device)
    held, kind = name.endswith("held"), Case(neuron).kind
    layer: Any = kind.layer(*(0.9 for _ in kind.decays), learn_beta=True, init_hidden=held).to(device)
    other: Any = copy.deepcopy(layer)
    if name == "multistep":
        layer, other = (MultiStep(nn.Flatten(), n) for n in (layer, other))
    for options in ({}, {"reduce": "sum"}) if name in ("unroll", "multistep") else ({},):
        functions = [functools.partial(n.unroll if name.startswith("unroll") else n, **options) for n in (layer, other)]
        function = compiled(functions[0])
        for _ in range(2):  # the second call goes on from what the layer holds
            found, expected = function(x), functions[1](x)
            for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
                assert_bits_equal(a, b)
    if held:
        for state in kind.ops.states:
            assert_bits_equal(getattr(layer, state), getattr(other, state))


@neurons
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_meta_tensors_give_the_shapes(backend: str, neuron: str) -> None:
    for record_mem, variant in itertools.product((True, False), ("unroll", "count", "constant")):
        case = Case(neuron, variant, 9, record_mem=record_mem, states=False)
        tensors = {**inputs(case), "current": inputs(case)["current"].to("meta")}
        with use_backend(backend):
            outputs = fused(tensors, case)
        for name, t in outputs.items():
            summed = variant == "count" if name == "spk" else not record_mem
            assert t.is_meta
            assert t.shape == ((3, 10) if summed else (9, 3, 10))
