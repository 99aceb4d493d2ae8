"""MultiStep equals the loop over time of its layers."""

import itertools
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, assert_close
from torch import Tensor, nn

import snnfast
from snnfast import Leaky, MultiStep


def exact(layer: nn.Module) -> nn.Module:
    """Weights in eighths: products with spikes or eighths and their sums are exact, in any order."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_((p * 16).round() / 8)
    return layer


def loop(layers: list[nn.Module], x: Tensor, num_steps: int | None = None) -> tuple[Tensor, Tensor | None]:
    """The layers called step by step; the outputs of the last and, if it is a Leaky, its membranes."""
    state: dict[int, Any] = {}
    outputs, mems = [], []
    for step in x if num_steps is None else (x,) * num_steps:
        for i, layer in enumerate(layers):
            if isinstance(layer, Leaky):
                step, state[i] = layer(step, state[i] if i in state else torch.zeros_like(step))
            else:
                step = layer(step)
        outputs.append(step)
        mems.append(state.get(len(layers) - 1))
    return torch.stack(outputs), None if mems[0] is None else torch.stack(mems)


def eighths(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape) / 8


def fully_connected() -> list[nn.Module]:
    return [exact(nn.Linear(12, 20)), Leaky(0.5), exact(nn.Linear(20, 6)), Leaky(0.75, reset_mechanism="zero")]


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
def test_equals_the_loop_over_time_bit_for_bit(num_steps: int | None, backend: str) -> None:
    layers = fully_connected()
    x = eighths(4, 12) if num_steps else eighths(9, 4, 12)
    spk, mem = MultiStep(*layers)(x, num_steps)
    spk_expected, mem_expected = loop(layers, x, num_steps)
    assert spk_expected.any()
    assert mem_expected is not None
    assert_bits_equal(spk, spk_expected)
    assert_bits_equal(mem, mem_expected)
    spk, mem = MultiStep(*layers)(x, num_steps, record_mem=False)
    assert_bits_equal(spk, spk_expected)
    assert_bits_equal(mem, mem_expected[-1])


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
def test_gradients_equal_those_of_the_loop(num_steps: int | None, backend: str) -> None:
    layers = fully_connected()
    net, parameters = MultiStep(*layers), [p for layer in layers for p in layer.parameters()]
    x = (eighths(4, 12) if num_steps else eighths(9, 4, 12)).requires_grad_()
    results = []
    for spk, mem in (net(x, num_steps), loop(layers, x, num_steps)):
        assert mem is not None
        results.append(torch.autograd.grad(spk.square().sum() + mem.sum(), [x, *parameters]))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-5)


def test_convolutions_pooling_and_nested_sequentials(backend: str) -> None:
    conv = [exact(nn.Conv2d(1, 3, 3)), nn.MaxPool2d(2), Leaky(torch.full((3, 1, 1), 0.5))]
    head = [nn.Flatten(), exact(nn.Linear(27, 4)), Leaky(0.5, reset_delay=False)]
    net = MultiStep(nn.Sequential(*conv), nn.Sequential(nn.Sequential(head[0], head[1]), head[2]))
    for x, num_steps in ((eighths(5, 2, 1, 8, 8), None), (eighths(2, 1, 8, 8), 5)):
        spk, mem = net(x, num_steps)
        spk_expected, mem_expected = loop([*conv, *head], x, num_steps)
        assert spk.shape == mem.shape == (5, 2, 4)
        assert_bits_equal(spk, spk_expected)
        assert mem_expected is not None
        assert_bits_equal(mem, mem_expected)


def test_a_constant_input_passes_the_first_layers_once(backend: str) -> None:
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


def test_layers_that_hold_their_membrane_go_on_from_it(backend: str) -> None:
    layers = [exact(nn.Linear(12, 6)), Leaky(0.5, init_hidden=True)]
    net, x = MultiStep(*layers), eighths(8, 4, 12)
    whole, _ = net(x)
    layers[1].reset_mem()
    assert_bits_equal(torch.cat([net(x[:3])[0], net(x[3:])[0]]), whole)


def test_empty_sequences_and_batches(backend: str) -> None:
    net = MultiStep(nn.Linear(12, 6), Leaky(0.9))
    for steps, batch in itertools.product((0, 3), (0, 4)):
        for x, num_steps in ((torch.rand(steps, batch, 12), None), (torch.rand(batch, 12), steps)):
            spk, mem = net(x, num_steps)
            assert spk.shape == mem.shape == (steps, batch, 6)


def test_the_layers_are_submodules_so_their_parameters_train_and_save(backend: str) -> None:
    net = MultiStep(nn.Sequential(nn.Linear(3, 4), Leaky(0.9, learn_beta=True)), nn.Linear(4, 2))
    assert sorted(name for name, _ in net.named_parameters()) == [
        "0.0.bias", "0.0.weight", "0.1.beta", "1.bias", "1.weight",
    ]  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, before = torch.rand(6, 5, 3) * 3, net.state_dict()["0.0.weight"].clone()
    net(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.state_dict()["0.0.weight"], before)


def test_both_backends_give_the_same(backend: str) -> None:
    net, x = MultiStep(*fully_connected()), eighths(9, 4, 12)
    found = net(x)
    with snnfast.use_backend("reference"):
        for a, b in zip(found, net(x), strict=True):
            assert_bits_equal(a, b)
