"""Where spikes go to an ``nn.Linear`` as bits by themselves: in ``MultiStep`` and in compiled loops."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, gradients_of
from linear_checks import by_events, counting
from multistep_checks import NEURONS, eighths, exact, make, of_their_own
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import snnfast
from snnfast import Leaky, MultiStep, Residual
from snnfast._core import linear

pytestmark = pytest.mark.needs_extension


@pytest.fixture(autouse=True)
def fused_backend(nothing_compiled: None) -> Iterator[None]:
    with snnfast.use_backend("fused"):
        yield


def trained(net: nn.Module, call: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of a network."""
    outputs = [t for t in torch.utils._pytree.tree_leaves(call()) if isinstance(t, Tensor)]
    return outputs, gradients_of(outputs, list(net.parameters()))


def assert_same(net: nn.Module, call: Callable[[], Any]) -> None:
    """Outputs bit for bit those with the switch off, for weights whose sums are exact; gradients up to rounding."""
    found = trained(net, call)
    with snnfast.use_events(False):
        wanted = trained(net, call)
    assert_all_bits_equal(found[0], wanted[0])
    assert_all_close(found[1], wanted[1], relative=1e-5)


# ---- MultiStep


@NEURONS
@pytest.mark.parametrize("num_steps", [None, 9])
def test_a_linear_layer_behind_a_neuron_layer(num_steps: int | None, neuron: Any) -> None:
    net = MultiStep(
        exact(nn.Linear(12, 9)), make(neuron), exact(nn.Linear(9, 5, bias=False)), make(neuron), exact(nn.Linear(5, 3))
    )
    x = eighths(4, 12) if num_steps else eighths(9, 4, 12)
    for options in ({}, {"return_states": True}):
        assert_same(net, lambda options=options: net(x, num_steps, **options))
    with counting() as calls:
        net(x, num_steps)[0].sum().backward()
    assert calls == ["product"] * 2 + ["weight"] * 2


def test_a_final_neuron_layer() -> None:
    net = MultiStep(exact(nn.Linear(12, 9)), Leaky(0.5), exact(nn.Linear(9, 5)), Leaky(0.5))
    x = eighths(9, 4, 12)
    for options in ({"reduce": "sum"}, {"record_mem": False}, {"states": [torch.rand(4, 9), torch.rand(4, 5)]}):
        assert_same(net, lambda options=options: net(x, **options))
        assert by_events(lambda options=options: net(x, **options))


def convolution(*between: nn.Module, last: bool = False, **options: Any) -> nn.Module:
    layers = (exact(nn.Conv2d(1, 3, 3)), Leaky(**{"beta": 0.5, "learn_beta": True, **options}), *between)
    net = MultiStep(*layers, exact(nn.Linear(48, 5)))
    return net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]


HEIGHTS = torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: convolution(nn.Flatten()),
    "identity": lambda: convolution(nn.Identity(), nn.Flatten(), nn.Identity()),
    "dropout of nothing": lambda: convolution(nn.Flatten(), nn.Dropout(0.0)),
    "dropout in evaluation": lambda: convolution(nn.Dropout().eval(), nn.Flatten()),
    "channels": lambda: convolution(nn.Flatten(), beta=torch.rand(3, 1, 1), graded_spikes_factor=HEIGHTS.clone()),
    "learned heights": lambda: convolution(
        nn.Flatten(), graded_spikes_factor=HEIGHTS.clone(), learn_graded_spikes_factor=True
    ),
    "channels last": lambda: convolution(nn.Flatten(), last=True),
    "held state": lambda: convolution(nn.Flatten(), init_hidden=True),
    "more dimensions": lambda: MultiStep(Leaky(0.5), exact(nn.Linear(6, 5))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_leaves_the_spikes_as_they_are(name: str) -> None:
    net, x = IMAGES[name](), eighths(9, 2, 1, 6, 6)

    def call() -> Tensor:
        snnfast.reset(net)
        return net(x)

    assert by_events(call)
    assert_same(net, call)


def test_inside_of_a_skip_connection() -> None:
    block = Residual(
        Leaky(0.5), exact(nn.Linear(6, 6)), Leaky(0.5), shortcut=nn.Sequential(Leaky(0.5), nn.Linear(6, 6))
    )
    exact(block)
    net, x = MultiStep(exact(nn.Linear(6, 6)), block), eighths(9, 2, 6)
    with counting() as calls:
        net(x)
    assert calls == ["product"] * 2
    assert_same(net, lambda: net(x))


LEFT: dict[str, Callable[[], list[nn.Module]]] = {
    "another layer between": lambda: [nn.LayerNorm(6), nn.Linear(6, 5)],
    "dropout in training": lambda: [nn.Dropout(), nn.Linear(6, 5)],
    "a parametrization": lambda: [weight_norm(nn.Linear(6, 5))],
    "no linear layer": lambda: [nn.Identity()],
    "spikes that are returned": lambda: [nn.Linear(6, 5)],
    **{name: lambda made=made: [made()] for name, made in of_their_own(lambda: nn.Linear(6, 5)).items()},
}


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_left_as_it_is(name: str) -> None:
    net = MultiStep(Leaky(0.5), *LEFT[name]())
    assert not by_events(lambda: net(eighths(9, 4, 6), return_spikes=name == "spikes that are returned"))


def test_hooks_run() -> None:
    seen: list[tuple[int, ...]] = []
    net = MultiStep(Leaky(0.5), nn.Identity(), nn.Linear(6, 5))
    x = eighths(9, 4, 6)
    assert by_events(net, x)
    handle = net[1].register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    assert not by_events(net, x)
    assert seen == [(36, 6)]
    handle.remove()
    assert by_events(net, x)
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: None)
    assert not by_events(net, x)
    handle.remove()


