"""``snnfast.spikingjelly``: the nodes of SpikingJelly where it is installed, and its names."""

import copy
import importlib.util
import itertools
import random
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from callables import function
from fresh import fresh
from fuzzing import wrong
from helpers import THOROUGH, assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close, gradients_of
from snntorch_checks import copies_of
from torch import Tensor, nn

import snnfast
from snnfast.spikingjelly import cext, convert, functional, layer, neuron, surrogate

NODES = {"IFNode": None, "LIFNode": "tau", "ParametricLIFNode": "init_tau"}
SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """``spikingjelly.activation_based`` of the installed SpikingJelly."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly 2.0.0 is not installed")
    with warnings.catch_warnings(action="ignore"):
        from spikingjelly import activation_based
        from spikingjelly.activation_based import functional, neuron, surrogate  # noqa: F401
    return activation_based


class Setting(NamedTuple):
    """A node, and what it is given."""

    kind: str
    options: dict[str, Any]
    surrogate: str
    alpha: tuple[float, ...]
    x: Tensor

    def node(self, neurons: Any, surrogates: Any, function: Any = None) -> Any:
        function = function or getattr(surrogates, self.surrogate)(*self.alpha)
        return getattr(neurons, self.kind)(surrogate_function=function, **self.options).to(self.x.dtype)


def drawn(seed: int) -> Setting:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.float64])
    options: dict[str, Any] = {
        "v_threshold": draw.choice([1.0, 0.5, 0.75, 1.3]),
        "v_reset": draw.choice([0.0, None, -0.25, 0.1, 0.5]),
        "detach_reset": draw.random() < 0.5,
        "step_mode": draw.choice("sm"),
        "store_v_seq": draw.random() < 0.5,
    }
    kind = draw.choice(list(NODES))
    if (tau := NODES[kind]) is not None:
        options[tau] = draw.choice([2.0, 1.5, 3.0, 1.1, 100.0, draw.uniform(1.01, 8)])
        options["decay_input"] = draw.random() < 0.5
    shape = draw.choice([1, 2, 4, 5, 17, 33]), *draw.choice([(1,), (7,), (3, 40), (2, 3, 5, 5)])
    x = torch.randn(shape, generator=generator, dtype=dtype) * draw.choice([0.5, 1.0, 3.0]) + draw.choice([0.0, 0.5])
    if draw.random() < 0.5:  # membranes at the threshold
        x = (4 * x).round() / 4
    alpha = () if draw.random() < 0.5 else (draw.choice([1.0, 2.0, 3.5]),)
    return Setting(kind, options, draw.choice(SURROGATES), alpha, x)


def outcome(node: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membranes of two calls without a reset between them; and gradients of a loss on all of these."""
    x = x.clone().requires_grad_()
    spikes = [torch.stack([node(step) for step in x]) if node.step_mode == "s" else node(x) for _ in range(2)]
    results = [*spikes, node.v] + [node.v_seq] * (node.v_seq is not None)
    return [t.detach() for t in results], gradients_of(results, [x, *node.parameters()])


def assert_same(found: Any, wanted: Any) -> None:
    for ours, theirs in zip(found[0], wanted[0], strict=True):
        assert_bits_equal(ours, theirs)
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        assert_close(ours, theirs, {4: 1e-5, 8: 1e-10}[theirs.element_size()], scale=1.0)


@pytest.mark.parametrize("seed", range(24))
def test_a_node_is_its_reference(device: torch.device, seed: int) -> None:
    setting = drawn(seed)
    x, nodes = setting.x.to(device), [setting.node(neuron, surrogate).to(device) for _ in range(2)]
    found = outcome(nodes[0], x)
    with snnfast.use_backend("reference"):
        assert_same(found, outcome(nodes[1], x))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(("kind", "tau"), [("IFNode", {}), ("LIFNode", {"tau": 2.0}), ("LIFNode", {"tau": 3.0})])
def test_a_gradient_of_membranes_alone_passes_through_the_resets(
    device: torch.device, kind: str, tau: dict[str, float], mode: str
) -> None:
    x = torch.randn(5, 3, 7, device=device, generator=torch.Generator(device).manual_seed(0)).requires_grad_()
    found = []
    for backend in ("fused", "reference"):
        node = getattr(neuron, kind)(v_threshold=0.5, v_reset=-0.25, step_mode=mode, **tau)
        with snnfast.use_backend(backend):
            for step in x if mode == "s" else [x]:
                node(step)  # nobody reads the spikes
        found.append(torch.autograd.grad(node.v.sum(), x)[0])
    assert_close(*found, 1e-5, scale=1.0)
    assert found[0].abs().min() > 0


@pytest.mark.parametrize("seed", range(2000 if THOROUGH else 100))
def test_a_node_is_spikingjellys(theirs: Any, seed: int, backend: str) -> None:
    setting = drawn(seed)
    node = setting.node(neuron, surrogate)
    if seed % 3 == 0:  # its own objects are recognised
        node.surrogate_function = setting.node(theirs.neuron, theirs.surrogate).surrogate_function
    assert_same(outcome(node, setting.x), outcome(setting.node(theirs.neuron, theirs.surrogate), setting.x))


