"""Counts of the collection's programs equal a count by hooks on their loop, compiled or not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import snntorch
import torch
from by_hooks import Counted, counted
from helpers import pairs
from torch import nn

import snnfast
from benchmarks import collection
from benchmarks.peers.ours import DEFAULT, SWAPPED
from benchmarks.peers.snntorch_loop import LOOP
from snnfast.neurons.base import SpikingLayer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.needs_extension]
STEPS, SAMPLES = 5, 3


def run(name: str, how: str, enter: Callable[[nn.Module], AbstractContextManager[Any]]) -> Any:
    """Train one step of a program in a context that is made of its network."""
    program = collection.programs()[name]
    net, train = collection.built(program, how)
    torch.manual_seed(1)
    inputs = program.inputs(STEPS, SAMPLES)
    torch.manual_seed(2)
    with collection.silence(), enter(net) as found:
        collection.loss_of(train(*inputs)).backward()
    return found


BY_MATRICES = "recurrent-by-hand"  # it has no modules that a hook could be on: test_products.py has its like


@pytest.mark.parametrize(
    ("name", "how"), pairs([name for name in collection.programs() if name != BY_MATRICES], [LOOP, SWAPPED, DEFAULT])
)
def test_counts_equal_those_by_hooks_on_the_loop(name: str, how: str) -> None:
    neurons = (snntorch._neurons.neurons.SpikingNeuron, SpikingLayer)
    loop = LOOP if how == LOOP else SWAPPED  # where a spike resets to zero, snnTorch computes a recurrent product twice
    wanted: Counted = run(name, loop, lambda net: counted(net, neurons))
    layers = run(name, how, snnfast.activity).layers
    assert wanted.of_weights
    assert {n: (layers[n].spikes, layers[n].neuron_steps) for n in wanted.spikes} == wanted.of_neurons
    assert {n: (layers[n].synops, layers[n].macs) for n in wanted.of_weights} == wanted.of_weights
