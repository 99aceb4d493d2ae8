"""Products of float32 matrices by oneDNN or by events: where they are, what they give, where PyTorch's own stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_all_bits_equal, assert_all_close, assert_close
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from snnfast import Leaky, MultiStep, compile, use_backend, use_events
from snnfast._core import ops, products
from snnfast._core.products import linear, matmul, mm

pytestmark = pytest.mark.needs_extension
ROWS, INPUTS, OUTPUTS = 40, 512, 520


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the products that oneDNN computes, on any processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "has_wider", lambda: True)
    product, given = products._product, []

    def seen(x: Tensor, weight: Tensor, *bias: Any) -> Tensor:
        given.append((x[..., 0].numel(), *weight.shape))
        return product(x, weight, *bias)

    monkeypatch.setattr(products, "_product", seen)
    return given


def tensors(*needs: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Rows, a weight and a bias."""
    torch.manual_seed(0)
    made = torch.randn(5, 8, INPUTS), torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS)
    return [t.to(dtype).requires_grad_(need) for t, need in zip(made, needs or (True,) * 3, strict=True)]


def of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight, bias)


def of_matmul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = matmul(x, weight.t().contiguous())
    return y if bias is None else y + bias


@pytest.mark.parametrize("function", [of_linear, of_matmul])
@pytest.mark.parametrize("needs", [(True,) * 3, (False, True, True), (True, False, False), (False,) * 3])
def test_products_and_gradients_are_those_in_float64(
    function: Callable[..., Tensor], needs: tuple[bool, ...], by_onednn: list[Any]
) -> None:
    given = tensors(*needs)
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    y, expected = function(*given), F.linear(*exact)
    assert y.requires_grad == expected.requires_grad
    assert_close(y.double(), expected, 1e-5)
    assert by_onednn == [(ROWS, OUTPUTS, INPUTS)]
    if not any(needs):
        return
    grad = torch.linspace(-1, 2, y.numel()).view(y.shape)
    found = torch.autograd.grad(y, [t for t in given if t.requires_grad], grad)
    wanted = torch.autograd.grad(expected, [t for t in exact if t.requires_grad], grad.double())
    assert_all_close([t.double() for t in found], wanted, relative=1e-5)
    assert len(by_onednn) == 1 + sum(needs[:2])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
def test_products_round_a_little_more_than_mkls_and_alike_for_any_number_of_threads(by_onednn: list[Any]) -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(640, 784), torch.randn(256, 784), torch.randn(640, 256)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((linear(x, weight), mm(grad, weight), mm(grad.t(), x)))
    finally:
        torch.set_num_threads(before)
    assert len(by_onednn) == 6
    assert_all_bits_equal(*results)
    for found, (a, b) in zip(results[0], ((x, weight.t()), (grad, weight), (grad.t(), x)), strict=True):
        exact = a.double() @ b.double()
        ours, theirs = ((t.double() - exact).square().mean().sqrt() for t in (found, a @ b))
        assert ours <= 3 * theirs


def test_second_derivatives_are_pytorchs(by_onednn: list[Any]) -> None:
    x, weight, bias = tensors()
    results = []
    for function in (linear, F.linear):
        (grad,) = torch.autograd.grad(function(x, weight, bias).square().sum(), x, create_graph=True)
        assert by_onednn in ([(ROWS, OUTPUTS, INPUTS)], [])
        by_onednn.clear()
        results.append(torch.autograd.grad(grad.square().sum(), (x, weight, bias)))
        by_onednn.clear()
    assert_all_close(*results, relative=1e-4)


