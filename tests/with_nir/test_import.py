"""Graphs of NIR as networks: those of other libraries, branches, and what no layer can be."""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_bits_equal
from torch import Tensor, nn

import snnfast
from snnfast import Leaky, MultiStep, Residual
from snnfast.spikingjelly import convert, neuron

nir = pytest.importorskip("nir", reason="nir is not installed; the extra 'nir' brings it")

from snnfast.nir import export_to_nir, import_from_nir  # noqa: E402

RESET: dict[str, Any] = {"reset_mechanism": "zero", "reset_delay": False}
DT = 1e-4


def ones(value: float = 1.0, size: int = 3) -> Any:
    return np.full(size, value)


def lif(**changed: Any) -> Any:
    values = {"tau": 10 * DT, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changed
    return nir.LIF(**{name: ones(v) if isinstance(v, float) else v for name, v in values.items()})


def cuba(**changed: Any) -> Any:
    values = {
        "tau_syn": 4 * DT,
        "tau_mem": 10 * DT,
        "r": 10.0,
        "w_in": 4.0,
        "v_leak": 0.0,
        "v_reset": 0.0,
        "v_threshold": 1.0,
    }
    return nir.CubaLIF(**{name: ones(v) for name, v in (values | changed).items()})


def affine(inputs: int = 3, outputs: int = 3) -> Any:
    return nir.Affine(np.random.randn(outputs, inputs), np.random.randn(outputs))


def graph(nodes: dict[str, Any], edges: str) -> Any:
    """A graph of edges such as ``a>b``, from ``i`` to ``o``."""
    nodes = {"i": nir.Input(np.array([3])), **nodes, "o": nir.Output(np.array([3]))}
    return nir.NIRGraph(nodes, [tuple(edge.split(">")) for edge in edges.split()])


def kinds(net: nn.Module) -> list[str]:
    return [type(module).__name__ for module in net]


# ---- other libraries


def stepwise(net: nn.Module, x: Tensor) -> Tensor:
    """All steps of what nirtorch makes of a graph."""
    state, spikes = None, []
    for step in x:
        out = net(step) if state is None else net(step, state)
        out, state = out if isinstance(out, tuple) else (out, None)
        spikes.append(out)
    return torch.stack(spikes)


@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "RLeaky"])
def test_snntorch_reads_our_graphs_and_we_read_its(name: str) -> None:
    snntorch = pytest.importorskip("snntorch")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    from snntorch.export_nir import export_to_nir as theirs_to_nir
    from snntorch.import_nir import import_from_nir as theirs_from_nir

    beta, alpha = torch.full((8,), 0.75), {"alpha": torch.full((8,), 0.6)} if "Synaptic" in name else {}
    connected: dict[str, Any] = {"linear_features": 8} if name[0] == "R" else {}
    hidden: dict[str, Any] = {**alpha, "beta": beta, "threshold": torch.ones(8), "init_hidden": True, **RESET}
    net = nn.Sequential(nn.Linear(6, 8), getattr(snntorch, name)(**hidden, **connected))
    x = 3 * torch.rand(9, 2, 6)
    with torch.no_grad(), redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        theirs = theirs_to_nir(net, torch.rand(1, 6), ignore_dims=[0])
        ours = export_to_nir(net, torch.rand(2, 6))
        expected = import_from_nir(ours)(x)[0]
        assert expected.any()
        assert_bits_equal(import_from_nir(theirs)(x)[0], expected)
        if not connected:  # its importer leaves the loop of an RLeaky to nirtorch, in an order of its own
            assert_bits_equal(stepwise(theirs_from_nir(ours).float(), x), expected)


