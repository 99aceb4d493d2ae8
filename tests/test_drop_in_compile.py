"""Layers that are snnTorch's as well, compiled and exported."""

import copy
import gc
import warnings
from typing import Any

import pytest
import snntorch
import snntorch.utils
import torch
from helpers import Bump, assert_bits_equal
from snntorch_checks import NEURONS, as_tuple, held, make
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn


def bump(z: Tensor) -> Tensor:
    return Bump.apply(z)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "output": {"init_hidden": True, "output": True},
    "surrogate_disable": {"surrogate_disable": True},
    "inhibition": {"inhibition": True},
    "nodelay-zero": {"reset_delay": False, "reset_mechanism": "zero"},
    "learn": {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True},
    "vector": {"beta": torch.linspace(0.5, 1, 6), "learn_beta": True, "init_hidden": True},
    "integer": {"beta": 1, "threshold": 2},
    "closure": {"spike_grad": snntorch.surrogate.fast_sigmoid(slope=4)},
    "callable": {"spike_grad": bump},
    "callable-learn": {"spike_grad": bump, "learn_beta": True, "init_hidden": True, "output": True},
}


@NEURONS
@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_exported_from_the_reference_a_step_has_only_operators_of_pytorch(name: str) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make(snn, name)

        def forward(self, x: Tensor, *states: Tensor) -> Any:
            return self.layer(x, *states)

    names = []
    states = (torch.rand(2, 6),) * len(held(make(snn, name)))
    for backend in ("reference", "fused"):
        with snnfast.use_backend(backend), torch.no_grad():
            exported = torch.export.export(Step().eval(), (torch.rand(2, 6), *states))
        names.append([str(n.target) for n in exported.graph.nodes if n.op == "call_function"])
    assert all(name.startswith("aten.") for name in names[0])
    assert any(name.startswith("snnfast.") for name in names[1])


# What Synaptic adds to a compiled step is its second state; the options are the same code.
CASES = [("Leaky", "default"), ("Synaptic", "callable-learn")]
THOROUGH_CASES = [
    *(("Leaky", options) for options in OPTIONS if options != "default"),
    *(("Synaptic", options) for options in ("output", "nodelay-zero")),
]


@pytest.mark.parametrize(
    ("name", "options"), [*CASES, *(pytest.param(*case, marks=pytest.mark.thorough) for case in THOROUGH_CASES)]
)
def test_compiled_steps_are_one_graph_and_equal_eager(name: str, options: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager, compiled = (make(snn, name, **OPTIONS[options]) for _ in range(2))
    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for i in range(3):
        x = torch.rand(3, 6) * 2
        results = []
        for layer, call in ((eager, eager), (compiled, step)):
            layer.zero_grad()
            for state in layer.neuron.states:
                setattr(layer, state, getattr(layer, state).detach())
            leaf = x.clone().requires_grad_()
            out = as_tuple(call(leaf))
            total = sum(o.square().sum() for o in (*out, *held(layer)))
            total.backward()
            grads = (leaf.grad, *(p.grad for p in layer.parameters()))
            results.append((*(o.detach() for o in (*out, *held(layer))), *grads))
        for a, b in zip(*results, strict=True):
            assert_bits_equal(a, b, f"call {i}")
    torch._dynamo.reset()


# ---- what goes through snnTorch's list of all neurons, in compiled code


def reset_of_utils(net: nn.Module) -> None:
    snntorch.utils.reset(net)


def reset_of_the_class(net: nn.Module) -> None:
    snn.Leaky.reset_hidden()
    snn.Leaky.detach_hidden()


class Resets(nn.Module):
    def __init__(self, reset: Any) -> None:
        super().__init__()
        self.fc, self.lif, self.reset = nn.Linear(6, 5), snn.Leaky(beta=0.9, init_hidden=True), reset

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self)
        return torch.stack([self.lif(self.fc(step)) for step in x])


@pytest.mark.thorough
@pytest.mark.parametrize("reset", [reset_of_utils, reset_of_the_class])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_compiled_code_resets_states_after_networks_have_died(reset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])
    torch._dynamo.reset()
    x = torch.rand(3, 2, 6) * 3
    for _ in range(10):  # as in a cross-validation: more than torch.compile compiles one function
        net = Resets(reset)  # now the one before dies, and stays in the list
        gc.collect()
        eager = copy.deepcopy(net)
        compiled = torch.compile(net, backend="eager")
        for _ in range(2):
            found = compiled(x)
            assert_bits_equal(found, eager(x))
            found.sum().backward()
    torch._dynamo.reset()
