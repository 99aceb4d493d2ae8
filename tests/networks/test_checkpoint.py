"""MultiStep in parts that the backward pass computes again: the numbers of all steps at once, in less memory."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal
from multistep_checks import NEURONS, eighths, exact, make
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from benchmarks.measure import kept
from snnfast import Leaky, MultiStep, Residual, Synaptic
from snnfast.neurons.base import SpikingLayer

Options = dict[str, Any]


def tensors(found: Any) -> Iterator[Tensor]:
    """Those of results in which they are nested."""
    if isinstance(found, Tensor):
        yield found
    else:
        for entry in found or ():
            yield from tensors(entry)


def run(net: MultiStep, x: Tensor, *args: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Results, buffers and held states of a training step, and gradients."""
    x = x.detach().requires_grad_()
    found = list(tensors(net(x, *args, **options)))
    total = sum((t * (1 + i)).square().sum() for i, t in enumerate(found) if t.requires_grad)
    gradients = torch.autograd.grad(total, [x, *net.parameters()])  # type: ignore[arg-type]
    holding = [layer for layer in net.layers if isinstance(layer, SpikingLayer) and layer.init_hidden]
    held = [getattr(layer, name) for layer in holding for name in layer.neuron.states]
    return [t.detach() for t in (*found, *net.buffers(), *held)], list(gradients)


def assert_same(net: MultiStep, x: Tensor, size: bool | int, *args: Any, **options: Any) -> None:
    twin = copy.deepcopy(net)
    expected, gradients = run(twin, x, *args, **options)
    found, others = run(net, x, *args, checkpoint=size, **options)
    assert_all_bits_equal(found, expected)
    assert_all_close(others, gradients, relative=1e-5)


def two_layers(neuron: type[SpikingLayer] = Leaky, **options: Any) -> MultiStep:
    return MultiStep(
        exact(nn.Linear(12, 20)), make(neuron, **options), exact(nn.Linear(20, 6)), make(neuron, **options)
    )


@pytest.mark.parametrize("size", [1, 4, 10, True])
@NEURONS
def test_all_neurons(neuron: type[SpikingLayer], size: int, backend: str) -> None:
    assert_same(two_layers(neuron), eighths(19, 4, 12), size)