def test_a_product_is_pytorchs_where_onednn_is_not_to_compute_it(by_onednn: list[Any]) -> None:
    x, weight, bias = tensors(False, False, False)
    expected = F.linear(x, weight, bias)
    double = tensors(False, False, False, dtype=torch.float64)
    assert torch.equal(linear(*double), F.linear(*double))
    assert torch.equal(linear(x[:1], weight, bias), F.linear(x[:1], weight, bias))  # too small
    wide = torch.randn(2, 1 << 22), torch.randn(2, 1 << 22)
    assert torch.equal(linear(*wide), F.linear(*wide))
    with use_backend("reference"):
        assert torch.equal(linear(x, weight, bias), expected)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight, bias), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * ROWS * INPUTS * OUTPUTS
    mapped = torch.vmap(lambda x: linear(x, weight, bias))(x)
    assert_close(mapped, expected, 1e-6)
    with FakeTensorMode() as mode:
        assert linear(*map(mode.from_tensor, (x, weight, bias))).shape == expected.shape
    for given in ((x, weight[:, 1:], bias), (x, weight, bias[1:]), (x, weight.double(), bias)):
        with pytest.raises(RuntimeError):
            linear(*given)
    with pytest.raises(RuntimeError):
        matmul(x, weight)
    assert not by_onednn
    linear(x, weight, bias)
    assert by_onednn == [(ROWS, OUTPUTS, INPUTS)]


@pytest.mark.parametrize(("outputs", "inputs", "given"), [
    (64, 256, [(64, 256, 4096)]), (256, 64, [(64, 256, 4096)]), (512, 256, [(512, 256, 4096)]), (64, 64, []),
])  # fmt: skip
def test_a_sum_over_rows_is_onednns_where_a_side_is_long(
    outputs: int, inputs: int, given: list[Any], by_onednn: list[Any]
) -> None:
    grad, x = torch.randn(4096, outputs), torch.randn(4096, inputs)
    found = mm(grad.t(), x)
    assert_close(found, torch.mm(grad.t(), x), 1e-5)
    assert found.is_contiguous()
    assert by_onednn == given


class Loop(nn.Module):
    """Two layers over time, by a product of one's own and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 200) / 16)
        self.fc, self.lif1, self.lif2 = nn.Linear(200, 160), Leaky(0.9), Leaky(0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = None
        spikes = []
        for step in x:
            spk, mem1 = self.lif1(step @ self.weight, mem1)
            spk, mem2 = self.lif2(self.fc(spk), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


def test_networks_give_their_large_products_to_onednn(by_onednn: list[Any]) -> None:
    torch.manual_seed(0)
    net, x = Loop(), torch.rand(10, 32, 256, requires_grad=True)
    compile(net)(x).sum().backward()
    rows = 320
    # The product of one's own with both of its gradients, and the gradient of the spikes through the layer.
    assert {(rows, 200, 256), (rows, 256, 200), (200, 256, rows), (rows, 200, 160)} == set(by_onednn)
    by_onednn.clear()
    MultiStep(nn.Linear(256, 200), Leaky(0.9))(x.detach())[0].sum().backward()
    assert by_onednn == [(rows, 200, 256), (200, 256, rows)]


# ---- by events


@pytest.fixture
def by_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The products that are computed by events."""
    given: list[str] = []
    for name in ("spikes_linear", "spikes_linear_weight"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args, op=op, name=name: (given.append(name), op(*args))[1])
    return given


def spikes(*shape: int, height: float = 1.0, share: float = 0.1) -> Tensor:
    return (torch.rand(shape) < share).float() * height


def of_spikes(height: float = 1.0, needs: bool = True) -> list[Tensor]:
    """Rows, a weight and a bias."""
    torch.manual_seed(0)
    made = spikes(9, 32, INPUTS, height=height), torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS)
    return [t.requires_grad_(needs) for t in made]