@pytest.mark.parametrize("seed", range(5))
def test_any_callable_is_a_surrogate_function(theirs: Any, seed: int, backend: str) -> None:
    setting = drawn(seed)
    step = function(lambda z: (z >= 0).to(z.dtype), lambda grad, z: grad * (z.abs() < 0.5)).apply
    ours, others = setting.node(neuron, surrogate, step), setting.node(theirs.neuron, theirs.surrogate, step)
    assert_same(outcome(ours, setting.x), outcome(others, setting.x))


@pytest.mark.needs_extension
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_membranes_of_float32(dtype: torch.dtype) -> None:
    x = torch.randn(20, 4, 33).to(dtype)
    half, full = (neuron.LIFNode(3.0, step_mode="m") for _ in range(2))
    spikes = half(x)
    assert spikes.dtype == dtype
    assert half.v.dtype == torch.float32
    assert_bits_equal(spikes.float(), full(x.float()))
    assert_bits_equal(half.v, full.v)


CALLS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("IFNode", (), {"detach_reset": True}),
    ("IFNode", (1.0, None, surrogate.ATan(), True, "m", "cupy", False), {}),  # 0.0.0.0.14
    ("IFNode", (1.0, 0.0, surrogate.ATan(), True, "m", True), {}),  # 2.0
    ("IFNode", (), {"cupy_fp32_inference": True}),
    ("LIFNode", (), {"tau": 2.0, "detach_reset": True}),
    ("LIFNode", (2.0,), {"decay_input": False, "v_reset": None, "step_mode": "m", "backend": "cupy"}),
    ("LIFNode", (), {"tau": 1.5, "v_threshold": 0.5, "surrogate_function": surrogate.PiecewiseQuadratic()}),
    ("LIFNode", (), {"step_mode": "m", "store_v_seq": True, "backend": "triton"}),
    ("ParametricLIFNode", (), {"init_tau": 2.0, "detach_reset": True, "surrogate_function": surrogate.ATan()}),
    ("ParametricLIFNode", (), {"init_tau": 2.0, "v_reset": 0.0, "step_mode": "m", "backend": "torch"}),
    ("MultiStepIFNode", (), {"detach_reset": True, "backend": "cupy"}),
    ("MultiStepLIFNode", (), {"tau": 2.0, "detach_reset": True, "backend": "cupy"}),
    ("MultiStepLIFNode", (), {"tau": 2.0, "v_threshold": 0.5, "detach_reset": True, "backend": "cupy"}),
    ("MultiStepLIFNode", (), {"detach_reset": True, "v_reset": None, "backend": "torch", "lava_s_cale": 64}),
    ("MultiStepParametricLIFNode", (), {"init_tau": 2.0, "detach_reset": True, "backend": "cupy"}),
)
"""Constructor calls of all versions, as public networks have them."""


@pytest.mark.parametrize(("kind", "given", "named"), CALLS)
def test_constructor_calls_of_all_versions_work(kind: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    node = getattr(neuron, kind)(*given, **named)
    x = torch.rand(4, 2, 5)
    assert (node(x) if node.step_mode == "m" else node(x[0])).shape[-2:] == (2, 5)
    assert node.detach_reset == (named.get("detach_reset", len(given) > 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neuron.LIFNode(1.0), "tau: expected a time constant above 1, got 1.0"),
        (lambda: neuron.ParametricLIFNode(0.5), "init_tau: expected a time constant above 1, got 0.5"),
        (lambda: neuron.IFNode("1"), "v_threshold: expected a number, got str"),
        (lambda: neuron.IFNode(step_mode="t"), "step_mode: expected 's' or 'm', got 't'"),
        (lambda: functional.set_step_mode(neuron.MultiStepIFNode(), "s"), "step_mode: expected 'm', got 's'"),
        (lambda: neuron.IFNode(backend="tpu"), "backend: expected one of torch, cupy"),
        (lambda: neuron.IFNode(surrogate_function=surrogate.ATan), "surrogate_function: expected a callable"),
        (lambda: neuron.IFNode(surrogate_function=torch.sigmoid), "surrogate_function: expected a function whose"),
        (lambda: surrogate.ATan(-1.0), "alpha: expected a number above 0"),
        (lambda: surrogate.ATan(spiking=False), "spiking: expected True"),
        (lambda: layer.Conv2d(1, 1, 3, step_mode="m")(torch.rand(4, 1, 8, 8)), "x: expected all steps"),
        (lambda: layer.Dropout(1.0), "p: expected a probability"),
        (lambda: convert("net"), "net: expected a torch.nn.Module, got str"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value).startswith(message)


def network(neurons: Any = neuron, layers: Any = layer) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1, bias=False), layers.BatchNorm2d(4), neurons.LIFNode(2.0, detach_reset=True),
        layers.MaxPool2d(2), layers.Flatten(), layers.Linear(64, 6), neurons.ParametricLIFNode(), layers.VotingLayer(2),
    )  # fmt: skip
    nn.init.normal_(net[5].weight)
    return net


def test_a_network_step_by_step_is_the_one_over_all_steps() -> None:
    net, x = network().eval(), 9 * torch.rand(5, 2, 2, 8, 8)
    one_by_one = torch.stack([net(step) for step in x])
    assert 0 < one_by_one.mean() < 1
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    torch.testing.assert_close(net(x), one_by_one)
    going_on = net(x)
    functional.reset_net(net)
    assert all(node.v == 0.0 for node in net if isinstance(node, neuron.BaseNode))
    torch.testing.assert_close(net(x), one_by_one)
    assert not torch.equal(going_on, one_by_one)


