"""MultiStep equals the loop over time of its layers, whole or part by part, and is an nn.Sequential."""

import copy
import itertools
import pickle
import re
from collections import OrderedDict
from typing import Any

import pytest
import snntorch
import snntorch_checks
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from multistep_checks import NEURONS, eighths, exact, loop, make
from torch import Tensor, nn

import snnfast.snntorch as snn
from snnfast import Leaky, MultiStep, Residual, Synaptic
from snnfast.neurons.base import SpikingLayer


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
@NEURONS
def test_the_loop_over_time(neuron: type[SpikingLayer], num_steps: int | None, backend: str) -> None:
    """Its bits, and its gradients to rounding."""
    last = make(neuron, beta=0.75, reset_mechanism="zero")
    layers = [exact(nn.Linear(12, 20)), make(neuron), exact(nn.Linear(20, 6)), last]
    net, parameters = MultiStep(*layers), [p for layer in layers for p in layer.parameters()]
    x = (eighths(4, 12) if num_steps else eighths(9, 4, 12)).requires_grad_()
    outputs, gradients = (net(x, num_steps), loop(layers, x, num_steps)), []
    assert outputs[1][0].any()
    for spk, *states in outputs:
        total = spk.square().sum() + sum(state.sum() for state in states)
        gradients.append(torch.autograd.grad(total, [x, *parameters]))
    assert_all_bits_equal(*outputs)
    assert_all_close(*gradients, relative=1e-5)
    spk, *records = outputs[1]
    for record_mem in (True, False):
        count, *states = net(x, num_steps, record_mem=record_mem, reduce="sum")
        assert_all_bits_equal((count, *states), (spk.sum(0), *(r if record_mem else r[-1] for r in records)))
    assert_all_bits_equal(net(x, num_steps, record_mem=False), (spk, *(record[-1] for record in records)))


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


def test_empty_sequences_and_batches(backend: str) -> None:
    net = MultiStep(nn.Linear(12, 6), Leaky(0.9))
    for steps, batch in itertools.product((0, 3), (0, 4)):
        for x, num_steps in ((torch.rand(steps, batch, 12), None), (torch.rand(batch, 12), steps)):
            spk, mem = net(x, num_steps)
            assert spk.shape == mem.shape == (steps, batch, 6)


# ---- multiStep over parts of a long sequence, its states passed on, and the spikes of its hidden layers


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
def test_parts_equal_the_whole(sizes: list[int], record_mem: bool, neuron: type[SpikingLayer], backend: str) -> None:
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
    net, x = network(neuron), eighths(14, 3, 6).requires_grad_()
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
    assert all(t.any() for t in spikes)
    assert_all_bits_equal(spikes, expected)
    count, _, states, spikes = net(x, reduce="sum", return_states=True, return_spikes=True)
    assert spikes[-1] is count
    assert len(states) == 4
    out, spikes = MultiStep(first, nn.Linear(5, 2))(x, return_spikes=True)
    assert out.shape == (9, 3, 2)
    assert len(spikes) == 1


def test_a_loss_on_hidden_rates(backend: str) -> None:
    layers = [exact(nn.Linear(6, 5)), Leaky(0.5, learn_beta=True), exact(nn.Linear(5, 4)), Leaky(0.5)]
    net, x, grads = MultiStep(*layers), eighths(9, 3, 6), []
    _, mem, (hidden, _) = net(x, return_spikes=True)
    for mems, spikes in ((mem, hidden), (loop(layers, x)[1], loop(layers[:2], x)[0])):
        loss = mems.square().mean() + (spikes.mean(0) - 0.2).square().sum()
        grads.append(torch.autograd.grad(loss, list(net.parameters())))
    assert_all_close(*grads, relative=1e-5)


# ---- multiStep is an nn.Sequential: its names, nesting, skip connections, modules with an unroll of their own


def layers() -> list[nn.Module]:
    return [exact(nn.Linear(6, 5)), Leaky(0.5, learn_beta=True), exact(nn.Linear(5, 4)), Leaky(0.75)]


def test_names_indices_and_slices() -> None:
    parts = layers()
    net = MultiStep(OrderedDict(zip(("fc1", "lif1", "fc2", "lif2"), parts, strict=True)))
    assert list(net.state_dict())[:3] == ["fc1.weight", "fc1.bias", "lif1.beta"]
    assert net.fc1 is net[0] is parts[0]
    assert len(net) == 4
    assert list(net) == net.layers == parts
    x = eighths(5, 3, 6)
    hidden, rest = net[:2], net[2:]
    assert type(hidden) is MultiStep
    assert_all_bits_equal(rest(hidden(x)[0]), net(x))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_all_bits_equal(other(x), net(x))


