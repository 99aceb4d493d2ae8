"""What a compiled loop says where nothing, or not everything, is merged."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal
from loop_nets import Feedback, Net, currents, refused
from torch import Tensor

import snnfast
from snnfast._loop import emission

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def test_a_single_step_runs_as_it_is_and_says_so_once() -> None:
    lif = snnfast.Leaky(beta=0.9)
    compiled, x = snnfast.compile(lambda x, mem: lif(x, mem)), torch.rand(3, 4)
    message = refused(compiled, x, torch.zeros(3, 4))
    assert "runs as it is" in message
    assert "a single step" in message
    assert "outside of what is compiled" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(x, torch.zeros(3, 4))


def test_a_loop_that_is_cut_at_each_step_says_so() -> None:
    class Printing(Net):
        def forward(self, x: Tensor) -> Any:
            mem, spikes = self.lif1.reset_mem(), []
            for step in range(x.size(0)):
                spk, mem = self.lif1(self.fc1(x[step]), mem)
                torch._dynamo.graph_break()
                spikes.append(spk)
            return torch.stack(spikes)

    assert "cut by a call that torch.compile can't trace" in refused(snnfast.compile(Printing()), currents())


def test_a_layer_that_stays_slow_says_so() -> None:
    assert re.search(
        r"5 steps of leaky run one by one \(.*loop_nets.py", refused(snnfast.compile(Feedback()), currents())
    )


def test_layers_that_were_not_converted_are_named() -> None:
    snntorch = pytest.importorskip("snntorch")
    assert "snnfast.compile(net)" in refused(torch.compile(Net(snntorch.Leaky), backend="snnfast"), currents())


def test_a_graph_without_neurons_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = currents()
        assert_bits_equal(torch.compile(lambda x: x.relu() * 2, backend="snnfast")(x), x.relu() * 2)


def test_a_fault_in_the_pass_falls_back_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> Any:
        raise KeyError("planted")

    monkeypatch.setattr(emission.Emission, "write", broken)
    net, x = Net(), currents()
    expected = copy.deepcopy(net)(x)
    compiled = snnfast.compile(net)
    with pytest.warns(UserWarning, match=r"(?s)fault of snnfast.*please report it.*KeyError: 'planted'"):
        found = compiled(x)
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)


@pytest.mark.skipif(torch.__version__.startswith("2.11"), reason="torch 2.11 can't put a dataclass into a graph")
def test_a_surrogate_that_is_repeated_says_so() -> None:
    spike_grad = snnfast.surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.compile(Net(spike_grad=spike_grad), backend="snnfast")(currents())
    messages = [str(w.message) for w in caught if "5 calls of an autograd.Function run one by one" in str(w.message)]
    assert len(messages) == 2  # one for each layer, with its line
    assert "loop_nets.py" in messages[0]
