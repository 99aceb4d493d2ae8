"""MultiStep over parts of a long sequence, its states passed on, and the spikes of its hidden layers."""

from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, assert_close
from test_multistep import eighths, exact
from torch import Tensor, nn

from snnfast import Leaky, MultiStep, Residual


def network(**options: Any) -> MultiStep:
    torch.manual_seed(3)
    return MultiStep(
        nn.Sequential(exact(nn.Linear(6, 5)), Leaky(0.5, 0.125, **options)),
        Residual(
            exact(nn.Linear(5, 5)),
            Leaky(0.75, 0.125),
            shortcut=nn.Sequential(exact(nn.Linear(5, 5)), Leaky(0.25, 0.125)),
        ),
        MultiStep(exact(nn.Linear(5, 4)), Leaky(0.5, 0.125, reset_mechanism="zero")),
    )


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("sizes", [[9], [4, 5], [1, 1, 7], [0, 9, 0]], ids=str)
def test_part_by_part_equals_the_whole(sizes: list[int], record_mem: bool, backend: str) -> None:
    net, x = network(), eighths(9, 3, 6)
    spk, mem, last = net(x, return_states=True)
    states, spks, mems = None, [], []
    for part in x.split(sizes):
        *out, states = net(part, states=states, record_mem=record_mem, return_states=True)
        assert all(state._base is None for state in states)
        spks.append(out[0])
        mems.append(out[1])
    assert spk.any()
    assert_bits_equal(torch.cat(spks), spk)
    assert_bits_equal(torch.cat(mems) if record_mem else mems[-1], mem if record_mem else mem[-1])
    assert len(states) == len(last) == 4
    for a, b in zip(states, last, strict=True):
        assert_bits_equal(a, b)


def test_a_constant_input_goes_on_from_states(backend: str) -> None:
    net, x = network(), eighths(3, 6)
    whole = net(x, 9)[0]
    first, _, states = net(x, 4, return_states=True)
    assert_bits_equal(torch.cat([first, net(x, 5, states=states)[0]]), whole)


def test_what_ends_without_a_neuron_returns_its_states_too(backend: str) -> None:
    net, x = MultiStep(exact(nn.Linear(6, 5)), Leaky(0.5), exact(nn.Linear(5, 4))), eighths(9, 3, 6)
    first, states = net(x[:4], return_states=True)
    assert_bits_equal(torch.cat([first, net(x[4:], states=states)]), net(x))


def test_gradients_reach_the_states_given_and_through_those_returned(backend: str) -> None:
    net, x = network(), eighths(8, 3, 6).requires_grad_()
    parameters = [x, *net.parameters()]
    expected = torch.autograd.grad(net(x)[1].square().sum(), parameters)
    _, first, states = net(x[:5], return_states=True)
    assert all(state.requires_grad for state in states)
    _, second = net(x[5:], states=states)
    found = torch.autograd.grad(first.square().sum() + second.square().sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-5)


def test_detached_states_cut_the_gradient_between_two_parts(backend: str) -> None:
    net, x = network(), eighths(8, 3, 6).requires_grad_()
    _, _, states = net(x[:5], return_states=True)
    states = [state.detach_() for state in states]  # in place: none is a view
    (gradient,) = torch.autograd.grad(net(x[5:], states=states)[1].square().sum(), x)
    assert not gradient[:5].any()
    assert gradient[5:].any()


def test_layers_with_init_hidden_hold_their_own_state_and_have_none_here(backend: str) -> None:
    net, x = network(init_hidden=True), eighths(9, 3, 6)
    whole = network()(x)[0]
    first, _, states = net(x[:4], return_states=True)
    assert [state is None for state in states] == [True, False, False, False]
    assert_bits_equal(torch.cat([first, net(x[4:], states=states)[0]]), whole)
    states[0] = net[0][1].mem
    with pytest.raises(ValueError, match=r"^states\[0\]: expected None for a layer with init_hidden=True"):
        net(x[4:], states=states)


def test_none_among_the_states_is_zeros(backend: str) -> None:
    net, x = network(), eighths(5, 3, 6)
    for a, b in zip(net(x, states=[None] * 4), net(x), strict=True):
        assert_bits_equal(a, b)


