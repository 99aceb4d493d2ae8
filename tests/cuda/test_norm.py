"""Batch normalisation in training and the neurons behind it by one family of kernels, which CUDA alone has."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from emulator.build import set_norm_blocks, set_seed, set_vector_minimum, take_launches
from helpers import FIRST_SEED, assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from norm_checks import (
    DTYPES,
    LEAKY,
    NODES,
    Neurons,
    Shape,
    by_reference,
    check,
    images,
    leaky,
    membranes,
    net_of,
    nodes,
    norm_of,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast import MultiStep, spikingjelly, surrogate
from snnfast._core import ops
from snnfast._core.norm import Norm, affine
from snnfast._unroll import normed
from snnfast.spikingjelly import functional
from snnfast.spikingjelly import layer as jelly
from snnfast.spikingjelly import neuron as spiking

emulated = pytest.mark.parametrize(
    "device", [pytest.param("emulated", marks=[pytest.mark.emulated, pytest.mark.needs_extension])], indirect=True
)
# Of a step, [B, C, *]: whole vectors of a channel and of a pixel, one of both, neither; one channel, one sample, one
# value of each sample; several blocks to a channel, and several groups of channels in a block's columns.
SHAPES: dict[str, Shape] = {
    "vectors": (3, 8, 4, 4), "of pixels": (5, 4, 3, 3), "odd": (7, 5, 3, 3), "channel": (2, 1, 6, 7),
    "sample": (1, 3, 8), "values": (9, 6), "tall": (3, 2, 40, 50), "wide": (2, 300, 3), "volume": (2, 4, 2, 2, 2),
}  # fmt: skip


def launched() -> list[str]:
    return [launch.kernel for launch in take_launches()]


def kernels(width: str, dtype: str = "float", of: Neurons = LEAKY, steps: int = 4) -> list[str]:
    """Those of a forward and a backward pass. Of four steps, several neurons have kernels of their own."""
    once = steps == 4 and width[0] == "4"
    reset = of.reset if once else 0  # others ask for it
    each, one_chunk = f"<{of.name}, {dtype}, {width}, (Reset){reset}", str(once).lower()
    return [
        f"statistics_norm<Statistics, {dtype}, {width}>", f"forward_norm{each}, {one_chunk}>",
        f"backward_norm{each}, {one_chunk}, false>", f"backward_norm{each}, {one_chunk}, true>",
    ]  # fmt: skip


def launched_by_check(x: Tensor, over_time: bool = False, of: Neurons = LEAKY) -> list[str]:
    take_launches()
    check(x, norm_of(x), over_time, of)
    return launched()[1:]  # the first is that of the test


# ---- numbers


@emulated
@pytest.mark.parametrize("over_time", [False, True], ids=["each step", "over time"])
@pytest.mark.parametrize("layout", ["usual", "channels_last"])
@pytest.mark.parametrize("name", SHAPES)
def test_spikes_are_those_of_the_scale_and_the_shift(
    name: str, layout: str, over_time: bool, device: torch.device
) -> None:
    shape = SHAPES[name]
    by_pixel = layout == "channels_last" or len(shape) == 2
    vectors = (shape[1] if by_pixel else torch.Size(shape[2:]).numel()) % 4 == 0
    width = ("4, 4" if by_pixel else "4, 1") if vectors else "1, 1"
    x = images(4, shape, layout=layout)
    assert launched_by_check(x, over_time) == kernels(width)


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_of_any_number_of_steps(dtype: torch.dtype, device: torch.device) -> None:
    kind = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat16"}[dtype]
    least = 1 if dtype == torch.float32 else 3
    for steps, layout, over_time in itertools.product(range(least, 17), ("usual", "channels_last"), (False, True)):
        width = "4, 4" if layout == "channels_last" else "4, 1"
        x = images(steps, (2, 4, 2, 6), dtype, layout)
        assert launched_by_check(x, over_time) == kernels(width, kind, steps=steps)


@emulated
@pytest.mark.parametrize("name", NODES)
def test_of_nodes(name: str, device: torch.device) -> None:
    """Vectors of a channel and of a pixel, and single neurons, at few steps and at many."""
    of = NODES[name]()
    for dtype, over_time in itertools.product(DTYPES, (False, True)):
        kind = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat16"}[dtype]
        for steps, layout, width in (
            (4, "usual", "4, 1"), (3, "channels_last", "4, 4"), (7, "usual", "4, 1"), (12, "channels_last", "4, 4"),
            (4, "odd", "1, 1"), (12, "odd", "1, 1"),
        ):  # fmt: skip
            x = images(steps, (3, 4, 2, 6) if layout != "odd" else (3, 3, 5, 5), dtype, layout)
            assert launched_by_check(x, over_time, of) == kernels(width, kind, of, steps)


@emulated
@pytest.mark.parametrize(
    "of",
    [LEAKY, nodes("IFNode", "Sigmoid", 0.0), nodes("LIFNode", "ATan", None), nodes("ParametricLIFNode", "ATan", 0.0)],
    ids=["Leaky", "IFNode", "LIFNode", "ParametricLIFNode"],
)
def test_a_million_decisions(of: Neurons, device: torch.device) -> None:
    x = images(4, (8, 16, 48, 48))
    assert x.numel() > 10**6
    assert launched_by_check(x, of=of) == kernels("4, 1", of=of)


@emulated
@pytest.mark.parametrize("over_time", [False, True], ids=["each step", "over time"])
def test_statistics_are_those_of_float64(over_time: bool, device: torch.device) -> None:
    for x in (
        images(4, (3, 5, 8, 8)),
        images(5, (6, 3)) + 1000,
        torch.full((4, 3, 2, 8), 0.1),
        torch.zeros(4, 3, 2, 8),
    ):
        norm = norm_of(x)
        numbers, variance = ops.norm_ops.norm_statistics(x, norm.weight.data, norm.bias.data, norm.eps, over_time)
        scale, shift, _ = affine(x, norm.weight, norm.bias, norm.eps, over_time)
        dims = [d for d in range(x.dim()) if d != 2 and (d != 0 or over_time)]
        var, mean = torch.var_mean(x.double(), dims, correction=0)
        for found, wanted in zip((*numbers.unbind(-1)[:3], variance), (scale, shift, mean, var), strict=True):
            torch.testing.assert_close(found, wanted.view(found.shape).float(), rtol=3e-7, atol=1e-10)


@emulated
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1}], ids=str)
@pytest.mark.parametrize("over_time", [False, True], ids=["each step", "over time"])
def test_the_running_averages_are_those_of_pytorch(
    options: dict[str, Any], over_time: bool, device: torch.device
) -> None:
    x = images(4, (3, 4, 4, 4))
    norm = norm_of(x, **options)
    other = copy.deepcopy(norm).double()
    for _ in range(2):
        take_launches()
        net_of(norm, leaky(), over_time)(x)
        assert len(launched()) == 2
        for step in x.double().flatten(0, 1).unsqueeze(0) if over_time else x.double():
            other(step)
    assert_all_close([t.double() for t in norm.buffers()], [t.double() for t in other.buffers()], 1e-6)


@emulated
@pytest.mark.parametrize("strided", ["running_mean", "running_var", "num_batches_tracked"])
def test_averages_that_are_strided_or_not_counted(strided: str, device: torch.device) -> None:
    x, found = images(4, (3, 4, 4, 4)), []
    for change in (lambda t: t, lambda t: torch.stack([t, t], -1)[..., 1], lambda t: None):
        norm = norm_of(x)
        if change(norm.num_batches_tracked) is None:
            norm.num_batches_tracked = None
        else:
            setattr(norm, strided, change(getattr(norm, strided)))
        net_of(norm, leaky())(x)
        assert norm.num_batches_tracked in (4, None)
        found.append([norm.running_mean, norm.running_var])
    for other in found[1:]:
        assert_all_close(other, found[0], 1e-6)


@emulated
def test_autograd_is_told_of_the_averages_as_by_pytorch(device: torch.device) -> None:
    """Of the count, but not of the averages, which PyTorch's own call has saved for its backward pass."""
    x = images(4, (3, 4, 4, 4)).requires_grad_()
    norm = norm_of(x)
    by_pytorch = norm(x[0])
    before = [t._version for t in norm.buffers()]
    norm(x[0])
    of_pytorch = [t._version - n for t, n in zip(norm.buffers(), before, strict=True)]
    before = [t._version for t in norm.buffers()]
    net_of(norm, leaky())(x)
    assert [t._version - n for t, n in zip(norm.buffers(), before, strict=True)] == of_pytorch == [0, 0, 1]
    by_pytorch.sum().backward()


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operators that launch something: neither make views nor allocate memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@emulated
@pytest.mark.parametrize("over_time", [False, True], ids=["each step", "over time"])
def test_nothing_is_launched_beside_the_kernels_but_a_copy_of_the_threshold(
    over_time: bool, device: torch.device
) -> None:
    x = images(4, (3, 4, 4, 4)).requires_grad_()
    net = net_of(norm_of(x), leaky(), over_time)
    with Calls() as forward:
        spk = net(x)
    grad = torch.ones_like(spk)
    with Calls() as backward:
        torch.autograd.grad(spk, [x, *net.parameters()], grad)
    assert sorted(forward.names) == ["clone", "leaky_norm_forward", "norm_statistics"]
    assert backward.names == ["leaky_norm_backward"]


