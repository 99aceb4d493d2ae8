"""The layers of snnfast.snntorch are snnTorch's: what takes one of those, unpatched, takes them as well."""

import gc
import inspect
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch import utils
from snntorch.functional import loss, probe
from snntorch_checks import DECAYS, EVERY, NEURONS, NOT_LAPICQUE, STATES, as_tuple, held, make, over_time
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn

# ---- being one of snnTorch's


@EVERY
def test_classes_and_signatures(name: str) -> None:
    layer, ours, theirs = make(snn, name), getattr(snn, name), getattr(snntorch, name)
    for cls in (ours, getattr(snnfast, name), theirs, snntorch.LIF, snntorch.SpikingNeuron, nn.Module):
        assert isinstance(layer, cls)
    assert type(layer) is ours
    assert not isinstance(make(snntorch, name), getattr(snnfast, name))
    assert name.startswith("R") or not list(layer.children())  # a leaf, as exporters expect
    public = ("forward", "fire", "fire_inhibition", "mem_reset", "reset_mem", f"init_{name.lower()}")
    for method in ("__init__", *public):
        found, expected = (inspect.signature(getattr(cls, method)).parameters for cls in (ours, theirs))
        extra = {"reset_delay"} - expected.keys()
        assert [(n, p.default) for n, p in found.items() if n not in extra] == [
            (n, p.default) for n, p in expected.items()
        ], method
    found, expected = (inspect.signature(getattr(lib, name)).parameters for lib in (snnfast, snn))
    assert [(n, p.default) for n, p in found.items()] == [(n, p.default) for n, p in expected.items()]
    assert list(found)[-1] == "reset_delay" or list(found) == list(inspect.signature(theirs).parameters)
    assert {n for n in dir(theirs) if not n.startswith("_")} <= set(dir(ours))
    assert ours.reset_dict == theirs.reset_dict


@NEURONS
def test_a_subclass_that_replaces_a_part_of_the_step(name: str) -> None:
    layer = getattr(snn, name)
    parts = [part for part in dir(getattr(snntorch, name)) if part.startswith("_base_")]
    assert {"_base_sub", "_base_zero", "_base_int", "_base_state_function"} <= set(parts)
    for part in ("fire", "fire_inhibition", "mem_reset", *parts):
        message = rf"Mine replaces {part}, .*snnfast.snntorch.{name} .*from snntorch.{name},"
        with pytest.raises(TypeError, match=message):
            type("Mine", (layer,), {part: lambda self, mem: mem})
    with pytest.raises(TypeError, match=r"Mine replaces reset_dict, .*from snntorch"):
        type("Mine", (layer,), {"reset_dict": {**layer.reset_dict, "subtract_beta": 3}})

    class Adaptive(layer):  # type: ignore[misc,valid-type]
        def forward(self, input_: Tensor, *states: Tensor) -> Any:
            *_, mem = super().forward(input_, *states)
            return self.fire(mem), mem

        def fire(self, mem: Tensor) -> Tensor:
            return torch.full_like(mem, 7)

    class Named(layer):  # type: ignore[misc,valid-type]
        def describe(self) -> str:
            return "mine"

    assert Adaptive(**DECAYS[name])(torch.rand(2, 3))[0].eq(7).all()
    assert_bits_equal(Named(**DECAYS[name])(torch.ones(2, 3))[0], make(snn, name)(torch.ones(2, 3))[0])
    with pytest.raises(TypeError, match=rf"Further replaces fire, .*snnfast.snntorch.{name}"):
        type("Further", (Named,), {"fire": lambda self, mem: mem})


# ---- what takes a layer


def network(library: Any, name: str = "Leaky") -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 12),
        make(library, name, init_hidden=True, learn_beta=True),
        nn.Linear(12, 4),
        make(library, name, init_hidden=True, output=True, learn_threshold=True, reset_mechanism="zero"),
    )


@pytest.mark.parametrize("name", [name for name in STATES if name != "RSynaptic"])  # snnTorch's forgets a state
def test_detach_and_reset_hidden(name: str) -> None:
    other = next(n for n in DECAYS if n != name)
    for library in (snn, snntorch, snnfast):
        cls = getattr(library, name)
        layers = [
            make(made, name, init_hidden=True) for made in ((snn, snntorch) if library is not snnfast else (snnfast,))
        ]
        others = [make(made, other, init_hidden=True) for made in (snn, snntorch)]
        for layer in (*layers, *others):
            for _ in range(2):
                layer(torch.full((2, 3), 1.5, requires_grad=True))
        before = [state for layer in layers for state in held(layer)]
        assert all(state.requires_grad for state in before)
        cls.detach_hidden()
        assert not any(state.requires_grad for state in before)  # in place
        assert all(state.any() for state in before)
        cls.reset_hidden()
        assert not any(state.any() for layer in layers for state in held(layer))
        assert all(state.requires_grad and state.any() for layer in others for state in held(layer))
        both = [make(made, name, init_hidden=True) for made in (snn, snnfast)]
        for layer in both:
            layer(torch.full((2, 3), 1.5))
        getattr(snnfast, name).reset_hidden()  # reaches the layers that are snnTorch's, too
        assert not any(state.any() for layer in both for state in held(layer))


