"""Convolutions of spikes by their events: PyTorch's numbers, and who decides between the two."""

from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, assert_close
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import snnfast
from snnfast import Leaky, MultiStep, _convolution, _ops, use_backend

pytestmark = pytest.mark.needs_extension

CASES: dict[str, dict[str, Any]] = {  # channels in and out, image, kernel; then the options
    "plain": {"sizes": (5, 64, 9, 9, 3, 3)},
    "stride": {"sizes": (3, 32, 11, 8, 3, 3), "stride": 2},
    "two strides": {"sizes": (3, 32, 11, 12, 5, 4), "stride": (3, 2), "padding": (1, 2)},
    "stride beyond the kernel": {"sizes": (3, 32, 16, 16, 3, 3), "stride": 5},
    "padding": {"sizes": (3, 32, 6, 7, 3, 3), "padding": 1},
    "padding beyond the kernel": {"sizes": (3, 32, 4, 4, 3, 3), "padding": 4},
    "one channel": {"sizes": (1, 33, 8, 8, 5, 5), "padding": 2},
    "no whole block": {"sizes": (4, 71, 6, 6, 3, 3)},
    "several blocks": {"sizes": (4, 130, 5, 5, 3, 3), "padding": 1},
    "few outputs": {"sizes": (4, 7, 5, 5, 3, 3)},
    "kernel as large as the image": {"sizes": (3, 32, 4, 5, 4, 5)},
}


def spikes(N: int, C: int, H: int, W: int, rate: float = 0.1) -> Tensor:
    x = (torch.rand(N, C, H, W) < rate) * torch.rand(N, C, H, W)
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def tensors_of(case: dict[str, Any], N: int = 40) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    C, O, H, W, ky, kx = case["sizes"]  # noqa: E741 - PyTorch's names
    how = (*pair(case.get("stride", 1)), *pair(case.get("padding", 0)))
    return spikes(N, C, H, W), torch.randn(O, C, ky, kx), torch.randn(O), how


@pytest.mark.parametrize("name", CASES)
def test_the_ops_have_pytorchs_numbers(name: str, isa: str) -> None:
    x, weight, bias, how = tensors_of(CASES[name])
    found = torch.ops.snnfast.event_conv2d(x, weight, bias, *how)
    expected = torch.conv2d(x.double(), weight.double(), bias.double(), how[:2], how[2:])
    assert_close(found, expected.float(), 1e-5)
    assert found.stride()[1] == 1
    grad = torch.randn(expected.shape)
    grad = grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    of_weight = torch.ops.snnfast.event_conv2d_weight(x, grad, *weight.shape[2:], *how)
    weight = weight.double().requires_grad_()
    (wanted,) = torch.autograd.grad(torch.conv2d(x.double(), weight, None, how[:2], how[2:]), weight, grad.double())
    assert_close(of_weight, wanted.float(), 1e-5)
    assert of_weight.is_contiguous()


def test_no_bit_depends_on_threads_or_the_instruction_set() -> None:
    x, weight, bias, how = tensors_of(CASES["several blocks"], N=70)
    threads, used, results = torch.get_num_threads(), _ops.extension.isa(), []
    try:
        for n, isa in ((1, used), (2, used), (5, used), *((1, isa) for isa in _ops.extension.isa_available())):
            torch.set_num_threads(n)
            _ops.extension.set_isa(isa)
            y = torch.ops.snnfast.event_conv2d(x, weight, bias, *how)
            results.append((y, torch.ops.snnfast.event_conv2d_weight(x, y, 3, 3, *how)))
    finally:
        torch.set_num_threads(threads)
        _ops.extension.set_isa(used)
    for found in results[1:]:
        for a, b in zip(found, results[0], strict=True):
            assert_bits_equal(a, b)


def test_events_are_counted() -> None:
    x = spikes(50, 7, 13, 13, 0.3)
    x[0, 0, 0, :4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    assert torch.ops.snnfast.count_events(x) == int((x != 0).sum())
    assert torch.ops.snnfast.count_events(spikes(0, 7, 13, 13)) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, w, b: (x.contiguous(), w, b, 1, 1, 0, 0), "x: expected channels_last"),
        (lambda x, w, b: (x.double(), w, b, 1, 1, 0, 0), "x: expected float32"),
        (lambda x, w, b: (x[0], w, b, 1, 1, 0, 0), r"x: expected \[N, C, H, W\]"),
        (lambda x, w, b: (x, w[:, :2], b, 1, 1, 0, 0), "weight: expected"),
        (lambda x, w, b: (x, w.double(), b, 1, 1, 0, 0), "weight: expected float32"),
        (lambda x, w, b: (x, w, b[1:], 1, 1, 0, 0), "bias: expected"),
        (lambda x, w, b: (x, w, b, 0, 1, 0, 0), "too small"),
        (lambda x, w, b: (x, w, b, 1, 1, 2**40, 0), "too large"),
        (lambda x, w, b: (x[:, :, :2], w, b, 1, 1, 0, 0), "channels_last|larger than the image"),
    ],
)
def test_the_op_refuses_what_it_can_not_read(wrong: Any, message: str) -> None:
    x, weight, bias, _ = tensors_of(CASES["plain"])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.snnfast.event_conv2d(*wrong(x, weight, bias))