@emulated
def test_no_order_of_threads_or_blocks_changes_a_bit(device: torch.device) -> None:
    for shape, layout in itertools.product(((3, 2, 20, 36), (5, 36, 3, 3)), ("usual", "channels_last")):
        x = images(4, shape, layout=layout).requires_grad_()
        norm, found = norm_of(x), []
        for seed in range(4):
            set_seed(seed)
            spk = net_of(norm, leaky())(x)
            found.append([spk, *torch.autograd.grad(spk.square().sum(), [x, *norm.parameters()])])
        set_seed(FIRST_SEED)
        for again in found[1:]:
            assert_all_bits_equal(again, found[0])


@emulated
@pytest.mark.parametrize(
    ("shape", "layout", "width"),
    [
        ((5, 8, 20, 20), "usual", "4, 1"), ((20, 40, 5, 5), "channels_last", "4, 4"),
        ((9, 5, 9, 9), "usual", "1, 1"), ((20, 33, 5, 5), "channels_last", "1, 1"),
    ],
)  # fmt: skip
def test_a_block_sums_several_tiles(shape: Shape, layout: str, width: str, device: torch.device) -> None:
    set_norm_blocks(1)
    try:
        for steps, of in itertools.product((4, 6), (LEAKY, nodes("ParametricLIFNode", "ATan", 0.0))):
            x = images(steps, shape, layout=layout)
            assert launched_by_check(x, of=of) == kernels(width, of=of, steps=steps)
    finally:
        set_norm_blocks(1024)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_of_one_or_two_steps_are_two_calls(dtype: torch.dtype, device: torch.device) -> None:
    for steps in (1, 2, 3):
        x = images(steps, (2, 4, 2, 6), dtype)
        take_launches()
        net_of(norm_of(x), leaky())(x)
        normed = [name for name in launched() if "_norm<" in name]
        assert bool(normed) == (dtype == torch.float32 or steps == 3)


