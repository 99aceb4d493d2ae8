"""MultiStep.from_sequential: a network that was written for a loop over time, without the loop."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, gradients_of
from multistep_checks import eighths, exact
from snntorch import utils
from snntorch_checks import NEURONS, as_tuple, held, make, neurons, over_time
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import MultiStep

T, B = 6, 3
Build = Callable[..., nn.Sequential]


def convolutional(name: str = "Leaky", library: Any = snntorch, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        exact(nn.Conv2d(1, 4, 3)), nn.MaxPool2d(2), make(library, name, init_hidden=True), nn.Flatten(),
        exact(nn.Linear(36, 5)), make(library, name, init_hidden=True, output=True, **options),
    )  # fmt: skip


def nested(name: str = "Leaky", library: Any = snntorch, **options: Any) -> nn.Sequential:
    parts = list(convolutional(name, library, **options))
    features = nn.Sequential(OrderedDict(conv=parts[0], pooled=nn.Sequential(*parts[1:3])))
    return nn.Sequential(OrderedDict(features=features, flat=parts[3], head=nn.Sequential(*parts[4:])))


BUILDS = pytest.mark.parametrize("build", [convolutional, nested])


def images(batch: int = B) -> Tensor:
    return eighths(T, batch, 1, 8, 8) * 4


def pair(build: Build, *args: Any, **options: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """The same network twice."""
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(build(*args, **options))
    return found[0], found[1]


# ---- the same numbers as the loop


@BUILDS
@NEURONS
def test_snntorchs_loop(name: str, build: Build, backend: str) -> None:
    """Samples after a reset, others that go on from the states, and those of another batch size."""
    looped, net = pair(build, name, learn_threshold=True)
    ours, sample, larger = MultiStep.from_sequential(net), images(), images(B + 2)
    for x, reset in (
        (sample, True), (images(), True), (sample, False), (larger, False), (larger, False), (larger, True),
    ):  # fmt: skip
        if reset:
            utils.reset(looped)
            utils.reset(net)
        results = []
        for model, forward in ((looped, lambda x: over_time(looped, x)), (net, ours)):
            leaf = x.clone().requires_grad_()
            outputs = forward(leaf)
            grads = gradients_of(outputs, [leaf, *model.parameters()])
            states = [state.detach_() for layer in neurons(model) for state in held(layer)]
            results.append(((*outputs, *states), grads))
        (expected, wanted), (found, grads) = results
        assert expected[0].any()
        assert all(grad.any() for grad in wanted)
        assert_all_bits_equal(found, expected)
        assert_all_close(grads, wanted, relative=3e-4)  # of sums that cancel


def test_a_constant_input(backend: str) -> None:
    looped, net = pair(convolutional)
    x = images()[0]
    expected = over_time(looped, x.expand(T, *x.shape))
    net[-1].output = False  # where a step returns only spikes, it still returns the membranes as well
    assert len(as_tuple(net(x))) == 1
    utils.reset(net)
    assert_all_bits_equal(MultiStep.from_sequential(net)(x, T), expected)


@pytest.mark.parametrize("library", [snntorch, snn, snnfast], ids=lambda library: library.__name__)
def test_the_network_still_runs_step_by_step(library: Any) -> None:
    looped, (net, _) = pair(convolutional)[0], pair(convolutional, library=library)
    ours, x = MultiStep.from_sequential(net), images()
    expected = over_time(looped, torch.cat([x, x, x]))
    for a, *parts in zip(expected, ours(x), over_time(net, x), ours(x), strict=True):
        assert_bits_equal(torch.cat(parts), a)


def test_a_last_layer_that_holds_nothing() -> None:
    net = nn.Sequential(exact(nn.Linear(6, 5)), snntorch.Leaky(0.9))
    x = eighths(T, B, 6)
    expected = over_time(net, x)
    ours = MultiStep.from_sequential(net)
    for _ in range(2):
        assert_all_bits_equal(ours(x), expected)


# ---- the very same modules


@BUILDS
def test_modules_names_and_checkpoints(build: Build) -> None:
    other, net = pair(build)
    modules = dict(net.named_modules())
    keys = list(net.state_dict())
    ours = MultiStep.from_sequential(net)
    assert type(ours) is MultiStep
    for name, module in ours.named_modules():
        assert name == "" or module is modules.pop(name)
    assert list(modules) == [""]
    assert list(ours.state_dict()) == list(net.state_dict()) == keys == list(other.state_dict())
    changed = {key: value + 1 for key, value in other.state_dict().items() if value.is_floating_point()}
    ours.load_state_dict({**other.state_dict(), **changed}, strict=True)
    for key, value in changed.items():
        assert_bits_equal(net.state_dict()[key], value, key)


def test_a_multistep_and_a_subclass() -> None:
    class Counts(MultiStep):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x, reduce="sum")[0]

    net = nested(library=snnfast)
    spk_rec, _ = MultiStep.from_sequential(MultiStep(OrderedDict(net._modules)))(x := images())
    snnfast.reset(net)
    counts = Counts.from_sequential(net)
    assert type(counts) is Counts
    assert_bits_equal(counts(x), spk_rec.sum(0))


# ---- batch normalisation


def normalised() -> nn.Sequential:
    net = convolutional()
    net.insert(1, nn.BatchNorm2d(4))
    return net


def test_batch_normalisation_in_evaluation() -> None:
    looped, net = pair(normalised)
    for model in (looped, net):
        model[1].running_var.fill_(0.25)
        model.eval()
    with warnings.catch_warnings(action="error"):
        ours = MultiStep.from_sequential(net)
    assert not any(module.training for module in ours.modules())
    half = normalised()
    half[1].eval()
    modes = MultiStep.from_sequential(half).named_modules()
    assert [name for name, module in modes if not module.training] == ["1"]
    x = images()
    assert_all_close(ours(x), over_time(looped, x), relative=1e-6)


# ---- what can't be taken


class Block(nn.Module):
    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.lif = neuron

    def forward(self, x: Tensor) -> Any:
        return self.lif(x)


class Wrapped(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + 1


def of_their_own(library: Any) -> nn.Module:
    class Louder(library.Leaky):  # type: ignore[misc, name-defined]
        def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
            return super().forward(2 * input_, mem)

    return Louder(0.9, init_hidden=True)


def lif() -> nn.Module:
    return snntorch.Leaky(0.9, init_hidden=True)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (lambda: snntorch.SLSTM(2, 3, init_hidden=True), r"SLSTM can't be unrolled: snnfast has no kernel for SLSTM"),
        (lambda: of_their_own(snntorch), r"Louder can't be unrolled: Louder has its own forward; keep the loop"),
        (lambda: of_their_own(snn), r"Louder can't be unrolled: Louder has its own forward; keep the loop"),
        (lambda: of_their_own(snnfast), r"Louder can't be unrolled: Louder has its own forward; keep the loop"),
        (lambda: Block(lif()), r"Block calls a Leaky in its forward, which can't be unrolled; .* unroll"),
        (lambda: Block(snnfast.Leaky(0.9)), r"Block calls a Leaky in its forward, which can't be unrolled; .* unroll"),
        (lambda: Block(snntorch.SLSTM(2, 3)), r"Block is or has a neuron of snnTorch \(SLSTM\).*; keep the loop"),
        (lambda: Wrapped(lif()), r"Wrapped calls a Leaky in its forward, which can't be unrolled"),
        (lambda: nn.ModuleList([nn.Linear(5, 5)]), r"ModuleList has no forward"),
    ],
    ids=["SLSTM", "own", "own-drop-in", "own-snnfast", "Block", "Block-snnfast", "Block-SLSTM", "Wrapped", "list"],
)
def test_a_layer_that_cannot_be_unrolled(last: Callable[[], nn.Module], message: str) -> None:
    net = nn.Sequential(OrderedDict(fc=nn.Linear(6, 5), lif=lif(), head=nn.Sequential(nn.Linear(5, 5), last())))
    with pytest.raises(TypeError, match=rf"^net\.head\.1: {message}"):
        MultiStep.from_sequential(net)
    assert type(net.lif) is snntorch.Leaky


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: [nn.Linear(6, 5), lif()], r"net: expected torch\.nn\.Sequential, got list$"),
        (lambda: Block(lif()), r"net: expected torch\.nn\.Sequential, got Block$"),
        (lambda: Wrapped(lif()), r"net: expected torch\.nn\.Sequential, got Wrapped, which has a forward of its own$"),
    ],
    ids=["list", "module", "forward"],
)
def test_no_sequential(net: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        MultiStep.from_sequential(net())


def test_a_neuron_layer_used_twice() -> None:
    twice = lif()
    with pytest.raises(ValueError, match=r"^net\.2\.0: the same Leaky as net\.1; .* make a layer for each"):
        MultiStep.from_sequential(nn.Sequential(nn.Linear(5, 5), twice, nn.Sequential(twice)))
    flat = nn.Flatten()
    MultiStep.from_sequential(nn.Sequential(flat, nn.Linear(5, 5), lif(), flat))


def test_an_empty_network_and_a_name_that_is_taken() -> None:
    with pytest.raises(ValueError, match=r"^net: expected at least one module"):
        MultiStep.from_sequential(nn.Sequential())
    net = nn.Sequential(OrderedDict(layers=nn.Sequential(nn.Linear(5, 5), lif())))
    with pytest.raises(ValueError, match=r"^net: MultiStep has an attribute 'layers' already; give that module"):
        MultiStep.from_sequential(net)
    assert type(net.layers[1]) is snntorch.Leaky