@pytest.mark.parametrize("function", [of_linear, of_matmul])
@pytest.mark.parametrize("height", [1.0, 2.5, -0.3])
def test_products_of_spikes_are_by_events_and_as_exact(
    function: Callable[..., Tensor], height: float, by_events: list[str]
) -> None:
    given = of_spikes(height)
    exact = [t.detach().double().requires_grad_() for t in given]
    plain = [t.detach().clone().requires_grad_() for t in given]
    results = []
    for tensors, of in ((given, function), (plain, F.linear), (exact, F.linear)):
        y = of(*tensors)
        grad = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
        of_x, *gradients = torch.autograd.grad(y, tensors, grad)
        results.append([y, *gradients])
        assert_close(of_x.double(), grad.double() @ exact[1], 1e-5)  # a dense product, which may be oneDNN's
    assert by_events == ["spikes_linear", "spikes_linear_weight"]
    for ours, theirs, wanted in zip(*results, strict=True):
        off, bar = ((t.double() - wanted).square().mean().sqrt() for t in (ours, theirs))
        assert off <= 1.1 * bar + 1e-7 * wanted.abs().mean()
        assert ours.is_contiguous() or function is of_matmul


def test_products_of_spikes_have_the_same_bits_for_any_number_of_threads(by_events: list[str]) -> None:
    x, weight, bias = of_spikes(needs=False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((linear(x, weight, bias),))
    finally:
        torch.set_num_threads(before)
    assert_all_bits_equal(*results)
    assert len(by_events) == 2


def test_the_second_derivative_of_a_product_of_spikes_is_pytorchs() -> None:
    given = of_spikes()
    results = []
    for function in (linear, F.linear):
        grads = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(t.square().sum() for t in grads), given))
    assert_all_close(*results, relative=1e-4)


@pytest.mark.parametrize(
    "change",
    {
        "one other value": lambda x: x.view(-1)[-1:].fill_(2.0),
        "another sign": lambda x: x[0].neg_(),
        "NaN": lambda x: x.masked_fill_(x != 0, float("nan")),
        "infinite": lambda x: x.masked_fill_(x != 0, float("inf")),
        "many": lambda x: x.copy_(spikes(*x.shape, share=0.5)),
    }.items(),
    ids=lambda item: item[0],
)
def test_other_inputs_are_not_taken_for_spikes(
    change: tuple[str, Callable[[Tensor], Any]], by_events: list[str]
) -> None:
    x, weight, bias = of_spikes(needs=False)
    change[1](x)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4, equal_nan=True)
    assert not by_events


def test_a_product_of_spikes_is_dense_where_it_is_to_be(by_events: list[str]) -> None:
    x, weight, bias = of_spikes(needs=False)
    expected = F.linear(x, weight, bias)
    with use_events(False):
        assert_close(linear(x, weight, bias), expected, 1e-5)
    assert_close(linear(x[:5], weight, bias), expected[:5], 1e-5)  # few rows
    assert_close(linear(x, weight[:40], bias[:40]), expected[..., :40], 1e-5)  # few outputs
    assert_close(linear(x.transpose(0, 1), weight, bias), expected.transpose(0, 1), 1e-5)
    broken = weight.clone()
    broken[3, 5] = float("inf")
    assert linear(x, broken, bias)[..., 3].isnan().any()
    assert not by_events
    assert_close(linear(torch.zeros_like(x), weight, bias), bias.expand(expected.shape), 1e-6)
    assert by_events == ["spikes_linear"]


def test_negative_zeros_are_no_spikes(by_events: list[str]) -> None:
    x, weight, bias = of_spikes(needs=False)
    assert_close(linear(torch.where(x == 0, -0.0, x), weight, bias), F.linear(x, weight, bias), 1e-5)
    assert by_events == ["spikes_linear"]


def test_networks_find_the_spikes_that_they_are_given(by_events: list[str]) -> None:
    torch.manual_seed(0)
    x = spikes(10, 64, 256)
    net = Loop()
    compile(net)(x).sum().backward()
    assert by_events[0] == "spikes_linear"
    assert net.weight.grad is not None
    by_events.clear()
    dropped = MultiStep(nn.Linear(256, 200), Leaky(0.9), nn.Dropout(), nn.Linear(200, 100), Leaky(0.9))
    dropped(x)[0].sum().backward()
    assert by_events == ["spikes_linear", "spikes_linear", "spikes_linear_weight", "spikes_linear_weight"]
