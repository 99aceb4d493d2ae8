"""Networks as graphs of NIR: what is exported, how a network may be called, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_bits_equal
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

import snnfast
from snnfast import Leaky, MultiStep, Residual, RLeaky, RSynaptic, Synaptic
from snnfast.spikingjelly import functional, layer, neuron

nir = pytest.importorskip("nir", reason="nir is not installed; the extra 'nir' brings it")

from snnfast.nir import export_to_nir, import_from_nir  # noqa: E402

RESET: dict[str, Any] = {"reset_mechanism": "zero", "reset_delay": False}
HIDDEN = RESET | {"init_hidden": True}


def leaky(*args: Any, **kwargs: Any) -> Leaky:
    return Leaky(*(args or (0.9,)), **(RESET | kwargs))


class Loop(nn.Module):
    """Two layers in a loop over time, the second with connections of the user's own that lead back to it."""

    def __init__(self, library: Any = snnfast) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), library.Leaky(0.9, **RESET)
        self.fc2, self.back, self.lif2 = nn.Linear(8, 4), nn.Linear(4, 4), library.Leaky(0.7, threshold=0.5, **RESET)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [T, B, 6]
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spk2 = x.new_zeros(x.size(1), 4)
        spikes, membranes = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1) + self.back(spk2), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class Stepwise(nn.Module):
    """A network that is called once a step, for all steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(step) for step in x])


def images() -> MultiStep:
    return MultiStep(
        nn.Conv2d(1, 4, 3), leaky(),
        Residual(nn.Conv2d(4, 4, 3, padding=1, bias=False), leaky(0.3)),
        Residual(nn.Conv2d(4, 4, 3, padding="same"), leaky(threshold=0.5), shortcut=nn.Conv2d(4, 4, 1)),
        nn.AvgPool2d(2, divisor_override=1), nn.Dropout(), nn.Flatten(), nn.Linear(36, 5, bias=False), leaky(1.0),
    )  # fmt: skip


def spikingjellys(mode: str) -> nn.Module:
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3), neuron.LIFNode(3.1, v_threshold=0.1), layer.AvgPool2d(2), layer.Flatten(),
        layer.Dropout(), layer.Linear(36, 10), neuron.LIFNode(2.0, False, v_threshold=0.3), layer.Linear(10, 4),
        neuron.IFNode(v_reset=-0.1, v_threshold=0.2),
    )  # fmt: skip
    functional.set_step_mode(net, mode)
    return net if mode == "m" else Stepwise(net)


def snntorchs(drop_in: bool) -> nn.Module:
    snntorch = pytest.importorskip("snntorch")
    return Loop(__import__("snnfast.snntorch").snntorch if drop_in else snntorch)


per_neuron = torch.linspace(0.2, 0.95, 5)
NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "loop": (Loop, (6,)),
    "compiled": (lambda: snnfast.compile(Loop()), (6,)),
    "torch.compile": (lambda: torch.compile(Loop(), backend="eager"), (6,)),
    "snntorch": (lambda: snntorchs(False), (6,)),
    "drop-in": (lambda: snntorchs(True), (6,)),
    "step by step": (
        lambda: Stepwise(nn.Sequential(nn.Linear(6, 5), Leaky(0.9, **HIDDEN), nn.Linear(5, 3), Leaky(0.9, **HIDDEN))),
        (6,),
    ),
    "images": (images, (1, 8, 8)),
    "of each neuron": (
        lambda: MultiStep(nn.Linear(6, 5), leaky(per_neuron, threshold=per_neuron), Synaptic(per_neuron, 0.6, **RESET)),
        (6,),
    ),
    "of each pixel": (lambda: MultiStep(nn.Conv1d(2, 3, 3), leaky(torch.rand(3, 1), threshold=0.2)), (2, 7)),
    "recurrent": (
        lambda: MultiStep(
            RLeaky(0.8, linear_features=6, **RESET), RSynaptic(0.7, 0.6, linear_features=6, **RESET),
            RLeaky(0.8, V=torch.linspace(-1, 1, 6), all_to_all=False, **RESET), RLeaky(1.0, linear_features=6, **RESET),
        ),
        (6,),
    ),
    "recurrent images": (
        lambda: MultiStep(nn.Conv2d(1, 3, 3), RLeaky(0.8, conv2d_channels=3, kernel_size=3, **RESET)), (1, 6, 6)
    ),
    "spikingjelly, all steps": (lambda: spikingjellys("m"), (1, 8, 8)),
    "spikingjelly, step by step": (lambda: spikingjellys("s"), (1, 8, 8)),
}  # fmt: skip


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_there_and_back_has_the_same_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if name == "snntorch" and dtype == torch.float64:
        pytest.skip("spikes of snnTorch are float32, which the next layer does not take")
    make, shape = NETWORKS[name]
    net = make().eval().to(dtype)
    nir.write(tmp_path / "net.nir", export_to_nir(net, torch.rand(2, 1, *shape, dtype=dtype)))
    neurons = "spikingjelly" if "spikingjelly" in name else "snnfast"
    back = import_from_nir(tmp_path / "net.nir", neurons=neurons, dtype=dtype)
    x = 3 * torch.rand(12, 3, *shape, dtype=dtype)
    with torch.no_grad():
        spk, expected = first(back(x)), first(net(x))
    assert_bits_equal(spk, expected)
    assert 0 < expected.mean() < 1
    again = import_from_nir(export_to_nir(back, x[:2]), neurons=neurons, dtype=dtype)
    with torch.no_grad():
        assert_bits_equal(first(again(x)), expected)


def test_an_export_leaves_the_network_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), leaky(init_hidden=True)).train()
    net(torch.ones(3, 6)).sum().backward()
    net[2].mem.retain_grad()
    before, held = {k: v.clone() for k, v in net.state_dict().items()}, net[2].mem
    attributes = [set(vars(module)) for module in net.modules()]
    export_to_nir(net, torch.rand(3, 6))
    assert net[2].mem is held
    assert net.training
    assert [set(vars(module)) for module in net.modules()] == attributes
    for key, value in net.state_dict().items():
        assert_bits_equal(value, before[key], key)


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.5])
def test_every_decay_comes_back(dt: float) -> None:
    beta = torch.cat([torch.linspace(0, 1, 4001)[:-1], torch.rand(4000), torch.rand(100) * 1e-3])
    graph = export_to_nir(Leaky(beta, **RESET), torch.rand(1, len(beta)), dt=dt)
    assert_bits_equal(import_from_nir(graph, dt=dt)[0].beta, beta)


def test_the_node_of_leaky_is_its_equation_in_continuous_time() -> None:
    """A step of the network is one of Euler's method for the equation of the node, with a step of 1 / 1000 of it."""
    lif = export_to_nir(leaky(0.75, threshold=1.5), torch.rand(1, 3), dt=1e-3).nodes["leaky"]
    assert type(lif) is nir.LIF
    v, x = np.array([0.5, 1.0, -1.0]), np.array([0.25, 1.0, 2.0])
    mem = torch.tensor(v, dtype=torch.float32)
    expected = leaky(0.75, threshold=1.5)(torch.tensor(x, dtype=torch.float32), mem)
    after = v + 1e-3 / lif.tau * (lif.v_leak - v + lif.r * x)
    spikes = after > lif.v_threshold
    assert_bits_equal(torch.tensor(spikes, dtype=torch.float32), expected[0])
    np.testing.assert_allclose(np.where(spikes, lif.v_reset, after), expected[1], rtol=1e-6)
    assert spikes.tolist() == [False, True, False]