def test_a_network_is_spikingjellys(theirs: Any) -> None:
    from spikingjelly.activation_based import layer as their_layer

    ours, others = network(), network(theirs.neuron, their_layer)
    assert list(ours.state_dict()) == list(others.state_dict())
    ours.load_state_dict(others.state_dict())
    others.load_state_dict(ours.state_dict())
    functional.set_step_mode(ours, "m")
    theirs.functional.set_step_mode(others, "m")
    converted = copy.deepcopy(others)
    assert convert(converted) == {}
    assert isinstance(converted[2], neuron.LIFNode)
    results = []
    for net in (ours, others, converted):
        x = (3 * torch.rand(5, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
        net(x).square().sum().backward()
        results.append((net(x).detach(), x.grad, *[p.grad for p in net.parameters()]))
    for found in (results[0], results[2]):
        assert_bits_equal(found[0], results[1][0])
        for a, b in zip(found[1:], results[1][1:], strict=True):
            assert_close(a, b, 1e-5, scale=1.0)


def test_convert_leaves_what_it_does_not_know(theirs: Any) -> None:
    from spikingjelly.activation_based import neuron as their_neuron

    class Own(their_neuron.QIFNode):  # type: ignore[misc]
        pass

    node = theirs.neuron.LIFNode(3.0, v_reset=None, step_mode="m", store_v_seq=True)
    x = torch.rand(3, 2, 4)
    spikes = node(x).clone()
    v, again = node.v, copy.deepcopy(node)(x)
    net = nn.Sequential(their_neuron.QIFNode(), Own(), node)
    assert convert(net) == {"0": "snnfast has no kernel for QIFNode", "1": "snnfast has no kernel for Own"}
    assert_bits_equal(node.v, v)
    assert_bits_equal(node(x), again)
    functional.reset_net(node)
    assert_bits_equal(node(x), spikes)
    assert_bits_equal(node.v_seq[-1], node.v)


DERIVED = """
import torch
from spikingjelly.activation_based import neuron

class LIF(neuron.LIFNode):
    def __init__(self, step_mode="m"):
        super().__init__(tau=3.0, detach_reset=True, step_mode=step_mode)
        self.label = "mine"
    def extra_repr(self):
        return f"{self.label}, {super().extra_repr()}"

class PLIF(neuron.ParametricLIFNode):
    def __init__(self, step_mode="m"):
        super().__init__(init_tau=3.0, v_reset=None, step_mode=step_mode)

class IF(neuron.IFNode):
    pass
"""


@pytest.fixture
def of_a_user(theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with classes that a user has derived from SpikingJelly's."""
    (tmp_path / "derived_nodes.py").write_text(DERIVED)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("derived_nodes")
    del sys.modules["derived_nodes"]


@pytest.mark.parametrize("name", ["LIF", "PLIF", "IF"])
def test_a_class_that_only_sets_defaults_is_converted_and_stays(theirs: Any, of_a_user: ModuleType, name: str) -> None:
    cls = getattr(of_a_user, name)
    others, x = cls(), 3 * torch.rand(5, 2, 4)
    others.step_mode = "m"
    with torch.no_grad():
        others(x[:2])
    node, shown = copy.deepcopy(others), repr(others)
    assert convert(node) == {}
    ours = next(kind for kind in (neuron.LIFNode, neuron.ParametricLIFNode, neuron.IFNode) if isinstance(node, kind))
    assert isinstance(node, cls)
    assert type(node).forward is ours.forward
    assert ("mine" in repr(node)) == ("mine" in shown)
    before = type(node)
    assert convert(node) == {}
    assert type(node) is before
    for found in (node, *copies_of(node)):
        assert type(found) is type(node)
        expected = copy.deepcopy(others)
        for functions in (functional, theirs.functional):
            spikes = found(x)
            assert_bits_equal(spikes, expected(x))
            assert_bits_equal(found.v, expected.v)
            for net in (found, expected):
                functions.detach_net(net)
                functions.reset_net(net)
        found.double()(x.double())
        assert found.v.dtype == torch.float64


def test_a_converted_class_is_loaded_in_another_process(theirs: Any, of_a_user: ModuleType, tmp_path: Path) -> None:
    node, x = of_a_user.LIF(), 3 * torch.rand(5, 2, 4)
    convert(node)
    torch.save(node, tmp_path / "node.pt")
    torch.save((x, node(x)), tmp_path / "expected.pt")
    code = """
import torch
node = torch.load("node.pt", weights_only=False)
x, spikes = torch.load("expected.pt")
print(torch.equal(node(x), spikes), type(node).__mro__[1].__module__, node.label)
"""
    assert fresh(code, tmp_path) == "True derived_nodes mine"


def test_a_class_that_computes_something_else_is_left(theirs: Any) -> None:
    nodes = theirs.neuron
    changes: dict[str, Any] = {
        name: lambda self, *args: None
        for name in (
            "forward", "single_step_forward", "multi_step_forward", "single_step_functional_forward", "reset",
            "_charge", "__setattr__",
        )
    }  # fmt: skip
    changes |= {"tau": property(lambda self: 2.0), "_values": 3}
    for name, value in changes.items():
        node = nodes.LIFNode()
        node.__class__ = type("Own", (nodes.LIFNode,), {name: value})
        assert convert(node) == {"": f"Own has its own {name}"}
    inherits = type("Inherits", (type("Own", (nodes.IFNode,), {"forward": changes["forward"]}),), {})
    replaced, with_state = nodes.LIFNode(), type("WithState", (nodes.LIFNode,), {})()
    replaced.multi_step_forward = lambda x_seq: x_seq
    with_state.register_memory("u", 0.0)
    net = nn.Sequential(inherits(), replaced, with_state)
    kinds = list(map(type, net))
    assert convert(net) == {
        "0": "Inherits has its own forward",
        "1": "its multi_step_forward was replaced",
        "2": "WithState has a state u",
    }
    assert list(map(type, net)) == kinds


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
def test_compile_converts_a_class_that_only_sets_defaults(theirs: Any, of_a_user: ModuleType) -> None:
    torch.manual_seed(0)
    node = of_a_user.LIF()
    del node.surrogate_function  # a module of SpikingJelly, by which it would be known as well
    node.surrogate_function = surrogate.ATan()
    x, net = 3 * torch.rand(7, 5, 6), nn.Sequential(nn.Linear(6, 30), node, nn.Linear(30, 4))
    expected = net(x)
    theirs.functional.reset_net(net)
    torch.testing.assert_close(snnfast.compile(net)(x), expected)
    assert isinstance(net[1], of_a_user.LIF)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 30), of_a_user.LIF("s"), nn.Linear(30, 4))

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            return torch.stack([self.net(step) for step in x])

    (graph,) = snnfast.explain(Loop(), x).graphs
    assert "7 steps of ifnode: one unroll, with the linear behind it" in graph.merged


def test_reset_begins_at_the_reset_value(theirs: Any) -> None:
    begin, x = torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.full((2, 2), 0.25)
    for value in (None, 0.3, begin):
        others, ours = (kind.LIFNode(v_reset=-0.25) for kind in (theirs.neuron, neuron))
        for node in (others, ours):
            node.v_reset = 0.4  # after a spike; what a reset leaves stays -0.25
            if value is not None:
                node.set_reset_value("v", value)
            theirs.functional.reset_net(node)
        converted = copy.deepcopy(others)
        assert convert(converted) == {}
        for node in (others, ours, converted):
            assert torch.equal(torch.as_tensor(node.get_reset_value("v")), torch.as_tensor(ours.get_reset_value("v")))
            node(x)
            functional.reset_net(node)
            node(x)
        assert_all_bits_equal([ours.v, converted.v], [others.v, others.v])
    assert_bits_equal(begin, torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    with pytest.raises(KeyError, match="u: the only state of a node is v"):
        ours.set_reset_value("u", 0.0)


def test_an_assigned_value_is_checked_at_once() -> None:
    node = neuron.LIFNode()
    with pytest.raises(TypeError, match="v_threshold: expected a number, got str"):
        node.v_threshold = "1"
    with pytest.raises(TypeError, match="tau: expected a number, got Tensor"):
        neuron.LIFNode().tau = torch.tensor(2.0)
    node.surrogate_function.spiking = False
    with pytest.raises(ValueError, match="spiking: expected True"):
        node(torch.rand(2, 3))


def test_a_membrane_keeps_its_graph_until_it_is_detached_or_reset() -> None:
    node, x = neuron.IFNode(10.0), torch.full((2, 3), 0.5, requires_grad=True)
    node(x)
    node(x)
    (gradient,) = torch.autograd.grad(node.v.sum(), x)
    assert_bits_equal(gradient, torch.full((2, 3), 2.0))
    functional.detach_net(node)
    node(x)
    (gradient,) = torch.autograd.grad(node.v.sum(), x)
    assert_bits_equal(gradient, torch.ones(2, 3))
    snnfast.reset(node)
    assert node.v == 0.0
    node(torch.rand(5, 3))  # another batch begins anew
    assert node.v.shape == (5, 3)


class Own(surrogate.Sigmoid):
    def derivative(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("kind", [*(getattr(surrogate, name) for name in SURROGATES), Own])
def test_a_surrogate_alone_is_that_of_a_node(kind: Any) -> None:
    made = kind()
    x = torch.linspace(-2, 3.9, 25).requires_grad_()
    found, wanted = made(x - 1), neuron.IFNode(surrogate_function=made)(x)
    assert_bits_equal(found.detach(), wanted.detach())
    assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)), 1e-6)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", SURROGATES)