@NOT_LAPICQUE
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_probes(name: str) -> None:
    x, y, cls = torch.rand(8, 5, 6) * 2, torch.randint(4, (5,)), getattr(snntorch, name)
    records = []
    for library in (snn, snntorch):
        net = network(library, name)
        out = probe.OutputMonitor(net, cls)
        inside = probe.InputMonitor(net, cls)
        states = [probe.AttributeMonitor(state, False, net, cls) for state in make(snn, name).neuron.states]
        gradients = probe.GradOutputMonitor(net, nn.Linear)
        loss.mse_count_loss()(over_time(net, x)[0], y).backward()
        assert all(m.monitored_layers == ["1", "3"] for m in (out, *states))
        records.append((out["1"], inside["3"], *(m[i] for m in states for i in ("1", "3")), list(gradients.records)))
        for monitor in (out, inside, gradients, *states):
            monitor.remove_hooks()
    for ours, theirs in zip(*records, strict=True):
        assert len(ours) == len(theirs) >= 8
        for a, b in zip(ours, theirs, strict=True):
            if ours is records[0][-1]:  # gradients
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            else:
                assert_bits_equal(a, b)


@NEURONS
def test_our_layer_in_the_place_of_snntorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = getattr(snntorch, name)
    old = make(snntorch, name, init_hidden=True)
    monkeypatch.setattr(snntorch, name, getattr(snn, name))
    monkeypatch.setattr(snntorch._neurons, name, getattr(snn, name))
    net = network(snntorch, name)
    over_time(net, torch.rand(5, 3, 6))
    old(torch.ones(2, 3))
    utils.reset(net)
    assert not any(s.any() or s.requires_grad for layer in (net[1], net[3], old) for s in held(layer))
    assert snn.convert(nn.Sequential(old)).swapped == ("0",)
    assert snn.revert(net).swapped == ("1", "3")
    assert type(net[1]) is theirs


# ---- snnTorch's list of neurons


@NEURONS
def test_snntorchs_list_of_neurons(name: str) -> None:
    cls = getattr(snn, name)
    keep = make(snn, name)
    for _ in range(20):
        make(snn, name)
    gc.collect()
    cls.reset_hidden()
    utils.reset(nn.Sequential(keep))
    assert len(snntorch.SpikingNeuron.instances) == 2  # the living one, and a dead one's place until the next comes
    other = make(snn, name)
    assert [neuron is not None for neuron in (keep, other)] == [
        isinstance(neuron, getattr(snntorch, name)) for neuron in snntorch.SpikingNeuron.instances
    ]


@NEURONS
def test_a_layer_that_dies_during_a_reset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A layer in a reference cycle dies when the collector happens to run: here in the middle of snnTorch's loop.
    layer = make(snn, name, init_hidden=True)
    layer(torch.ones(2, 3))
    other = make(snn, name, init_hidden=True)
    other(torch.ones(2, 3))
    layer.register_forward_hook(lambda *args, me=layer: None)
    zeros_like = torch.zeros_like
    gc.collect()
    del layer

    def collecting(*args: Any, **kwargs: Any) -> Tensor:
        gc.collect()
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", collecting)
    alive = len(getattr(snn, name).instances)
    getattr(snntorch, name).reset_hidden()
    getattr(snntorch, name).detach_hidden()
    assert len(getattr(snn, name).instances) == alive - 1
    assert not any(state.any() for state in held(other))


# ---- snnfast.reset: one call between samples, for every neuron in a network and for no other


def holding(library: Any, name: str) -> Any:
    return make(library, name, init_hidden=True, **({"beta": 0.9, "threshold": 0.1} if name == "Lapicque" else {}))


HOLDING: dict[str, Any] = {
    **{
        f"{library.__name__}.{name}": lambda library=library, name=name: holding(library, name)
        for library in (snnfast, snn, snntorch)
        for name in STATES
    },
    "snntorch.SLSTM": lambda: snntorch.SLSTM(5, 5, threshold=0.1, init_hidden=True),
    "snntorch.DeltaLeaky": lambda: snntorch.DeltaLeaky(beta=0.9, delta_threshold=0.5, init_hidden=True),
}
# Those of snnfast alone; and of which snnTorch's forgets a state.
NOT_BY_UTILS = {*(f"snnfast.{name}" for name in STATES), "snntorch.RSynaptic", "snntorch.DeltaLeaky"}


def spikes(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([as_tuple(net(step))[0] for step in x])


@pytest.mark.parametrize(
    ("name", "reset"),
    [(name, snnfast.reset) for name in HOLDING] + [(name, utils.reset) for name in HOLDING if name not in NOT_BY_UTILS],
    ids=lambda value: value if isinstance(value, str) else value.__module__,
)
def test_a_sample_after_a_reset_gives_what_the_first_one_gave(name: str, reset: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 5), HOLDING[name]())
    x = torch.rand(7, 3, 6) * 4
    first = spikes(net, x)
    assert not torch.equal(spikes(net, x), first)  # without one the state leaks into the next sample
    for _ in range(2):
        reset(net)
        again = spikes(net, x)
        assert_bits_equal(again, first)
        if again.requires_grad:
            again.sum().backward()  # nothing of the graph that is gone is left


def test_it_reaches_layers_at_any_depth_and_none_outside_of_the_network() -> None:
    inside, outside = snnfast.Leaky(0.9, init_hidden=True), snnfast.Leaky(0.9, init_hidden=True)
    net = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(inside)), "b": snnfast.MultiStep(snnfast.Leaky(0.9))})
    for lif in (inside, outside, net["b"][0]):
        lif(torch.ones(2, 3))
    snnfast.reset(net)
    assert not inside.mem.any()
    assert not net["b"][0].mem.any()
    assert inside.mem.shape == (2, 3)
    assert outside.mem.any()
    snnfast.reset(outside)
    assert not outside.mem.any()
