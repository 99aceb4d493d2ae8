"""Convolutions of spikes by their events, and pooling over windows that do not overlap: PyTorch's numbers.

And who decides between the kernels and PyTorch. Pooling has PyTorch's numbers to the last bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from snnfast import Leaky, MultiStep, use_backend
from snnfast._core import ops as _ops
from snnfast._images import conv2d as _convolution
from snnfast._images import pool2d as _pooling
from snnfast._images.conv2d import conv2d
from snnfast._images.pool2d import avg_pool2d, max_pool2d

pytestmark = pytest.mark.needs_extension

PYTORCHS: dict[Any, Any] = {conv2d: torch.conv2d, max_pool2d: F.max_pool2d, avg_pool2d: F.avg_pool2d}
functions = pytest.mark.parametrize("function", PYTORCHS, ids=lambda function: function.__name__)
ops: Any = torch.ops.snnfast
channels_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)


def spikes(N: int, C: int, H: int, W: int, rate: float = 0.1, heights: str = "graded") -> Tensor:
    x = channels_last((torch.rand(N, C, H, W) < rate).float())
    if heights == "graded":
        x *= torch.rand(N, C, H, W)
    elif heights == "quarters":
        x /= 4
    elif heights == "one other":
        x[-1, -1] *= 2
    return x


every_height = pytest.mark.parametrize("heights", ["graded", "ones", "quarters", "one other"])


def images(*sizes: int) -> Tensor:
    """Small whole numbers, so that many are equal, zeros of both signs, infinities and NaN."""
    x = torch.randint(-2, 3, sizes).float()
    for value, share in ((float("nan"), 0.05), (-float("inf"), 0.2), (-0.0, 0.1)):
        x[torch.rand(sizes) < share] = value
    return channels_last(x)


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that the kernels compute from now on."""
    seen: list[str] = []
    kinds = {"conv2d": _convolution._Convolution, "max_pool2d": _pooling._MaxPooling}
    for name, kind in {**kinds, "avg_pool2d": _pooling._AvgPooling}.items():

        def recording(*given: Any, name: str = name, apply: Any = kind.apply) -> Any:
            seen.append(name)
            return apply(*given)

        monkeypatch.setattr(kind, "apply", recording)
    return seen


# ---- the numbers

CONVOLUTIONS: dict[str, dict[str, Any]] = {  # channels in and out, image, kernel; then the options
    "plain": {"sizes": (5, 64, 9, 9, 3, 3)},
    "stride": {"sizes": (3, 32, 11, 8, 3, 3), "stride": (2, 2)},
    "two strides": {"sizes": (3, 32, 11, 12, 5, 4), "stride": (3, 2), "padding": (1, 2)},
    "stride beyond the kernel": {"sizes": (3, 32, 16, 16, 3, 3), "stride": (5, 5)},
    "padding": {"sizes": (3, 32, 6, 7, 3, 3), "padding": (1, 1)},
    "padding beyond the kernel": {"sizes": (3, 32, 4, 4, 3, 3), "padding": (4, 4)},
    "one channel": {"sizes": (1, 33, 8, 8, 5, 5), "padding": (2, 2)},
    "no whole block": {"sizes": (4, 71, 6, 6, 3, 3)},
    "several blocks": {"sizes": (4, 130, 5, 5, 3, 3), "padding": (1, 1)},
    "few outputs": {"sizes": (4, 7, 5, 5, 3, 3)},
    "kernel as large as the image": {"sizes": (3, 32, 4, 5, 4, 5)},
}


