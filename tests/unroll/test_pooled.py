"""A pooling behind batch normalisation and neurons, as a part of their call."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import HALVES, assert_all_bits_equal, assert_all_close, assert_bits_equal
from loop_nets import QUICK_WAYS
from norm_checks import NODES, Loop, images, leaky, norm_of
from torch import Tensor, nn

import snnfast
from snnfast import MultiStep
from snnfast._core import ops
from snnfast._unroll import normed
from snnfast.spikingjelly import functional
from snnfast.spikingjelly import layer as jelly
from snnfast.spikingjelly import neuron as spiking

pytestmark = pytest.mark.needs_extension

POOLS: dict[str, Callable[[], nn.Module]] = {
    "largest of 2 x 2": lambda: nn.MaxPool2d(2),
    "mean of 2 x 2": lambda: nn.AvgPool2d(2),
    "largest of 3 x 2": lambda: nn.MaxPool2d((3, 2)),
    "mean of 1 x 3": lambda: nn.AvgPool2d((1, 3)),
    "with gaps": lambda: nn.MaxPool2d(2, stride=3),
    "mean with gaps": lambda: nn.AvgPool2d((2, 1), stride=(3, 2)),
}
# Of a step, [B, C, H, W]: whole windows; odd sides; one row or column of windows; strips of several chunks of neurons.
SHAPES = ((3, 8, 8, 8), (2, 5, 7, 9), (3, 12, 3, 4), (2, 16, 5, 60), (2, 200, 6, 6), (1, 4, 3, 3))


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One for each call that was of normalisation and neurons in one: whether it pooled, too."""
    found: list[bool] = []
    forward = normed._forward
    monkeypatch.setattr(
        normed, "_forward", lambda how, *given, **n: (found.append(bool(how.windows)), forward(how, *given, **n))[1]
    )
    return found


def apart(*layers: nn.Module) -> MultiStep:
    """A network in which another layer stands between the neurons and the pooling."""
    return MultiStep(*layers[:2], nn.Identity(), *layers[2:])


def results(make: Any, x: Tensor, *layers: nn.Module, state: Tensor | None = None) -> tuple[Any, list[Tensor]]:
    """The result, the last state and the running averages; and the gradients of the input, the state and the rest."""
    layers, x = copy.deepcopy(layers), x.detach().requires_grad_()
    net = make(*layers, nn.Identity())
    y, (last,) = net(x, states=[state], return_states=True)
    draws = torch.Generator().manual_seed(2)
    outputs = [
        (t, torch.randn(t.shape, generator=draws).to(t.dtype)) for t in (y, last) if t is not None and t.requires_grad
    ]
    wanted = [x, *([] if state is None else [state]), *net.parameters()]
    given, weights = zip(*outputs, strict=True)
    grads = torch.autograd.grad(given, wanted, weights)
    return [t for t in (y, last, *layers[0].buffers()) if t is not None], list(grads)


def assert_as_apart(x: Tensor, pool: nn.Module, neurons: nn.Module, state: Tensor | None = None) -> None:
    """Not a bit of the results differs, and the gradients are the same to rounding."""
    norm = norm_of(x)
    found, grads = results(MultiStep, x, norm, neurons, pool, state=state)
    wanted, others = results(apart, x, norm, neurons, pool, state=state)
    strides = [[s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1] for t in (found[0], wanted[0])]
    assert strides[0] == strides[1]
    assert_all_bits_equal(found, wanted)
    assert_all_close(grads, others, 5e-6)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_no_result_differs_from_the_pooling_by_itself(
    pool: Callable[[], nn.Module], isa: str, calls: list[bool], stream_bytes: Any
) -> None:
    for shape in SHAPES:
        for steps, least in ((1, 1 << 60), (5, 1 << 60), (16, 0)):  # also written past the caches
            stream_bytes(least)
            assert_as_apart(images(steps, shape, layout="channels_last"), pool(), leaky())
    assert calls == [True, False] * 3 * len(SHAPES)