@pytest.mark.parametrize("decay_input", [False, True])
def test_spikingjelly_reads_our_graphs_and_we_read_its(decay_input: bool) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly 2.0.0 is not installed")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    with warnings.catch_warnings(action="ignore"):
        from spikingjelly.activation_based import layer, nir_exchange
        from spikingjelly.activation_based import neuron as nodes
    net = nn.Sequential(
        layer.Conv2d(1, 2, 3),
        nodes.IFNode(0.5),
        layer.Flatten(),
        layer.Linear(32, 40),
        nodes.LIFNode(3.0, decay_input, 0.1),
    )
    x = 6 * torch.rand(7, 2, 1, 6, 6)
    theirs = nir_exchange.export_to_nir(net, x[0])
    ours = export_to_nir(net, x[0])
    with torch.no_grad():
        expected = torch.stack([net(step) for step in x])
        assert expected.any()
        for one in (ours, theirs):
            assert_bits_equal(import_from_nir(one, neurons="spikingjelly")(x)[0], expected)
        assert_bits_equal(stepwise(nir_exchange.import_from_nir(ours), x), expected)
    assert not convert(net)


# ---- layers


def test_a_chain_of_nodes() -> None:
    nodes = [affine(), lif(), nir.Linear(np.eye(3)), cuba(), affine(), nir.IF(ones(1 / DT), ones(), ones(0))]
    net = import_from_nir(nir.NIRGraph.from_list(*nodes))
    assert kinds(net) == ["Linear", "Leaky", "Linear", "Synaptic", "Linear", "Leaky"]
    assert list(net._modules) == ["affine", "lif", "linear", "cubalif", "affine_1", "if"]
    assert [layer.beta.item() for layer in (net[1], net[3], net[5])] == pytest.approx([0.9, 0.9, 1])
    assert net[3].alpha.item() == 0.75
    assert all(layer.reset_mechanism == "zero" and not layer.reset_delay for layer in net[1::2])


def test_values_of_each_neuron_and_options_reach_the_layers() -> None:
    surrogate = snnfast.surrogate.atan()
    one = nir.NIRGraph.from_list(lif(v_threshold=np.array([1.0, 2.0, 3.0])))
    net = import_from_nir(one, spike_grad=surrogate, dtype=torch.float64)
    assert net[0].threshold.tolist() == [1, 2, 3]
    assert net[0].threshold.dtype == net[0].beta.dtype == torch.float64
    assert net[0].spike_grad is surrogate
    assert import_from_nir(one, dt=2 * DT / 2)[0].beta.shape == ()
    node = nir.NIRGraph.from_list(lif(r=1.0, v_leak=0.2, v_reset=0.2))
    made = import_from_nir(node, neurons="spikingjelly", spike_grad=surrogate)[0]
    assert (made.tau, made.decay_input, made.v_reset, made.v_threshold) == (pytest.approx(10), True, 0.2, 1)
    assert made.surrogate_function is surrogate
    assert type(
        import_from_nir(nir.NIRGraph.from_list(nir.IF(ones(1 / DT), ones(), ones(0))), neurons="spikingjelly")[0]
    ) is (neuron.IFNode)


def test_names_that_a_network_has_itself() -> None:
    net = import_from_nir(
        graph({"forward": lif(), "a.b": affine(), "sources": lif()}, "i>forward forward>a.b a.b>sources sources>o")
    )
    assert list(net._modules) == ["forward_", "a_b", "sources_"]


def test_a_loop_of_neurons_and_one_product_is_a_recurrent_layer() -> None:
    back = affine()
    flat = graph({"a": affine(), "b": lif(), "w": back}, "i>a a>b b>w w>b b>o")
    inside = graph({"b": lif(), "w": back}, "i>b b>w w>b b>o")
    nested = graph({"a": flat.nodes["a"], "b": inside}, "i>a a>b b>o")
    diagonal = graph({"a": flat.nodes["a"], "b": cuba(), "w": nir.Linear(np.diag([0.5, 1, 2]))}, "i>a a>b b>w w>b b>o")
    nets = [import_from_nir(g) for g in (flat, nested, diagonal)]
    assert [kinds(net) for net in nets] == [["Linear", "RLeaky"]] * 2 + [["Linear", "RSynaptic"]]
    x = torch.rand(9, 2, 3)
    assert_bits_equal(nets[0](x)[0], nets[1](x)[0])
    assert_bits_equal(nets[0][1].recurrent.weight.detach(), torch.tensor(back.weight, dtype=torch.float32))
    assert nets[2][1].V.tolist() == [0.5, 1, 2]


