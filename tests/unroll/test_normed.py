"""Batch normalisation in training and the neurons behind it in one, by the kernels of the CPU.

Those of CUDA have the tests ``on_both`` as well, and others in tests/cuda/test_norm.py.
"""

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from norm_checks import DTYPES, NODES, Loop, Shape, by_reference, check, images, leaky, membranes, net_of, norm_of
from torch import Tensor, nn

import snnfast
from snnfast import MultiStep, surrogate
from snnfast._core import ops
from snnfast._unroll import normed
from snnfast.spikingjelly import functional
from snnfast.spikingjelly import layer as jelly
from snnfast.spikingjelly import neuron as spiking

pytestmark = pytest.mark.needs_extension

# Of a step, [B, C, *]: whole vectors, or not; one channel, one sample, one value of each sample; images of several
# chunks of neurons; more channels than a chunk; few channels, of which a row of lanes has several samples.
SHAPES: dict[str, Shape] = {
    "vectors": (3, 8, 4, 4), "of pixels": (5, 4, 3, 3), "odd": (7, 5, 3, 3), "channel": (2, 1, 6, 7),
    "sample": (1, 3, 8), "values": (9, 6), "tall": (3, 2, 40, 50), "wide": (2, 1300, 3), "volume": (2, 4, 2, 2, 2),
    "chunks": (20, 20, 10, 10), "rows": (70, 33, 5, 5),
}  # fmt: skip
LAYOUTS = ("usual", "channels_last")
on_both = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("emulated", marks=pytest.mark.emulated)], indirect=True
)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each call that was of both in one."""
    found: list[None] = []
    unroll = normed._unroll
    monkeypatch.setattr(normed, "_unroll", lambda *given: (found.append(None), unroll(*given))[1])
    return found


def apart(norm: nn.Module, neurons: nn.Module, over_time: bool = False) -> MultiStep:
    """The two with a layer between them."""
    return MultiStep(norm, nn.Identity(), neurons, nn.Identity(), batch_norm_over_time=over_time)


def results(make: Any, x: Tensor, norm: nn.Module, neurons: Any, over_time: bool = False) -> tuple[Any, list[Tensor]]:
    """The spikes and the running averages; and the gradients of the input and of all parameters."""
    norm, x = copy.deepcopy(norm), x.detach().requires_grad_()
    net = make(norm, neurons, over_time)
    spk = net(x)
    grad = torch.randn(spk.shape, generator=torch.Generator().manual_seed(2)).to(spk.dtype)
    return [spk, *norm.buffers()], list(torch.autograd.grad(spk, [x, *net.parameters()], grad))


def assert_as_apart(
    x: Tensor, neurons: Callable[[], nn.Module] = leaky, over_time: bool = False, **options: Any
) -> None:
    """Not a bit of the spikes and the averages differs, and the gradients are the same to rounding."""
    norm = norm_of(x, **options)
    found, grads = results(net_of, x, norm, neurons(), over_time)
    wanted, others = results(apart, x, norm, neurons(), over_time)
    assert_all_bits_equal(found, wanted)
    for a, b in zip(grads, others, strict=True):
        assert_close(a, b, {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}[x.dtype], scale=1.0)


# ---- numbers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_spike_differs_from_the_two_by_themselves(
    shape: Shape, layout: str, isa: str, calls: list[None], stream_bytes: Any
) -> None:
    for steps, least in ((1, 1 << 60), (6, 1 << 60), (6, 0), (16, 0)):  # also written past the caches
        stream_bytes(least)
        assert_as_apart(images(steps, shape, layout=layout))
    assert len(calls) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_those_of_float64(shape: Shape, layout: str, isa: str, calls: list[None]) -> None:
    x = images(5, shape, layout=layout)
    check(x, norm_of(x))
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_any_number_of_steps(layout: str, dtype: torch.dtype, calls: list[None]) -> None:
    """With more than 16, the states before every 16th are kept."""
    counts = (1, 2, 3, 4, 5, 16, 17, 32, 33, 50)
    for steps in counts:
        x = images(steps, (3, 12, 6, 5), dtype, layout)
        assert_as_apart(x)
        check(x, norm_of(x))
    assert len(calls) == 2 * len(counts)


@pytest.mark.parametrize("name", NODES)
def test_spikingjellys_nodes(name: str, isa: str, calls: list[None]) -> None:
    for shape, layout in (((20, 12, 9, 7), "usual"), ((9, 12, 9, 7), "channels_last"), ((30, 40), "usual")):
        x = images(6, shape, layout=layout)
        check(x, norm_of(x), neurons=NODES[name]())
    assert len(calls) == 3


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "reset to zero": lambda: leaky(reset_mechanism="zero"),
    "no reset": lambda: leaky(reset_mechanism="none"),
    "fast sigmoid": lambda: leaky(spike_grad=surrogate.fast_sigmoid()),
    "sigmoid": lambda: leaky(spike_grad=surrogate.sigmoid()),
    "straight through": lambda: leaky(spike_grad=surrogate.straight_through_estimator()),
    "a steep surrogate": lambda: leaky(spike_grad=surrogate.atan(1e6)),
    "graded spikes": lambda: leaky(graded_spikes_factor=2.5),
    "learned beta": lambda: leaky(learn_beta=True),
    "learned beta of one element": lambda: leaky(beta=torch.tensor([0.8]), learn_beta=True),
    "learned beta at its end": lambda: leaky(beta=1.0, learn_beta=True, reset_mechanism="zero"),
    "learned beta beyond its end": lambda: leaky(beta=1.3, learn_beta=True),
}


@pytest.mark.parametrize("name", NEURONS)
def test_other_resets_and_surrogates(name: str, calls: list[None]) -> None:
    for layout in LAYOUTS:
        assert_as_apart(images(18, (3, 8, 5, 4), layout=layout), NEURONS[name])
    assert len(calls) == 2


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.1}], ids=str
)
def test_every_option_of_the_normalisation(options: dict[str, Any], calls: list[None]) -> None:
    for x in (images(4, (3, 4, 4, 4)), images(31, (2, 16, 5, 8))):
        assert_as_apart(x, **options)
    assert len(calls) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_all_steps(layout: str, calls: list[None]) -> None:
    x = images(4, (16, 24, 10, 10), layout=layout)
    assert_as_apart(x, over_time=True)
    check(x, norm_of(x), over_time=True)
    assert len(calls) == 2
    assert_as_apart(images(4, (3, 4, 4, 4), layout=layout), over_time=True)
    assert len(calls) == 2  # of few elements, PyTorch makes them


@on_both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_numbers_that_are_none_stay_in_their_channel(value: float, device: torch.device) -> None:
    for layout in LAYOUTS:
        x = images(4, (3, 4, 4, 4), layout=layout)
        norm = norm_of(x)
        clean, _ = results(net_of, x, norm, leaky())
        x[2, 1, 3, 0, 0] = value
        found, grads = results(net_of, x, norm, leaky())
        assert_bits_equal(found[0], membranes(x, norm, over_time=False)[0])
        if ops.has_cpu_kernels(device):
            assert_bits_equal(found[0], results(apart, x, norm, leaky())[0][0])
        assert_bits_equal(found[0][:, :, :3], clean[0][:, :, :3])
        assert grads[0][:3, :, 3].isnan().all()
        assert not grads[0][:, :, :3].isnan().any()
        assert [g.isnan().tolist() for g in grads[1:]] == [[False, False, False, True]] * 2


def test_no_bit_depends_on_threads_or_the_instruction_set(isa: str) -> None:
    for shape, layout, steps in (
        ((40, 20, 12, 12), "channels_last", 6), ((40, 20, 12, 12), "usual", 6), ((90, 33, 5, 5), "channels_last", 3),
        ((300, 700), "usual", 5), ((7, 3, 40, 37), "usual", 20), ((64, 3, 20, 20), "channels_last", 2),
    ):  # fmt: skip
        x, every = images(steps, shape, layout=layout), []
        for threads, used in ((1, ops.extension.isa_available()[0]), (1, isa), (2, isa), (5, isa)):
            torch.set_num_threads(threads)
            ops.extension.set_isa(used)
            found, grads = results(net_of, x, norm_of(x), leaky(learn_beta=True))
            every.append([*found, *grads])
        for again in every[1:]:
            assert_all_bits_equal(again, every[0])


def test_inputs_and_gradients_in_any_order_of_memory(calls: list[None]) -> None:
    x = images(4, (3, 8, 6, 4))
    misaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    by_batch = x.transpose(0, 1).contiguous().transpose(0, 1)
    for other in (misaligned, by_batch, x.mT.contiguous().mT, x.repeat_interleave(2, -1)[..., ::2], x[:, 1:]):
        assert_as_apart(other)
    norm, found = norm_of(x), []
    for net in (net_of(norm, leaky()), apart(norm, leaky())):
        spk = net(x.requires_grad_())
        grad = torch.arange(4.0).expand(x.shape)  # of a sum
        found.append(torch.autograd.grad(spk, [x, *norm.parameters()], grad))
    assert_all_close(found[0], found[1], 5e-6)
    assert len(calls) == 6


@pytest.mark.parametrize("steps", [4, 20])
def test_states_go_in_and_come_out(steps: int, calls: list[None]) -> None:
    for layout in LAYOUTS:
        x, norm = images(steps, (3, 12, 5, 5), layout=layout).requires_grad_(), norm_of(torch.zeros(4, 2, 12, 2, 2))
        state, weights, found = torch.rand(x.shape[1:]).requires_grad_(), torch.randn(x.shape[1:]), []
        for make in (net_of, apart):
            spk, (last,) = make(norm, leaky())(x, states=[state], return_states=True)
            wanted = [x, state, *norm.parameters()]
            for outputs, grads in (
                ([spk], [weights.expand_as(spk)]),
                ([last], [weights]),
                ([spk, last], [spk.detach(), weights]),
            ):
                found.append([spk, last, *torch.autograd.grad(outputs, wanted, grads, retain_graph=True)])
        for a, b in zip(found[:3], found[3:], strict=True):
            assert_all_bits_equal(a[:2], b[:2])
            assert_all_close(a[2:], b[2:], 1e-5)
    assert len(calls) == 2


@on_both
def test_a_second_derivative_is_that_of_the_definition(device: torch.device, calls: list[None]) -> None:
    x, state = images(3, (4, 4, 3)).requires_grad_(), torch.rand(4, 4, 3).requires_grad_()
    norm, found = norm_of(x), []
    wanted = [x, state, *norm.parameters()]
    for make in (
        lambda: net_of(norm, leaky())(x, states=[state], return_states=True),
        lambda: by_reference(x, norm, state),
    ):
        spk, last = make()
        last = last[0] if isinstance(last, list) else last
        first = torch.autograd.grad(spk.square().sum() + last.square().sum(), wanted, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
    assert_all_close(found[0], found[1], 1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "both", "all but x"])
def test_what_asks_for_no_gradient_changes_no_other(frozen: str, calls: list[None]) -> None:
    x, norm = images(4, (3, 12, 5, 5)), norm_of(torch.zeros(4, 2, 12, 2, 2))
    grad, found = torch.randn(x.shape), []
    for asks in (lambda name: True, lambda name: name not in {"x": "x", "both": "weight bias"}.get(frozen, frozen)):
        if frozen == "all but x":
            asks = (lambda name: True) if not found else (lambda name: name == "x")
        of = {"x": x.detach(), "weight": norm.weight, "bias": norm.bias}
        for name, t in of.items():
            t.requires_grad_(asks(name))
        spk = net_of(norm, leaky())(of["x"])
        wanted = [t for t in of.values() if t.requires_grad]
        found.append(dict(zip([n for n in of if asks(n)], torch.autograd.grad(spk, wanted, grad), strict=True)))
    assert 0 < len(found[1]) < 3
    for name, g in found[1].items():
        assert_bits_equal(g, found[0][name])
    assert len(calls) == 2


def test_backward_holds_the_input_alone(calls: list[None]) -> None:
    """Not what is normalised, nor a membrane; with many steps, the states before every 16th."""

    def held(make: Any, x: Tensor, norm: nn.Module) -> int:
        storages = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            spk = make(norm, leaky())(x)
        spk.sum().backward()
        return sum(storages.values())

    for steps, more in ((8, 0.0), (32, 1 / 32)):
        x = images(steps, (8, 16, 12, 12)).requires_grad_()
        norm, size = norm_of(x), x.numel() * x.element_size()
        assert held(net_of, x, norm) == pytest.approx(size * (1 + more), rel=0.01)
        assert held(apart, x, norm) == pytest.approx(size * (2 + more), rel=0.01)
    assert len(calls) == 2


def test_without_gradients_nothing_is_kept(calls: list[None]) -> None:
    x, norm = images(20, (3, 4, 4, 4)), norm_of(torch.zeros(4, 2, 4, 2, 2))
    with torch.no_grad():
        spk = net_of(norm, leaky())(x)
        assert_bits_equal(spk, apart(norm, leaky())(x))
    assert spk.grad_fn is None
    assert len(calls) == 1


# ---- which calls


APART: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Any]]] = {
    "learned threshold": (lambda: leaky(learn_threshold=True), MultiStep.__call__),
    "beta of each neuron": (lambda: leaky(beta=torch.linspace(0.5, 0.9, 4)), MultiStep.__call__),
    "immediate reset": (lambda: leaky(reset_delay=False), MultiStep.__call__),
    "another neuron": (lambda: snnfast.Synaptic(0.9, 0.8), MultiStep.__call__),
    "no steps": (leaky, lambda net, x: net(x[:0])),
    "constant": (leaky, lambda net, x: net(x[0], num_steps=4)),
    "expanded": (leaky, lambda net, x: net(x[:1].expand(4, *x.shape[1:]))),
    "lengths": (leaky, lambda net, x: net(x, lengths=torch.tensor([2, 4, 1]))),
    "evaluation": (leaky, lambda net, x: net.eval()(x)),
    "float64": (leaky, lambda net, x: net.double()(x.double())),
}


@on_both
@pytest.mark.parametrize("name", APART)
def test_what_does_not_fit_runs_one_by_one(name: str, device: torch.device, calls: list[None]) -> None:
    make, call = APART[name]
    x = images(4, (3, 4, 4, 4))
    call(net_of(norm_of(x), make()), x)
    assert not calls


@pytest.mark.parametrize("device", [pytest.param("emulated", marks=pytest.mark.emulated)], indirect=True)
def test_a_learned_beta_does_not_fit_on_cuda(device: torch.device, calls: list[None]) -> None:
    x = images(4, (3, 4, 4, 4))
    net_of(norm_of(x), leaky(learn_beta=True))(x)
    assert not calls


@on_both
def test_a_norm_that_others_may_see_runs_by_itself(device: torch.device, calls: list[None]) -> None:
    class Own(nn.BatchNorm2d):
        pass

    x, hooked, seen = images(4, (3, 4, 4, 4)), nn.BatchNorm2d(4), []
    hooked.register_forward_hook(lambda *args: seen.append(args))
    for norm in (Own(4), hooked):
        net_of(norm, leaky())(x)
    assert len(seen) == 4  # a call for each step
    apart(nn.BatchNorm2d(4), leaky())(x)
    MultiStep(nn.BatchNorm2d(4), leaky())(x)  # whose membranes are a result
    with snnfast.use_backend("reference"):
        net_of(nn.BatchNorm2d(4), leaky())(x)
    assert not calls


def test_a_linear_layer_behind_the_neurons_takes_their_spikes_as_bits(calls: list[None]) -> None:
    x = images(4, (60, 256))
    net = MultiStep(norm_of(x), leaky(), nn.Linear(256, 10), nn.Identity())
    found = net(x)
    assert not calls
    assert_close(found, net[2](net_of(norm_of(x), leaky())(x)), 1e-6)
    assert calls


@on_both
def test_a_wrong_shape_is_pytorchs_error(device: torch.device) -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        net_of(nn.BatchNorm2d(4), leaky())(torch.rand(4, 3, 4, 5))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net_of(nn.BatchNorm1d(4), leaky())(torch.rand(4, 1, 4))


def test_the_ops_check_their_tensors() -> None:
    x, parameters = images(20, (3, 4, 4, 4)), [torch.tensor(n) for n in (0.9, 1.0, 1.0)]
    statistics = partial(ops.norm_ops.norm_statistics, x, None, None, 1e-5, False)
    numbers, variance = statistics()
    spk, rows = ops.norm_ops.leaky_norm_forward(x, numbers, None, parameters, 0, [], False, True)
    assert rows.shape == (1, *x.shape[1:])
    forward, backward = ops.norm_ops.leaky_norm_forward, ops.norm_ops.leaky_norm_backward
    rest = (numbers, None, parameters, 0, [], 0, 2.0, 0.0, False, True, False)
    for call, message in (
        (lambda: statistics(variance[0], variance[0]), "running_mean, running_variance, tracked: only on CUDA"),
        (lambda: forward(x.double(), numbers, None, parameters, 0, [], False, False), "x: expected float32"),
        (lambda: forward(x[:0], numbers, None, parameters, 0, [], False, False), "not empty"),
        (lambda: forward(x, numbers[:3], None, parameters, 0, [], False, False), "numbers: expected"),
        (lambda: forward(x, numbers, x, parameters, 0, [], False, False), "mem: wrong shape"),
        (lambda: forward(x, numbers, None, parameters[:2], 0, [], False, False), "parameters: not those of leaky"),
        (lambda: forward(x, numbers, None, parameters, 3, [], False, False), "reset: unknown"),
        (
            lambda: forward(x.transpose(1, 3), numbers, None, parameters, 0, [], False, False),
            "usual or in channels_last",
        ),
        (lambda: backward(spk, None, x, None, None, *rest), "rows: expected with more than 16 steps"),
        (lambda: backward(spk, None, x, rows[0], None, *rest), "rows: wrong shape"),
        (lambda: backward(spk[1:], None, x, rows, None, *rest), "grad: wrong shape"),
        (lambda: backward(spk, None, x, rows, None, *rest[:5], 99, *rest[6:]), "surrogate: unknown"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


# ---- in a compiled loop


@on_both
@pytest.mark.parametrize(
    "by", [snnfast.compile, lambda net: torch.compile(net, backend="snnfast")], ids=["recorded", "traced"]
)
def test_a_compiled_loop(by: Any, device: torch.device, calls: list[None]) -> None:
    torch._dynamo.reset()
    x = torch.rand(4, 2, 3, 8, 8)
    norm = norm_of(torch.zeros(4, 2, 16, 8, 8))
    net = Loop(norm, nn.MaxPool2d(2))
    layers = (net.conv, norm, net.lif1, net.pool, nn.Flatten(), net.fc, net.lif2)
    over_time = MultiStep(*(copy.deepcopy(m) for m in layers))
    compiled = by(net)
    for _ in range(2):
        compiled(x), over_time(x)
    calls.clear()
    spk = compiled(x)
    assert len(calls) == 1
    wanted, _ = over_time(x)
    assert len(calls) == 2
    assert_bits_equal(spk, wanted)
    assert_all_bits_equal(norm.buffers(), over_time[1].buffers())
    grads = [torch.autograd.grad(s.square().sum(), list(m.parameters())) for s, m in ((spk, net), (wanted, over_time))]
    assert_all_close(grads[0], grads[1], 1e-5)


class InStepModeM(nn.Module):
    """A network of nodes that run all steps in one call, with one container in another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(jelly.BatchNorm2d(4), spiking.LIFNode())
        self.layers = nn.Sequential(jelly.BatchNorm2d(4), spiking.IFNode(v_reset=None), self.inner)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Shortcut(InStepModeM):
    """Layers that a ``forward`` calls one by one, and a sum of spikes."""

    def forward(self, x: Tensor) -> Tensor:
        norm, node, _ = self.layers
        first = node(norm(x))
        return first + self.inner(first)  # type: ignore[no-any-return]


