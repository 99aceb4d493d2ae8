"""What a user is told of a compiled network, and the way back from it."""

import copy
import warnings

import pytest
import torch
from helpers import assert_bits_equal
from loop_nets import Net, OneStep, currents
from torch import Tensor, nn

import snnfast
from snnfast.spikingjelly.neuron import LIFNode

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]


def test_a_network_tells_what_became_of_its_calls() -> None:
    net = snnfast.compile(Net())
    told = snnfast.status(net)
    assert (told.training, told.inference, told.graphs, dict(told.calls)) == (None, None, 0, {})
    for _ in range(6):
        net(currents())
    assert (told.training, told.inference) == ("replayed", None)
    assert told.calls["recorded"] + told.calls["replayed"] == 6
    assert (told.graphs, told.saved, told.why) == (1, None, [])
    assert told.making > 0
    assert set(told.seconds) == set(told.calls)
    assert "Net is compiled\n  the last call with gradients: replayed\n" in str(told)
    assert snnfast.status(net) is told


def test_what_calls_without_gradients_save_is_known_once_they_were_timed_as_they_are() -> None:
    net = snnfast.compile(Net())
    told, x = snnfast.status(net), currents(T=60)
    with torch.no_grad():
        while told.saved is None and sum(told.calls.values()) < 40:
            net(x)
    assert told.calls["as it is"] >= 5
    assert told.saved is not None
    assert f"saved in calls without gradients: {told.saved:.2f} s" in str(told)


def test_it_says_why_a_network_runs_as_it_is_also_where_the_warning_was_shown_before() -> None:
    found = []
    for _ in range(2):
        net = snnfast.compile(OneStep())
        with warnings.catch_warnings(action="ignore"):
            for x in currents():
                net(x)
        told = snnfast.status(net)
        assert told.training == "as it is"
        assert told.calls["recorded in vain"] >= 3
        found.append(told.why)
    assert "The loop may be outside of what is compiled" in found[0][0]
    assert found[0] == found[1]


def test_layers_that_run_all_steps_by_themselves_are_told_as_such() -> None:
    net = snnfast.compile(nn.Sequential(nn.Linear(12, 4), LIFNode(step_mode="m")))
    with warnings.catch_warnings(action="ignore"):
        for _ in range(6):
            net(currents())
    told = snnfast.status(net)
    assert told.training == "as it is"
    assert "nothing to compile" in told.why[0]


def test_a_copy_is_told_not_to_be_compiled() -> None:
    net = snnfast.compile(Net())
    assert snnfast.status(net).is_compiled
    for other in (copy.deepcopy(net), Net(), loop):
        assert not snnfast.status(other).is_compiled
        assert "is not compiled" in str(snnfast.status(other))


LIF = snnfast.Leaky(beta=0.9)


def loop(x: Tensor) -> Tensor:
    mem, rec = torch.zeros_like(x[0]), []
    for step in x:
        _, mem = LIF(step, mem)
        rec.append(mem)
    return torch.stack(rec)


def test_there_is_a_way_back_for_networks_and_functions() -> None:
    net, x = Net(), currents()
    before = net(x)
    net = snnfast.compile(net)
    net(x)
    assert snnfast.uncompile(net) is net
    told = snnfast.status(net)
    assert not told.is_compiled
    for a, b in zip(before, net(x), strict=True):
        assert_bits_equal(a, b)
    assert snnfast.uncompile(snnfast.compile(loop)) is loop
    assert snnfast.uncompile(loop) is loop
    assert not snnfast.status(net.fc1).is_compiled
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module or a function, got int"):
        snnfast.status(3)


def in_vain(x: Tensor) -> Tensor:
    return LIF(x[0], torch.zeros_like(x[0]))[1]


@pytest.mark.parametrize(
    ("function", "T", "last"),
    [
        (loop, 9, "In short: 3 calls instead of 13"),
        (in_vain, 9, "In short: nothing is gained"),
        (snnfast.MultiStep(nn.Linear(12, 4), LIF), 9, "In short: leave snnfast.compile away"),
        (loop, 12, "Each number of steps has a graph of its own"),  # there are as many neurons
    ],
    ids=["merged", "in-vain", "at-once", "its-steps-alone"],
)
def test_the_last_lines_of_an_explanation_say_what_to_do(function: object, T: int, last: str) -> None:
    told = snnfast.explain(function, currents(T))
    assert str(told).endswith("\n".join(told.advice))
    assert told.advice[-1].startswith(last)