@pytest.mark.parametrize("num_steps", [None, 5], ids=["sequence", "constant"])
def test_a_multistep_in_a_multistep_is_opened(num_steps: int | None, backend: str) -> None:
    parts = layers()
    x = eighths(3, 6) if num_steps else eighths(5, 3, 6)
    for net in (
        MultiStep(MultiStep(*parts[:2]), nn.Sequential(MultiStep(*parts[2:]))),
        MultiStep(MultiStep(MultiStep(*parts))),
    ):
        assert net.layers == parts
        expected = MultiStep(*parts)(x, num_steps, record_mem=False)
        assert_all_bits_equal(net(x, num_steps, record_mem=False), expected)


def test_a_subclass_may_call_forward_from_its_own() -> None:
    class Rates(MultiStep):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, 4, reduce="sum")[0] / 4

    net, x = Rates(*layers()), eighths(3, 6)
    assert_close(net(x), MultiStep(*net)(x, 4)[0].mean(0), 1e-6)
    with pytest.raises(TypeError, match=r"layers: Rates calls a Leaky in its forward.*a method unroll"):
        MultiStep(net)


def test_a_sequential_with_a_forward_of_its_own_is_one_layer() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * super().forward(x)

    net = MultiStep(Scaled(nn.Identity()))
    torch.testing.assert_close(net(torch.ones(3, 2, 4)), torch.full((3, 2, 4), 100.0))


# ---- neurons that it can't carry over time


@pytest.mark.parametrize(
    ("neuron", "remedy"),
    [
        (lambda: snntorch.Leaky(0.9, init_hidden=True), "use snnfast.Leaky, or snnfast.snntorch.convert"),
        (lambda: snntorch.Synaptic(0.9, 0.8, init_hidden=True), "use snnfast.Synaptic, or snnfast.snntorch.convert"),
        (lambda: snntorch.SLSTM(2, 3, init_hidden=True), "keep the loop over time, or .* unroll"),
        (lambda: snntorch.LeakyParallel(5, 5), "keep the loop over time, or .* unroll"),
    ],
    ids=["Leaky", "Synaptic", "SLSTM", "LeakyParallel"],
)
def test_a_neuron_of_snntorch(neuron: Any, remedy: str) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = neuron()

    for made in (neuron(), Holder()):
        with pytest.raises(TypeError, match=rf"layers: .* is or has a neuron of snnTorch .*{remedy}"):
            MultiStep(nn.Linear(5, 5), made)


def test_layers_that_were_changed() -> None:
    net = MultiStep(nn.Linear(5, 5), snn.Leaky(0.9), nn.Linear(5, 5))
    snn.revert(net)
    with pytest.raises(TypeError, match="neuron of snnTorch"):
        net(torch.rand(3, 2, 5))


def test_a_list_of_modules() -> None:
    for layer in (snntorch.BatchNormTT1d(5, 4), nn.ModuleDict({"a": nn.Linear(5, 5)})):
        with pytest.raises(TypeError, match=r"^layers: Module(List|Dict) has no forward; .* unroll"):
            MultiStep(nn.Linear(5, 5), layer)


# ---- skip connections


def looped(block: list[nn.Module], shortcut: list[nn.Module], x: Tensor, num_steps: int | None) -> Tensor:
    return loop(block, x, num_steps)[0] + loop(shortcut, x, num_steps)[0]


@pytest.mark.parametrize("num_steps", [None, 5], ids=["sequence", "constant"])
def test_a_skip_connection(num_steps: int | None, backend: str) -> None:
    body, shortcut = [exact(nn.Linear(6, 6)), Leaky(0.5)], [exact(nn.Linear(6, 6)), Leaky(0.25)]
    x = (eighths(3, 6) if num_steps else eighths(5, 3, 6)).requires_grad_()
    parameters = [p for layer in (*body, *shortcut) for p in layer.parameters()]
    for block, expected in (
        (Residual(*body), looped(body, [nn.Identity()], x, num_steps)),
        (Residual(*body, shortcut=shortcut[0]), looped(body, shortcut[:1], x, num_steps)),
        (Residual(*body, shortcut=nn.Sequential(*shortcut)), looped(body, shortcut, x, num_steps)),
        (Residual(body[0], shortcut=MultiStep(*shortcut)), looped(body[:1], shortcut, x, num_steps)),
    ):
        for found in (block(x, num_steps), MultiStep(block, nn.Identity())(x, num_steps)):
            assert expected.any()
            assert_bits_equal(found, expected)
            grads = [torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True, retain_graph=True)
                     for y in (found, expected)]  # fmt: skip
            assert_all_close(*grads, relative=1e-5)


def test_nested_skips() -> None:
    inner = [exact(nn.Linear(6, 6)), Leaky(0.5)]
    outer = exact(nn.Linear(6, 6))
    x = eighths(5, 3, 6)
    middle = loop([outer], x)[0]
    assert_bits_equal(Residual(outer, Residual(*inner))(x), loop(inner, middle)[0] + middle + x)
    assert_bits_equal(Residual(outer)(x[0], 5), outer(x[0]) + x[0])
    assert MultiStep(Residual(outer), nn.Linear(6, 2))(x[0], 5).shape == (3, 2)