def test_the_gradient_of_the_weights_refuses_another_shape() -> None:
    x, _, _, how = tensors_of(CASES["plain"])
    with pytest.raises(RuntimeError, match="grad: wrong shape"):
        torch.ops.snnfast.event_conv2d_weight(x, spikes(40, 64, 6, 7), 3, 3, *how)


def test_shapes_are_known_without_running() -> None:
    x, weight, bias, how = tensors_of(CASES["two strides"])
    torch.library.opcheck(torch.ops.snnfast.event_conv2d, (x, weight, bias, *how))
    grad = torch.ops.snnfast.event_conv2d(x, weight, bias, *how)
    torch.library.opcheck(torch.ops.snnfast.event_conv2d_weight, (x, grad, *weight.shape[2:], *how))


# ---- the choice


@pytest.fixture
def by_events(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs of all convolutions by events from now on."""
    seen: list[Tensor] = []
    apply = _convolution._Events.apply

    def recording(x: Tensor, *args: Any) -> Any:
        seen.append(x)
        return apply(x, *args)

    monkeypatch.setattr(_convolution._Events, "apply", recording)
    return seen


@pytest.mark.parametrize(
    "how", [{"stride": (1, 2, 3)}, {"stride": 0}, {"padding": (1, 1, 1)}, {"padding": -1}], ids=str
)
def test_wrong_options_are_pytorchs_to_tell(how: dict[str, Any], by_events: list[Tensor]) -> None:
    x, weight, bias, _ = tensors_of(CASES["plain"])
    with pytest.raises(RuntimeError) as expected:
        torch.conv2d(x, weight, bias, **how)
    with pytest.raises(RuntimeError) as found:
        _convolution.conv2d(x, weight, bias, **how)
    assert str(found.value) == str(expected.value)
    assert not by_events


@pytest.mark.parametrize("needs", ["all", "no input", "no weight", "no bias", "nothing", "bias alone"])
def test_all_gradients_are_pytorchs(needs: str, by_events: list[Tensor]) -> None:
    x, weight, bias, how = tensors_of(CASES["two strides"])
    x.requires_grad_(needs in ("all", "no weight", "no bias"))
    weight.requires_grad_(needs in ("all", "no input", "no bias"))
    bias.requires_grad_(needs not in ("no bias", "nothing"))
    given = x, weight, None if needs == "no bias" else bias, how[:2], how[2:]
    wanted = [t for t in given[:3] if isinstance(t, Tensor) and t.requires_grad]
    results = []
    for function in (_convolution.conv2d, torch.conv2d):
        y = function(*given)  # type: ignore[operator]
        grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append((y, *(torch.autograd.grad(y, wanted, grad) if wanted else ())))
    assert len(by_events) == 1
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-5)


def test_a_second_derivative_is_pytorchs(by_events: list[Tensor]) -> None:
    x, weight, bias, _ = tensors_of(CASES["plain"], N=2)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    results = []
    for function in (_convolution.conv2d, torch.conv2d):
        first = torch.autograd.grad(function(x, weight, bias).square().sum(), [x, weight], create_graph=True)
        results.append((*first, *torch.autograd.grad(sum(t.square().sum() for t in first), [x, weight])))
    assert len(by_events) == 1
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-4)


OTHERS: dict[str, Any] = {
    "many events": lambda x, w: ((torch.rand_like(x) < 0.5).float(), w, {}),
    "weights that are not finite": lambda x, w: (x, w.where(w < 1, torch.inf), {}),
    "groups": lambda x, w: (x, w[:, :1], {"groups": x.shape[1]}),
    "dilation": lambda x, w: (x, w, {"dilation": 2}),
    "same padding": lambda x, w: (x, w, {"padding": "same"}),
    "few outputs": lambda x, w: (x, w[:8], {}),
    "one tap": lambda x, w: (x, w[:, :, :1, :1], {}),
    "float64": lambda x, w: (x.double(), w.double(), {}),
    "another order": lambda x, w: (x.contiguous(), w, {}),
    "no batch": lambda x, w: (x[0], w, {}),
    "an empty batch": lambda x, w: (x[:0], w, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_pytorchs_own(name: str, by_events: list[Tensor]) -> None:
    torch.manual_seed(0)
    x, weight, how = OTHERS[name](spikes(6, 3, 12, 12), torch.randn(48, 3, 3, 3))
    assert not by_events
    found, expected = _convolution.conv2d(x, weight, None, **how), torch.conv2d(x, weight, None, **how)
    assert not by_events
    assert torch.equal(found, expected) or name == "weights that are not finite"
    assert torch.equal(found.isnan(), expected.isnan())


def test_so_are_those_without_numbers(by_events: list[Tensor]) -> None:
    x, weight, bias, _ = tensors_of(CASES["plain"])
    mode = FakeTensorMode()
    x, weight, bias = map(mode.from_tensor, (x, weight, bias))
    assert _convolution.conv2d(x, weight, bias).shape == (40, 64, 7, 7)
    assert not by_events


def test_so_are_those_under_autocast_vmap_and_the_reference(by_events: list[Tensor]) -> None:
    x, weight, bias, _ = tensors_of(CASES["plain"])
    with torch.autocast("cpu", torch.bfloat16):
        assert _convolution.conv2d(x, weight, bias).dtype == torch.bfloat16
    with use_backend("reference"):
        _convolution.conv2d(x, weight, bias)
    torch.vmap(lambda w: _convolution.conv2d(x, w, bias))(torch.stack([weight, weight]))
    torch.compile(_convolution.conv2d, backend="eager", fullgraph=True)(x, weight, bias)
    assert not by_events


# ---- in networks


def network() -> MultiStep:
    torch.manual_seed(0)
    lif = {"beta": 0.5, "threshold": 1.2}
    return MultiStep(
        nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), Leaky(**lif),
        nn.Conv2d(8, 40, 3, padding=1), nn.MaxPool2d(2), Leaky(**lif),
        nn.Conv2d(40, 32, 3), Leaky(**lif),
    )  # fmt: skip


def test_a_network_has_pytorchs_spikes_and_gradients(by_events: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(5, 4, 2, 14, 14)
    results = []
    for most in (1 / 8, -1.0):
        monkeypatch.setattr(_convolution, "MOST", most)
        spk, mem = net(x)
        net.zero_grad()
        (spk.sum() + mem.square().sum()).backward()
        results.append((spk, mem, *(p.grad.clone() for p in net.parameters())))
    assert len(by_events) == 2
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-4)
        assert a.stride() == b.stride()


def test_a_circular_padding_is_the_layers_own(by_events: list[Tensor]) -> None:
    layer = nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular")
    x = spikes(4, 3, 6, 6)
    assert_bits_equal(_convolution.convolved(layer, x), layer(x))
    assert not by_events


def test_a_compiled_loop_convolves_by_events(by_events: list[Tensor]) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv1, self.lif1 = nn.Conv2d(2, 8, 3), Leaky(0.5, threshold=1.2)
            self.conv2, self.lif2 = nn.Conv2d(8, 40, 3), Leaky(0.5)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
            for step in range(len(x)):
                spk1, mem1 = self.lif1(self.conv1(x[step]), mem1)
                _, mem2 = self.lif2(self.conv2(spk1), mem2)
                rec.append(mem2)
            return torch.stack(rec)

    torch._dynamo.reset()
    net, x = Loop(), torch.rand(5, 3, 2, 8, 8)
    found = snnfast.compile(net)(x)
    assert len(by_events) == 1
    assert_close(found, net.forward(x), 1e-5)


def test_a_hook_on_all_modules_sees_every_convolution() -> None:
    net = MultiStep(nn.Conv2d(32, 32, 3), Leaky(0.9), nn.Conv2d(32, 32, 3))
    seen: list[type] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        net(torch.zeros(5, 2, 32, 9, 9))
    finally:
        hook.remove()
    assert seen.count(nn.Conv2d) == 2


@pytest.mark.parametrize("shape", [(40, 31, 7, 7), (40, 32, 2, 2)], ids=str)
def test_what_does_not_fit_is_pytorchs_error(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"expected input|Kernel size|size"):
        _convolution.conv2d(x, torch.rand(64, 32, 3, 3))
