"""snnfast.reset: one call between samples, for every neuron in a network and for no other."""

from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch import utils
from snntorch_checks import as_tuple, own_list_of_neurons  # noqa: F401
from torch import nn

import snnfast
import snnfast.snntorch as snn

NEURONS: dict[str, Any] = {
    "snnfast.Leaky": lambda: snnfast.Leaky(0.9, init_hidden=True, learn_beta=True),
    "snnfast.snntorch.Leaky": lambda: snn.Leaky(0.9, init_hidden=True, learn_beta=True),
    "snnfast.Synaptic": lambda: snnfast.Synaptic(0.9, 0.8, init_hidden=True, learn_beta=True),
    "snnfast.snntorch.Synaptic": lambda: snn.Synaptic(0.9, 0.8, init_hidden=True, learn_beta=True),
    "Leaky": lambda: snntorch.Leaky(0.9, init_hidden=True, learn_beta=True),
    "Synaptic": lambda: snntorch.Synaptic(0.9, 0.8, init_hidden=True),
    "Alpha": lambda: snntorch.Alpha(0.9, 0.8, init_hidden=True),
    "Lapicque": lambda: snntorch.Lapicque(0.9, threshold=0.1, init_hidden=True),
    "RLeaky": lambda: snntorch.RLeaky(0.9, all_to_all=False, init_hidden=True),
    "RSynaptic": lambda: snntorch.RSynaptic(0.9, 0.8, all_to_all=False, init_hidden=True),
    "SLSTM": lambda: snntorch.SLSTM(5, 5, threshold=0.1, init_hidden=True),
    "DeltaLeaky": lambda: snntorch.DeltaLeaky(beta=0.9, delta_threshold=0.5, init_hidden=True),
}


def spikes(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([as_tuple(net(step))[0] for step in x])


@pytest.mark.parametrize("name", NEURONS)
def test_a_sample_after_a_reset_gives_what_the_first_one_gave(name: str) -> None:
    net = nn.Sequential(nn.Linear(6, 5), NEURONS[name]())
    x = torch.rand(7, 3, 6) * 4
    first = spikes(net, x)
    assert not torch.equal(spikes(net, x), first)  # without one the state leaks into the next sample
    snnfast.reset(net)
    again = spikes(net, x)
    assert_bits_equal(again, first)
    if again.requires_grad:
        snnfast.reset(net)
        spikes(net, x).sum().backward()
        snnfast.reset(net)
        spikes(net, x).sum().backward()  # nothing of the graph that is gone is left


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


def test_snntorchs_own_reset_does_not_know_the_layer_that_is_no_snntorch_leaky() -> None:
    for library, known in ((snnfast, False), (snn, True)):
        net = nn.Sequential(nn.Linear(6, 5), library.Leaky(0.9, init_hidden=True))
        net(torch.rand(2, 6) + 1)
        utils.reset(net)
        assert net[1].mem.any() != known
        snnfast.reset(net)
        assert not net[1].mem.any()