@emulated
def test_few_neurons_have_a_thread_each(device: torch.device) -> None:
    set_vector_minimum(-1)
    try:
        x = images(4, (2, 4, 4, 4))
        assert launched_by_check(x) == kernels("1, 1")
    finally:
        set_vector_minimum(1)


@emulated
def test_misaligned_and_strided_inputs_and_gradients(device: torch.device) -> None:
    x = images(4, (2, 4, 4, 4))
    norm = norm_of(x)
    wanted = membranes(x, norm, over_time=False)[0]
    misaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    for other in (misaligned, x.mT.contiguous().mT, x.repeat_interleave(2, -1)[..., ::2]):
        other = other.detach().requires_grad_()
        spk = net_of(norm, leaky())(other)
        assert_bits_equal(spk, wanted)
        of_rows = torch.autograd.grad((spk * torch.arange(4.0)).sum(), [other, *norm.parameters()], retain_graph=True)
        dense = torch.arange(4.0).expand(x.shape).contiguous()
        assert_all_close(of_rows, torch.autograd.grad(spk, [other, *norm.parameters()], dense), 1e-6)


@emulated
@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("layout", ["usual", "channels_last"])
def test_states_go_in_and_come_out(layout: str, steps: int, device: torch.device) -> None:
    """From part to part of a sequence, given or held by the layer, with their gradients."""
    for dtype, given in itertools.product(DTYPES, (False, True)):
        x = images(steps, (2, 4, 3, 4), dtype, layout).requires_grad_()
        norm = norm_of(x)
        state = torch.rand(x.shape[1:]).requires_grad_() if given else None
        take_launches()
        spk, (last,) = net_of(norm, leaky())(x, states=[state] if given else None, return_states=True)
        assert launched()[1].startswith("forward_norm<")
        expected = by_reference(x, norm, state)
        assert_bits_equal(spk, expected[0])
        assert last.dtype == torch.float32
        assert_close(last, expected[1], 1e-6)
        wanted = [x, *norm.parameters()] + ([state] if given else [])
        weights = torch.randn(last.shape)
        for outputs in ([0], [1], [0, 1]):
            grads = [[weights.to(spk).expand_as(spk), weights][i] for i in outputs]
            found = torch.autograd.grad([(spk, last)[i] for i in outputs], wanted, grads, retain_graph=True)
            others = torch.autograd.grad([expected[i] for i in outputs], wanted, grads, retain_graph=True)
            for a, b in zip(found, others, strict=True):
                assert_close(a, b, 1e-5 if a.dtype == torch.float32 else 2e-2)


