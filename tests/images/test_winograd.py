"""Dense convolutions by Winograd's method: as exact as PyTorch's, where they are chosen, and who chooses."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_all_close, assert_bits_equal, assert_close
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import snnfast
from snnfast._core import ops as _ops
from snnfast._images import winograd
from snnfast._images.conv2d import conv2d

pytestmark = pytest.mark.needs_extension

ops: Any = torch.ops.snnfast
channels_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
COMPILERS = ("eager", "aot_eager", "inductor")


def normal(*sizes: int) -> Tensor:
    return channels_last(torch.randn(sizes))


def spikes(*sizes: int) -> Tensor:
    return channels_last((torch.rand(sizes) < 0.4).float())


def kernel(outputs: int, channels: int) -> Tensor:
    """As ``nn.Conv2d`` begins."""
    return (torch.rand(outputs, channels, 3, 3) - 0.5) * (2 / (9 * channels) ** 0.5)


def of_input(grad: Tensor, weight: Tensor, padding: Any) -> Tensor:
    """PyTorch's gradient of the input."""
    (py, px), (rows, columns) = padding, grad.shape[2:]
    x = channels_last(grad.new_empty(len(grad), weight.shape[1], rows + 2 - 2 * py, columns + 2 - 2 * px))
    how = None, [1, 1], padding, [1, 1], False, [0, 0], 1, [True, False, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, *how)[0]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernels compute from now on."""
    seen: list[str] = []
    op = ops.winograd_conv2d

    def recording(*given: Any) -> Any:
        seen.append("gradient" if given[-1] else "output")
        return op(*given)

    monkeypatch.setattr(ops, "winograd_conv2d", recording)
    return seen


@pytest.fixture
def chosen() -> None:
    if _ops.extension.isa() == "baseline":
        pytest.skip("PyTorch computes all convolutions there")


# ---- the numbers

SIZES: dict[str, tuple[int, ...]] = {  # images, channels in and out, rows, columns, padding
    "plain": (3, 32, 64, 8, 12, 1, 1),
    "no padding": (3, 32, 64, 10, 9, 0, 0),
    "two paddings": (2, 32, 48, 7, 8, 2, 0),
    "no whole group": (3, 41, 16, 9, 5, 1, 1),
    "no whole block": (3, 16, 71, 6, 7, 1, 2),
    "several blocks": (2, 64, 150, 5, 6, 1, 1),
    "one output": (3, 16, 16, 3, 3, 0, 0),
    "one pixel": (3, 16, 16, 1, 1, 1, 1),
    "many tiles": (20, 19, 17, 30, 29, 1, 1),
    "no image": (0, 16, 16, 8, 8, 1, 1),
}


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("name", SIZES)
def test_the_op_has_the_numbers_of_a_convolution_and_of_its_gradient(name: str, side: int, isa: str) -> None:
    N, C, O, H, W, *padding = SIZES[name]  # noqa: E741 - PyTorch's names
    x, weight, bias = normal(N, C, H, W), kernel(O, C), torch.randn(O)
    exact = torch.conv2d(x.double(), weight.double(), bias.double(), 1, padding)
    for given in (weight, channels_last(weight)):
        y, finite = ops.winograd_conv2d(x, given, bias, *padding, side, False)
        assert finite
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, exact.float(), 1e-5)
    grad = normal(*exact.shape)
    of_x, finite = ops.winograd_conv2d(grad, weight, None, *(2 - p for p in padding), side, True)
    assert finite
    assert_close(of_x, of_input(grad.double(), weight.double(), padding).float(), 1e-5)


@pytest.mark.parametrize("side", [2, 4])
def test_no_bit_depends_on_threads_or_the_batch_or_the_width_of_vectors(side: int, isa: str) -> None:
    x, weight, bias = normal(30, 40, 9, 9), kernel(33, 40), torch.randn(33)
    torch.set_num_threads(1)
    if isa == "avx2":
        _ops.extension.set_isa(_ops.extension.isa_available()[0])
    expected, _ = ops.winograd_conv2d(x, weight, bias, 1, 1, side, False)
    _ops.extension.set_isa(isa)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for some in (slice(None), slice(7, 18)):
            found, _ = ops.winograd_conv2d(x[some], weight, bias, 1, 1, side, False)
            assert_bits_equal(found, expected[some])


def errors(found: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """The largest one, and the root of the mean of their squares."""
    off = found.double() - exact
    return off.abs().max(), off.square().mean().sqrt()


@pytest.mark.parametrize("of", [normal, spikes], ids=lambda of: of.__name__)
@pytest.mark.parametrize(
    ("N", "C", "O", "size", "side"),
    [(16, 32, 32, 16, 2), (8, 64, 64, 16, 2), (4, 96, 64, 16, 2), (8, 128, 128, 16, 4), (16, 256, 128, 16, 4)],
)
def test_what_is_chosen_is_as_exact_as_pytorch(
    N: int,
    C: int,
    O: int,  # noqa: E741
    size: int,
    side: int,
    of: Callable[..., Tensor],
    isa: str,
) -> None:
    """The bars are the errors of PyTorch's convolution, with a tenth for chance."""
    if isa == "baseline":
        pytest.skip("PyTorch computes all convolutions there")
    torch.manual_seed(0)
    x, weight, turned = of(N, C, size, size), kernel(O, C), kernel(C, O)
    assert winograd._side(N, C, O, size, size) == side
    found, exact = (
        winograd.output(x, weight, None, [1, 1], [1, 1]),
        torch.conv2d(x.double(), weight.double(), padding=1),
    )
    of_x, exact_of_x = winograd.gradient(x, turned, [1, 1], [1, 1]), of_input(x.double(), turned.double(), [1, 1])
    assert found is not None
    assert of_x is not None
    pytorchs = torch.conv2d(x, weight, padding=1), of_input(x, turned, [1, 1])
    for ours, theirs, wanted in zip((found, of_x), pytorchs, (exact, exact_of_x), strict=True):
        for a, b in zip(errors(ours, wanted), errors(theirs, wanted), strict=True):
            assert a <= 1.1 * b