def test_a_gradient_is_that_of_the_alpha_at_the_forward_pass(theirs: Any, name: str, mode: str) -> None:
    x, gradients = torch.linspace(-0.5, 1.5, 24).view(4, 6), []
    for neurons, surrogates in ((theirs.neuron, theirs.surrogate), (neuron, surrogate), (neuron, theirs.surrogate)):
        of_node, of_function = x.clone().requires_grad_(), x.clone().requires_grad_()
        node = neurons.IFNode(surrogate_function=getattr(surrogates, name)(2.0), step_mode=mode)
        made = node(of_node).sum() + node.surrogate_function(of_function - 1).sum()
        node.surrogate_function.alpha = 0.1
        made.backward()
        gradients.append((of_node.grad, of_function.grad))
    for found in gradients[1:]:
        assert_all_close(found, gradients[0], 1e-5)  # type: ignore[arg-type]


def test_a_node_can_be_copied_saved_and_moved() -> None:
    node = neuron.ParametricLIFNode(3.0, surrogate_function=surrogate.Erf(), step_mode="m", store_v_seq=True)
    node(torch.rand(4, 2, 3))
    for other in copies_of(node):
        assert_bits_equal(other.v, node.v.detach())
        assert_bits_equal(other(torch.ones(4, 2, 3)).detach(), copy.deepcopy(node)(torch.ones(4, 2, 3)).detach())
    node.double()
    assert node.v.dtype == torch.float64
    assert repr(node) == (
        "ParametricLIFNode(\n  v_threshold=1.0, v_reset=0.0, detach_reset=False, step_mode=m, tau=3\n"
        "  (surrogate_function): Erf(alpha=2.0)\n)"
    )