@emulated
def test_a_layer_goes_on_from_the_state_that_it_holds(device: torch.device) -> None:
    x = images(4, (2, 4, 3, 4))
    norm, held, neurons = norm_of(x), leaky(init_hidden=True), leaky()
    net, state = net_of(norm, held), None
    for _ in range(2):
        take_launches()
        spk = net(x)
        assert launched()[1].startswith("forward_norm<")
        wanted, (state,) = net_of(copy.deepcopy(norm), neurons)(x, states=[state], return_states=True)
        assert_bits_equal(spk, wanted)
        assert_bits_equal(held.mem, state)


@emulated
@pytest.mark.parametrize("name", ["IFNode, Sigmoid, hard", "ParametricLIFNode, ATan, hard, detached"])
def test_a_node_goes_on_and_has_a_second_derivative(name: str, device: torch.device) -> None:
    x = images(4, (2, 4, 4)).requires_grad_()
    norm, node, found = norm_of(x), NODES[name]().make(), []
    wanted = [x, *norm.parameters(), *node.parameters()]
    net = net_of(norm, node)
    for make in (
        lambda: (net(x[:2]), net(x[2:]), node.v),
        lambda: (
            (first := by_reference(x[:2], norm, torch.zeros(2, 4, 4), node))[:1]
            + by_reference(x[2:], norm, first[1], node)
        ),
    ):
        take_launches()
        outputs = make()
        if not found:
            assert sum(kernel.startswith("forward_norm<IFNode") for kernel in launched()) == 2
        of_first = torch.autograd.grad(sum(y.square().sum() for y in outputs), wanted, create_graph=True)
        found.append([*outputs, *of_first, *torch.autograd.grad(sum(g.square().sum() for g in of_first), wanted)])
    assert_all_bits_equal(found[0][:2], found[1][:2])
    assert_all_close(found[0], found[1], 1e-5)