@pytest.mark.parametrize("record_mem", [True, False])
def test_states_of_half_precision_are_not_rounded(record_mem: bool, backend: str) -> None:
    net = network().to(torch.bfloat16)
    x = torch.rand(40, 3, 6).to(torch.bfloat16)
    spk, _, last = net(x, record_mem=False, return_states=True)
    states, spks = None, []
    for part in x.split(8):
        out, _, states = net(part, states=states, record_mem=record_mem, return_states=True)
        assert all(mem.dtype == torch.float32 for mem in states)
        spks.append(out)
    assert_bits_equal(torch.cat(spks), spk)
    for found, expected in zip(states, last, strict=True):
        assert_bits_equal(found, expected)


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        ([None] * 3, ValueError, r"^states: expected 4, one per Leaky, got 3"),
        (torch.zeros(4, 3, 5), TypeError, r"^states: expected a list of torch\.Tensor or None, got Tensor"),
        ([None, 0.5, None, None], TypeError, r"^states\[1\]: expected a torch\.Tensor or None, got float"),
        ([None, None, None, torch.zeros(2, 4)], ValueError, r"^states\[3\]: expected \(3, 4\), got \(2, 4\)"),
    ],
    ids=["number", "tensor", "type", "shape"],
)
def test_wrong_states_are_named(states: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=message):
        network()(torch.rand(5, 3, 6), states=states)


def test_a_module_that_unrolls_a_neuron_itself_can_not_lose_its_state_silently() -> None:
    class Block(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.body = MultiStep(nn.Linear(6, 6), Leaky(0.9, **options))

        def unroll(self, x: Tensor) -> Tensor:
            return self.body(x)[0] * 2

    x = torch.rand(5, 3, 6)
    for net in (MultiStep(Block(), Leaky(0.9)), MultiStep(Residual(Block()), Leaky(0.9))):
        net(x)
        with pytest.raises(ValueError, match=r"^states: Block has an unroll of its own.*init_hidden=True"):
            net(x, return_states=True)
    assert len(MultiStep(Block(init_hidden=True), Leaky(0.9))(x, return_states=True)[2]) == 1


# ---- spikes


def test_the_spikes_of_every_neuron_are_returned_in_order(backend: str) -> None:
    net, x = network(), eighths(9, 3, 6)
    spk, _, spikes = net(x, return_spikes=True)
    first = net[0]
    expected = [MultiStep(first)(x)[0]]
    expected.append(MultiStep(net[1].layers)(expected[0])[0])
    expected.append(MultiStep(net[1].shortcut)(expected[0])[0])
    expected.append(spk)
    assert len(spikes) == 4
    for a, b in zip(spikes, expected, strict=True):
        assert a.any()
        assert_bits_equal(a, b)
    count, _, states, spikes = net(x, reduce="sum", return_states=True, return_spikes=True)
    assert spikes[-1] is count
    assert len(states) == 4
    out, spikes = MultiStep(first, nn.Linear(5, 2))(x, return_spikes=True)
    assert out.shape == (9, 3, 2)
    assert len(spikes) == 1


def test_a_loss_on_the_rates_of_hidden_layers_has_the_gradient_of_the_loop(backend: str) -> None:
    fc, lif, head = exact(nn.Linear(6, 5)), Leaky(0.5, learn_beta=True), exact(nn.Linear(5, 4))
    net, x = MultiStep(fc, lif, head, Leaky(0.5)), eighths(9, 3, 6)
    _, mem, spikes = net(x, return_spikes=True)
    (mem.square().mean() + (spikes[0].mean(0) - 0.2).square().sum()).backward()
    found = [p.grad for p in net.parameters()]
    net.zero_grad()
    state, final, hidden, mems = torch.zeros(3, 5), torch.zeros(3, 4), [], []
    for step in x:
        spk, state = lif(fc(step), state)
        _, final = net[3](head(spk), final)
        hidden.append(spk)
        mems.append(final)
    (torch.stack(mems).square().mean() + (torch.stack(hidden).mean(0) - 0.2).square().sum()).backward()
    for a, p in zip(found, net.parameters(), strict=True):
        assert_close(a, p.grad, 1e-5)
