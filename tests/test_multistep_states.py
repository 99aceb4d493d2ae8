"""MultiStep over parts of a long sequence, its states passed on, and the spikes of its hidden layers."""

from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from multistep_checks import NEURONS, eighths, exact, make
from torch import Tensor, nn

from snnfast import Leaky, MultiStep, Residual, Synaptic
from snnfast.neurons.base import SpikingLayer


def network(neuron: type[SpikingLayer] = Leaky, **options: Any) -> MultiStep:
    torch.manual_seed(3)
    return MultiStep(
        nn.Sequential(exact(nn.Linear(6, 5)), make(neuron, threshold=0.125, **options)),
        Residual(
            exact(nn.Linear(5, 5)),
            make(neuron, beta=0.75, threshold=0.125),
            shortcut=nn.Sequential(exact(nn.Linear(5, 5)), make(neuron, beta=0.25, threshold=0.125)),
        ),
        MultiStep(exact(nn.Linear(5, 4)), make(neuron, threshold=0.125, reset_mechanism="zero")),
    )


def flat(states: list[Any]) -> list[Tensor]:
    """The tensors in a list of states, each of which is one or a tuple of them."""
    return [t for state in states for t in (state if isinstance(state, tuple) else (state,))]


@NEURONS
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("sizes", [[9], [4, 5], [1, 1, 7], [0, 9, 0]], ids=str)
def test_part_by_part_equals_the_whole(
    sizes: list[int], record_mem: bool, neuron: type[SpikingLayer], backend: str
) -> None:
    net, x = network(neuron), eighths(9, 3, 6)
    spk, *records, last = net(x, return_states=True)
    states, parts = None, []
    for part in x.split(sizes):
        *out, states = net(part, states=states, record_mem=record_mem, return_states=True)
        assert all(state._base is None for state in flat(states))
        parts.append(out)
    assert spk.any()
    spks, *found = zip(*parts, strict=True)
    assert_bits_equal(torch.cat(spks), spk)
    for mems, mem in zip(found, records, strict=True):
        assert_bits_equal(torch.cat(mems) if record_mem else mems[-1], mem if record_mem else mem[-1])
    assert len(states) == len(last) == 4
    assert_all_bits_equal(flat(states), flat(last))
    constant = net(x[0], 9)[0]
    first, *_, states = net(x[0], 4, return_states=True)
    assert_bits_equal(torch.cat([first, net(x[0], 5, states=states)[0]]), constant)


def test_states_of_what_ends_without_a_neuron(backend: str) -> None:
    net, x = MultiStep(exact(nn.Linear(6, 5)), Leaky(0.5), exact(nn.Linear(5, 4))), eighths(9, 3, 6)
    first, states = net(x[:4], return_states=True)
    assert_bits_equal(torch.cat([first, net(x[4:], states=states)]), net(x))


@NEURONS
def test_gradients_of_states(neuron: type[SpikingLayer], backend: str) -> None:
    net, x = network(neuron), eighths(8, 3, 6).requires_grad_()
    parameters = [x, *net.parameters()]
    expected = torch.autograd.grad(net(x)[-1].square().sum(), parameters)
    *_, first, states = net(x[:5], return_states=True)
    assert all(state.requires_grad for state in flat(states))
    *_, second = net(x[5:], states=states)
    found = torch.autograd.grad(first.square().sum() + second.square().sum(), parameters)
    assert_all_close(found, expected, relative=1e-5)
    for state in flat(states):
        state.detach_()  # in place: none is a view
    (gradient,) = torch.autograd.grad(net(x[5:], states=states)[-1].square().sum(), x)
    assert not gradient[:5].any()
    assert gradient[5:].any()


@NEURONS
def test_layers_with_init_hidden_have_no_state_here(neuron: type[SpikingLayer], backend: str) -> None:
    net, x = network(neuron, init_hidden=True), eighths(9, 3, 6)
    whole = network(neuron)(x)[0]
    first, *_, states = net(x[:4], return_states=True)
    assert [state is None for state in states] == [True, False, False, False]
    assert_bits_equal(torch.cat([first, net(x[4:], states=states)[0]]), whole)
    states[0] = net[0][1].mem
    with pytest.raises(ValueError, match=r"^states\[0\]: expected None for a layer with init_hidden=True"):
        net(x[4:], states=states)


@NEURONS
def test_none_among_the_states_is_zeros(neuron: type[SpikingLayer], backend: str) -> None:
    net, x = network(neuron), eighths(5, 3, 6)
    given: list[list[Any]] = [[None] * 4]
    if neuron is Synaptic:
        given += [[(None, torch.zeros(3, 5)), None, [torch.zeros(3, 5), None], (None, None)]]
    for states in given:
        assert_all_bits_equal(net(x, states=states), net(x))


@NEURONS
@pytest.mark.parametrize("record_mem", [True, False])
def test_states_of_half_precision(record_mem: bool, neuron: type[SpikingLayer], backend: str) -> None:
    net = network(neuron).to(torch.bfloat16)
    x = torch.rand(40, 3, 6).to(torch.bfloat16)
    spk, *_, last = net(x, record_mem=False, return_states=True)
    states, spks = None, []
    for part in x.split(8):
        out, *_, states = net(part, states=states, record_mem=record_mem, return_states=True)
        assert all(state.dtype == torch.float32 for state in flat(states))
        spks.append(out)
    assert_bits_equal(torch.cat(spks), spk)
    assert_all_bits_equal(flat(states), flat(last))


MEM = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("neuron", "states", "error", "message"),
    [
        (Leaky, [None] * 3, ValueError, r"^states: expected 4, one per neuron layer, got 3"),
        (Leaky, torch.zeros(4, 3, 5), TypeError, r"^states: expected a list of torch\.Tensor or None, got Tensor"),
        (Leaky, [None, 0.5, None, None], TypeError, r"^states\[1\]: expected a torch\.Tensor or None, got float"),
        (Leaky, [*[None] * 3, torch.zeros(2, 4)], ValueError, r"^states\[3\]: expected \(3, 4\), got \(2, 4\)"),
        (Synaptic, [None, MEM, None, None], TypeError, r"^states\[1\]: expected \(syn, mem\) or None, got Tensor"),
        (Synaptic, [None, (MEM,), None, None], TypeError, r"^states\[1\]: expected \(syn, mem\) or None, got tuple"),
        (Synaptic, [(MEM, 3), *[None] * 3], TypeError, r"^states\[0\]\[1\]: expected a torch\.Tensor or None, got int"),
        (Synaptic, [(MEM[:2], MEM), *[None] * 3], ValueError, r"^states\[0\]\[0\]: expected \(3, 5\), got \(2, 5\)"),
    ],
    ids=["number", "tensor", "type", "shape", "several-tensor", "several-tuple", "several-type", "several-shape"],
)
def test_wrong_states(neuron: type[SpikingLayer], states: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        network(neuron)(torch.rand(5, 3, 6), states=states)


def test_a_module_that_unrolls_a_neuron_itself() -> None:
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


def test_spikes_are_returned_in_order(backend: str) -> None:
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


def test_a_loss_on_hidden_rates(backend: str) -> None:
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