@emulated
def test_a_second_derivative_of_a_layer_that_is_called_twice(device: torch.device) -> None:
    """The input of the second call depends on the weight: what goes through the input is not added twice."""
    x = images(3, (4, 5))
    norm, found, state = norm_of(x), [], torch.zeros(4, 5)
    wanted = list(norm.parameters())
    for call in (lambda x: net_of(norm, leaky())(x), lambda x: by_reference(x, norm, state)[0]):
        first = torch.autograd.grad(call(call(x)).square().sum(), wanted, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
    assert_all_close(found[0], found[1], 1e-5)


@emulated
def test_what_watches_a_network_sees_the_spikes(device: torch.device) -> None:
    x = images(4, (3, 4, 4, 4))
    net = net_of(norm_of(x), leaky())
    take_launches()
    with snnfast.activity(net) as seen:
        spk = net(x)
    assert launched()[1].startswith("forward_norm<")
    assert next(iter(seen.layers.values())).rate == pytest.approx(spk.mean().item())


# ---- which calls take the kernels, beside those of tests/unroll/test_normed.py

Call = Callable[[nn.Module, Tensor], Any]
APART: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "a node that divides by tau": (lambda: spikingjelly.neuron.LIFNode(3.0), MultiStep.__call__),
    "a node with another surrogate": (
        lambda: spikingjelly.neuron.IFNode(surrogate_function=surrogate.triangular()),
        MultiStep.__call__,
    ),
    "reset to zero": (lambda: leaky(reset_mechanism="zero"), MultiStep.__call__),
    "another surrogate": (lambda: leaky(spike_grad=surrogate.sigmoid()), MultiStep.__call__),
    "a flat surrogate": (lambda: leaky(spike_grad=surrogate.atan(1e-6)), MultiStep.__call__),
    "a steep surrogate": (lambda: leaky(spike_grad=surrogate.atan(1e6)), MultiStep.__call__),
    "a falling surrogate": (lambda: leaky(spike_grad=surrogate.fast_sigmoid(-1.0)), MultiStep.__call__),
    "17 steps": (leaky, lambda net, x: net(x.repeat(5, 1, 1, 1, 1)[:17])),
}


@emulated
@pytest.mark.parametrize("name", APART)
def test_what_does_not_fit_runs_one_by_one(name: str, device: torch.device) -> None:
    make, call = APART[name]
    x = images(4, (3, 4, 4, 4))
    net = net_of(norm_of(x), make())
    take_launches()
    call(net, x)
    assert not any("norm" in kernel for kernel in launched())


@emulated
def test_steps_of_more_neurons_than_32_bits_count_run_one_by_one(device: torch.device) -> None:
    norm = Norm(None, None, 1e-5, False, lambda *_: None, lambda x: x)
    step = torch.zeros(4).as_strided((4, 1 << 13, 2, 1 << 17), (1, 0, 0, 0))
    assert normed._fits(norm, step[..., :-1], on_cpu=False)
    assert not normed._fits(norm, step, on_cpu=False)


@emulated
def test_other_results_of_a_network_are_as_before(device: torch.device) -> None:
    """Its spikes, of each of its layers, and a neuron layer behind with a state that is given."""
    x = images(4, (3, 4, 4, 4))
    net = MultiStep(norm_of(x), leaky(), nn.Flatten(), nn.Linear(64, 3), leaky())
    _, mem, spikes = net(x, states=[None, torch.ones(3, 3)], return_spikes=True)
    assert_bits_equal(spikes[0], membranes(x, net[0], over_time=False)[0])
    spk, expected = net[4].unroll(net[3](spikes[0].flatten(2)), torch.ones(3, 3))
    assert_bits_equal(spikes[1], spk)
    assert_bits_equal(mem, expected)