class Tokens(InStepModeM):
    """Of tokens ``[T, B, N, C]``, the last dimension is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(30, 24, bias=False), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(0, 1).flatten(1, 2)).transpose(1, 2)
        y = self.norm(y).transpose(1, 2).reshape(*x.shape[:2], -1, 24).contiguous()
        return self.layers[1](y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "norms"), [(InStepModeM, 2), (Shortcut, 2), (Tokens, 1)])
def test_a_compiled_network_in_step_mode_m(make: Any, norms: int, calls: list[None]) -> None:
    """Calls that go on from membranes are of another kind: the fourth of these has a graph, if not the third."""
    torch.manual_seed(0)
    net = make()
    x, other = [2 * images(4, (16, 4, 30, 30)) for _ in range(5)], copy.deepcopy(net)
    found = [list(map(m, x)) for m in (snnfast.compile(net), other)]
    assert len(calls) in (2 * norms, 3 * norms)
    assert found[1][1].any()
    assert_all_bits_equal(*found)
    nodes = [[n.v for n in m.modules() if isinstance(getattr(n, "v", None), Tensor)] for m in (net, other)]
    assert_all_close(nodes[0], nodes[1], 1e-5)
    assert_all_close(list(net.buffers()), list(other.buffers()), 1e-6)
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in spikes), list(m.parameters()), allow_unused=True)
        for spikes, m in zip(found, (net, other), strict=True)
    ]
    used = [[g for g in of if g is not None] for of in grads]
    assert_all_close(used[0], used[1], 1e-4)


@pytest.mark.parametrize("change", ["eval", "store_v_seq", "another reader"])
def test_what_is_read_elsewhere_is_no_part_of_a_compiled_network_in_step_mode_m(change: str, calls: list[None]) -> None:
    net, seen = InStepModeM(), []
    if change == "eval":
        net.layers[0].eval()
    elif change == "store_v_seq":
        net.layers[1].store_v_seq = True
    else:
        net.layers[0].register_forward_hook(lambda module, given, result: seen.append(result))
    x, other = 2 * images(4, (16, 4, 30, 30)), copy.deepcopy(net)
    assert_bits_equal(snnfast.compile(net)(x), other(x))
    assert len(calls) == 1


def test_a_compiled_network_in_step_mode_m_is_freed_at_once() -> None:
    net = snnfast.compile(InStepModeM())
    net(torch.rand(4, 2, 4, 6, 6))
    parts = [weakref.ref(module) for module in net.modules()]
    gc.collect()
    gc.disable()
    try:
        del net
        assert not any(part() for part in parts)
    finally:
        gc.enable()


def test_a_threshold_moved_before_the_backward_pass() -> None:
    x, neurons = images(4, SHAPES["vectors"]).requires_grad_(), leaky()
    net, found = net_of(norm_of(x), neurons), []
    for moved in (0.0, 0.5):
        spk = net(x)
        neurons.threshold.add_(moved)
        found.append(torch.autograd.grad((spk * x.detach()).sum(), [x])[0])
    assert_bits_equal(*found)


def test_connected_neurons_behind_a_norm_with_a_learned_decay() -> None:
    """A parameter of another dtype is converted before the call, and the connections are no parameter."""

    def mem_of(compiled: bool) -> Tensor:
        torch.manual_seed(0)
        norms = nn.ModuleList([nn.BatchNorm1d(4, affine=False) for _ in range(2)]).double()
        lif = snnfast.RSynaptic(alpha=0.3, beta=0.6, learn_beta=True, linear_features=4).double()

        def loop(x: Tensor) -> Tensor:
            spk, syn, mem = lif.reset_mem()
            for t in range(2):
                spk, syn, mem = lif(norms[t](x[t]), spk, syn, mem)
            return mem

        run = snnfast.compile(loop) if compiled else loop
        mem: Tensor = run(torch.rand(2, 5, 4, dtype=torch.float64))
        return mem

    torch.testing.assert_close(mem_of(True), mem_of(False))