def test_planes(isa: str, calls: list[bool]) -> None:
    """In the usual order, small planes are pooled together."""
    shapes = [*SHAPES, (7, 9, 2, 2), (2, 3, 40, 38)]
    for shape in shapes:
        assert_as_apart(images(4, shape), nn.MaxPool2d(2), leaky())
    assert calls == [True, False] * len(shapes)


@pytest.mark.parametrize("name", NODES)
def test_spikingjellys_nodes(name: str, calls: list[bool]) -> None:
    for layout in ("usual", "channels_last"):
        x = images(6, (5, 12, 9, 7), layout=layout)
        assert_as_apart(x, nn.MaxPool2d(2), NODES[name]().make())
    assert calls == [True, False] * 2


def test_a_learned_beta(calls: list[bool]) -> None:
    for layout in ("usual", "channels_last"):
        x = images(6, (5, 12, 9, 7), layout=layout)
        assert_as_apart(x, nn.MaxPool2d(2), leaky(learn_beta=True))
    assert calls == [True, False] * 2


@pytest.mark.parametrize("steps", [4, 17, 40])
def test_states_and_many_steps(steps: int, calls: list[bool]) -> None:
    for layout in ("usual", "channels_last"):
        x = images(steps, (3, 8, 6, 5), layout=layout)
        assert_as_apart(x, nn.MaxPool2d(2), leaky(), torch.rand(x.shape[1:]).requires_grad_())
    assert calls == [True, False] * 2


def test_no_bit_depends_on_threads() -> None:
    for layout in ("usual", "channels_last"):
        x, every = images(5, (9, 16, 14, 14), layout=layout), []
        norm = norm_of(x)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found, grads = results(MultiStep, x, norm, leaky(learn_beta=True), nn.MaxPool2d(2))
            every.append([*found, *grads])
        for again in every[1:]:
            assert_all_bits_equal(again, every[0])


def test_a_second_derivative_is_that_of_both(calls: list[bool]) -> None:
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        x, found = images(3, (3, 4, 4, 4), layout="channels_last").requires_grad_(), []
        norm = norm_of(x)
        for make in (MultiStep, apart):
            y = make(norm, leaky(), pool, nn.Identity())(x)
            first = torch.autograd.grad(y.square().sum(), [x, *norm.parameters()], create_graph=True)
            wanted = [x, *norm.parameters()]
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
        assert_all_close(found[0], found[1], 1e-5)
    assert calls == [True, False] * 2


def test_a_second_derivative_does_not_call_the_layer_again(calls: list[bool]) -> None:
    x, pool, seen = images(3, (3, 4, 4, 4), layout="channels_last").requires_grad_(), nn.MaxPool2d(2), []
    y = MultiStep(norm_of(x), leaky(), pool, nn.Identity())(x)
    pool.register_forward_hook(lambda *given: seen.append(given))
    pool.kernel_size = pool.stride = 3
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert calls == [True]
    assert not seen


@pytest.mark.parametrize("options", [{}, {"return_states": True}, {"checkpoint": 2}], ids=["usual", "states", "parts"])
def test_all_is_freed_at_once(options: dict[str, Any], calls: list[bool]) -> None:
    net = MultiStep(norm_of(torch.zeros(2, 2, 8, 2, 2)), leaky(), nn.MaxPool2d(2), nn.Identity())
    x = images(4, (3, 8, 6, 4), layout="channels_last").requires_grad_()
    memory = weakref.ref(x)
    gc.collect()
    gc.disable()
    try:
        found = net(x, **options)
        (found[0] if isinstance(found, tuple) else found).sum().backward()
        del x, found
        assert memory() is None
    finally:
        gc.enable()
    assert all(calls)
    assert calls


def test_a_wrong_size_is_told_as_without_neurons(calls: list[bool]) -> None:
    x = images(4, (3, 8, 6, 4), layout="channels_last")
    with pytest.raises((ValueError, TypeError), match="MaxPool2d"):
        MultiStep(norm_of(x), leaky(), nn.MaxPool2d(2.0), nn.Identity())(x)  # type: ignore[arg-type]
    assert not any(calls)