@pytest.mark.parametrize(
    "options",
    [
        {"record_mem": False},
        {"reduce": "sum"},
        {"return_states": True},
        {"return_spikes": True},
        {"lengths": torch.tensor([0, 3, 8, 19])},
        {"states": [torch.full((4, 20), 0.5), None], "return_states": True},
        {"reduce": "sum", "record_mem": False, "return_states": True, "return_spikes": True},
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
def test_every_option(options: Options, constant: bool) -> None:
    x, steps = (eighths(4, 12), (19,)) if constant else (eighths(19, 4, 12), ())
    assert_same(two_layers(learn_beta=True), x, 4, *steps, **options)


def test_states_of_several_tensors_go_on() -> None:
    net = MultiStep(exact(nn.Linear(12, 20)), make(Synaptic), exact(nn.Linear(20, 6)), make(Leaky))
    assert_same(net, eighths(19, 4, 12), 4, states=[(None, torch.full((4, 20), 0.25)), None], return_states=True)


def test_layers_that_hold_their_states_go_on_from_them() -> None:
    net, twin = two_layers(init_hidden=True), None
    twin = copy.deepcopy(net)
    for _ in range(2):
        x = eighths(9, 4, 12)
        expected, found = run(twin, x), run(net, x, checkpoint=4)
        assert_all_bits_equal(found[0], expected[0])
        assert_all_close(found[1], expected[1], relative=1e-5)
        for other in (net, twin):
            for layer in other.layers:
                if isinstance(layer, Leaky):
                    layer.mem = layer.mem.detach()


def test_images_blocks_and_batch_norm() -> None:
    """Running averages count each batch once, though it is computed twice."""
    block = Residual(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), Leaky(0.9))
    layers = [
        nn.Conv2d(2, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        Leaky(0.9),
        block,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 5),
    ]
    net, x = MultiStep(*layers).double(), torch.rand(11, 4, 2, 8, 8, dtype=torch.float64) * 2
    twin = copy.deepcopy(net)
    (expected, gradients), (found, others) = run(twin, x), run(net, x, checkpoint=3)
    assert_all_close(found, expected, relative=1e-12)
    assert_all_close(others, gradients, relative=1e-9)
    assert net.layers[1].num_batches_tracked == 11


def test_the_memory_format() -> None:
    net = MultiStep(nn.Conv2d(3, 8, 3, padding=1), Leaky(0.9), nn.Conv2d(8, 8, 3), Leaky(0.9))
    x = torch.rand(11, 4, 3, 8, 8)
    for given in (x, x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(x)):
        expected, found = (list(tensors(net(given, return_spikes=True, checkpoint=size))) for size in (False, 3))
        assert [t.stride() for t in found] == [t.stride() for t in expected]
        assert_all_bits_equal(found, expected)


def by_hand(net: MultiStep, x: Tensor, size: int) -> Tensor:
    """The output of a network without a neuron layer at the end, in parts that autograd keeps."""
    states, parts = None, []
    for part in x.split(size):
        out, states = net(part, states=states, return_states=True)
        parts.append(out)
    return torch.cat(parts)


class ByItsAverage(nn.Module):
    """A layer that reads a buffer which it changes."""

    mean: Tensor

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        new = 0.5 * self.mean + x.detach().mean()
        if self.in_place:
            self.mean.copy_(new)
        else:
            self.mean = new
        return x * self.mean.clone()


@pytest.mark.parametrize("kind", ["in place", "replaced", "spectral_norm"])
def test_buffers_that_a_layer_reads_and_changes(kind: str) -> None:
    fc, x = nn.Linear(12, 20), 3 * eighths(19, 4, 12)
    lead = [nn.utils.spectral_norm(fc)] if kind == "spectral_norm" else [fc, ByItsAverage(kind == "in place")]
    net = MultiStep(*lead, Leaky(0.9), nn.Linear(20, 6))
    twin = copy.deepcopy(net)
    found, expected = net(x, checkpoint=4), by_hand(twin, x, 4)
    assert_bits_equal(found, expected)
    of_found, of_expected = (
        torch.autograd.grad(out.square().sum(), list(of.parameters())) for out, of in ((found, net), (expected, twin))
    )
    assert_all_close(of_found, of_expected, relative=1e-5)
    assert_all_bits_equal(list(net.buffers()), list(twin.buffers()))


def test_more_than_one_backward_pass() -> None:
    net, x = two_layers(learn_beta=True, init_hidden=True), eighths(19, 4, 12)
    found = []
    for size in (4, False):
        snnfast.reset(net)
        mem = net(x, checkpoint=size)[1]
        firsts = torch.autograd.grad(mem.sum(), list(net.parameters()), retain_graph=True)
        found.append([*firsts, *torch.autograd.grad(mem.square().sum(), list(net.parameters()))])
    assert_all_close(*found, relative=1e-5)


def test_second_derivatives() -> None:
    net, x = MultiStep(nn.Linear(12, 20), nn.Tanh(), Leaky(0.9), nn.Linear(20, 6)).double(), eighths(9, 4, 12).double()
    found = []
    for size in (4, False):
        with snnfast.use_backend("reference"):
            weights = list(net.parameters())
            firsts = torch.autograd.grad(net(x, checkpoint=size).square().sum(), weights, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in firsts), weights))  # type: ignore[arg-type]
    assert_all_close(*found, relative=1e-9)


def test_the_gradient_of_the_input_is_made_once() -> None:
    """Each part has a slice of it. Were they slices for autograd, each would be padded to all steps."""
    net, x = two_layers(), eighths(40, 4, 12).requires_grad_()
    loss = net(x, checkpoint=4)[1].sum()
    with torch.profiler.profile() as seen:
        loss.backward()
    assert not [event for event in seen.events() if "SliceBackward" in event.name or "select_backward" in event.name]