def test_a_weight_that_does_not_fit() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MultiStep(Leaky(0.5), nn.Linear(7, 5))(eighths(9, 4, 6))
    with pytest.raises(RuntimeError, match="dtype"):
        MultiStep(Leaky(0.5), nn.Linear(6, 5).double())(eighths(9, 4, 6))


# ---- compiled loops


class Loop(nn.Module):
    """A layer of neurons, what is done with its spikes, and a readout."""

    def __init__(self, between: Callable[..., Tensor], shape: tuple[int, ...] = (), also: bool = False) -> None:
        super().__init__()
        self.lif, self.fc = Leaky(0.5), exact(nn.Linear(12, 5))
        self.between, self.shape, self.also = between, shape, also

    def forward(self, x: Tensor) -> Any:
        mem, outs, spikes = self.lif.reset_mem(), [], []
        for step in range(x.shape[0]):
            spk, mem = self.lif(x[step].unflatten(-1, self.shape) if self.shape else x[step], mem)
            outs.append(self.fc(self.between(spk)))
            spikes.append(spk)
        out = torch.stack(outs)
        return (out, torch.stack(spikes)) if self.also else out


DONE: dict[str, Loop] = {
    "directly": Loop(lambda spk: spk),
    "flatten": Loop(lambda spk: spk.flatten(1), (3, 4)),
    "torch.flatten": Loop(lambda spk: torch.flatten(spk, 1), (3, 2, 2)),
    "view": Loop(lambda spk: spk.view(spk.shape[0], -1), (3, 4)),
    "dropout": Loop(lambda spk: nn.functional.dropout(spk.flatten(1), 0.5, training=False), (3, 4)),
}
NOT_DONE: dict[str, Loop] = {
    "rectified": Loop(torch.relu),
    "scaled": Loop(lambda spk: spk * 0.5),
    "permuted": Loop(lambda spk: spk.transpose(1, 2).flatten(1), (3, 4)),
    "read by others": Loop(lambda spk: spk, also=True),
    "rows of two neurons": Loop(lambda spk: spk.view(-1, 12), (3, 24)),
}


@pytest.mark.parametrize(
    "name",
    [n if n in ("flatten", "rectified") else pytest.param(n, marks=pytest.mark.thorough) for n in [*DONE, *NOT_DONE]],
)
def test_a_compiled_loop(name: str) -> None:
    loop = {**DONE, **NOT_DONE}[name]
    x = eighths(9, 4, 72 if name == "rows of two neurons" else 12)
    compiled = snnfast.compile(loop)
    assert by_events(compiled, x) == (name in DONE)
    told = "9 steps of leaky: one unroll, with the linear behind it"
    assert (told in str(snnfast.explain(loop, x))) == (name in DONE)
    found, wanted = trained(loop, lambda: compiled(x)), trained(loop, lambda: loop.forward(x))
    assert_all_close([*found[0], *found[1]], [*wanted[0], *wanted[1]], relative=1e-6)


def test_a_compiled_loop_with_states() -> None:
    lif, fc = Leaky(0.5), exact(nn.Linear(12, 5))

    def loop(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outs, mems = [], []
        for step in range(5):
            spk, mem = lif(x[step], mem)
            outs.append(fc(spk))
            mems.append(mem)
        return torch.stack(outs), torch.stack(mems), mem

    for dtype in (torch.float32, torch.bfloat16):  # of which the states are wider
        fc.to(dtype)
        compiled = torch.compile(loop, backend="snnfast")
        x, mem = eighths(5, 4, 12).to(dtype), torch.zeros(4, 12)
        assert_all_bits_equal(compiled(x, mem), loop(x, mem))


def test_few_rows_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LEAST_ROWS", 256)
    net = MultiStep(Leaky(0.9), nn.Linear(6, 2))
    for batch, wanted in ((10, False), (11, True)):
        assert by_events(net, torch.rand(25, batch, 6)) == wanted


# ---- what autograd lets a user do with the results


def test_results_may_be_changed_in_place() -> None:
    net = MultiStep(nn.Linear(6, 5), Leaky(0.9), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    net(torch.rand(7, 3, 6)).sum().backward()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out, _ = snnfast.functional.lif(torch.rand(7, 3, 6), beta=0.9, weight=torch.ones(2, 6, requires_grad=True))
            out += 1


def test_states_without_a_gradient() -> None:
    layer, head = Leaky(0.9, init_hidden=True), nn.Linear(6, 2)
    net = MultiStep(layer, head)
    for _ in range(2):  # a state with a graph could not be passed through a second time
        net(torch.rand(7, 3, 6)).sum().backward()
        assert not layer.mem.requires_grad


def test_the_second_derivative_of_a_weight() -> None:
    current, graded = torch.rand(11, 3, 6, dtype=torch.float64) * 2, torch.rand(6, dtype=torch.float64) + 0.5

    def gradients() -> list[Tensor]:
        weight = torch.arange(12.0, dtype=torch.float64).view(2, 6).requires_grad_()
        bias = torch.ones(2, dtype=torch.float64, requires_grad=True)
        out, _ = snnfast.functional.lif(current, beta=0.9, graded_spikes_factor=graded, weight=weight, bias=bias)
        first = torch.autograd.grad(out.pow(3).sum(), (weight, bias), create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (weight, bias))]

    found = gradients()
    with snnfast.use_events(False):
        assert_all_close(found, gradients(), relative=1e-12)