def test_gradients_in_any_order_of_memory(calls: list[bool]) -> None:
    x, found = images(4, (3, 8, 6, 4), layout="channels_last").requires_grad_(), []
    norm = norm_of(x)
    for make in (MultiStep, apart):
        y = make(norm, leaky(), nn.MaxPool2d(2), nn.Identity())(x)
        for grad in (torch.ones(()).expand(y.shape), torch.arange(2.0).expand(y.shape), torch.rand(y.shape)):
            torch.manual_seed(0)
            found.append(torch.autograd.grad(y, [x, *norm.parameters()], grad, retain_graph=True))
    for a, b in zip(found[:2], found[3:5], strict=True):
        assert_all_close(a, b, 5e-6)
    assert calls == [True, False]


def test_backward_holds_the_input_and_a_byte_for_each_window() -> None:
    """And nothing of the size of the spikes, whatever the last layer was."""
    x, sizes = images(4, (4, 8, 8, 8), layout="channels_last").requires_grad_(), {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        MultiStep(norm_of(x), leaky(), nn.MaxPool2d(2), nn.Identity())(x).sum().backward()
    assert max(sizes.values()) == x.nbytes
    assert x.nbytes + x.numel() // 4 <= sum(sizes.values()) < 1.15 * x.nbytes


# ---- which calls

APART: dict[str, Callable[[MultiStep, Tensor], Any]] = {
    "half precision": lambda net, x: net(x.to(HALVES[0])),
    "spikes are returned": lambda net, x: net(x, return_spikes=True),
    "large strips": lambda net, x: net(
        torch.rand(40, 1, 4, 512, 4).movedim(3, 4).contiguous(memory_format=torch.contiguous_format)
    ),
    "evaluation": lambda net, x: net.eval()(x),
    "a hook": lambda net, x: (net[2].register_forward_hook(lambda *given: None), net(x)),
    "activity": lambda net, x: _counted(net, x),
    "windows over one another": lambda net, x: MultiStep(*net[:2], nn.MaxPool2d(3, 2), nn.Identity())(x),
    "padding": lambda net, x: MultiStep(*net[:2], nn.MaxPool2d(2, padding=1), nn.Identity())(x),
    "another divisor": lambda net, x: MultiStep(*net[:2], nn.AvgPool2d(2, divisor_override=3), nn.Identity())(x),
    "means of planes": lambda net, x: MultiStep(*net[:2], nn.AvgPool2d(2), nn.Identity())(x.contiguous()),
    "the reference": lambda net, x: _by_reference(net, x),
}


def _counted(net: MultiStep, x: Tensor) -> None:
    with snnfast.activity(net) as found:
        net(x)
    assert found.layers


def _by_reference(net: MultiStep, x: Tensor) -> None:
    with snnfast.use_backend("reference"):
        net(x)


@pytest.mark.parametrize("name", APART)
def test_what_does_not_fit_is_pooled_by_itself(name: str, calls: list[bool]) -> None:
    x = images(4, (3, 4, 6, 6), layout="channels_last")
    APART[name](MultiStep(norm_of(x), leaky(), nn.MaxPool2d(2), nn.Identity()), x)
    assert not any(calls)


def test_the_ops_check_their_tensors() -> None:
    x, parameters = images(4, (3, 4, 6, 6), layout="channels_last"), [torch.tensor(n) for n in (0.9, 1.0, 1.0)]
    numbers, _ = ops.norm_ops.norm_statistics(x, None, None, 1e-5, False)
    forward, backward = ops.norm_ops.leaky_norm_forward, ops.norm_ops.leaky_norm_backward
    windows = [0, 2, 2, 2, 2]
    pooled, places = forward(x, numbers, None, parameters, 0, windows, False, True)
    assert pooled.shape == places.shape == (4, 3, 4, 3, 3)
    rest = (numbers, None, parameters, 0, windows, 0, 2.0, 0.0, False, True, False)
    half = x.half()
    for call, message in (
        (lambda: forward(x, numbers, None, parameters, 0, [0, 2, 2], False, True), "windows: expected five numbers"),
        (lambda: forward(x, numbers, None, parameters, 0, [0, 7, 1, 7, 1], False, True), "kernel: expected 1 to"),
        (lambda: forward(x, numbers, None, parameters, 0, [0, 2, 2, 1, 1], False, True), "stride: expected"),
        (lambda: forward(half, numbers, None, parameters, 0, windows, False, True), "float32"),
        (lambda: backward(pooled, None, x, None, None, *rest), "places: expected with maxima"),
        (lambda: backward(pooled[1:], None, x, None, places, *rest), "grad: wrong shape"),
        (lambda: backward(pooled.contiguous(), None, x, None, places, *rest), "grad: wrong shape"),
        (lambda: backward(pooled, None, x, None, pooled, *rest), "places: expected what is pooled"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


# ---- in a network in step mode "m", and in a compiled loop


class InStepModeM(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        pooled = nn.Sequential(spiking.LIFNode(), pool)
        self.layers = nn.Sequential(jelly.BatchNorm2d(4), spiking.IFNode(), pool, jelly.BatchNorm2d(4), pooled)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_containers_without_a_layer_pass_on_what_they_are_given() -> None:
    class Shortcut(InStepModeM):
        def __init__(self) -> None:
            super().__init__(jelly.MaxPool2d(1))
            self.short = nn.Sequential(nn.Sequential(), nn.Sequential(nn.Sequential()))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) + self.short(x)

    net, x = Shortcut(), images(4, (3, 4, 8, 8))
    other = copy.deepcopy(net)
    assert_bits_equal(snnfast.compile(net)(x), other(x))


@pytest.mark.parametrize(
    ("pool", "pools"),
    [
        (lambda: jelly.MaxPool2d(2), True),
        (lambda: jelly.SeqToANNContainer(nn.MaxPool2d(2)), True),
        (lambda: jelly.AvgPool2d(2), False),  # of planes
        (lambda: jelly.SeqToANNContainer(nn.MaxPool2d(2), nn.Identity()), True),
        (lambda: jelly.SeqToANNContainer(nn.ReLU(), nn.MaxPool2d(2)), False),
        (lambda: jelly.MaxPool2d(3, 2), False),
    ],
    ids=["largest", "in-a-container", "mean", "not-alone", "behind-another", "over-one-another"],
)
def test_a_compiled_network_in_step_mode_m(pool: Callable[[], nn.Module], pools: bool, calls: list[bool]) -> None:
    net, x = InStepModeM(pool()), 2 * images(4, (16, 4, 64, 64))
    other = copy.deepcopy(net)
    found, wanted = snnfast.compile(net)(x), other(x)
    assert calls == [pools] * 2
    assert wanted.any()
    assert_bits_equal(found, wanted)
    assert_all_bits_equal(net.buffers(), other.buffers())
    grads = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, net), (wanted, other))]
    assert_all_close(grads[0], grads[1], 1e-5)


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=["largest", "mean"])
@pytest.mark.parametrize("reads_twice", [False, True], ids=["alone", "not-alone"])
def test_a_compiled_loop(by: Any, pool: nn.Module, reads_twice: bool, calls: list[bool]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Loop(nn.BatchNorm2d(16), pool, reads_twice)
    other = copy.deepcopy(net)
    compiled = by(net)
    for T in (8, 8, 8, 11, 8):
        x = torch.rand(T, 2, 3, 8, 8)
        calls.clear()
        found, wanted = compiled(x), other(x)
        grads = [
            torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, net), (wanted, other))
        ]
        assert_bits_equal(found, wanted)
        assert_all_close(grads[0], grads[1], 1e-4)
    assert calls == [not reads_twice]
    told = str(snnfast.explain(Loop(nn.BatchNorm2d(16), pool, reads_twice), torch.rand(8, 2, 3, 8, 8)))
    assert ("with the pooling behind it" in told) is not reads_twice
    assert_all_close([b.double() for b in net.buffers()], [b.double() for b in other.buffers()], 1e-6)