@snnfast.neuron
def own(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    mem = 0.9 * mem + x
    return snnfast.spike(mem - 1, snnfast.surrogate.atan()), mem


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "reset_mechanism": (lambda: Leaky(0.9, reset_delay=False), ValueError, "0: reset_mechanism: .*'zero'.*'subtract'"),
    "reset_delay": (lambda: Leaky(0.9, reset_mechanism="zero"), ValueError, "0: reset_delay: .*False"),
    "inhibition": (lambda: leaky(inhibition=True), ValueError, "0: inhibition"),
    "state_quant": (lambda: leaky(state_quant=lambda x: x.round()), ValueError, "0: state_quant"),
    "graded": (lambda: leaky(graded_spikes_factor=2.0), ValueError, "0: graded_spikes_factor"),
    "beta": (lambda: leaky(torch.tensor([1, 1, 1, 1, 1, 0.5])), ValueError, "0: beta: 1 is an infinite time"),
    "alpha": (lambda: Synaptic(1.0, 0.5, **RESET), ValueError, "0: alpha: 1 is an infinite time"),
    "of a sample": (lambda: leaky(torch.rand(2, 6)), ValueError, "0: beta: expected one number, or one for each"),
    "Alpha": (lambda: snnfast.Alpha(0.9, 0.8), TypeError, "0: Alpha has no node in NIR"),
    "own forward": (
        lambda: type("Own", (Leaky,), {"forward": lambda self, x: x})(0.5),
        TypeError,
        "0: Own has its own",
    ),
    "v_reset": (lambda: neuron.LIFNode(v_reset=None), ValueError, "0: v_reset: .*None"),
    "groups": (lambda: nn.Conv1d(2, 2, 1, groups=2), ValueError, "0: groups"),
    "padding_mode": (lambda: nn.Conv1d(2, 2, 1, padding_mode="circular"), ValueError, "0: padding_mode"),
    "kernel_size": (lambda: nn.Conv2d(1, 1, (1, 2)), ValueError, "0: kernel_size"),
    "ceil_mode": (lambda: nn.AvgPool2d(2, ceil_mode=True), ValueError, "0: ceil_mode"),
    "divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), ValueError, "0: divisor_override"),
    "padded": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), ValueError, "0: count_include_pad"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(1), ValueError, "net: .* BatchNorm2d, .*fuse_conv_bn_eval"),
    "ReLU": (nn.ReLU, ValueError, "net: its first result comes from ReLU, for which NIR has no node"),
    "MaxPool2d": (lambda: layer.MaxPool2d(2), ValueError, "net: .* MaxPool2d, .*; it has nn.AvgPool2d"),
    "GRU": (lambda: nn.GRU(6, 3), ValueError, "net: its first result comes from GRU"),
    "own neuron": (lambda: own(), TypeError, "0: own has no node in NIR"),
    "name": (lambda: nn.Sequential(), ValueError, "net: its first result does not come from its input"),
}
SHAPES = {"groups": (2, 5), "padding_mode": (2, 5), "of a sample": (6,)}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_say_is_an_error_that_names_it(name: str) -> None:
    make, error, message = REFUSED[name]
    shape = (1, 4, 4) if name in ("kernel_size", "ceil_mode", "divisor", "padded", "BatchNorm2d", "MaxPool2d") else (6,)
    with snnfast.use_backend("reference"), pytest.raises(error, match=message):
        export_to_nir(nn.Sequential(make()), torch.rand(2, *SHAPES.get(name, shape)))