# ---- values that are not finite


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_each_value_that_is_not_finite_is_found(value: float, side: int, isa: str) -> None:
    x, weight, bias = normal(1, 17, 7, 6), kernel(19, 17), torch.randn(19)
    compute = partial(ops.winograd_conv2d, padding_y=1, padding_x=0, side=side, turned=False)
    assert compute(x, weight, bias)[1]
    for t in (x, weight, bias):
        places = t.flatten() if t is not x else None
        count = t.numel() if t is bias else 9 if t is weight else 42
        for i in range(count):  # of the pixels, the taps, or the outputs
            wrong = t.clone()
            if places is None:
                wrong[0, i % 17, i // 6, i % 6] = value
            elif t is weight:
                wrong[i % 19, i % 17, i // 3, i % 3] = value
            else:
                wrong[i] = value
            given = [wrong if t is each else each for each in (x, weight, bias)]
            assert not compute(*given)[1], (t.shape, i)


WRONG: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "a NaN of the input": lambda x, w, g: x[1, 3, 5, 6].fill_(torch.nan),
    "an infinity at the border": lambda x, w, g: x[0, 0, 0, 0].fill_(-torch.inf),
    "a NaN of the weight": lambda x, w, g: w[5, 6, 1, 2].fill_(torch.nan),
    "an overflow": lambda x, w, g: x[2, :, 4:6, 4:6].fill_(3e38),
    "a NaN of the gradient": lambda x, w, g: g[0, 2, 15, 3].fill_(torch.nan),
    "an infinity of the gradient": lambda x, w, g: g[3, 1, 0, 0].fill_(torch.inf),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_not_finite_are_where_pytorchs_are(name: str, chosen: None, called: list[str]) -> None:
    x, weight, grad = normal(16, 64, 16, 16), kernel(64, 64), normal(16, 64, 16, 16)
    WRONG[name](x, weight, grad)
    results = []
    for function in (conv2d, torch.conv2d):
        given = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(*given, None, 1, 1)
        results.append((y, *torch.autograd.grad(y, given, grad)))
    assert called == ["output", "gradient"]
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found.isnan(), expected.isnan())
    assert_all_close(*results, relative=1e-5)


# ---- the choice


def test_the_side_of_the_tiles_follows_the_shape() -> None:
    side = winograd._side
    assert side(8, 64, 64, 32, 32) == 2, "sums of 64 channels are not exact enough in large tiles"
    assert side(8, 128, 128, 16, 16) == side(32, 128, 32, 15, 16) == 4
    assert side(32, 128, 128, 10, 10) == 2, "large tiles would be cut off"
    assert side(32, 64, 64, 7, 7) == 0, "and small ones"
    assert side(16, 64, 64, 8, 8) == 2
    assert side(4, 128, 128, 8, 8) == 0, "too few tiles"
    assert side(64, 16, 64, 16, 16) == side(64, 64, 8, 16, 16) == side(64, 128, 16, 16, 16) == 0, "too few channels"
    assert side(64, 20, 64, 16, 16) == side(64, 40, 64, 16, 16) == 0, "too many channels of zeros"
    assert side(8, 32, 16, 8, 8) == 0, "too small"
    assert side(0, 64, 64, 32, 32) == 0


def dense(x: Tensor, weight: Tensor, **how: Any) -> Tensor:
    return conv2d(x, weight, None, **{"stride": 1, "padding": 1, **how})


PYTORCHS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[], Any]]] = {
    "stride": (lambda x, w: dense(x, w, stride=2), nullcontext),
    "padding beyond the kernel": (lambda x, w: dense(x, w, padding=3), nullcontext),
    "another kernel": (lambda x, w: dense(x, F.pad(w, (1, 1, 1, 1))), nullcontext),
    "dilation": (lambda x, w: dense(x, w, dilation=2), nullcontext),
    "groups": (lambda x, w: dense(x, w[:, :32], groups=2), nullcontext),
    "another order": (lambda x, w: dense(x.contiguous(), w), nullcontext),
    "float64": (lambda x, w: dense(x.double(), w.double()), nullcontext),
    "a bias of one number": (
        lambda x, w: conv2d(x.detach(), w.requires_grad_(), torch.ones(1).expand(64)),
        nullcontext,
    ),
    "no events": (dense, lambda: snnfast.use_events(False)),
    "the reference": (dense, lambda: snnfast.use_backend("reference")),
    "autocast": (dense, lambda: torch.autocast("cpu", torch.bfloat16)),
}