def test_dropout_keeps_its_mask_until_the_reset() -> None:
    torch.manual_seed(0)
    drop, x = layer.Dropout(0.5, "m"), torch.ones(6, 3, 50)
    first = drop(x)
    assert 0.3 < (first[0] == 0).float().mean() < 0.7
    assert all(torch.equal(step, first[0]) for step in itertools.chain(first, drop(x)))
    functional.reset_net(drop)
    assert not torch.equal(drop(x)[0], first[0])
    assert drop.eval()(x) is x


def test_the_nodes_of_cext_have_its_defaults() -> None:
    x, found = torch.linspace(-1, 3, 60).view(4, 15), []
    for node in (cext.MultiStepIFNode(detach_reset=True), neuron.MultiStepIFNode(1.0, 0.0, surrogate.ATan(), True)):
        given = x.clone().requires_grad_()
        found.append((node(given), *torch.autograd.grad(node.v.sum(), given, retain_graph=True)))
    assert_all_bits_equal(*found)
    assert cext.MultiStepLIFNode().tau == cext.LIFNode().tau == 100
    node = cext.ParametricLIFNode(surrogate_function="Sigmoid", alpha=3.0)
    assert isinstance(node.surrogate_function, surrogate.Sigmoid)
    with pytest.raises(ValueError, match="surrogate_function: expected 'ATan' or 'Sigmoid', got 'Erf'"):
        cext.IFNode(surrogate_function="Erf")


@pytest.mark.parametrize("layers", [1, 2])
def test_checkpoints_of_old_containers_load(layers: int) -> None:
    old = nn.Module()
    given = [nn.Linear(3, 3) for _ in range(layers)]
    old.module = given[0] if layers == 1 else nn.Sequential(*given)
    container = layer.SeqToANNContainer(*(nn.Linear(3, 3) for _ in range(layers)))
    container.load_state_dict(old.state_dict())
    assert_all_bits_equal(container.parameters(), old.parameters())
    assert (container.module if layers == 1 else container.module[1]) is container[-1]


def test_containers() -> None:
    x = torch.rand(4, 2, 3)
    linear = nn.Linear(3, 5)
    whole = layer.SeqToANNContainer(linear, nn.ReLU())
    steps = layer.MultiStepContainer(linear, nn.ReLU())
    either = layer.StepModeContainer(False, "m", linear, nn.ReLU())
    for container in (whole, steps, either):
        found = container(x)
        torch.testing.assert_close(found, linear(x).relu())
        assert_all_close(*(gradients_of([y], [linear.weight, linear.bias]) for y in (found, linear(x).relu())), 1e-6)
    net = nn.Sequential(layer.MultiStepContainer(neuron.IFNode()), neuron.IFNode())
    functional.set_step_mode(net, "m")
    assert net[0][0].step_mode == "s"
    assert net[1].step_mode == "m"
    functional.set_backend(net, "cupy", neuron.LIFNode)
    assert net[1].backend == "torch"
    functional.set_backend(net, "cupy", neuron.IFNode)
    assert net[1].backend == "cupy"


