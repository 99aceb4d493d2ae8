"""MultiStep equals the loop over time of its layers."""

import itertools

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from multistep_checks import NEURONS, eighths, exact, loop, make
from torch import nn

from snnfast import Leaky, MultiStep
from snnfast.neurons.base import SpikingLayer


def fully_connected(neuron: type[SpikingLayer] = Leaky) -> list[nn.Module]:
    last = make(neuron, beta=0.75, reset_mechanism="zero")
    return [exact(nn.Linear(12, 20)), make(neuron), exact(nn.Linear(20, 6)), last]


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
@NEURONS
def test_the_loop_over_time(neuron: type[SpikingLayer], num_steps: int | None, backend: str) -> None:
    """Its bits, and its gradients to rounding."""
    layers = fully_connected(neuron)
    net, parameters = MultiStep(*layers), [p for layer in layers for p in layer.parameters()]
    x = (eighths(4, 12) if num_steps else eighths(9, 4, 12)).requires_grad_()
    outputs, gradients = (net(x, num_steps), loop(layers, x, num_steps)), []
    assert outputs[1][0].any()
    for spk, *states in outputs:
        total = spk.square().sum() + sum(state.sum() for state in states)
        gradients.append(torch.autograd.grad(total, [x, *parameters]))
    assert_all_bits_equal(*outputs)
    assert_all_close(*gradients, relative=1e-5)
    spk, *states = net(x, num_steps, record_mem=False)
    assert_bits_equal(spk, outputs[1][0])
    for a, b in zip(states, outputs[1][1:], strict=True):
        assert_bits_equal(a, b[-1])


def test_convolutions_and_nesting(backend: str) -> None:
    conv = [exact(nn.Conv2d(1, 3, 3)), nn.MaxPool2d(2), Leaky(torch.full((3, 1, 1), 0.5))]
    head = [nn.Flatten(), exact(nn.Linear(27, 4)), Leaky(0.5, reset_delay=False)]
    net = MultiStep(nn.Sequential(*conv), nn.Sequential(nn.Sequential(head[0], head[1]), head[2]))
    for x, num_steps in ((eighths(5, 2, 1, 8, 8), None), (eighths(2, 1, 8, 8), 5)):
        spk, mem = net(x, num_steps)
        spk_expected, mem_expected = loop([*conv, *head], x, num_steps)
        assert spk.shape == mem.shape == (5, 2, 4)
        assert_bits_equal(spk, spk_expected)
        assert_bits_equal(mem, mem_expected)


def test_a_constant_input_passes_once(backend: str) -> None:
    layers = [nn.Linear(12, 12), nn.Tanh(), Leaky(0.9), nn.Linear(12, 6), Leaky(0.9)]
    seen: list[tuple[int, ...]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    MultiStep(*layers)(torch.rand(4, 12), num_steps=25)
    assert seen == [(4, 12), (4, 12), (25 * 4, 12)]


def test_what_is_returned_depends_on_the_last_layer(backend: str) -> None:
    linear, lif, x = nn.Linear(12, 12), Leaky(0.9), torch.rand(7, 4, 12)
    spk, mem = MultiStep(linear, lif)(x)
    assert spk.shape == mem.shape == (7, 4, 12)
    out = MultiStep(linear, lif, linear)(x)
    assert_close(out, torch.stack([linear(s) for s in spk]), 1e-6)
    assert MultiStep(linear, lif, linear)(x, record_mem=False).shape == (7, 4, 12)
    assert MultiStep(linear, lif, linear)(x[0], 7).shape == (7, 4, 12)
    assert MultiStep(linear)(x).shape == (7, 4, 12)
    assert MultiStep(linear)(x[0], 7).shape == (4, 12)  # nothing has made it change with time


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
def test_a_sequence_counts_the_spikes_of_its_last_layer(num_steps: int | None, backend: str) -> None:
    net = MultiStep(nn.Linear(12, 20), Leaky(0.5), nn.Linear(20, 6), Leaky(0.75, learn_beta=True))
    x = torch.rand(4, 12) * 4 if num_steps else torch.rand(9, 4, 12) * 4
    for record_mem in (True, False):
        results = []
        for reduce in ("sum", None):
            spk, mem = net(x, num_steps, record_mem=record_mem, reduce=reduce)
            count = spk if reduce else spk.sum(0)
            grads = torch.autograd.grad(count.square().sum() + mem.sum(), list(net.parameters()))
            results.append((count, mem, *grads))
        assert results[0][0].any()
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            assert_close(a, b, 1e-5) if i > 1 else assert_bits_equal(a, b)
    with pytest.raises(ValueError, match=r"^reduce: needs a \w+ as the last layer, got Linear"):
        MultiStep(Leaky(0.5), nn.Linear(12, 6))(x, num_steps, reduce="sum")


def test_empty_sequences_and_batches(backend: str) -> None:
    net = MultiStep(nn.Linear(12, 6), Leaky(0.9))
    for steps, batch in itertools.product((0, 3), (0, 4)):
        for x, num_steps in ((torch.rand(steps, batch, 12), None), (torch.rand(batch, 12), steps)):
            spk, mem = net(x, num_steps)
            assert spk.shape == mem.shape == (steps, batch, 6)
