"""What users read: the table, dicts, energy, figures, problems, and errors that name an argument."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnfast
from snnfast import surrogate


def small() -> snnfast.MultiStep:
    net = snnfast.MultiStep(nn.Linear(8, 4, bias=False), snnfast.Leaky(0.5), nn.Linear(4, 2), snnfast.Leaky(0.5))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0 if p.shape == (4, 8) else -1.0)
    return net


def test_a_table_a_dict_and_joules() -> None:
    a = snnfast.activity(small(), torch.full((10, 3, 8), 0.5))
    assert str(a) == repr(a)
    assert str(a).splitlines() == [
        "layer           spikes   rate  silent  saturated  synops  MACs",
        "0       Linear                                             960",
        "1       Leaky      120      1     0 %      100 %",
        "2       Linear                                       240",
        "3       Leaky               0   100 %        0 %",
        "in all             120  0.667                        240   960",
        "energy of the products: 4.63e-09 J",
    ]
    assert a.energy() == pytest.approx(960 * 4.6e-12 + 240 * 0.9e-12)
    assert a.energy(mac=1.0, ac=2.0) == 960 + 2 * 240
    found = json.loads(json.dumps(a.to_dict()))
    assert found["layers"]["1"]["spikes"] == found["spikes"] == 120
    assert (found["synops"], found["macs"], found["calls"]) == (240, 960, 1)
    assert found["energy"] == a.energy()
    assert found["layers"]["2"]["spikes"] is None


def test_problems_are_said_in_words() -> None:
    net, x = small(), torch.full((10, 3, 8), 0.5)
    assert snnfast.activity(net, x).health() == [
        "1: 100 % of the neurons spike at every step; the membrane's mean is 6 of the threshold",
        "3: 100 % of the neurons never spike; the membrane's mean is -10 of the threshold",
    ]
    quiet = snnfast.activity(net, torch.zeros(10, 3, 8)).health()
    assert quiet[:3] == [
        "0: all that it was given is 0, so its weights do not matter",
        "1: 100 % of the neurons never spike; the membrane's mean is 0 of the threshold",
        "2: all that it was given is 0, so its weights do not matter",
    ]


def test_a_network_that_spikes_has_no_problem() -> None:
    net = snnfast.MultiStep(nn.Linear(8, 16), snnfast.Leaky(0.9), nn.Linear(16, 4), snnfast.Leaky(0.9))
    with torch.no_grad():
        net[0].weight.uniform_(-0.5, 1.0)
        net[2].weight.uniform_(-0.3, 0.3)
    with snnfast.activity(net) as a:
        net(torch.rand(10, 3, 8))[0].sum().backward()
    assert a.health() == []


def boxcar(x: Tensor) -> Tensor:
    """A surrogate whose derivative is 0 away from the threshold."""
    return ((x > 0).to(x.dtype) - x.clamp(-0.5, 0.5)).detach() + x.clamp(-0.5, 0.5)


def test_gradients_that_are_zero_are_told_with_the_surrogate_that_makes_them() -> None:
    net = snnfast.MultiStep(nn.Linear(8, 4), snnfast.Leaky(0.5, spike_grad=boxcar), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.fill_(-1.0)
    with snnfast.activity(net) as a:
        net(torch.ones(10, 3, 8)).sum().backward()
    found = a.health()
    assert "1: its surrogate is 0 at 100 % of the membranes, where no gradient passes" in found
    assert "0.weight: its gradient is 0" in found
    assert "2.weight: its gradient is 0" in found  # it was given no spikes
    assert not any("2.bias" in problem for problem in found)


def test_gradients_that_are_missing_not_finite_or_vanish_are_told() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    a = snnfast.activity(net)
    assert a.health() == []  # nobody has asked for gradients
    net["a"].weight.grad = 1e-6 * torch.ones(2, 2)
    net["b"].weight.grad = torch.ones(2, 2)
    net["c"].bias.grad = torch.tensor([1.0, float("nan")])
    with torch.no_grad():
        net["a"].weight.fill_(1.0)
        net["b"].weight.fill_(1.0)
    assert a.health() == [
        "c.weight: it has no gradient, as the loss does not depend on it",
        "c.bias: its gradient is not finite",
        "a.weight: its gradient vanishes: relative to the weight, it is 1.0e-06 of that of b.weight",
    ]


def test_a_sparse_gradient_is_examined_by_what_it_stores() -> None:
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    with snnfast.activity(net) as a:
        net(torch.tensor([1, 1, 3])).sum().backward()
    assert a.health() == []
    net[0].weight.grad = net[0].weight.grad * torch.nan
    assert a.health() == ["0.weight: its gradient is not finite"]


@pytest.mark.parametrize("inference", [False, True])
def test_a_surrogate_is_asked_about_membranes_of_inference_mode(inference: bool) -> None:
    net = snnfast.Leaky(0.9, spike_grad=surrogate.triangular(), init_hidden=True)
    with torch.inference_mode():
        a = snnfast.activity(net, torch.zeros(3, 4))
    with torch.inference_mode(inference):
        assert "never spike" in a.health()[0]


def test_a_surrogate_of_a_neuron_by_hand_is_not_called() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.threshold, self.mem = 1.0, torch.zeros(())
            self.spike_grad = lambda x, slope: (slope * x > 0).float()

        def forward(self, x: Tensor) -> Tensor:
            self.mem = 0.5 * self.mem + x
            return self.spike_grad(self.mem - self.threshold, 25)

    assert snnfast.activity(ByHand(), torch.full((3, 4), 1.5)).health()[0].startswith("ByHand: 100 % of the neurons")


def test_a_figure_has_the_rates_and_the_spikes_of_one_sample() -> None:
    pytest.importorskip("matplotlib")
    x = torch.full((10, 3, 8), 0.5)
    rates = snnfast.activity(small(), x).figure()
    assert len(rates.axes) == 1
    assert [list(line.get_ydata()) for line in rates.axes[0].lines] == [[1.0] * 10, [0.0] * 10]
    a = snnfast.activity(small(), x, record=["1", "3"])
    for figure, spikes in ((a.figure(), 40), (a.figure("3", sample=2), 0)):
        assert len(figure.axes[1].collections[0].get_offsets()) == spikes
    with pytest.raises(KeyError, match="raster: expected a layer that was recorded, 1, 3, got '0'"):
        a.figure("0")


def test_without_matplotlib_only_a_figure_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    a = snnfast.activity(small(), torch.rand(2, 3, 8))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="figure: needs matplotlib"):
        a.figure()


@pytest.mark.parametrize(
    ("net", "named", "error", "message"),
    [
        (torch.relu, {}, TypeError, "net: expected a torch.nn.Module, got builtin_function_or_method"),
        (nn.Linear(2, 2), {"x": 1}, TypeError, "x: a call needs an argument by position"),
        (nn.Linear(2, 2), {"record": ["lif"]}, ValueError, "record: expected names of layers.*none; got 'lif'"),
        (snnfast.Leaky(0.9), {"record": "lif"}, ValueError, "record: expected names of layers.*Leaky; got 'lif'"),
        (nn.Sequential(nn.Linear(2, 2), snnfast.Leaky(0.9)), {"record": "0"}, ValueError, "record.*, 1; got '0'"),
    ],
)
def test_bad_arguments_are_named(net: Any, named: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        snnfast.activity(net, **named)


def test_an_error_in_the_network_leaves_it_as_it_was() -> None:
    net = small()
    with pytest.raises(ValueError, match="x: expected"):
        snnfast.activity(net, torch.rand(2, 3, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert snnfast.activity(net, torch.full((10, 3, 8), 0.5)).spikes == 120


def test_spikingjelly_counts_the_same() -> None:
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="SpikingJelly is not installed")
    from snnfast.spikingjelly import functional, layer, neuron

    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, stride=2, bias=False), neuron.IFNode(), layer.Conv2d(4, 6, 3, groups=2),
        neuron.LIFNode(surrogate_function=surrogate.atan()), layer.Flatten(), layer.Linear(24, 3),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    x = (torch.rand(5, 2, 2, 7, 7) < 0.4).float()
    with torch.no_grad():
        net[0].weight.uniform_(-0.5, 1)
    counter = counters.SynOpCounter()
    with torch.no_grad(), counters.DispatchCounterMode([counter]):
        net(x)
    functional.reset_net(net)
    a = snnfast.activity(net, x)
    assert a.synops == counter.get_total() > 0
    assert a.macs == 0


@pytest.mark.parametrize("analog", [False, True], ids=["spikes", "numbers"])
def test_neurobench_counts_the_same(analog: bool) -> None:
    layers = pytest.importorskip("neurobench.metrics.utils.layers", reason="NeuroBench is not installed")
    net = snnfast.MultiStep(
        nn.Conv2d(2, 4, 3, padding=0 if analog else 1, stride=2), snnfast.Leaky(0.9, threshold=0.3),
        nn.Conv2d(4, 6, 3, groups=2), snnfast.Leaky(0.8, threshold=0.2),
        nn.Flatten(), nn.Linear(24, 5), snnfast.Leaky(0.9), nn.Linear(5, 3),
    )  # fmt: skip
    # We count the products with the zeros of a padding among MACs, as PyTorch does, and NeuroBench does not.
    x = torch.rand(5, 3, 2, 9, 9) + 0.1 if analog else (torch.rand(5, 3, 2, 7, 7) > 0.5).float()
    counts = {True: 0, False: 0}

    def count(module: nn.Module, args: Any) -> None:
        number, of_spikes = layers.single_layer_MACs(args[0], module)
        counts[of_spikes] += number

    with torch.no_grad():
        a = snnfast.activity(net, x)
        states: dict[nn.Module, Any] = {}
        for step in x:  # NeuroBench counts single steps
            for module in net:
                if isinstance(module, snnfast.Leaky):
                    step, states[module] = module(step, states.get(module))
                else:
                    if isinstance(module, nn.Conv2d | nn.Linear):
                        count(module, (step,))
                    step = module(step)
    assert (a.synops, a.macs) == (counts[True], counts[False])
    assert a.synops > 0
    assert (a.macs > 0) == analog