class TimeLast(nn.Module):
    """A container of those that take time as the last dimension."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self.container = container

    def forward(self, x: Tensor) -> Any:
        return self.container(x.movedim(0, -1)).movedim(-1, 0)


# With SpikingJelly's layers, and nodes of either.
MIXED: dict[str, Any] = {
    "linear recurrent": lambda L, N: L.LinearRecurrentContainer(N.LIFNode(v_threshold=0.4), 4, 4),
    "element-wise recurrent": lambda L, N: L.ElementWiseRecurrentContainer(N.IFNode(), torch.add),
    "steps": lambda L, N: L.MultiStepContainer(nn.Linear(4, 4), N.LIFNode(v_threshold=0.4)),
    "one batch": lambda L, N: [
        L.SeqToANNContainer(L.Linear(4, 4), nn.BatchNorm1d(4)), N.ParametricLIFNode(v_threshold=0.2)
    ],
    "stateful": lambda L, N: L.StepModeContainer(True, "s", nn.Linear(4, 4), N.LIFNode(v_threshold=0.4)),
    "stateless": lambda L, N: [L.StepModeContainer(False, "s", L.Linear(4, 4)), N.LIFNode(v_threshold=0.4)],
    "steps, time last": lambda L, N: TimeLast(L.TLastMultiStepContainer(L.Linear(4, 4), N.IFNode())),
    "one batch, time last": lambda L, N: [TimeLast(L.TLastSeqToANNContainer(L.Linear(4, 4))), N.IFNode()],
    "filter": lambda L, N: [L.SynapseFilter(3.0, learnable=True), L.Linear(4, 4), N.LIFNode(), L.SynapseFilter(2.0)],
    "nested": lambda L, N: [
        nn.Sequential(L.LinearRecurrentContainer(nn.Sequential(nn.Linear(4, 4), N.IFNode(0.3)), 4, 4)),
        L.TemporalWiseAttention(6, 2, 2), N.LIFNode(v_threshold=0.4),
    ],
}  # fmt: skip


def trained(net: nn.Module, functions: Any) -> tuple[list[Any], list[Tensor]]:
    """The step modes that a function sets, and the numbers of two training steps with a reset between them."""
    modes: list[Any] = []
    for mode in ("s", "m") if not any(type(m).__name__ == "TemporalWiseAttention" for m in net.modules()) else ("m",):
        functions.set_step_mode(net, mode)
        modes += [(mode, name, getattr(module, "step_mode", None)) for name, module in net.named_modules()]
    x = (2 * torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(1))).requires_grad_()
    results = []
    for _ in range(2):
        spikes = net(x)
        results += [spikes.detach(), *torch.autograd.grad(spikes.square().sum(), [x, *net.parameters()])]
        functions.reset_net(net)
    return modes, results


@pytest.mark.parametrize("name", MIXED)
def test_networks_of_both_are_handled_by_either_functions(theirs: Any, name: str) -> None:
    from spikingjelly.activation_based import layer as their_layer

    def made(neurons: Any) -> nn.Module:
        torch.manual_seed(0)
        found = MIXED[name](their_layer, neurons)
        net = nn.Sequential(*(found if isinstance(found, list) else [found]))
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.3, 0.7)
        return net

    converted = made(theirs.neuron)
    assert convert(converted) == {}
    modes, results = trained(made(theirs.neuron), theirs.functional)
    assert len(results[0].unique()) > 1
    for net in (made(theirs.neuron), made(neuron), converted):
        for functions in (functional, theirs.functional):
            ours = trained(net, functions)
            assert ours[0] == modes
            for a, b in zip(ours[1], results, strict=True):
                assert_close(a, b, 1e-5, scale=1.0)


def test_detach_net_reaches_spikingjellys_modules(theirs: Any) -> None:
    from spikingjelly.activation_based import layer as their_layer

    x, net = torch.rand(2, 3, requires_grad=True), nn.Sequential(their_layer.SynapseFilter(), neuron.IFNode())
    net(x)
    functional.detach_net(net)
    assert not net[0].out_i.requires_grad
    assert not net[1].v.requires_grad


def test_our_containers_refuse_a_step_mode_that_was_set_inside(theirs: Any) -> None:
    for container in (layer.MultiStepContainer(neuron.IFNode()), layer.StepModeContainer(True, "m", neuron.IFNode())):
        theirs.functional.set_step_mode(container, "m")  # which knows SpikingJelly's containers only
        with pytest.raises(ValueError, match=r"step_mode: expected 's' of the layers in a .*Container, got 'm' of 0"):
            container(torch.rand(2, 3, 4))


def test_seq_to_ann_forward_takes_and_returns_tuples() -> None:
    a, b = torch.rand(4, 2, 3), torch.rand(4, 2, 5)
    found = functional.seq_to_ann_forward((a, b), lambda a, b: (a + 1, b.sum(1)))
    assert_all_bits_equal(found, (a + 1, b.flatten(0, 1).sum(1).view(4, 2)))
    with pytest.raises(ValueError, match="x_seq: expected tensors with the same"):
        functional.seq_to_ann_forward((a, b[:3]), torch.add)


@pytest.mark.needs_extension
def test_backward_keeps_a_current_of_a_node_and_a_byte_of_a_maximum() -> None:
    x, kept = torch.rand(4, 2, 8, 8, 8, requires_grad=True), []
    net = nn.Sequential(neuron.LIFNode(), layer.MaxPool2d(2), layer.SeqToANNContainer(nn.MaxPool2d(2)))
    functional.set_step_mode(net, "m")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        net(x)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(sizes.values()) < (4 + 1 / 4 + 1 / 16 + 0.1) * x.numel()


@pytest.mark.needs_extension
def test_multistep_hands_the_spikes_on_as_bits() -> None:
    node = neuron.IFNode(1.0, surrogate_function=surrogate.ATan())  # membranes at the threshold, too
    net = snnfast.MultiStep(node, nn.Linear(40, 3))
    x = (torch.randint(0, 3, (20, 20, 40)) / 2).requires_grad_()
    outs = []
    for events in (True, False):
        functional.reset_net(net)
        with snnfast.use_events(events):
            out = net(x)
        outs.append((out, *torch.autograd.grad(out.square().sum(), [x, net[1].weight])))
    torch.testing.assert_close(*outs)


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
def test_a_loop_over_steps_becomes_one_call() -> None:
    net = nn.Sequential(nn.Linear(6, 30), neuron.LIFNode(2.0), nn.Linear(30, 4), neuron.ParametricLIFNode())

    def loop(x: Tensor) -> Tensor:
        functional.reset_net(net)
        return torch.stack([net(step) for step in x])

    x = torch.rand(5, 5, 6) * 4
    expected = loop(x)
    compiled = snnfast.compile(loop)
    torch.testing.assert_close(compiled(x), expected)
    (graph,) = snnfast.explain(loop, x).graphs
    assert [line for line in graph.merged if "ifnode" in line] == [
        "5 steps of ifnode: one unroll, with the linear behind it",
        "5 steps of ifnode: one unroll",
    ]


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
def test_compile_converts_the_nodes_of_an_installed_spikingjelly(theirs: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 30), theirs.neuron.IFNode(), nn.Linear(30, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.net(step) for step in x])

    x, net = 3 * torch.rand(7, 5, 6), Loop()
    expected = net(x)
    theirs.functional.reset_net(net)
    torch.testing.assert_close(snnfast.compile(net)(x), expected)
    assert isinstance(net.net[1], neuron.IFNode)
    functional.reset_net(net)
    (graph,) = snnfast.explain(net, x).graphs
    assert "7 steps of ifnode: one unroll, with the linear behind it" in graph.merged


class AllSteps(nn.Module):
    """A network in step mode "m": layers in a sequence, and behind it."""

    def __init__(self, layers: Any, nodes: Any, functions: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            layers.Conv2d(2, 16, 3, padding=1, bias=False), layers.BatchNorm2d(16), nodes.IFNode(v_threshold=0.3),
            layers.MaxPool2d(2),
            nn.Sequential(layers.SeqToANNContainer(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))),
            nodes.IFNode(v_threshold=0.3), layers.SeqToANNContainer(nn.MaxPool2d(2)),
        )  # fmt: skip
        self.conv, self.norm, self.pool = layers.Conv2d(16, 32, 3), layers.BatchNorm2d(32), layers.MaxPool2d(2)
        self.resets = functions.reset_net
        functions.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        self.resets(self)
        return self.pool(self.norm(self.conv(self.net(x))))  # type: ignore[no-any-return]


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_compiled_network_in_step_mode_m_runs_on_the_kernels(theirs: Any, whose: str) -> None:
    from spikingjelly.activation_based import layer as their_layer

    of_them = their_layer, theirs.neuron, theirs.functional
    net = AllSteps(*(of_them if whose == "theirs" else (layer, neuron, functional)))
    kinds, x = list(map(type, net.modules())), (torch.rand(4, 16, 2, 48, 48) < 0.2).float()
    (graph,) = snnfast.explain(net, x).graphs
    both = "4 steps of ifnode: one call with the batch normalisation before it, with the pooling behind it"
    assert graph.merged == [both, both, "3 x conv2d: the channels of a pixel side by side"]
    assert snnfast.compile(net)(x).is_contiguous()
    nodes = {theirs.neuron.IFNode: neuron.IFNode}
    assert [type(module) for module in net.modules()] == [nodes.get(kind, kind) for kind in kinds]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_network_of_spikingjellys_layers_in_step_mode_m_is_that_network(theirs: Any) -> None:
    from spikingjelly.activation_based import layer as their_layer

    plain, net = (AllSteps(their_layer, theirs.neuron, theirs.functional).double() for _ in range(2))
    compiled, x = snnfast.compile(net), (torch.rand(4, 16, 2, 24, 24) < 0.2).double()
    for training in (True, True, False):
        found = []
        for each in (compiled, plain):
            each.train(training)
            result = each(x)
            grads = torch.autograd.grad(result.square().sum(), list(each.parameters()))
            found.append([result.detach(), *grads, *each.buffers()])
        torch.testing.assert_close(*found)
    for each in (compiled, plain):
        with pytest.raises(ValueError, match="expected x with shape"):
            each(x[0])
    theirs.functional.reset_net(plain)
    functional.reset_net(net)
    steps = [torch.stack([part(step) for step in x[:, :, :, :8, :8]]) for part in map(in_mode_s, (net, plain))]
    torch.testing.assert_close(*steps)


MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "spiking_vgg.spiking_vgg11_bn": ({"pretrained": False}, 8),  # two nodes are behind a Linear
    "parametric_lif_net.CIFAR10Net": ({"channels": 8}, 6),
    "sew_resnet.sew_resnet18": ({"pretrained": False, "cnf": "ADD"}, 20),
    "spiking_resnet.spiking_resnet18": ({"pretrained": False}, 9),  # the others are behind a sum
    "ms_resnet.ms_resnet18": ({}, 8),
}
"""Networks of SpikingJelly, their options, and how many of their nodes alone read a batch normalisation."""

LIKE_OTHERS = ("spiking_vgg.spiking_vgg11_bn", "spiking_resnet.spiking_resnet18")


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name in LIKE_OTHERS else name for name in MODELS]
)
def test_the_nodes_of_spikingjellys_models_are_one_call_with_the_normalisation_before_them(
    name: str, theirs: Any
) -> None:
    module, kind = name.split(".")
    make = getattr(importlib.import_module(f"spikingjelly.activation_based.model.{module}"), kind)
    options, number = MODELS[name]
    own = {"spiking_neuron": theirs.neuron.LIFNode, "surrogate_function": theirs.surrogate.ATan(), "detach_reset": True}
    net = make(**own, **options)
    theirs.functional.set_step_mode(net, "m")
    (graph,) = snnfast.explain(net, torch.rand(2, 2, 3, 32, 32)).graphs
    assert sum("one call with the batch normalisation before it" in line for line in graph.merged) == number


def in_mode_s(net: AllSteps) -> nn.Module:
    """The first layers of a network, step by step."""
    functional.set_step_mode(net, "s")
    return net.net[:4]


class Steps(nn.Module):
    """A loop over time, which resets the network first."""

    def __init__(self, net: nn.Module, resets: Any = functional.reset_net) -> None:
        super().__init__()
        self.net, self.resets = net, resets

    def forward(self, x: Tensor) -> Tensor:
        self.resets(self)
        return torch.stack([self.net(step) for step in x])


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", ["reset_net", "detach_net"])
def test_spikingjellys_own_functions_do_not_split_a_loop(theirs: Any, name: str) -> None:
    from spikingjelly.activation_based import layer as their_layer

    net = nn.Sequential(their_layer.SynapseFilter(), theirs.neuron.LIFNode())
    (graph,) = snnfast.explain(Steps(net, getattr(theirs.functional, name)), torch.rand(4, 2, 3)).graphs
    assert "4 steps of ifnode: one unroll" in graph.merged


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", ["linear recurrent", "element-wise recurrent"])
def test_a_recurrent_container_becomes_one_call(theirs: Any, name: str) -> None:
    from spikingjelly.activation_based import layer as their_layer

    torch.manual_seed(0)
    net = Steps(MIXED[name](their_layer, theirs.neuron)).double()
    x = (2 * torch.rand(6, 3, 4, dtype=torch.float64)).requires_grad_()
    spikes = net(x)
    wanted = [spikes.detach(), *gradients_of([spikes], [x, *net.parameters()])]
    functional.reset_net(net)  # a state with a graph can't be copied
    (graph,) = snnfast.explain(net, x).graphs
    assert any("one recurrence" in line for line in graph.merged)
    assert graph.repeated == []
    spikes = snnfast.compile(net)(x)
    assert_all_close([spikes.detach(), *gradients_of([spikes], [x, *net.parameters()])], wanted, 1e-10)


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", ["ATan", "Erf"])
def test_what_is_assigned_takes_effect_in_a_compiled_loop(name: str) -> None:
    node = neuron.LIFNode(3.0, surrogate_function=getattr(surrogate, name)())
    node.v_threshold = 0.5
    net, x = Steps(node), (2 * torch.rand(6, 2, 5)).requires_grad_()
    compiled = snnfast.compile(copy.deepcopy(net))

    def compare() -> None:
        spikes = [each(x) for each in (net, compiled)]
        gradients = [
            torch.autograd.grad(s.sum() + each.net.v.sum(), x)[0]
            for s, each in zip(spikes, (net, compiled), strict=True)
        ]
        assert_bits_equal(*(s.detach() for s in spikes))
        assert_close(*gradients, 1e-5, scale=1.0)

    for _ in range(6):
        compare()
    assert snnfast.status(compiled).training == "replayed"
    for attribute, value in (("v_threshold", 0.8), ("v_reset", 0.2), ("tau", 1.5), ("detach_reset", True)):
        setattr(node, attribute, value)
        setattr(compiled.net, attribute, value)
        compare()
    for each in (net, compiled):
        each.net.surrogate_function.alpha = 0.5
        each.net.tau = 4.0
    compare()


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore")  # of networks in which nothing is merged
@pytest.mark.parametrize(("compiled", "number"), [(False, 2000 if THOROUGH else 60), (True, 100 if THOROUGH else 2)])
def test_random_sessions_are_spikingjellys(theirs: Any, compiled: bool, number: int) -> None:
    from spikingjelly_sessions import outcome

    assert wrong(partial(outcome, compiled=compiled), range(number)) == []


@pytest.mark.needs_extension
def test_a_convolution_behind_a_node_goes_by_its_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    share = torch.ops.snnfast.share_of_events
    monkeypatch.setattr(torch.ops.snnfast, "share_of_events", lambda x: calls.append(x.shape) or share(x))
    node, conv = neuron.IFNode(4.0, step_mode="m"), layer.Conv2d(16, 32, 3, padding=1, step_mode="m")
    x = torch.rand(6, 2, 8, 8, 16).permute(0, 1, 4, 2, 3)
    spikes = node(x)
    assert 0 < spikes.mean() < 1 / 8
    torch.testing.assert_close(conv(spikes).flatten(0, 1), nn.Conv2d.forward(conv, spikes.flatten(0, 1).contiguous()))
    assert calls == [(12, 16, 8, 8)]


def test_enable_compat_stands_in_for_spikingjelly() -> None:
    printed = fresh(
        "import snnfast.spikingjelly as sj\n"
        "sj.enable_compat()\n"
        "sj.enable_compat()\n"
        "import torch\n"
        "from spikingjelly.clock_driven.neuron import MultiStepLIFNode\n"
        "from spikingjelly.clock_driven import layer, functional\n"
        "from spikingjelly.activation_based import neuron, surrogate, base\n"
        "from spikingjelly.cext.neuron import MultiStepIFNode\n"
        "import spikingjelly.activation_based.surrogate\n"
        "node = MultiStepLIFNode(tau=2.0, detach_reset=True, backend='cupy')\n"
        "print(node(torch.ones(3, 1)).flatten().tolist())\n"
        "try:\n    import spikingjelly.datasets\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    assert printed == "[0.0, 0.0, 0.0]\nNo module named 'spikingjelly.datasets'"


@pytest.mark.skipif(importlib.util.find_spec("spikingjelly") is None, reason="SpikingJelly is not installed")
def test_enable_compat_does_not_hide_what_is_imported() -> None:
    with pytest.raises(RuntimeError, match="SpikingJelly itself was imported already"):
        fresh("import spikingjelly\nimport snnfast.spikingjelly as sj\nsj.enable_compat()")
