"""``reduce="sum"`` of layers, sequences, and neurons that run step by step; of the kernels see test_kernels.py."""

import pytest
import torch
from helpers import NEURONS, Case, assert_bits_equal, assert_close
from torch import nn

from snnfast import Leaky, MultiStep

neurons = pytest.mark.parametrize("neuron", NEURONS)


@neurons
@pytest.mark.parametrize("held", [False, True], ids=["passed", "held"])
def test_a_layer_counts_and_steps_on(held: bool, neuron: str, backend: str) -> None:
    kind = Case(neuron).kind
    layer, other = (kind.layer(*(0.8 for _ in kind.decays), init_hidden=held) for _ in range(2))
    for each in (layer, other):
        each.graded_spikes_factor = torch.tensor(1.5)
    x = torch.rand(9, 3, 10)
    for record_mem in (True, False):
        count, *states = layer.unroll(x, record_mem=record_mem, reduce="sum")
        spk, *expected = other.unroll(x, record_mem=record_mem)
        assert_close(count, spk.sum(0), 1e-6)
        for a, b in zip(states, expected, strict=True):
            assert_bits_equal(a, b)
    if held:
        for name in kind.ops.states:
            assert_bits_equal(getattr(layer, name), getattr(other, name))
        assert_bits_equal(layer(x[0]), other(x[0]))
    else:
        for a, b in zip(layer(x[0], *states), other(x[0], *states), strict=True):
            assert a.shape == (3, 10)
            assert_bits_equal(a, b)


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
def test_a_sequence_counts_the_spikes_of_its_last_layer(num_steps: int | None, backend: str) -> None:
    net = MultiStep(nn.Linear(12, 20), Leaky(0.5), nn.Linear(20, 6), Leaky(0.75, learn_beta=True))
    x = torch.rand(4, 12) * 4 if num_steps else torch.rand(9, 4, 12) * 4
    for record_mem in (True, False):
        results = []
        for reduce in ("sum", None):
            spk, mem = net(x, num_steps, record_mem=record_mem, reduce=reduce)
            count = spk if reduce else spk.sum(0)
            assert count.shape == (4, 6)
            grads = torch.autograd.grad(count.square().sum() + mem.sum(), list(net.parameters()))
            results.append((count, mem, *grads))
        assert results[0][0].any()
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            if i < 2:
                assert_bits_equal(a, b)
            else:
                assert_close(a, b, 1e-5)


def test_a_sequence_without_a_last_neuron_cannot_count(backend: str) -> None:
    net, x = MultiStep(Leaky(0.5), nn.Linear(12, 6)), torch.rand(9, 4, 12)
    with pytest.raises(ValueError, match=r"^reduce: needs a \w+ as the last layer, got Linear"):
        net(x, reduce="sum")
