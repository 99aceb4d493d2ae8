"""Batch normalisation in training over all steps: what a loop over time computes, to rounding."""

import copy
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close, gradients_of
from torch import Tensor, nn

from snnfast import Leaky, MultiStep, Residual, use_backend
from snnfast._core import norm as norm_module
from snnfast._core import ops as _ops
from snnfast._images import batch_norm as batch_norm_module
from snnfast._images.batch_norm import batch_norm, normalised, normalised_constant
from snnfast.spikingjelly import layer as jelly
from snnfast.spikingjelly.layer import SeqToANNContainer

ops: Any = torch.ops.snnfast
T = 3
SHAPES = {  # of a step
    "vectors": (5, 64), "many": (7, 600), "three": (9, 3), "fifteen": (40, 15), "one": (6, 1), "odd": (300, 37),
    "signal": (4, 24, 70), "small signal": (4, 5, 3), "image": (3, 16, 9, 8), "twelve": (2, 12, 13, 6),
    "volume": (2, 20, 3, 4, 5), "large": (2, 3, 50, 40),
}  # fmt: skip
LAYERS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def steps_of(shape: tuple[int, ...], layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> Tensor:
    """Far from zero, each step and channel in its own way."""
    torch.manual_seed(0)
    x = torch.randn(T, *shape) * 2 + torch.arange(T).view(T, *(1,) * len(shape)) * 5
    x = x.to(dtype)
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    return channels_last(x) if layout == "channels_last" else x


def layer_of(shape: tuple[int, ...], **options: Any) -> Any:
    torch.manual_seed(1)
    layer = LAYERS[len(shape)](shape[1], **options)
    for p in layer.parameters():
        nn.init.uniform_(p, 0.5, 2)
    return layer


def loop(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([layer(step) for step in x])


def results(call: Any, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, gradients, and what the layer holds afterwards."""
    layer, x = copy.deepcopy(layer), x.detach().requires_grad_()
    y = call(layer, x)
    return [y, *gradients_of([y], [x, *layer.parameters()]), *layer.buffers()]


def ours(layer: Any, x: Tensor) -> Tensor:
    return normalised(layer, x)


def assert_is_the_loop(layer: Any, x: Tensor, relative: float) -> None:
    """To rounding, beside the loop in float64."""
    found = results(ours, layer, x)
    wanted = results(loop, copy.deepcopy(layer).double(), x.double())
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b.to(a.dtype), relative)


@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_steps_at_once_are_the_loop(shape: tuple[int, ...], layout: str, isa: str) -> None:
    x = steps_of(shape, layout)
    assert_is_the_loop(layer_of(shape), x, 5e-6)
    if layout != "strided":
        assert ours(layer_of(shape), x).stride() == x.stride()


@pytest.mark.needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", ["many", "fifteen", "image", "large"])
def test_in_every_dtype(shape: str, layout: str, dtype: torch.dtype, isa: str) -> None:
    layer, x = layer_of(SHAPES[shape]), steps_of(SHAPES[shape], layout, dtype)
    exact = dtype == torch.float64
    assert_is_the_loop(layer.double() if exact else layer, x, 1e-12 if exact else 4e-2)


OPTIONS: dict[str, dict[str, Any]] = {
    "no weights": {"affine": False},
    "cumulative": {"momentum": None},
    "other momentum": {"momentum": 0.7, "eps": 0.1},
    "not tracked": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_with_every_option(options: dict[str, Any], backend: str) -> None:
    layer = layer_of((5, 24), **options)
    for x in (steps_of((5, 24)), steps_of((5, 24)) * 2):  # goes on from what it holds
        with use_backend(backend):
            assert_is_the_loop(layer, x, 2e-6)
        loop(layer, x)
    if options.get("track_running_stats") is False:
        layer.eval()
        assert_is_the_loop(layer, x, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_a_call_for_each_large_step_is_the_loop(
    layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA. It writes the rows of the results, and a second derivative is PyTorch's."""
    x = steps_of(SHAPES["image"], layout, dtype)
    layer = layer_of(SHAPES["image"])
    layer = layer.double() if dtype == torch.float64 else layer
    assert not batch_norm_module._has_large_steps(x)
    monkeypatch.setattr(batch_norm_module, "_has_large_steps", lambda x: True)
    assert_is_the_loop(layer, x, {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 4e-2}[dtype])
    if dtype != torch.float64:
        return
    x, weights, found = x.requires_grad_(), torch.randn(x.shape, dtype=dtype), []
    for call in (ours, loop):
        grads = torch.autograd.grad(call(layer, x), [x, *layer.parameters()], weights, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), [x, layer.weight]))
    assert_all_close(found[0], found[1], 1e-10)


@pytest.mark.needs_extension
def test_one_call_of_pytorch_has_the_bits_of_the_loop() -> None:
    for shape in (SHAPES["image"], SHAPES["signal"], SHAPES["volume"]):
        layer, x = layer_of(shape), steps_of(shape)
        with use_backend("reference"):
            found = results(ours, layer, x)
        wanted = results(loop, layer, x)
        assert_all_bits_equal(found[:2], wanted[:2])
        assert_all_close(found, wanted, 1e-6)


@pytest.mark.needs_extension
def test_no_bit_depends_on_threads_or_the_instruction_set(isa: str) -> None:
    batch = steps_of((100, 40, 9, 9), "channels_last")[:1]  # in parts
    for x in (steps_of((30, 700)), steps_of((8, 12, 9, 9), "channels_last"), steps_of((8, 40, 9, 9)), batch):
        weight = torch.rand(x.shape[2])
        every = []
        for threads, used in ((1, _ops.extension.isa_available()[0]), (1, isa), (2, isa), (5, isa)):
            torch.set_num_threads(threads)
            _ops.extension.set_isa(used)
            y, mean, variance = ops.batch_norm_forward(x, weight, weight, 1e-5)
            every.append((y, mean, variance, *ops.batch_norm_backward(y, x, weight, mean, variance, 1e-5)))
        for found in every[1:]:
            assert_all_bits_equal(found, every[0])


@pytest.mark.needs_extension
def test_sums_lose_no_digits_far_from_zero() -> None:
    x = 1000 + torch.randn(1, 64, 8, 40, 40, dtype=torch.float64)
    for given in (x.float(), channels_last(x.float())):
        y, mean, variance = ops.batch_norm_forward(given, None, None, 0.0)
        assert_close(mean, given.double().mean((1, 3, 4)).float(), 1e-7)
        assert_close(variance, given.double().var((1, 3, 4), correction=0).float(), 2e-6)
    constant = torch.full((2, 5, 3, 4), 0.1)
    y, _, variance = ops.batch_norm_forward(constant, None, None, 1e-5)
    assert not variance.count_nonzero()
    assert not y.count_nonzero()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_module_for_each_step(backend: str) -> None:
    layers, x = [layer_of((5, 24)) for _ in range(T)], steps_of((5, 24)).requires_grad_()
    for i, layer in enumerate(layers):
        nn.init.constant_(layer.weight, 1.5 + i)
    others = copy.deepcopy(layers)
    weight, bias = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    running = [layer.running_mean for layer in layers], [layer.running_var for layer in layers]
    with use_backend(backend):
        y = batch_norm(x, weight, bias, *running, 0.1, 1e-5)
    wanted = torch.stack([layer(step) for layer, step in zip(others, x, strict=True)])
    parameters = [[p for layer in every for p in layer.parameters()] for every in (layers, others)]
    grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
    found, expected = (
        (out, *torch.autograd.grad(out, [x, *given], grad)) for out, given in zip((y, wanted), parameters, strict=True)
    )
    assert_all_close(found, expected, 1e-5)
    assert_all_close(*([b for m in every for b in m.buffers() if b.dim()] for every in (layers, others)), 1e-6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_running_averages_keep_their_digits_under_autocast(backend: str) -> None:
    layer, x = layer_of((5, 24)), steps_of((5, 24), dtype=torch.bfloat16)
    other = copy.deepcopy(layer)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        y, wanted = normalised(layer, x), loop(other, x)
    assert_close(y, wanted, 1e-2)
    assert_all_close(layer.buffers(), other.buffers(), 1e-6)


def test_the_same_input_at_every_step_is_normalised_once() -> None:
    for options in ({}, {"momentum": None}):
        layer, x = layer_of((5, 24), **options), steps_of((5, 24))[0].expand(4, 5, 24)
        other = copy.deepcopy(layer)
        y = normalised(layer, x)
        assert y.stride(0) == 0
        assert_all_close((y, *layer.buffers()), (loop(other, x), *other.buffers()), 1e-6)


@pytest.mark.parametrize("options", [{}, {"momentum": None}])
def test_a_constant_is_normalised_as_one_step(options: dict[str, Any]) -> None:
    layer, x = layer_of((5, 24), **options), steps_of((5, 24))[0].requires_grad_()
    other = copy.deepcopy(layer)
    y, steps = normalised_constant(layer, x, 4), loop(other, x.expand(4, 5, 24))
    grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
    found = torch.autograd.grad(y, [x, *layer.parameters()], grad)
    assert_all_close(
        (y, *found, *layer.buffers()),
        (steps[3], *torch.autograd.grad(steps[3], [x, *other.parameters()], grad), *other.buffers()),
        1e-5,
    )


@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_derivatives(layout: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    x = (channels_last(x) if layout == "channels_last" else x).requires_grad_()
    for shape in ((4,), (2, 4)):
        weight, bias = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))

        def call(*given: Any) -> Tensor:
            return batch_norm(*given, None, None, 0.1, 1e-5)

        assert torch.autograd.gradcheck(call, (x, weight, bias))
        assert torch.autograd.gradgradcheck(call, (x, weight, bias))
        assert torch.autograd.gradcheck(call, (x, None, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_weight", [torch.float32, None], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_in_half_precision(dtype: torch.dtype, of_weight: torch.dtype | None, affine: bool) -> None:
    """A second derivative too, whatever the dtype of the weight."""

    def found(layer: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        x = (steps_of((5, 16), dtype=torch.bfloat16) / 4).to(dtype).requires_grad_()
        of = [x, *layer.parameters()]
        y = normalised(layer, x)  # type: ignore[arg-type]
        first = torch.autograd.grad(y, of, y.detach().cos(), create_graph=True)
        assert [g.dtype for g in first] == [t.dtype for t in of]
        return [*first, *torch.autograd.grad(first[0].float().square().sum(), of[: 1 + affine])]

    layer = layer_of((5, 16), affine=affine).to(dtype)
    wanted = found(copy.deepcopy(layer).double(), torch.float64)
    for a, b in zip(found(layer.to(of_weight or dtype), dtype), wanted, strict=True):
        assert_close(a.double(), b.double(), 5e-2)


@pytest.mark.parametrize("strides", [(33, 33, 1, 66, 33), (66, 66, 1, 66, 33), (198, 198, 6, 2, 1)], ids=str)
def test_one_sample_in_any_order(strides: tuple[int, ...], backend: str) -> None:
    """Its strides do not say whether it is in channels_last order."""
    torch.manual_seed(0)
    x, weights = torch.randn(2, 198).as_strided((2, 1, 1, 33, 3, 2), (198, *strides)).unbind()
    layer = layer_of((1, 33, 3, 2))

    def gradient(x: Tensor, weights: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(normalised(copy.deepcopy(layer), x), x, weights)[0]

    usual = [t.clone(memory_format=torch.contiguous_format).view(198).view(t.shape) for t in (x, weights)]
    assert_close(gradient(x, weights), gradient(*usual), 1e-5)


@pytest.mark.needs_extension
def test_a_second_derivative_of_one_channel_is_prepared() -> None:
    """Its weight has a stride of 0 over the steps, which PyTorch's backward pass does not look at."""
    x = torch.rand(5, 4, 1, dtype=torch.float64, requires_grad=True)
    weight, weights = torch.rand(1, dtype=torch.float64), torch.rand(5, 4, 1, dtype=torch.float64)
    loss = (batch_norm(x, weight, None, None, None, 0.1, 1e-5) * weights).sum()
    (found,) = torch.autograd.grad(loss, x, create_graph=True)
    steps = torch.stack([nn.functional.batch_norm(step, None, None, weight, None, True, 0.1, 1e-5) for step in x])
    (expected,) = torch.autograd.grad((steps * weights).sum(), x)
    torch.testing.assert_close(found, expected)


def test_under_transforms_and_in_a_graph() -> None:
    layer, x = layer_of((5, 24)).double(), steps_of((5, 24)).double()

    def loss(x: Tensor) -> Tensor:
        return (batch_norm(x, layer.weight, layer.bias, None, None, 0.1, 1e-5) * x.detach()).square().sum()

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    assert_close(torch.func.grad(loss)(x), wanted, 1e-5)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    assert_close(found, wanted, 1e-5)
    weight = layer.weight.detach()
    given = x.clone().requires_grad_(), weight.clone().requires_grad_(), weight.clone().requires_grad_(), 1e-5
    torch.library.opcheck(ops.batch_norm_forward, given)
    saved = ops.batch_norm_forward(x, weight, weight, 1e-5)
    torch.library.opcheck(ops.batch_norm_backward, (x, x, weight, saved[1], saved[2], 1e-5))


@pytest.mark.needs_extension
def test_wrong_arguments_of_the_ops() -> None:
    x, weight = torch.rand(2, 3, 4), torch.ones(4)
    y, mean, variance = ops.batch_norm_forward(x, weight, None, 1e-5)
    for given, message in (
        ((x.long(), None, None), "x: expected float32"),
        ((x[0], None, None), r"x: expected \[T, B, C"),
        ((x[:0], None, None), "not empty"),
        ((torch.rand(2, 3, 8)[..., ::2], None, None), "contiguous or channels_last"),
        ((x, torch.ones(5), None), r"weight: expected \[C\]"),
        ((x, weight, torch.ones(3, 4)), r"bias: expected \[C\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.batch_norm_forward(*given, 1e-5)
    for given, message in (
        ((y.double(), x, weight, mean, variance), "grad: expected"),
        ((y[:, :2], x, weight, mean, variance), "grad: expected"),
        ((y, x, weight, mean[:1], variance), r"mean: expected \[T, C\]"),
        ((y, x, weight, mean, variance[0]), r"variance: expected \[T, C\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.batch_norm_backward(*given, 1e-5)


# ---- in MultiStep


def network() -> list[nn.Module]:
    torch.manual_seed(0)
    skip = Residual(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), shortcut=nn.BatchNorm2d(6))
    return [
        nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 6, 3, bias=False), nn.Sequential(nn.BatchNorm2d(6), Leaky(0.5)),
        skip, Leaky(0.5), nn.Flatten(), nn.Linear(600, 8, bias=False),
        nn.BatchNorm1d(8, momentum=None, affine=False, eps=1.0), nn.ReLU(), nn.BatchNorm1d(8),
    ]  # fmt: skip


def step_by_step(layers: list[nn.Module], x: Tensor) -> Tensor:
    """The loop over time of ``network()``."""
    first, conv, (norm, lif1), skip, lif2, flatten, fc, norm1, relu, norm2 = layers
    mem1, mem2 = lif1.reset_mem(), lif2.reset_mem()
    rec = []
    for step in x:
        spk, mem1 = lif1(norm(conv(first(step))), mem1)
        inner = skip.layers
        spk, mem2 = lif2(inner[1](inner[0](spk)) + skip.shortcut(spk), mem2)
        rec.append(norm2(relu(norm1(fc(flatten(spk))))))
    return torch.stack(rec)


@pytest.mark.parametrize("constant", [False, True])
def test_multistep_takes_the_statistics_of_each_step(constant: bool) -> None:
    layers = [layer.double() for layer in network()]
    x = torch.rand(T, 4, 2, 12, 12, dtype=torch.float64)
    other = copy.deepcopy(layers)
    handle = layers[-1].register_forward_hook(lambda *_: None)  # a layer with a hook is called step by step
    net = MultiStep(*layers)
    found = net(x[0], num_steps=T) if constant else net(x)
    wanted = step_by_step(other, x[0].expand(T, 4, 2, 12, 12) if constant else x)
    weights = torch.linspace(-1, 2, found.numel()).view(found.shape) ** 2
    results = [
        (y, *torch.autograd.grad((y * weights).sum(), list(all_of.parameters())), *all_of.buffers())
        for y, all_of in ((found, nn.Sequential(*layers)), (wanted, nn.Sequential(*other)))
    ]
    handle.remove()
    assert_all_close(*results, 1e-9)
    assert_all_close(net.buffers(), nn.Sequential(*other).buffers(), 1e-12)
    net.eval()
    assert_close(net(x), step_by_step([layer.eval() for layer in other], x), 1e-5)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "steps"])
def test_multistep_updates_the_averages_of_an_instance_norm_at_each_step(constant: bool) -> None:
    norm = nn.InstanceNorm1d(8, affine=True, track_running_stats=True, momentum=0.25)
    net, x = MultiStep(copy.deepcopy(norm), nn.Identity()), torch.randn(5, 3, 8, 4)
    ours = net(x[0], num_steps=5) if constant else net(x)
    theirs = torch.stack([norm(x[0] if constant else step) for step in x])
    torch.testing.assert_close(ours.expand_as(theirs), theirs)
    torch.testing.assert_close(net.state_dict()["0.running_mean"], norm.running_mean)
    torch.testing.assert_close(net.state_dict()["0.running_var"], norm.running_var)


def test_multistep_takes_the_statistics_of_all_steps_on_request() -> None:
    net = MultiStep(nn.BatchNorm1d(24), nn.Identity(), batch_norm_over_time=True)
    other, x = nn.BatchNorm1d(24), steps_of((5, 24))
    assert_bits_equal(net(x).flatten(0, 1), other(x.flatten(0, 1)))
    assert net[0].num_batches_tracked == 1
    assert net[:1].batch_norm_over_time
    net.batch_norm_over_time = False
    net(x)
    assert net[0].num_batches_tracked == 1 + T
    with pytest.raises(TypeError, match="batch_norm_over_time"):
        MultiStep(nn.BatchNorm1d(24), batch_norm_over_time="each")


@pytest.mark.needs_extension
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("how", ["layer", "container", "MultiStep"])
def test_statistics_of_all_steps(how: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    takes = batch_norm_module._takes_kernels
    monkeypatch.setattr(norm_module, "_LEAST", 0)
    monkeypatch.setattr(batch_norm_module, "_takes_kernels", lambda *given: used.append(takes(*given)) or used[-1])

    def call(norm: Any, x: Tensor) -> Any:
        if how == "MultiStep":
            return MultiStep(norm, nn.Identity(), batch_norm_over_time=True)(x)
        return SeqToANNContainer(norm)(x) if how == "container" else norm(x)

    for shape, options in (
        (SHAPES["image"], {}),
        (SHAPES["signal"], OPTIONS["cumulative"]),
        ((5, 24), OPTIONS["no weights"]),
    ):
        norm, x = layer_of(shape, **options), steps_of(shape, layout)
        other = copy.deepcopy(norm).double()
        if how == "layer":
            norm = getattr(jelly, type(norm).__name__)(shape[1], step_mode="m", **options)
            norm.load_state_dict(other.state_dict())
        wanted = results(lambda norm, x: norm(x.flatten(0, 1)).view(x.shape), other, x.double())
        assert_all_close(results(call, norm, x), [t.to(x.dtype) if t.is_floating_point() else t for t in wanted], 5e-6)
        assert set(used) == {True}
        used.clear()
        call(norm.eval(), x)
        assert not used  # PyTorch's, by running averages
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        call(norm.train(), x[:1, :1])


def test_a_wrong_number_of_channels_is_pytorchs_error() -> None:
    norm = nn.BatchNorm1d(24, affine=False)
    for call in (normalised, lambda norm, x: SeqToANNContainer(norm)(x)):
        with pytest.raises(RuntimeError, match="running_mean should contain 1 elements not 24"):
            call(norm, torch.rand(T, 5, 1))


def test_multistep_names_the_layer_that_has_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d can't take .* more than 1 value per channel"):
        MultiStep(nn.BatchNorm1d(4))(torch.rand(3, 1, 4))


# ---- of several calls, some of which stay alone


class FirstStepOutside(nn.Module):
    """A loop whose first step is written before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lif = Leaky(beta=0.9)
        self.layers = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        total, mem = self.lif(self.layers(x[0]), self.lif.reset_mem())
        for t in range(1, x.shape[0]):
            spk, mem = self.lif(self.layers(x[t]), mem)
            total = total + spk + mem
        return total


class MultiStepBehindACall(FirstStepOutside):
    def forward(self, x: Tensor) -> Tensor:
        first = self.layers(x[0])
        rest = MultiStep(*self.layers)(x[1:]) if self.at_once else loop(self.layers, x[1:])
        return torch.cat((first[None], rest))


@pytest.mark.parametrize("compiler", ["none", "snnfast", pytest.param("aot_eager", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", [FirstStepOutside, MultiStepBehindACall])
def test_a_call_that_stays_alone_trains_beside_those_of_all_other_steps(kind: Any, compiler: str) -> None:
    """Its backward pass comes after the others have changed the running averages."""
    torch._dynamo.reset()
    net, x = kind().double(), torch.randn(5, 4, 6, dtype=torch.float64) * 3
    other = copy.deepcopy(net)
    net.at_once, other.at_once = True, False
    call = net if compiler == "none" else torch.compile(net, backend=compiler)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (net, other)]
    for _ in range(3):
        outputs = call(x), other(x)
        assert_close(*outputs, 1e-9)
        weights = torch.linspace(-1, 2, outputs[0].numel()).view(outputs[0].shape)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            for _ in range(2):
                (output * weights).square().sum().backward(retain_graph=True)
        assert_all_close(*([p.grad for p in each.parameters()] for each in (net, other)), 1e-8)
        for optimizer in optimizers:
            optimizer.step()
        assert_all_close(net.buffers(), other.buffers(), 1e-9)