@pytest.mark.parametrize("name", PYTORCHS)
def test_what_the_kernels_do_not_take_is_pytorchs(name: str, chosen: None, called: list[str]) -> None:
    x, weight = normal(16, 64, 16, 16).requires_grad_(), kernel(64, 64)
    dense(x, weight).sum().backward()
    assert called == ["output", "gradient"]
    call, inside = PYTORCHS[name]
    with inside():
        call(x, weight).sum().backward()
    assert called == ["output", "gradient"]


def test_deterministic_algorithms_are_pytorchs(chosen: None, called: list[str]) -> None:
    x, weight = normal(16, 64, 16, 16).requires_grad_(), kernel(64, 64)
    torch.use_deterministic_algorithms(True)
    try:
        y = dense(x, weight)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not called
    assert_bits_equal(y, torch.conv2d(x, weight, None, 1, 1))


def test_the_kernels_of_the_baseline_are_not_chosen(called: list[str]) -> None:
    if "baseline" not in _ops.extension.isa_available():
        pytest.skip("not built")
    used = _ops.extension.isa()
    try:
        _ops.extension.set_isa("baseline")
        dense(normal(16, 64, 16, 16), kernel(64, 64))
    finally:
        _ops.extension.set_isa(used)
    assert not called


def test_few_events_are_added_up_instead(chosen: None, called: list[str]) -> None:
    x, weight = normal(16, 64, 16, 16), kernel(64, 64)
    x[torch.rand_like(x) > 0.03] = 0
    y = dense(x.requires_grad_(), weight)
    assert not called
    y.sum().backward()
    assert called == ["gradient"]


# ---- autograd, and what is around it


@pytest.mark.parametrize("channels", [(64, 64), (64, 128), (32, 16), (16, 32)], ids=str)
@pytest.mark.parametrize("needs", ["all", "no input", "no weight", "no bias", "nothing"])
def test_gradients_are_those_of_a_convolution(
    needs: str, channels: tuple[int, int], chosen: None, called: list[str]
) -> None:
    C, O = channels  # noqa: E741
    x, weight, bias = normal(16, C, 16, 18), kernel(O, C), torch.randn(O)
    asked = {"no input": (weight, bias), "no weight": (x, bias), "no bias": (x, weight), "nothing": ()}
    wanted = [t.requires_grad_() for t in asked.get(needs, (x, weight, bias))]
    given = [x, weight, None if needs == "no bias" else bias]
    y = conv2d(*given, 1, (1, 0))  # type: ignore[arg-type]
    exact = torch.conv2d(*(None if t is None else t.double() for t in given), 1, (1, 0))  # type: ignore[arg-type]
    assert_close(y, exact.float(), 1e-5)
    if wanted:
        grad = normal(*y.shape)
        found, expected = (torch.autograd.grad(t, wanted, grad.to(t.dtype)) for t in (y, exact))
        assert_all_close(found, expected, relative=1e-5)
    assert called == ["output"] * (C > 16) + ["gradient"] * (x.requires_grad and O > 16)