def test_the_remedy_for_batch_normalisation() -> None:
    conv, norm = nn.Conv2d(1, 3, 3).eval(), nn.BatchNorm2d(3).eval()
    norm.running_mean = torch.rand(3)
    lif = leaky()
    net = MultiStep(fuse_conv_bn_eval(conv, norm), lif)
    x = torch.rand(4, 2, 1, 6, 6)
    back = import_from_nir(export_to_nir(net, x))
    torch.testing.assert_close(back(x)[1], MultiStep(conv, norm, lif).eval()(x)[1])


class Function(nn.Module):
    """One linear layer and neurons in the function of a test."""

    def __init__(self, function: Callable[..., Any], size: int = 4) -> None:
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(size, 4), leaky(init_hidden=True), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def rate(net: Any, x: Tensor) -> Tensor:
    count: Any = 0
    for step in x:
        count += net.lif(net.fc(step))
    return count / len(x)


def steps(net: Any, x: Tensor) -> list[Tensor]:
    return [net.lif(net.fc(step)) for step in x]


def recorded(net: Any, x: Tensor, order: int = 1) -> Tensor:
    record = torch.zeros(len(x), x.size(1), 4)
    for step, spk in zip(range(len(x))[::order], steps(net, x), strict=True):
        record[step] = spk
    return record