def convolution(
    name: str, N: int = 40, wider: int = 1, heights: str = "graded"
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """An input, perhaps of so many times more channels, a weight, a bias, and stride and padding."""
    case = CONVOLUTIONS[name]
    C, O, H, W, ky, kx = case["sizes"]  # noqa: E741 - PyTorch's names
    C *= wider
    how = (*case.get("stride", (1, 1)), *case.get("padding", (0, 0)))
    return spikes(N, C, H, W, heights=heights), torch.randn(O, C, ky, kx), torch.randn(O), how


@pytest.mark.parametrize("wider", [1, 7], ids=["", "many channels"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@every_height
def test_the_ops_of_convolutions_have_pytorchs_numbers(name: str, wider: int, heights: str, isa: str) -> None:
    x, weight, bias, how = convolution(name, wider=wider, heights=heights)
    found = ops.event_conv2d(x, weight, bias, *how)
    expected = torch.conv2d(x.double(), weight.double(), bias.double(), how[:2], how[2:])
    assert_close(found, expected.float(), 1e-5)
    assert found.stride()[1] == 1
    found, equal = ops.table_conv2d(x, weight, bias, *how)
    assert equal == (len(x[x != 0].unique()) <= 1)
    if equal:
        assert_close(found, expected.float(), 1e-5)
        assert found.stride()[1] == 1
    grad = channels_last(torch.randn(expected.shape))
    of_weight = ops.event_conv2d_weight(x, grad, *weight.shape[2:], *how)
    weight = weight.double().requires_grad_()
    (wanted,) = torch.autograd.grad(torch.conv2d(x.double(), weight, None, how[:2], how[2:]), weight, grad.double())
    assert_close(of_weight, wanted.float(), 1e-5)
    assert of_weight.is_contiguous()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.7])
@pytest.mark.parametrize(
    "sizes",
    [(16, 16, 24, 3), (32, 64, 16, 3), (64, 64, 32, 3), (128, 128, 16, 3), (32, 32, 14, 5), (128, 64, 16, 1)],
)
def test_sums_of_spikes_are_as_exact_as_pytorchs(sizes: tuple[int, int, int, int], share: float) -> None:
    C, O, side, k = sizes  # noqa: E741
    torch.manual_seed(0)
    x, weight = channels_last((torch.rand(8, C, side, side) < share).float()), torch.randn(O, C, k, k)
    grad, p = channels_last(torch.randn(8, O, side, side)), k // 2
    how = [1, 1], [p, p], [1, 1], False, [0, 0], 1, [False, True, False]
    backward = torch.ops.aten.convolution_backward
    forward = torch.conv2d(x, weight, None, 1, p), torch.conv2d(x.double(), weight.double(), None, 1, p)
    pairs = []
    if share >= 0.1:
        pairs.append((ops.table_conv2d(x, weight, None, 1, 1, p, p)[0], *forward))
    if share < 0.5:
        pairs += [
            (ops.event_conv2d(x, weight, None, 1, 1, p, p), *forward),
            (ops.event_conv2d_weight(x, grad, k, k, 1, 1, p, p), backward(grad, x, weight, None, *how)[1],
             backward(grad.double(), x.double(), weight.double(), None, *how)[1]),
        ]  # fmt: skip
    for ours, theirs, exact in pairs:
        for size in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt()):
            assert size(ours - exact) <= 1.1 * size(theirs - exact)


@pytest.mark.parametrize("wider", [1, 7], ids=["", "many channels"])
@every_height
def test_no_bit_of_a_convolution_depends_on_threads_or_the_instruction_set(wider: int, heights: str, isa: str) -> None:
    x, weight, bias, how = convolution("several blocks", N=70, wider=wider, heights=heights)
    results = []
    for n, used in ((1, _ops.extension.isa_available()[0]), (1, isa), (2, isa), (5, isa)):
        torch.set_num_threads(n)
        _ops.extension.set_isa(used)
        y = ops.event_conv2d(x, weight, bias, *how)
        by_tables, equal = ops.table_conv2d(x, weight, bias, *how)
        results.append((y, ops.event_conv2d_weight(x, y, 3, 3, *how), *([by_tables] if equal else [])))
    for found in results[1:]:
        assert_all_bits_equal(found, results[0])