def test_wrong_skips() -> None:
    with pytest.raises(TypeError, match=r"^shortcut: expected torch\.nn\.Module or None, got str"):
        Residual(nn.Linear(6, 6), shortcut="identity")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^shortcut: SLSTM is or has a neuron of snnTorch"):
        Residual(nn.Linear(6, 6), shortcut=snntorch.SLSTM(6, 6))
    with pytest.raises(ValueError, match=r"^layers: expected at least one"):
        Residual()
    for x, num_steps in ((torch.rand(5, 3, 6), None), (torch.rand(3, 6), 5)):
        with pytest.raises(ValueError, match=r"^shortcut: expected steps of the shape .*\(3, 1\), got \(3, 6\)"):
            Residual(nn.Linear(6, 1), Leaky(0.9))(x, num_steps)
    with pytest.raises(ValueError, match=r"^reduce: needs a neuron as the last layer, got Residual"):
        MultiStep(Residual(nn.Linear(6, 6), Leaky(0.9)))(torch.rand(5, 3, 6), reduce="sum")


# ---- modules that unroll themselves


class Recurrent(nn.Module):
    """A loop over time of its own, with a neuron of snnTorch in it."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = snntorch.RLeaky(0.9, all_to_all=False)

    def unroll(self, x: Tensor) -> Tensor:
        return snntorch_checks.loop(self.lif, x)[0]


@pytest.mark.parametrize("num_steps", [None, 5], ids=["sequence", "constant"])
def test_a_module_with_an_unroll(num_steps: int | None) -> None:
    block, head = Recurrent(), layers()[2:]
    head[0] = exact(nn.Linear(6, 4))
    x = eighths(3, 6) * 3 if num_steps else eighths(5, 3, 6) * 3
    over_time = x.expand(5, 3, 6) if num_steps else x
    expected = MultiStep(*head)(block.unroll(over_time))
    assert all(t.any() for t in expected)
    assert_all_bits_equal(MultiStep(block, *head)(x, num_steps), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (8, 6)),
        (nn.Flatten(), (8, 6)),
        (nn.BatchNorm1d(6), (8, 6)),
        (nn.Conv2d(1, 2, 3), (8, 1, 6, 6)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_an_input_without_time(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net, x = MultiStep(layer, Leaky(0.5)), torch.rand(shape)
    expected = r"^x: expected \[T, B, \*\] with time first, or \[B, \*\] with num_steps; "
    shapes = f"{type(layer).__name__} can't take shape {shape}, all steps as one batch of shape "
    with pytest.raises(ValueError, match=expected + re.escape(shapes)) as error:
        net(x)
    assert str(error.value).endswith(str(error.value.__cause__))  # what the layer itself says
    assert net(x, num_steps=3)[0].shape[0] == 3
    if isinstance(layer, nn.Conv2d):
        expected = r"^x: expected \[B, \*\] without time, beside num_steps; Conv2d can't take"
        with pytest.raises(ValueError, match=expected):
            net(torch.rand(5, 4, 1, 6, 6), num_steps=5)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("mine")


def test_an_error_not_about_shapes() -> None:
    time = "x is [T, B, *] with time first, or [B, *] with num_steps"
    for layer, x, message in (
        (Failing(), torch.rand(8, 3, 6), "mine"),
        (nn.Linear(6, 5), torch.rand(8, 3, 6).double(), "dtype"),
    ):
        with pytest.raises(RuntimeError, match=message) as error:
            MultiStep(layer)(x)
        (note,) = error.value.__notes__
        given = f"in a MultiStep: {type(layer).__name__}, which was given shape (8, 3, 6), all steps as one batch of"
        assert note == f"{given} shape (24, 6); {time}"
    torch._dynamo.reset()
    net = MultiStep(*layers())
    with pytest.raises(RuntimeError, match=r"must have same reduction dim"):
        torch.compile(net, backend="eager", fullgraph=True)(torch.rand(8, 7), num_steps=5)


@pytest.mark.parametrize("returned", [lambda x: (x, x), lambda x: x[0], lambda x: None], ids=["tuple", "step", "None"])
def test_a_layer_that_returns_something_else(returned: Any) -> None:
    class Block(nn.Module):
        def unroll(self, x: Tensor) -> Any:
            return returned(x)

    gru = MultiStep(nn.GRU(6, 6), Leaky(0.5))
    message = r"layers: GRU returned a tuple, expected a torch\.Tensor; .* method unroll"
    for given in ((torch.rand(4, 3, 6),), (torch.rand(3, 6), 4)):
        with pytest.raises(TypeError, match=message):
            gru(*given)
    with pytest.raises(ValueError, match=r"Block\.unroll: expected it to return \[T, B, \*\], T=5, got"):
        MultiStep(Block())(torch.rand(5, 3, 6))