# ---- branches


def leaky(beta: float = 0.9) -> Leaky:
    return Leaky(beta, **RESET)


class Diamond(nn.Module):
    """Two paths that cross: no sequence of skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.lifs = nn.ModuleList([leaky(0.5), leaky(0.6), leaky(0.7)])
        self.last = nn.Linear(4, 2)

    def unroll(self, x: Tensor) -> Tensor:
        one, two, three = self.lifs
        left, right = one.unroll(self.a(x))[0], two.unroll(self.b(x))[0]
        both = three.unroll(self.c(left) + self.d(right))[0]
        out: Tensor = self.last(both + left + x)
        return out

    forward = unroll


BRANCHES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "skip": (
        lambda: MultiStep(leaky(), Residual(nn.Linear(4, 4), leaky()), nn.Linear(4, 4)),
        ["Leaky", "Branches", "Linear"],
    ),
    "skip of the input": (
        lambda: MultiStep(Residual(nn.Linear(4, 4), leaky()), nn.Linear(4, 4)),
        ["Branches", "Linear"],
    ),
    "skip at the end": (lambda: MultiStep(leaky(), Residual(nn.Linear(4, 4))), ["Leaky", "Branches"]),
    "two": (
        lambda: MultiStep(leaky(), *(Residual(nn.Linear(4, 4), leaky()) for _ in range(2)), nn.Linear(4, 4), leaky()),
        ["Leaky", "Branches", "Branches", "Linear", "Leaky"],
    ),
    "nested": (
        lambda: MultiStep(
            leaky(), Residual(nn.Linear(4, 4), leaky(), Residual(nn.Linear(4, 4), leaky())), nn.Linear(4, 2)
        ),
        ["Leaky", "Branches", "Linear"],
    ),
    "with a shortcut": (
        lambda: MultiStep(leaky(), Residual(nn.Linear(4, 2), leaky(), shortcut=nn.Linear(4, 2)), leaky()),
        ["Leaky", "Branches", "Leaky"],
    ),
    "two paths": (
        lambda: MultiStep(nn.Linear(4, 4), Residual(leaky(0.5), shortcut=leaky(0.6))),
        ["Linear", "Branches"],
    ),
    "two paths to neurons": (
        lambda: MultiStep(nn.Linear(4, 4), Residual(leaky(0.5), shortcut=leaky(0.6)), leaky(0.7)),
        ["Linear", "Branches", "Leaky"],
    ),
    "crossing": (Diamond, ["Branches", "Linear"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_have_the_bits_of_the_network(name: str) -> None:
    make, expected = BRANCHES[name]
    net = make()
    back = import_from_nir(export_to_nir(net, torch.rand(2, 1, 4)))
    assert kinds(back) == expected
    x = 3 * torch.rand(11, 5, 4)
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (back(x), net(x))), strict=True):
        assert_bits_equal(one, other)
    (spk := back(x)[0] if isinstance(back(x), tuple) else back(x)).sum().backward()
    assert spk.any()
    assert all(p.grad is not None for p in back.parameters())


def test_ragged_batches_reach_the_neurons_of_branches() -> None:
    net = MultiStep(leaky(), Residual(nn.Linear(4, 4), leaky()), nn.Linear(4, 4), leaky())
    back = import_from_nir(export_to_nir(net, torch.rand(2, 1, 4)))
    x, lengths = 3 * torch.rand(11, 3, 4), torch.tensor([11, 0, 4])
    assert_bits_equal(back(x, lengths=lengths)[0], net(x, lengths=lengths)[0])


# ---- what is refused

REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "v_reset": (lif(v_reset=0.5), {}, ValueError, "x: v_reset: expected 0; neurons='spikingjelly'.*, got 0.5"),
    "v_leak": (lif(v_leak=0.5), {}, ValueError, "x: v_leak: expected 0;"),
    "r": (lif(r=1.0), {}, ValueError, r"x: r: expected 10 \(tau / dt, with dt=0.0001\); neurons=.*, got 1"),
    "dt": (lif(), {"dt": 1e-3 / 2}, ValueError, r"x: r: expected 2 \(tau / dt, with dt=0.0005\)"),
    "tau": (lif(tau=DT / 2, r=0.5), {}, ValueError, "x: tau: expected time constants of dt=0.0001 or more, got 5e-05"),
    "tau_syn": (cuba(tau_syn=DT / 2, w_in=0.5), {}, ValueError, "x: tau_syn: expected time constants"),
    "w_in": (cuba(w_in=1.0), {}, ValueError, r"x: w_in: expected 4 \(tau_syn / dt, with dt=0.0001\), got 1"),
    "IF.r": (nir.IF(ones(), ones(), ones(0)), {}, ValueError, r"x: r: expected 10000 \(1 / dt, with dt=.*\), got 1"),
    "LI": (nir.LI(ones(), ones(), ones()), {}, TypeError, "x: there is no layer for LI"),
    "Delay": (nir.Delay(ones()), {}, TypeError, "x: there is no layer for Delay"),
    "one value": (
        lif(v_threshold=np.array([1.0, 2.0, 3.0])), {"neurons": "spikingjelly"}, ValueError,
        "x: v_threshold: SpikingJelly's nodes have one number for all neurons, got 1 to 3",
    ),
    "leak and reset": (
        lif(v_leak=0.5, r=1.0), {"neurons": "spikingjelly"}, ValueError, r"x: v_leak: expected 0 \(v_reset\), got 0.5"
    ),
    "scaled": (lif(r=2.0), {"neurons": "spikingjelly"}, ValueError, r"x: r: expected 10 or 1 \(tau / dt"),
    "no node": (cuba(), {"neurons": "spikingjelly"}, TypeError, "x: CubaLIF is no node of snnfast.spikingjelly"),
    "neurons": (lif(), {"neurons": "norse"}, ValueError, "neurons: expected 'snnfast' or 'spikingjelly', got 'norse'"),
    "negative": (lif(), {"dt": -1.0}, ValueError, "dt: expected a positive number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_can_be_is_an_error_that_names_it(name: str) -> None:
    node, options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        import_from_nir(graph({"x": node}, "i>x x>o"), **options)


def test_graphs_that_are_no_network() -> None:
    with pytest.raises(TypeError, match=r"graph: expected a nir.NIRGraph or a path, got LIF"):
        import_from_nir(lif())
    with pytest.raises(ValueError, match=r"graph: .* -> .* is a loop"):
        import_from_nir(graph({"a": lif(), "b": affine(), "c": affine()}, "i>a a>b b>c c>a a>o"))
    two = nir.NIRGraph(
        {"i": nir.Input(np.array([3])), "j": nir.Input(np.array([3])), "a": lif(), "o": nir.Output(np.array([3]))},
        [("i", "a"), ("j", "a"), ("a", "o")],
    )
    dots = graph({"a.b": lif(), "a_b": lif()}, "i>a.b a.b>a_b a_b>o")
    with pytest.raises(ValueError, match="a_b: expected names that differ"):
        import_from_nir(dots)
    with pytest.raises(ValueError, match="graph: expected one Input, got 2"):
        import_from_nir(two)
    many = graph({"b": lif(), "c": lif(), "w": affine()}, "i>b b>c c>w w>c c>o")
    with pytest.raises(TypeError, match="n: SpikingJelly's nodes have no recurrence"):
        import_from_nir(
            graph({"n": graph({"b": lif(), "w": affine()}, "i>b b>w w>b b>o")}, "i>n n>o"), neurons="spikingjelly"
        )
    with pytest.raises(TypeError, match="n: a graph inside of a graph is expected"):
        import_from_nir(graph({"n": many}, "i>n n>o"))