@every_height
def test_events_are_counted(heights: str) -> None:
    x = spikes(50, 7, 13, 13, 0.3, heights)
    share = int((x != 0).sum()) / x.numel()
    assert ops.share_of_events(x) == (share, heights in ("ones", "quarters"))
    x[0, 0, 0, :4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    assert ops.share_of_events(x) == (int((x != 0).sum()) / x.numel(), False)
    assert ops.share_of_events(spikes(0, 7, 13, 13)) == (0, True)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_events_of_a_large_image_are_estimated(n: int) -> None:
    torch.set_num_threads(n)
    x = spikes(40, 64, 16, 16, 0.1)
    x[..., 8:] *= torch.rand(40, 1, 16, 8) < 0.5  # fewer in one half of the columns
    x[20:] *= torch.rand(20, 1, 1, 1) < 0.5  # and of the images
    assert ops.share_of_events(x)[0] == pytest.approx((x != 0).float().mean().item(), rel=0.1)


FORWARD: dict[str, tuple[tuple[float, str, int, int, int, int], str | None]] = {
    # share and heights of events, outputs, edge of the image, stride, kernel: the op that computes the output
    "few": ((0.1, "graded", 64, 16, 1, 3), "event_conv2d"),
    "many": ((0.6, "quarters", 64, 16, 1, 3), "table_conv2d"),
    "many, strided": ((0.6, "ones", 64, 32, 2, 3), "table_conv2d"),
    "many, few outputs": ((0.6, "ones", 10, 16, 1, 5), "table_conv2d"),
    "many of several values": ((0.6, "graded", 64, 16, 1, 3), "winograd_conv2d"),
    "many, few pixels": ((0.6, "ones", 64, 4, 1, 3), None),
    "many where large tiles are": ((0.6, "ones", 128, 16, 1, 3), "winograd_conv2d"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_the_share_and_the_shape_choose_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if _ops.extension.isa() == "baseline":
        pytest.skip("there is no Winograd's method")
    (share, heights, O, edge, stride, k), expected = FORWARD[name]  # noqa: E741 - PyTorch's name
    called = names_of_calls(monkeypatch)
    x, weight = spikes(8, max(O, 32), edge, edge, share, heights), torch.randn(O, max(O, 32), k, k)
    with torch.no_grad():
        y = conv2d(x, weight, None, stride, k // 2)
    assert called == ([] if expected is None else [expected])
    assert_close(y, torch.conv2d(x, weight, None, stride, k // 2), 1e-5)


def names_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops that compute outputs from now on."""
    called: list[str] = []
    kernels = {name: getattr(ops, name) for name in ("event_conv2d", "table_conv2d", "winograd_conv2d")}
    for name, op in kernels.items():

        def recording(*given: Any, name: str = name, op: Any = op) -> Any:
            called.append(name)
            return op(*given)

        monkeypatch.setattr(ops, name, recording)
    return called


def test_a_value_that_the_choice_did_not_see_is_computed_without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at a fifth of a large image."""
    called = names_of_calls(monkeypatch)
    x, weight = spikes(16, 32, 16, 24, 0.6, "ones"), torch.randn(32, 32, 3, 3)
    x[7, 3, 2, 1] = 2
    assert ops.share_of_events(x)[1]
    y = conv2d(x, weight, None, 1, 1)
    assert called[0] == "table_conv2d"
    assert_close(y, torch.conv2d(x, weight, None, 1, 1), 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_reaches_what_pytorchs_reaches(value: float) -> None:
    x, weight = spikes(8, 32, 16, 16, 0.6, "ones"), torch.randn(32, 32, 3, 3)
    weight[3, 4, 1, 2] = value
    y, expected = conv2d(x, weight, None, 1, 1), torch.conv2d(x, weight, None, 1, 1)
    assert torch.equal(y.isnan(), expected.isnan())
    assert_close(y.nan_to_num(0.0), expected.nan_to_num(0.0), 1e-5)


@pytest.mark.parametrize("needs", ["all", "no input", "no weight", "no bias", "nothing", "bias alone"])
def test_gradients_of_a_convolution_are_pytorchs(needs: str, by_kernels: list[str]) -> None:
    x, weight, bias, how = convolution("two strides", wider=7)
    x.requires_grad_(needs in ("all", "no weight", "no bias"))
    weight.requires_grad_(needs in ("all", "no input", "no bias"))
    bias.requires_grad_(needs not in ("no bias", "nothing"))
    given = x, weight, None if needs == "no bias" else bias, how[:2], how[2:]
    wanted = [t for t in given[:3] if isinstance(t, Tensor) and t.requires_grad]
    results = []
    for function in (conv2d, torch.conv2d):
        y = function(*given)  # type: ignore[operator]
        grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append((y, *(torch.autograd.grad(y, wanted, grad) if wanted else ())))
    assert by_kernels == ["conv2d"]
    assert_all_close(*results, relative=1e-5)


SPARSE = {  # channels in and out, kernel, stride, padding: whether kernels compute the gradient of the input
    "plain": ((24, 32, 3, 1, 0), True),
    "padding": ((24, 32, 5, 1, 2), True),
    "another padding": ((40, 70, 3, 1, 2), True),
    "stride": ((24, 32, 3, 2, 1), False),
    "padding beyond the kernel": ((24, 32, 3, 1, 3), False),
    "few channels of the input": ((8, 32, 3, 1, 1), False),
}


@pytest.mark.parametrize("name", SPARSE)
def test_the_gradient_of_an_input_is_by_events_behind_max_pooling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (C, O, k, stride, padding), by_events = SPARSE[name]  # noqa: E741
    x, weight = spikes(6, C, 11, 14).requires_grad_(), torch.randn(O, C, k, k)
    kernel, given = ops.event_conv2d, []
    monkeypatch.setattr(ops, "event_conv2d", lambda *args: given.append(args[0].shape) or kernel(*args))
    y = conv2d(x, weight, None, stride, padding)
    assert given == [x.shape]
    for sparse in (True, False):
        grad = torch.randn(F.max_pool2d(y, 2).shape) if sparse else torch.randn(y.shape)
        found, expected = (
            torch.autograd.grad(F.max_pool2d(output, 2) if sparse else output, x, grad, retain_graph=True)[0]
            for output in (y, torch.conv2d(x, weight, None, stride, padding))
        )
        assert_close(found, expected, 1e-5)
    assert given[1:] == [y.shape] * by_events


@pytest.mark.parametrize(
    ("share", "stride", "by_events"), [(0.1, 1, True), (0.27, 1, True), (0.6, 1, False), (0.1, 2, True)]
)
def test_the_gradient_of_weights_is_by_events_where_that_is_faster(
    share: float, stride: int, by_events: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = spikes(6, 32, 11, 14, share), torch.randn(32, 32, 3, 3, requires_grad=True), torch.randn(32)
    x.requires_grad_()
    kernel, given = ops.event_conv2d_weight, []
    monkeypatch.setattr(ops, "event_conv2d_weight", lambda *args: given.append(args[0].shape) or kernel(*args))
    results = []
    for function in (conv2d, torch.conv2d):
        y = function(x, weight, bias.requires_grad_(), stride, 1)
        grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append(torch.autograd.grad(y, (x, weight, bias), grad))
    assert_all_close(*results, relative=1e-5)
    assert given == [x.shape] * by_events


@pytest.mark.parametrize("needs", ["all", "no input", "no weight", "bias alone"])
@pytest.mark.parametrize(("channels", "width", "stride"), [(2, 32, 1), (16, 64, 2)])
def test_the_gradient_of_a_bias_is_a_sum_of_its_own(channels: int, width: int, stride: int, needs: str) -> None:
    x, weight = spikes(8, channels, width, width, 0.9), torch.randn(64, channels, 3, 3)
    bias = torch.randn(64, requires_grad=True)
    x.requires_grad_(needs in ("all", "no weight"))
    weight.requires_grad_(needs in ("all", "no input"))
    inputs = [t for t in (x, weight, bias) if t.requires_grad]
    y = conv2d(x, weight, bias, stride, 1)
    assert torch.equal(y, torch.conv2d(x, weight, bias, stride, 1))
    assert "Convolution" not in type(y.grad_fn).__name__  # PyTorch's would compute the gradient of the bias
    grad = torch.linspace(-1, 2, y.numel()).view(y.shape)
    with torch.no_grad():
        assert conv2d(x, weight, bias, stride, 1).grad_fn is None
    y *= 2  # which is no view
    of_double = torch.conv2d(x.double(), weight.double(), bias.double(), stride, 1) * 2
    expected = torch.autograd.grad(of_double, inputs, grad.double())
    found = torch.autograd.grad(y, inputs, grad, create_graph=True)
    assert_all_close(found, expected, relative=1e-5)
    if needs == "all":
        (again,) = torch.autograd.grad(found[0].square().sum(), weight)
        assert again.isfinite().all()
        assert again.any()


def test_a_gradient_that_is_not_finite_reaches_the_input_as_in_pytorch() -> None:
    x, weight, grad = spikes(2, 24, 6, 6).requires_grad_(), torch.randn(32, 24, 3, 3), torch.zeros(2, 32, 6, 6)
    grad[0, 3, 2, 2], grad[1, 5, 0, 0] = torch.nan, torch.inf
    found, expected = (torch.autograd.grad(f(x, weight, None, 1, 1), x, grad)[0] for f in (conv2d, torch.conv2d))
    assert_close(found, expected, 1e-5)


POOLINGS: dict[str, tuple[tuple[int, int, int], Any, Any]] = {  # channels, height, width; kernel; stride
    "pairs": ((16, 8, 6), 2, None),
    "twelve channels": ((12, 4, 4), 2, 2),
    "no whole vector": ((71, 5, 4), 2, 2),
    "fewer than a vector": ((7, 9, 9), 3, None),
    "rows and columns left over": ((16, 7, 9), 2, 2),
    "two sides": ((20, 8, 9), (2, 3), (2, 3)),
    "gaps": ((20, 11, 9), (2, 3), (3, 4)),
    "the whole image": ((5, 3, 4), (3, 4), None),
    "single places": ((4, 3, 3), 1, 1),
    "as many places as a byte counts": ((4, 16, 33), 16, 16),
    "planes": ((3, 9, 64), 2, None),  # in contiguous order
    "planes of no whole vector": ((2, 8, 31), 2, None),
    "planes fewer than a vector": ((2, 3, 6), 2, None),
    "planes of one channel": ((1, 4, 58), 2, 2),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_maxima_and_gradients_are_pytorchs_and_one_byte_is_kept(name: str, isa: str, by_kernels: list[str]) -> None:
    sizes, kernel, stride = POOLINGS[name]
    planes = name.startswith("planes")
    x, kept = images(6, *sizes), []
    x = (x.contiguous() if planes else x).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = max_pool2d(x, kernel, stride)
    expected = F.max_pool2d(x, kernel, stride)
    assert by_kernels == ["max_pool2d"]
    assert_bits_equal(found, expected)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, found.numel())]
    grad = torch.randn(expected.shape)  # in another order
    (of_x,) = torch.autograd.grad(found, x, grad)
    assert_bits_equal(of_x, torch.autograd.grad(expected, x, grad)[0])
    assert all(t.is_contiguous() if planes else t.stride(1) == 1 for t in (found, of_x))


@pytest.mark.parametrize("name", [name for name in POOLINGS if not name.startswith("planes")])
def test_means_and_gradients_are_pytorchs_and_nothing_is_kept(name: str, isa: str, by_kernels: list[str]) -> None:
    sizes, kernel, stride = POOLINGS[name]
    x, kept = channels_last(torch.randn(6, *sizes)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = avg_pool2d(x, kernel, stride)
    expected = F.avg_pool2d(x, kernel, stride)
    assert by_kernels == ["avg_pool2d"]
    assert not kept
    assert_bits_equal(found, expected)
    grad = torch.randn(expected.shape)  # in another order
    (of_x,) = torch.autograd.grad(found, x, grad)
    assert_bits_equal(of_x, torch.autograd.grad(expected, x, grad)[0])
    assert found.stride(1) == of_x.stride(1) == 1


@functions
def test_second_derivatives_are_pytorchs(function: Any, by_kernels: list[str]) -> None:
    if function is conv2d:
        x, *given, _ = convolution("plain", N=2, wider=2)
    else:
        x, *given = channels_last(torch.randn(2, 5, 7, 8)), (2, 3), (3, 3)
    asking = [t.requires_grad_() for t in (x, *given[:1]) if isinstance(t, Tensor)]
    results = []
    for each in (function, PYTORCHS[function]):
        first = torch.autograd.grad((each(x, *given) ** 3).sum(), asking, create_graph=True)
        results.append((*first, *torch.autograd.grad(sum(t.square().sum() for t in first), asking)))  # type: ignore[arg-type]
    assert by_kernels == [function.__name__]
    assert_all_close(*results, relative=1e-4)


# ---- the choice

# What the kernels do not know, or would not do faster.
DENSE: dict[Any, dict[str, Callable[[Tensor, Tensor], Any]]] = {
    conv2d: {
        "many events of several values": lambda x, w: (torch.rand_like(x), w, {}),
        "weights that are not finite": lambda x, w: (x, w.where(w < 1, torch.inf), {}),
        "groups": lambda x, w: (x, w[:, :1], {"groups": x.shape[1]}),
        "dilation": lambda x, w: (x, w, {"dilation": 2}),
        "same padding": lambda x, w: (x, w, {"padding": "same"}),
        "few outputs": lambda x, w: (x, w[:7], {}),
        "few inputs": lambda x, w: (channels_last(x[:, :7]), w[:, :7], {}),
        "one tap": lambda x, w: (x, w[:, :, :1, :1], {}),
        "float64": lambda x, w: (x.double(), w.double(), {}),
        "another order": lambda x, w: (x.contiguous(), w, {}),
        "no batch": lambda x, w: (x[0], w, {}),
        "an empty batch": lambda x, w: (x[:0], w, {}),
    },
    max_pool2d: {
        "overlap": lambda x, w: (x, 3, {"stride": 2}),
        "padding": lambda x, w: (x, 2, {"padding": 1}),
        "dilation": lambda x, w: (x, 2, {"dilation": 2}),
        "ceil_mode": lambda x, w: (x, 3, {"ceil_mode": True}),
        "more places than a byte counts": lambda x, w: (x, 17, {}),
        "return_indices": lambda x, w: (x, 2, {"return_indices": True}),
        "few channels": lambda x, w: (channels_last(x[:, :3]), 2, {}),
        "float64": lambda x, w: (x.double(), 2, {}),
        "another order": lambda x, w: (x.contiguous(), 3, {}),
        "a third order": lambda x, w: (x.mT, 2, {}),
        "no batch": lambda x, w: (x[0], 2, {}),
        "an empty batch": lambda x, w: (x[:0], 2, {}),
    },
    avg_pool2d: {
        "overlap": lambda x, w: (x, 3, {"stride": 2}),
        "padding": lambda x, w: (x, 2, {"padding": 1, "count_include_pad": False}),
        "ceil_mode": lambda x, w: (x, 3, {"ceil_mode": True}),
        "another divisor": lambda x, w: (x, 2, {"divisor_override": 3}),
        "few channels": lambda x, w: (channels_last(x[:, :3]), 2, {}),
        "float64": lambda x, w: (x.double(), 2, {}),
        "another order": lambda x, w: (x.contiguous(), 2, {}),
        "no batch": lambda x, w: (x[0], 2, {}),
        "an empty batch": lambda x, w: (x[:0], 2, {}),
    },
}


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, rows in DENSE.items() for name in rows])
def test_what_the_kernels_do_not_take_is_pytorchs(function: Any, name: str, by_kernels: list[str]) -> None:
    x, given, how = DENSE[function][name](spikes(6, 8, 20, 19), torch.randn(48, 8, 3, 3))
    found, expected = (each(x, given, **how) for each in (function, PYTORCHS[function]))
    assert not by_kernels
    assert_all_bits_equal(*(t if isinstance(t, tuple) else (t,) for t in (found, expected)))


@pytest.mark.parametrize("limit", ["_MOST_VALUES", "_MOST_PIXELS"])
def test_an_image_that_is_too_large_for_the_kernels_is_pytorchs(
    limit: str, by_kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = spikes(2, 8, 20, 19), torch.randn(48, 8, 3, 3)
    most = {"_MOST_VALUES": 8 * 20 * 19, "_MOST_PIXELS": (20 + 2 + 3) * (19 + 2 + 3)}[limit]
    for less in (0, 1):
        monkeypatch.setattr(_convolution, limit, most - less)
        found = conv2d(x, weight, None, 1, 1)
        assert by_kernels == ["conv2d"]
    assert torch.equal(found, torch.conv2d(x, weight, None, 1, 1))


@pytest.mark.parametrize(
    ("kernel", "is_small"), [((1, 256), True), ((1, 257), False), ((32, 32), True), ((32, 33), False)]
)
def test_a_kernel_that_is_too_large_is_pytorchs(kernel: tuple[int, int], is_small: bool, by_kernels: list[str]) -> None:
    x, weight = spikes(2, 8, kernel[0] + 2, kernel[1] + 3), torch.randn(20, 8, *kernel)
    results = []
    for function in (conv2d, torch.conv2d):
        given = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(*given)
        results.append((y, *torch.autograd.grad(y, given, torch.linspace(-1, 1, y.numel()).view(y.shape))))
    assert_all_close(*results, relative=1e-5)
    assert bool(by_kernels) == is_small


@functions
def test_the_reference_and_transforms_see_pytorchs(function: Any, by_kernels: list[str]) -> None:
    x, weight, bias, _ = convolution("plain", wider=2)
    given: tuple[Any, ...] = (weight, bias) if function is conv2d else (2,)
    expected = PYTORCHS[function](x, *given)
    with use_backend("reference"):
        assert torch.equal(function(x, *given), expected)
    torch.vmap(lambda x: function(x, *given))(x.unsqueeze(0))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in (x, *given)]
        assert function(*fake).shape == expected.shape
    if function is conv2d:
        with torch.autocast("cpu", torch.bfloat16):
            assert conv2d(x, weight, bias).dtype == torch.bfloat16
    assert not by_kernels
    function(x, *given)
    assert by_kernels == [function.__name__]


@functions
def test_a_graph_chooses_as_the_call_does(function: Any, by_kernels: list[str]) -> None:
    """But for average pooling, which no other compiler knows."""
    x, weight, bias, _ = convolution("plain", wider=2)
    given: tuple[Any, ...] = (weight, bias) if function is conv2d else (2,)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_bits_equal(compiled(x, *given), function(x, *given))
    assert by_kernels == [function.__name__] * (1 if function is avg_pool2d else 2)


WEIGHT = torch.rand(64, 5, 3, 3)


@pytest.mark.parametrize(
    ("function", "given", "how"),
    [
        *((conv2d, WEIGHT, {"stride": stride}) for stride in ((1, 2, 3), 0)),
        *((conv2d, WEIGHT, {"padding": padding}) for padding in ((1, 1, 1), -1)),
        (conv2d, WEIGHT[:, :4], {}),
        (conv2d, torch.rand(64, 5, 10, 10), {}),
        *((pool, kernel, {}) for pool in (max_pool2d, avg_pool2d) for kernel in (0, (2, 3, 4), 10)),
        *((pool, 2, {"stride": stride}) for pool in (max_pool2d, avg_pool2d) for stride in (0, (1, 2, 3))),
    ],
    ids=lambda value: "weight" if isinstance(value, Tensor) else getattr(value, "__name__", str(value)),
)
def test_pytorch_tells_wrong_options(function: Any, given: Any, how: dict[str, Any], by_kernels: list[str]) -> None:
    x, messages = spikes(4, 5, 9, 9), []
    for each in (function, PYTORCHS[function]):
        with pytest.raises(RuntimeError) as error:
            each(x, given, **how)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert not by_kernels


# ---- in networks


def network() -> MultiStep:
    torch.manual_seed(0)
    lif = {"beta": 0.5, "threshold": 1.2}
    return MultiStep(
        nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), Leaky(**lif),
        nn.Conv2d(8, 40, 3, padding=1), nn.MaxPool2d(2), Leaky(**lif),
        nn.Conv2d(40, 32, 3), Leaky(**lif),
    )  # fmt: skip


ALL = ["max_pool2d", "conv2d", "max_pool2d", "conv2d"]  # the first convolution is of an image


def test_a_network_has_pytorchs_spikes_and_gradients(by_kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(5, 4, 2, 14, 14)
    results = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(_convolution, "_LEAST_INPUTS", 1 << 20)
            monkeypatch.setattr(_pooling, "LEAST_CHANNELS", 1000)
        spk, mem = net(x)
        net.zero_grad()
        (spk.sum() + mem.square().sum()).backward()
        results.append((spk, mem, *(p.grad.clone() for p in net.parameters())))
    assert by_kernels == ALL
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-4)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("of", ["a layer", "all modules"])
def test_hooks_see_every_convolution_and_pooling(of: str, by_kernels: list[str]) -> None:
    net, seen = network(), []
    if of == "a layer":
        hooks = [net[i].register_forward_hook(lambda module, *_: seen.append(type(module))) for i in (1, 6)]
    else:
        hooks = [nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))]
    try:
        net(torch.rand(5, 4, 2, 14, 14))
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [nn.MaxPool2d, nn.Conv2d] * 2 if of == "all modules" else [nn.MaxPool2d, nn.Conv2d]
    assert [kind for kind in seen if kind in wanted][-len(wanted) :] == wanted
    assert len(by_kernels) == (0 if of == "all modules" else 2), by_kernels


def test_a_network_takes_sizes_of_numpy(by_kernels: list[str]) -> None:
    x, two = channels_last(torch.rand(6, 8, 6, 6)).unflatten(0, (3, 2)), np.int64(2)
    for layer in (nn.MaxPool2d(two), nn.MaxPool2d((two, 2), stride=two), nn.AvgPool2d((two, 2))):
        assert_bits_equal(MultiStep(layer)(x), torch.stack([layer(step) for step in x]))
    assert by_kernels


def test_a_circular_padding_is_the_layers_own(by_kernels: list[str]) -> None:
    layer = nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular")
    x = spikes(4, 3, 6, 6)
    assert_bits_equal(_convolution.convolved(layer, x), layer(x))
    assert not by_kernels


# ---- the ops


def calls_of_ops() -> list[tuple[Any, tuple[Any, ...]]]:
    x, weight, bias, how = convolution("two strides", N=4)
    y, pooled = ops.event_conv2d(x, weight, bias, *how), (2, 3, 2, 4)
    largest, places = ops.max_pooling(x, *pooled)
    return [
        (ops.event_conv2d, (x, weight, bias, *how)),
        (ops.event_conv2d_weight, (x, y, *weight.shape[2:], *how)),
        (ops.max_pooling, (x, *pooled)),
        (ops.max_pooling_backward, (largest, places, *x.shape[2:], *pooled)),
        (ops.average_pooling, (x, *pooled)),
        (ops.average_pooling_backward, (largest, *x.shape[2:], *pooled)),
    ]


def test_shapes_are_known_without_running() -> None:
    for op, given in calls_of_ops():
        torch.library.opcheck(op, given)


def test_the_ops_refuse_what_would_leave_memory() -> None:
    x, w, b, _ = convolution("plain", N=2)
    conv, one = ops.event_conv2d, (1, 1, 0, 0)
    image = images(2, 5, 8, 8)
    largest, places = ops.max_pooling(image, 2, 2, 2, 2)
    pool, backward, two = ops.max_pooling, ops.max_pooling_backward, (2, 2, 2, 2)
    for op, given, message in (
        (conv, (x.contiguous(), w, b, *one), "x: expected channels_last"),
        (conv, (x.double(), w, b, *one), "x: expected float32"),
        (conv, (x[0], w, b, *one), r"x: expected \[N, C, H, W\]"),
        (conv, (x, w[:, :2], b, *one), "weight: expected"),
        (conv, (x, w.double(), b, *one), "weight: expected float32"),
        (conv, (x, w, b[1:], *one), "bias: expected"),
        (conv, (x, w, b, 0, 1, 0, 0), "too small"),
        (conv, (x, w, b, 1, 1, 2**40, 0), "too large"),
        (conv, (x[:, :, :2], w, b, *one), "channels_last|larger than the image"),
        (ops.table_conv2d, (x.contiguous(), w, b, *one), "x: expected channels_last"),
        (ops.table_conv2d, (x, w[:, :2], b, *one), "weight: expected"),
        (ops.table_conv2d, (x, w, b[1:], *one), "bias: expected"),
        (ops.event_conv2d_weight, (x, spikes(2, 64, 6, 7), 3, 3, *one), "grad: wrong shape"),
        (
            ops.event_conv2d_weight,
            (images(1, 32, 0, 4), images(1, 32, 2, 6), 1, 1, 1, 1, 1, 1),
            "image: expected 1 pixel",
        ),
        (pool, (image.contiguous(), *two), "x: expected channels_last"),
        (pool, (image.double(), *two), "x: expected float32"),
        (pool, (image, 9, 2, 9, 2), "kernel: expected 1 to the size"),
        (pool, (image, 2, 2, 1, 2), "stride: expected that of the kernel"),
        (pool, (images(1, 4, 17, 17), 17, 16, 17, 16), "at most 256 places"),
        (backward, (largest, largest, 8, 8, *two), "places: expected uint8"),
        (backward, (largest, places, 10, 8, *two), "wrong shape"),
        (backward, (largest, places, 2**31, 8, 2, 2, 2**29, 2), "image: too large"),
        (backward, (largest, places, 1, 8, *two), "kernel: expected 1"),
        (ops.average_pooling, (image.contiguous(), *two), "x: expected channels_last"),
        (ops.average_pooling, (image, 9, 2, 9, 2), "kernel: expected 1 to the size"),
        (ops.average_pooling_backward, (largest.double(), 8, 8, *two), "grad: expected float32"),
        (ops.average_pooling_backward, (largest, 10, 8, *two), "grad: wrong shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*given)


def test_an_empty_batch_and_no_channels_can_be_pooled() -> None:
    for sizes, pooled in (((0, 5, 4, 4), (0, 5, 2, 2)), ((2, 0, 4, 4), (2, 0, 2, 2))):
        largest, places = ops.max_pooling(torch.empty(sizes), 2, 2, 2, 2)
        assert largest.shape == places.shape == ops.average_pooling(torch.empty(sizes), 2, 2, 2, 2).shape == pooled
