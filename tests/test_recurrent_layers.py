"""What is particular to the layers RLeaky and RSynaptic: checkpoints, states, and what of snnTorch is mended."""

import copy
import io
import itertools

import pytest
import snntorch
import torch
from helpers import assert_bits_equal, assert_close
from recurrent_checks import DECAYS, current, layers, loop, make
from snntorch import utils
from snntorch_checks import own_list_of_neurons  # noqa: F401
from torch import nn

import snnfast
import snnfast.snntorch as snn


@layers
@pytest.mark.parametrize("kind", ["linear", "conv", None])
@pytest.mark.parametrize("learn", [True, False])
def test_state_dicts_load_both_ways(learn: bool, kind: str | None, name: str) -> None:
    layers = [make(lib, name, kind, learn_recurrent=learn, learn_beta=True) for lib in (snnfast, snn, snntorch)]
    dicts = [layer.state_dict() for layer in layers]
    assert list(dicts[0]) == list(dicts[1]) == list(dicts[2])
    if kind is None:
        assert ("recurrent.V" in dicts[0]) == learn
    for a, b in itertools.permutations(layers, 2):
        a.load_state_dict({k: v + 0.125 if v.is_floating_point() else v for k, v in b.state_dict().items()})
    params = [[(n, p.requires_grad) for n, p in layer.named_parameters()] for layer in layers]
    assert params[0] == params[1] == params[2]
    x = current(kind)
    with torch.no_grad():
        for layer in layers:
            layer.load_state_dict(dicts[0])
        for a, b in zip(layers[1].unroll(x), loop(layers[2], x), strict=True):
            assert_bits_equal(a, b)


@layers
@pytest.mark.parametrize("kind", ["linear", None])
def test_convert_and_revert_leave_the_numbers(kind: str | None, name: str) -> None:
    net = nn.Sequential(make(snntorch, name, kind, init_hidden=True))
    x, recurrent = current(kind), net[0].recurrent
    expected = [torch.stack([net(step) for step in x]) for _ in range(2)]  # the second goes on
    net[0].reset_mem()
    assert snn.convert(net).swapped == ("0",)
    assert type(net[0]) is getattr(snn, name)
    assert net[0].recurrent is recurrent
    assert_bits_equal(net[0].unroll(x)[0], expected[0])
    assert_bits_equal(torch.stack([net(step) for step in x]), expected[1])
    assert snn.revert(net).swapped == ("0",)
    assert type(net[0]) is getattr(snntorch, name)
    net[0].reset_mem()
    assert_bits_equal(torch.stack([net(step) for step in x]), expected[0])


def test_a_layer_whose_connection_was_replaced_is_left() -> None:
    layer = make(snntorch, "RLeaky", None)
    layer.recurrent = nn.Identity()
    assert snn.convert(layer).left == {"": "its recurrent was replaced"}


@layers
def test_resets_reach_the_spikes_which_snntorch_forgets(name: str) -> None:
    for reset in (
        lambda layer: utils.reset(nn.Sequential(layer)),
        lambda layer: type(layer).reset_hidden(),
        lambda layer: snnfast.reset(layer),
    ):
        layer = make(snn, name, "linear", init_hidden=True)
        first = torch.stack([layer(step) for step in current("linear")])
        assert layer.spk.any()
        reset(layer)
        assert not any(getattr(layer, state).any() for state in layer.neuron.states)
        torch.manual_seed(0)
    layer = make(snn, name, "linear", init_hidden=True)
    layer(first[0])
    type(layer).detach_hidden()
    assert not any(getattr(layer, state).requires_grad for state in layer.neuron.states)


def test_v_follows_the_layer_to_another_dtype() -> None:
    layer = make(snnfast, "RLeaky", None, learn_recurrent=False).double()
    assert layer.recurrent.V is layer.V
    assert layer.V.dtype == torch.float64
    learned = make(snnfast, "RLeaky", None).double()
    assert learned.recurrent.V is learned.V
    assert len(list(learned.parameters())) == 1


def test_an_immediate_reset_of_rsynaptic_is_that_of_the_reference() -> None:
    """snnTorch's raises an error where no spikes are passed, and loses the reset where they are."""
    layer, x = make(snnfast, "RSynaptic", None, reset_delay=False), current(None)
    twin = copy.deepcopy(layer)
    now = [torch.zeros(3, 10) for _ in range(3)]
    for step, *found in zip(x, *layer.unroll(x), strict=True):
        spk, syn, mem = now
        reset = (mem > 1).float()
        syn = twin.alpha * syn + step + spk * twin.V
        base = twin.beta * mem + syn - reset
        spk = (base > 1).float()
        now = [spk, syn, base - (spk - reset)]
        for a, b in zip(found, now, strict=True):
            assert_bits_equal(a, b)


@layers
def test_layers_are_pickled_and_copied(name: str) -> None:
    for kind in ("linear", None):
        layer, x = make(snn, name, kind), current(kind)
        stored = io.BytesIO()
        torch.save(layer, stored)
        stored.seek(0)
        for other in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
            for a, b in zip(other.unroll(x), layer.unroll(x), strict=True):
                assert_bits_equal(a, b)
            if kind is None:
                assert other.recurrent.V is other.V


@pytest.mark.parametrize("kind", ["linear", None])
def test_multistep_goes_on_from_its_states(kind: str | None) -> None:
    neurons = [make(snnfast, name, kind) for name in DECAYS]
    width = 16 if kind else 10
    net = snnfast.MultiStep(nn.Linear(6, width), neurons[0], nn.Linear(width, width), neurons[1])
    x = torch.rand(20, 4, 6) * 4
    spk, *record = net(x)
    states, parts = None, []
    for part in x.split(7):
        *found, states, spikes = net(part, states=states, return_states=True, return_spikes=True)
        parts.append(found)
        assert [len(state) for state in states] == [2, 3]
        assert len(spikes) == 2
    for a, b in zip((spk, *record), zip(*parts, strict=True), strict=True):
        assert_close(torch.cat(b), a, 1e-5)
    assert spk.any()


def test_truncated_backpropagation_needs_no_more_than_detached_states() -> None:
    layer = make(snnfast, "RLeaky", "linear", init_hidden=True)
    for part in current("linear", 20).split(5):
        snnfast.RLeaky.detach_hidden()
        layer.unroll(part)[0].sum().backward()
    assert layer.recurrent.weight.grad.any()
