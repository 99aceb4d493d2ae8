"""The graph that torch.compile makes of calls of all time steps: a node for each, and the kernels of the eager call."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

import snnfast
from snnfast import Leaky, MultiStep
from snnfast._core import ops
from snnfast._images import conv2d, max_pool2d
from snnfast._unroll import graph, node
from snnfast.compiler.backend import merge

pytestmark = pytest.mark.needs_extension


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def dense() -> MultiStep:
    return MultiStep(nn.Linear(6, 40), Leaky(0.9, learn_beta=True), nn.Linear(40, 3), Leaky(0.8))


def convolutional() -> MultiStep:
    return MultiStep(nn.Conv2d(1, 32, 3), Leaky(0.9), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), Leaky(0.9))


def trained(net: nn.Module, call: Any, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    spk, mem = call(x)
    (spk.sum() + mem.square().sum()).backward()
    return [spk.detach(), mem.detach(), *(p.grad.clone() for p in net.parameters())]


def targets(gm: GraphModule) -> list[Any]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def test_each_unroll_is_one_node() -> None:
    seen: list[Any] = []

    def recording(gm: GraphModule, example_inputs: Any) -> Any:
        seen.extend(targets(gm))
        return gm.forward

    torch.compile(dense(), backend=recording, fullgraph=True)(torch.rand(5, 4, 6))
    assert seen.count(torch.ops.snnfast.unroll) == 2
    assert not any(isinstance(t, torch._ops.HigherOrderOperator) for t in seen)


def test_a_graph_that_stays_as_it_is_calls_what_the_eager_network_calls() -> None:
    seen: list[Any] = []

    def recording(gm: GraphModule, example_inputs: Any) -> Any:
        merged, report = merge(gm)
        assert merged is gm
        assert not report.warnings
        seen.extend(targets(merged))
        return merged.forward

    net, x = convolutional(), (torch.rand(9, 2, 1, 8, 8) < 0.05).float()
    found = trained(net, torch.compile(net, backend=recording, fullgraph=True), x)
    assert seen.count(graph.unroll) == 2
    assert seen.count(conv2d.conv2d) == 2
    assert seen.count(max_pool2d.node) == 1
    assert_all_bits_equal(found, trained(net, net, x))


def test_convolutions_of_a_graph_without_neurons_are_left_alone() -> None:
    def recording(gm: GraphModule, example_inputs: Any) -> Any:
        merged, _ = merge(gm)
        assert torch.conv2d in targets(merged)
        return merged.forward

    torch.compile(nn.Conv2d(1, 32, 3), backend=recording, fullgraph=True)(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("backend", ["snnfast", "aot_eager"])
def test_a_number_that_was_assigned_to_a_layer_compiles(backend: str) -> None:
    layer, x = Leaky(0.9), torch.rand(5, 4) * 2
    del layer.beta
    layer.beta = 0.3

    def loop(x: Tensor) -> Tensor:
        mem, record = torch.zeros(4), []
        for step in range(5):
            _, mem = layer(x[step], mem)
            record.append(mem)
        return torch.stack(record)

    for function in (loop, lambda x: layer.unroll(x)[1]):
        assert_bits_equal(torch.compile(function, backend=backend, fullgraph=True)(x), function(x))


def test_other_compilers_find_the_kernels_in_the_node() -> None:
    from torch._dynamo.backends.common import aot_autograd

    seen: list[Any] = []

    def recording(gm: GraphModule, example_inputs: Any) -> Any:
        seen.extend(targets(gm))
        return gm.forward

    net, x = dense(), torch.rand(64, 8, 6) * 3
    wanted = trained(net, net, x)
    found = trained(net, torch.compile(net, backend=aot_autograd(fw_compiler=recording), fullgraph=True), x)
    for op in (torch.ops.snnfast.leaky_forward.default, torch.ops.snnfast.leaky_backward.default):
        assert seen.count(op) == 2
    assert ops.spikes_linear in seen  # the spikes go on as bits
    assert ops.spikes_linear_weight in seen
    assert_all_close(found, wanted, relative=1e-6)


def test_compiled_code_follows_use_events() -> None:
    net, x = dense(), torch.rand(64, 8, 6) * 3
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for events, graphs in ((True, 1), (False, 2), (True, 2)):
        with snnfast.use_events(events):
            assert_all_close(trained(net, compiled, x), trained(net, net, x), relative=1e-6)
        assert counters["stats"]["unique_graphs"] == graphs


def test_a_cache_on_the_disk_is_one_of_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layer, x = Leaky(0.9), torch.rand(5, 4)

    def hits() -> int:
        torch._dynamo.reset()
        counters.clear()
        torch.compile(layer.unroll, fullgraph=True)(x)
        return int(counters["aot_autograd"]["autograd_cache_hit"])

    assert [hits(), hits()] == [0, 1]
    monkeypatch.setattr(node, "_digest", lambda: "other sources")
    assert hits() == 0