CALLS: dict[str, Callable[..., Any]] = {
    "unroll": lambda net, x: net.lif.unroll(net.fc(x)),
    "count": lambda net, x: net.lif.unroll(net.fc(x), reduce="sum"),
    "constant": lambda net, x: net.lif.unroll(net.fc(x[0]), num_steps=3),
    "constant in a loop": lambda net, x: [net.lif(current) for current in [net.fc(x[0])] * 3][-1],
    "constant for all steps": lambda net, x: net.lif.unroll(torch.stack([net.fc(x[0])] * 3)),
    "currents first": lambda net, x: torch.stack([net.lif(current) for current in net.fc(x).unbind(0)]),
    "batch first": lambda net, x: torch.stack([net.lif(net.fc(step)) for step in x.transpose(0, 1)], 1),
    "permuted": lambda net, x: net.lif.unroll(net.fc(x.permute(1, 0, 2)))[0].mean(0),
    "flat": lambda net, x: net.lif(net.fc(x.flatten(0, 1)).view(-1, 4)),
    "views": lambda net, x: net.lif(net.fc(x.reshape(-1, 4)).detach().clone().unsqueeze(0).squeeze(0).contiguous()),
    "rate": rate,
    "recorded": recorded,
    "mean": lambda net, x: torch.stack(steps(net, x)).mean(0),
    "without the first step": lambda net, x: torch.stack(steps(net, x)[1:]),
    "cat": lambda net, x: torch.cat([spk[None] for spk in steps(net, x)]),
    "step of all": lambda net, x: [net.lif(current) for current in net.fc(x)][-1],
    "dict": lambda net, x: {"spk": net.lif(net.fc(x[0]))},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_network_may_be_called_in_many_ways(name: str) -> None:
    graph = export_to_nir(Function(CALLS[name]), torch.rand(2, 3, 4))
    assert graph.edges == [("input", "fc"), ("fc", "lif"), ("lif", "output")]
    assert list(map(int, graph.nodes["input"].output_type["output"])) == [4]


def delayed(net: Any, x: Tensor) -> Tensor:
    spk, found = torch.zeros(3, 4), []
    for step in x:
        found.append(net.out(spk))
        spk = net.lif(net.fc(step))
    return torch.stack(found)


def changed(net: Any, x: Tensor) -> Tensor:
    spk = net.lif(net.fc(x[0]))
    spk[0].zero_()
    result: Tensor = net.out(spk)
    return result


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "function": (lambda net, x: net.out(torch.tanh(net.lif(net.fc(x[0])))), "out: its input comes from tanh"),
    "scaled": (lambda net, x: net.out(net.lif(net.fc(x[0])) * 2), "out: its input comes from mul"),
    "constant": (lambda net, x: net.out(net.fc(x[0]) + 1), "out: its input comes from a sum with a constant"),
    "twice": (lambda net, x: net.out(net.fc(x[0]) + net.fc(x[0])), "out: its input is a sum over time"),
    "itself": (lambda net, x: [net.out(c + c) for c in [net.fc(x[0])]], "comes from a signal added to itself"),
    "membrane": (lambda net, x: net.out(net.lif.unroll(net.fc(x))[1]), "out: its input comes from a state of neurons"),
    "reads the membrane": (lambda net, x: net.lif.unroll(net.fc(x))[::-1], "first result comes from a state"),
    "order of neurons": (lambda net, x: net.out(net.lif(net.fc(x[0]))[:, [1, 0, 2, 3]]), "out: .*from getitem"),
    "one neuron": (lambda net, x: net.lif(net.lif(net.fc(x[0]))[:, 0]), "from getitem"),
    "turned": (lambda net, x: net.out(net.fc(x[:, 0, None].expand(2, 4, 4)).mT), "out: its input comes from mT"),
    "transposed": (lambda net, x: net.out(net.fc(x.expand(2, 4, 4)).transpose(1, 2)), "out: .*from transpose"),
    "stacked": (lambda net, x: net.out(torch.stack([net.fc(x[0])] * 4, -1)), "out: its input comes from stack"),
    "delay": (delayed, "out: it reads what lif returned a step before"),
    "shared": (lambda net, x: net.lif(net.fc(net.lif(net.fc(x[0])))), "called with other inputs at other times"),
    "shared over time": (lambda net, x: [net.fc(net.lif(net.fc(step))) for step in x][-1], "NIR can't say that"),
    "every other step": (lambda net, x: [net.out(net.lif(net.fc(s))) if i else net.lif(net.fc(s))
                                         for i, s in enumerate(x)][-1], "more or less than once a step"),
    "another input": (lambda net, x: net.out(torch.ones(3, 4)), "out: its input does not come from that of the net"),
    "turned round": (lambda net, x: net.out(torch.stack(steps(net, x)[::-1])), "out: .*not all steps in order"),
    "without the first": (lambda net, x: net.out(torch.stack(steps(net, x)[1:])), "out: .*more or less than once"),
    "a slice": (lambda net, x: net.out(net.lif.unroll(net.fc(x))[0][1:]), "out: .*not all steps in order"),
    "recorded backwards": (lambda net, x: net.out(recorded(net, x, -1)), "out: .*not all steps in order"),
    "read backwards": (lambda net, x: [net.out(spk) for spk in [*net.lif.unroll(net.fc(x))[0]][::-1]], "once a step"),
    "always the first": (lambda net, x: [net.out(net.lif.unroll(net.fc(x))[0][0]) for _ in x][-1], "once a step|other"),
    "a step late": (lambda net, x: [net.out(spk) for all_steps in [net.lif.unroll(net.fc(x))[0]]
                                    for spk in (torch.zeros(3, 4), all_steps[0])][-1], "a delay that NIR can't say"),
    "changed in place": (changed, "out: its input comes from zero"),
    "nothing": (lambda net, x: torch.ones(3), "net: its first result does not come from its input"),
    "unfed": (lambda net, x: net.fc(x[0]) + net.out(torch.zeros(3, 4)), "out: no input of it was seen"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_lies_between_layers_is_followed_or_refused(name: str) -> None:
    function, message = WRONG[name]
    x = torch.rand(2, 1 if name in ("transposed",) else 3, 4)
    with pytest.raises(ValueError, match=message):
        export_to_nir(Function(function), x)


@pytest.mark.parametrize(
    ("net", "x", "kwargs", "error", "message"),
    [
        (len, torch.rand(2, 6), {}, TypeError, "net: expected a torch.nn.Module"),
        (nn.Linear(6, 4), [1.0], {}, TypeError, "sample_data: expected a torch.Tensor, got list"),
        (nn.Linear(6, 4), torch.rand(2, 6), {"dt": 0}, ValueError, "dt: expected a positive number, got 0"),
        (nn.Sequential(nn.Linear(6, 4), nn.Linear(3, 4)), torch.rand(2, 6), {}, RuntimeError, "shapes"),
        (nn.ModuleDict({"input": nn.Linear(6, 4)}), torch.rand(2, 6), {}, NotImplementedError, "forward"),
    ],
)
def test_wrong_arguments(net: Any, x: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        export_to_nir(net, x, **kwargs)


def test_a_module_named_as_a_node_of_every_graph() -> None:
    net = nn.Sequential()
    net.add_module("output", nn.Linear(6, 4))
    with pytest.raises(ValueError, match="output: the graph has a node 'output' of its own"):
        export_to_nir(net, torch.rand(2, 6))


def test_an_implicit_flattening_is_a_node() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif, self.fc = nn.Conv2d(1, 2, 3), leaky(init_hidden=True), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.fc(self.lif(self.conv(step)).view(len(step), -1)) for step in x])

    net, x = Net(), 3 * torch.rand(5, 2, 1, 6, 6)
    graph = export_to_nir(net, x)
    assert graph.edges[2:4] == [("lif", "lif_flatten"), ("lif_flatten", "fc")]
    assert_bits_equal(import_from_nir(graph)(x), net(x))