@emulated
def test_without_gradients_only_the_spikes_are_made(device: torch.device) -> None:
    x = images(4, (3, 4, 4, 4))
    norm = norm_of(x)
    take_launches()
    with torch.no_grad():
        spk = net_of(norm, leaky())(x)
    assert launched() == kernels("4, 1")[:2]
    assert_bits_equal(spk, membranes(x, norm, over_time=False)[0])
    take_launches()
    net_of(norm, leaky())(x).sum().backward()  # nobody asks for the gradient of the input
    assert launched() == kernels("4, 1")[:3]


# ---- by SpikingJelly's names, in step mode "m"


class Blocks(nn.Module):
    """A ``nn.Sequential`` inside of a network, and a node that two layers read."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.norm, self.node = layers, jelly.BatchNorm2d(4, step_mode="m"), spiking.IFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y + self.node(self.norm(y))


def in_containers(conv: nn.Module, norm: nn.Module, node: nn.Module) -> nn.Sequential:
    block = nn.Sequential(jelly.SeqToANNContainer(conv, norm), node)
    return nn.Sequential(nn.Sequential(nn.Identity(), block))


def in_layers(conv: nn.Module, norm: nn.Module, node: nn.Module) -> nn.Sequential:
    net = nn.Sequential(jelly.Conv2d(3, 4, 3, padding=1, bias=False), jelly.BatchNorm2d(4), node)
    net.load_state_dict(
        {**conv.state_dict(prefix="0."), **norm.state_dict(prefix="1."), **node.state_dict(prefix="2.")}
    )
    return net


@emulated
@pytest.mark.parametrize("make", [in_layers, in_containers])
@pytest.mark.parametrize("node", [spiking.IFNode, partial(spiking.ParametricLIFNode, v_reset=None)])
def test_a_compiled_sequential_in_step_mode_m(make: Any, node: Any, device: torch.device) -> None:
    conv, norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), norm_of(torch.zeros(4, 2, 4, 4, 4))
    over_time = MultiStep(*map(copy.deepcopy, (conv, norm, node())), nn.Identity(), batch_norm_over_time=True)
    net = make(conv, norm, node())
    functional.set_step_mode(net, "m")
    plain = copy.deepcopy(net)
    snnfast.compile(net)(torch.rand(4, 2, 3, 4, 4))
    net.load_state_dict(plain.state_dict())
    functional.reset_net(net)
    x = images(4, (2, 3, 4, 4))
    take_launches()
    found, wanted = net(x), over_time(x)
    assert sum("forward_norm<IFNode" in kernel for kernel in launched()) == 2
    assert_bits_equal(found, wanted)
    assert_all_bits_equal(net.buffers(), over_time.buffers())
    grads = [
        torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, net), (wanted, over_time))
    ]
    assert_all_close(grads[0], grads[1], 1e-5)
    copied = copy.deepcopy(net)
    snnfast.uncompile(net)
    take_launches()
    for other in (plain, net, copied):  # not compiled
        functional.reset_net(other)
        other(x)
    assert not any("norm" in kernel for kernel in launched())


@emulated
def test_a_compiled_network_with_a_sequential_in_step_mode_m(device: torch.device) -> None:
    """Modules that are called by themselves are seen as well."""
    norm = norm_of(torch.zeros(4, 2, 4, 4, 4))
    net = Blocks(in_layers(nn.Conv2d(3, 4, 3, padding=1, bias=False), norm, spiking.LIFNode(step_mode="m")))
    functional.set_step_mode(net, "m")
    snnfast.compile(net)
    net(torch.rand(4, 2, 3, 4, 4))
    assert sum("forward_norm<IFNode" in kernel for kernel in launched()) == 2
    for change in (lambda: net.layers[1].eval(), lambda: setattr(net.layers[2], "store_v_seq", True)):
        change()
        for _ in range(2):  # without a graph: there may be no other call like it
            net(torch.rand(4, 2, 3, 4, 4))
        take_launches()
        net(torch.rand(4, 2, 3, 4, 4))
        assert sum("forward_norm<IFNode" in kernel for kernel in launched()) == 1
        net.train()
        net.layers[2].store_v_seq = False
