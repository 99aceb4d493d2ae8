"""MultiStep is an nn.Sequential: its checkpoints, nesting, skip connections, modules with an unroll of their own."""

import copy
import pickle
import re
from collections import OrderedDict
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from multistep_checks import eighths, exact, loop
from torch import Tensor, nn

import snnfast.snntorch as snn
from snnfast import Leaky, MultiStep, Residual


def layers() -> list[nn.Module]:
    return [exact(nn.Linear(6, 5)), Leaky(0.5, learn_beta=True), exact(nn.Linear(5, 4)), Leaky(0.75)]


# ---- a sequence


def test_checkpoints() -> None:
    made = [nn.Sequential(nn.Sequential(*layers()[:2]), *layers()[2:]) for _ in range(2)]
    net = MultiStep(*made[0])
    assert list(net.state_dict()) == list(made[1].state_dict())
    net.load_state_dict(made[1].state_dict(), strict=True)
    for name, expected in made[1].state_dict().items():
        assert_bits_equal(net.state_dict()[name], expected, name)
    made[0].load_state_dict(net.state_dict(), strict=True)


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
        spk, mem = self.lif.init_rleaky()
        spk_rec = []
        for step in x:
            spk, mem = self.lif(step, spk, mem)
            spk_rec.append(spk)
        return torch.stack(spk_rec)


@pytest.mark.parametrize("num_steps", [None, 5], ids=["sequence", "constant"])
def test_a_module_with_an_unroll(num_steps: int | None) -> None:
    block, head = Recurrent(), layers()[2:]
    head[0] = exact(nn.Linear(6, 4))
    x = eighths(3, 6) * 3 if num_steps else eighths(5, 3, 6) * 3
    over_time = x.expand(5, 3, 6) if num_steps else x
    expected = MultiStep(*head)(block.unroll(over_time))
    for a, b in zip(MultiStep(block, *head)(x, num_steps), expected, strict=True):
        assert a.any()
        assert_bits_equal(a, b)


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