def test_what_is_the_same_at_every_step_runs_once() -> None:
    net, seen = MultiStep(nn.Linear(12, 20), nn.Tanh(), Leaky(0.9), nn.Linear(20, 6), Leaky(0.9)), []
    net[0].register_forward_hook(lambda *_: seen.append(None))
    spk, _ = net(torch.rand(4, 12), num_steps=20, checkpoint=True)
    spk.sum().backward()
    assert len(seen) == 1
    assert MultiStep(nn.Linear(12, 6))(torch.rand(4, 12), num_steps=20, checkpoint=True).shape == (4, 6)


def test_it_draws_the_same_masks_again() -> None:
    net = MultiStep(nn.Linear(12, 20), nn.Dropout(0.5), Leaky(0.9), nn.Linear(20, 6))
    x = eighths(19, 4, 12)
    torch.manual_seed(1)
    spikes = net(x, checkpoint=4, return_spikes=True)[1][0]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    first = net(x[:4], return_spikes=True)[1][0]
    assert_bits_equal(spikes[:4], first)
    net(x, checkpoint=4).sum().backward()
    torch.manual_seed(1)
    net(x, checkpoint=4)
    assert_bits_equal(torch.get_rng_state(), state)


def test_the_memory_that_is_held() -> None:
    net = MultiStep(nn.Linear(64, 64), Leaky(0.9), nn.Linear(64, 64), Leaky(0.9), nn.Linear(64, 4))

    def held(x: Tensor, size: int | bool) -> int:
        return kept(lambda: [net(x, checkpoint=size)], [x, *net.parameters()]).held

    x, membranes = eighths(400, 8, 64), 2 * 8 * 64 * 4
    last = kept(lambda: [net(x[380:], states=[torch.ones(8, 64)] * 2)], [x, *net.parameters()]).held
    assert held(x, 20) <= 19 * membranes + last  # two membranes before each part but the first
    assert held(x, False) > 6 * held(x, 20)
    long = eighths(4000, 8, 64)
    assert held(long, False) > 4 * held(long, True)