def test_second_derivatives_are_pytorchs(chosen: None, called: list[str]) -> None:
    x, weight = normal(16, 64, 16, 16).requires_grad_(), kernel(64, 64).requires_grad_()
    results = []
    for function in (conv2d, torch.conv2d):
        first = torch.autograd.grad((function(x, weight, None, 1, 1) ** 3).sum(), (x, weight), create_graph=True)
        assert called == ["output"]
        results.append((*first, *torch.autograd.grad(sum(t.square().sum() for t in first), (x, weight))))  # type: ignore[arg-type]
        del called[1:]
    assert_all_close(*results, relative=1e-4)


def test_transforms_of_torch_func_are_pytorchs(chosen: None, called: list[str]) -> None:
    x, weight = normal(16, 64, 16, 16), kernel(64, 64)
    results = []
    for function in (conv2d, torch.conv2d):

        def loss(x: Tensor, function: Any = function) -> Tensor:
            return function(x, weight, None, 1, 1).square().sum()

        results.append((torch.func.grad(loss)(x), torch.func.jvp(loss, (x,), (x,))[1]))
    assert not called
    assert_all_close(*results, relative=1e-5)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("backend", ["snnfast", *(pytest.param(b, marks=pytest.mark.thorough) for b in COMPILERS)])
def test_ops_in_a_graph_choose_at_each_call(backend: str, chosen: None) -> None:
    compiled = torch.compile(conv2d, backend=backend, fullgraph=True)
    weight, bias = kernel(64, 64).requires_grad_(), torch.randn(64).requires_grad_()
    for rate, times in ((1.0, 2), (0.03, 1)):  # of few events, the gradient alone
        x = normal(16, 64, 16, 16)
        x[torch.rand_like(x) > rate] = 0
        given = x.requires_grad_(), weight, bias
        results = []
        for function in (compiled, torch.conv2d):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                y = function(*given, 1, 1)
                results.append((y, *torch.autograd.grad(y.square().sum(), given)))
            names = [event.name for event in profiled.events()]
            assert names.count("snnfast::winograd_conv2d") == times * (function is compiled)
        assert_all_close(*results, relative=1e-5)


def test_a_network_calls_them(chosen: None, called: list[str]) -> None:
    net = snnfast.MultiStep(nn.Conv2d(64, 64, 3, padding=1), snnfast.Leaky(0.5))
    spk, _ = net(torch.rand(4, 4, 64, 16, 16).requires_grad_())
    spk.sum().backward()
    assert called == ["output", "gradient"]


def test_operations_count_as_pytorchs(chosen: None) -> None:
    conv, x = nn.Conv2d(64, 64, 3), normal(16, 64, 18, 18).requires_grad_()
    counts = []
    for call in (lambda: conv2d(x, conv.weight, conv.bias), lambda: conv(x)):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        counts.append(counter.get_total_flops())
    assert winograd.pays(x, conv.weight, [1, 1], [0, 0])
    assert counts[0] == counts[1] > 0


# ---- the op

ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("x: expected channels_last", {"x": torch.rand(2, 32, 8, 8)}),
    ("x: expected float32", {"x": channels_last(torch.rand(2, 32, 8, 8).double())}),
    ("x, weight: expected the same channels", {"x": channels_last(torch.rand(2, 48, 8, 8))}),
    ("weight: expected .O, C, 3, 3.", {"weight": torch.rand(32, 32, 5, 5)}),
    ("weight: expected 16 or more channels", {"weight": torch.rand(15, 32, 3, 3)}),
    ("bias: expected one float32", {"bias": torch.rand(31)}),
    ("padding: expected 0 to 2", {"padding_x": 3}),
    ("side: expected 2 or 4", {"side": 3}),
    ("x: wrong size", {"x": channels_last(torch.rand(2, 32, 2, 8)), "padding_y": 0}),
]


@pytest.mark.parametrize(("message", "wrong"), ARGUMENTS, ids=[message[:30] for message, _ in ARGUMENTS])
def test_the_op_names_a_wrong_argument(message: str, wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"x": channels_last(torch.rand(2, 32, 8, 8)), "weight": torch.rand(32, 32, 3, 3)}
    right |= {"bias": None, "padding_y": 1, "padding_x": 1, "side": 2, "turned": False}
    assert ops.winograd_conv2d(**right)[1]
    with pytest.raises(RuntimeError, match=message):
        ops.winograd_conv2d(**right | wrong)