@pytest.mark.parametrize(
    ("least", "steps", "expected"),
    [
        (0, 400, [1] + [21] * 19),  # the square root, in equal parts
        (100, 400, [1, 133, 133, 133]),
        (100, 201, [1, 100, 100]),
        (100, 200, [1, 199]),
        (1000, 400, [1, 399]),
    ],
)
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
def test_parts_return_the_least_bytes(
    least: int, steps: int, expected: list[int], constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass computes neither the first step again nor the last part."""
    net, seen = MultiStep(Leaky(0.9), nn.Linear(12, 6), nn.Tanh(), Leaky(0.9)), []
    returned = 4 * 3 * (6 + 6 + 6)  # bytes of a step of 3 samples; the neurons and the linear layer are one call
    monkeypatch.setattr(snnfast.networks.checkpoint, "LEAST", least * returned)
    net[2].register_forward_hook(lambda *given: seen.append(len(given[1][0]) // 3))
    given = (torch.rand(3, 12), steps) if constant else (torch.rand(steps, 3, 12),)
    out = net(*given, checkpoint=True)
    assert seen == expected
    out[1].sum().backward()
    assert seen == expected + expected[1:-1][::-1]


@pytest.mark.parametrize("way", ["checkpoint", "compiled", "torch.compile", "functional_call"])
def test_inside_of_something_else(way: str) -> None:
    net, x = two_layers(), eighths(19, 4, 12)

    class Whole(nn.Module):
        def __init__(self, size: int | bool) -> None:
            super().__init__()
            self.net, self.size = net, size

        def forward(self, x: Tensor) -> Tensor:
            spk, mem = self.net(x, checkpoint=self.size)
            return spk.sum() + mem.square().sum()  # type: ignore[no-any-return]

    others = {f"net.{name}": (p * 0.5).detach().requires_grad_() for name, p in net.named_parameters()}

    def loss(size: int | bool) -> Tensor:
        whole: Callable[[Tensor], Any] = Whole(size)
        if way == "functional_call":
            return torch.func.functional_call(whole, others, (x,))  # type: ignore[arg-type, no-any-return]
        ways: dict[str, Callable[[Any], Any]] = {
            "compiled": snnfast.compile,
            "torch.compile": partial(torch.compile, backend="eager"),
            "checkpoint": lambda whole: partial(checkpoint, whole, use_reentrant=False),
        }
        return ways[way](whole)(x)  # type: ignore[no-any-return]

    given = list(others.values()) if way == "functional_call" else list(net.parameters())
    assert_all_close(*(torch.autograd.grad(loss(size), given) for size in (4, False)), relative=1e-5)


def test_batch_norm_inside_of_a_compiled_network() -> None:
    """What is recorded there makes other calls than a part that runs again."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MultiStep(nn.BatchNorm1d(12), Leaky(0.9), nn.Linear(12, 6), Leaky(0.9, init_hidden=True))

        def forward(self, x: Tensor, size: int | bool) -> Tensor:
            snnfast.reset(self.net)
            return self.net(2 * x, checkpoint=size)[1].square().sum()  # type: ignore[no-any-return]

    whole = Whole()
    twin, compiled = copy.deepcopy(whole), snnfast.compile(whole)
    for _ in range(3):
        x = eighths(19, 4, 12)
        of_found = torch.autograd.grad(compiled(x, 4), list(whole.parameters()))
        of_expected = torch.autograd.grad(twin(x, False), list(twin.parameters()))
        assert_all_close(of_found, of_expected, relative=1e-5)
    assert_all_close(list(whole.buffers()), list(twin.buffers()), relative=1e-5)


def test_a_mode_that_changes_before_the_backward_pass() -> None:
    net, x = MultiStep(nn.Linear(12, 20), nn.Dropout(0.5), Leaky(0.9), nn.Linear(20, 6)), eighths(19, 4, 12)
    found = []
    for change in (lambda: None, net.eval):
        torch.manual_seed(1)
        net.train()
        out = net(x, checkpoint=4)
        change()
        found.append(torch.autograd.grad(out.sum(), list(net.parameters())))
    assert_all_bits_equal(*found)
    assert not net.training
    assert not net[1].training


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (0, r"checkpoint: the parameter 0\.weight was changed in place"),  # no gradient of the last part needs it
        (2, "has been modified by an inplace operation"),  # autograd's own, of the last part
    ],
)
def test_a_parameter_that_changes_before_the_backward_pass(changed: int, message: str) -> None:
    net = two_layers()
    out = net(eighths(19, 4, 12), checkpoint=4)[1]
    with torch.no_grad():
        net[changed].weight.add_(1)
    with pytest.raises(RuntimeError, match=message):
        out.sum().backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: Any) -> None:
    net, x = two_layers(), eighths(19, 4, 12)
    with context():
        assert_all_bits_equal(net(x, checkpoint=4), net(x))
    assert net(x[:0], checkpoint=True)[0].shape == (0, 4, 6)


class Own(nn.Module):
    def unroll(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("net", "given", "kind", "message"),
    [
        (two_layers, 0, ValueError, "checkpoint: expected at least 1 step, got 0"),
        (two_layers, "all", TypeError, "checkpoint: expected a bool or an int, got str"),
        (two_layers, None, TypeError, "checkpoint: expected a bool or an int, got NoneType"),
        (lambda: MultiStep(Own(), Leaky(0.9)), 4, ValueError, "checkpoint: Own has an unroll of its own"),
        (
            lambda: MultiStep(nn.BatchNorm1d(12), Leaky(0.9), batch_norm_over_time=True), 4,
            ValueError, "checkpoint: batch_norm_over_time",
        ),
    ],
)  # fmt: skip
def test_bad_input(net: Callable[[], MultiStep], given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        net()(eighths(19, 4, 12), checkpoint=given)
