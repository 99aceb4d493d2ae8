"""Max pooling over windows that do not overlap: PyTorch's numbers to the last bit, and who decides between the two."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_bits_equal
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from snnfast import Leaky, MultiStep, _max_pooling, use_backend

pytestmark = pytest.mark.needs_extension

CASES: dict[str, tuple[tuple[int, int, int], Any, Any]] = {  # channels, height, width; kernel; stride
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
}


def channels_last(t: Tensor) -> Tensor:
    return t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def images(sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    """Small whole numbers, so that many are equal, zeros of both signs, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, sizes, generator=generator).float()
    x[torch.rand(sizes, generator=generator) < 0.05] = float("nan")
    x[torch.rand(sizes, generator=generator) < 0.2] = -float("inf")
    x[torch.rand(sizes, generator=generator) < 0.1] = -0.0
    return channels_last(x)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs of all pooling by the kernels from now on."""
    given: list[Tensor] = []
    apply = _max_pooling._MaxPooling.apply
    monkeypatch.setattr(_max_pooling._MaxPooling, "apply", lambda x, *how: given.append(x) or apply(x, *how))
    return given


@pytest.mark.parametrize("name", CASES)
def test_maxima_and_gradients_are_pytorchs(name: str, isa: str, ours: list[Tensor]) -> None:
    sizes, kernel, stride = CASES[name]
    x = images((6, *sizes)).requires_grad_()
    found, expected = _max_pooling.max_pool2d(x, kernel, stride), F.max_pool2d(x, kernel, stride)
    assert len(ours) == 1
    assert_bits_equal(found, expected)
    assert found.stride(1) == 1
    grad = torch.randn(expected.shape)  # in another order
    (of_x,) = torch.autograd.grad(found, x, grad)
    assert_bits_equal(of_x, torch.autograd.grad(expected, x, grad)[0])
    assert of_x.stride(1) == 1


def test_one_byte_is_kept_for_an_output() -> None:
    x = images((2, 8, 4, 4)).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = _max_pooling.max_pool2d(x, 2)
    assert [(t.dtype, t.shape) for t in kept] == [(torch.uint8, y.shape)]


def test_second_derivatives_are_pytorchs() -> None:
    x = channels_last(torch.randn(2, 5, 7, 8)).requires_grad_()

    def second(pool: Any) -> Tensor:
        (first,) = torch.autograd.grad((pool(x, (2, 3), (3, 3)) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    assert_bits_equal(second(_max_pooling.max_pool2d), second(F.max_pool2d))


OTHERS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "overlap": (images((2, 5, 20, 19)), {"kernel_size": 3, "stride": 2}),
    "padding": (images((2, 5, 20, 19)), {"kernel_size": 2, "padding": 1}),
    "dilation": (images((2, 5, 20, 19)), {"kernel_size": 2, "dilation": 2}),
    "ceil_mode": (images((2, 5, 20, 19)), {"kernel_size": 3, "ceil_mode": True}),
    "more places than a byte counts": (images((2, 5, 20, 19)), {"kernel_size": 17}),
    "return_indices": (images((2, 5, 20, 19)), {"kernel_size": 2, "return_indices": True}),
    "another order": (torch.rand(2, 5, 4, 4), {"kernel_size": 2}),
    "float64": (images((2, 5, 4, 4)).double(), {"kernel_size": 2}),
    "few channels": (images((2, 3, 4, 4)), {"kernel_size": 2}),
    "no batch": (torch.rand(5, 4, 4), {"kernel_size": 2}),
    "empty": (torch.rand(0, 5, 4, 4), {"kernel_size": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernels_do_not_know_is_pytorchs(name: str, ours: list[Tensor]) -> None:
    x, how = OTHERS[name]
    found, expected = _max_pooling.max_pool2d(x, **how), F.max_pool2d(x, **how)
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (found, expected)), strict=True):
        assert_bits_equal(a, b)
    assert not ours


@pytest.mark.parametrize(("kernel", "stride"), [(0, None), ((2, 3, 4), None), (9, None), (2, 0), (2, (1, 2, 3))])
def test_wrong_kernels_are_pytorchs_to_tell(kernel: Any, stride: Any) -> None:
    x = channels_last(torch.rand(2, 5, 4, 4))
    with pytest.raises(RuntimeError) as expected:
        F.max_pool2d(x, kernel, stride)
    with pytest.raises(RuntimeError) as found:
        _max_pooling.max_pool2d(x, kernel, stride)
    assert str(found.value) == str(expected.value)


def test_a_network_takes_sizes_of_numpy(ours: list[Tensor]) -> None:
    x, two = channels_last(torch.rand(3, 2, 8, 6, 6).flatten(0, 1)).unflatten(0, (3, 2)), np.int64(2)
    for layer in (nn.MaxPool2d(two), nn.MaxPool2d((two, 2), stride=two)):
        assert_bits_equal(MultiStep(layer)(x), torch.stack([layer(step) for step in x]))
    assert ours


def test_reference_transforms_and_compilers_see_pytorchs(ours: list[Tensor]) -> None:
    x = channels_last(torch.rand(2, 5, 4, 4))
    with use_backend("reference"):
        _max_pooling.max_pool2d(x, 2)
    torch.vmap(lambda x: _max_pooling.max_pool2d(x, 2))(torch.stack([x, x]))
    torch.func.jvp(lambda x: _max_pooling.max_pool2d(x, 2), (x,), (x,))
    torch.compile(lambda x: _max_pooling.max_pool2d(x, 2), backend="eager", fullgraph=True)(x)
    assert not ours


def network() -> MultiStep:
    torch.manual_seed(0)
    return MultiStep(nn.Conv2d(2, 6, 3), nn.MaxPool2d(2), Leaky(0.5), nn.Conv2d(6, 8, 3), Leaky(0.5), nn.MaxPool2d(2))


def test_a_network_pools_by_the_kernels(ours: list[Tensor]) -> None:
    net, x = network(), torch.rand(3, 2, 2, 14, 14)
    found = net(x)
    assert len(ours) == 2
    with use_backend("reference"):
        expected = net(x)
    assert_bits_equal(found, expected)


def test_hooks_of_a_layer_are_called(ours: list[Tensor]) -> None:
    net, seen = network(), []
    net[1].register_forward_hook(lambda *given: seen.append(given))
    net(torch.rand(3, 2, 2, 14, 14))
    assert len(seen) == 1
    assert len(ours) == 1


def test_the_ops_have_shapes_and_strides_without_numbers() -> None:
    pooling, backward = torch.ops.snnfast.max_pooling, torch.ops.snnfast.max_pooling_backward
    x = images((2, 5, 7, 8))
    largest, places = pooling(x, 2, 3, 2, 4)
    of_x = backward(largest, places, 7, 8, 2, 3, 2, 4)
    with FakeTensorMode() as mode:
        fake_largest, fake_places = pooling(mode.from_tensor(x), 2, 3, 2, 4)
        fake = backward(fake_largest, fake_places, 7, 8, 2, 3, 2, 4)
    for a, b in ((largest, fake_largest), (places, fake_places), (of_x, fake)):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_the_ops_refuse_what_would_leave_memory() -> None:
    pooling, backward = torch.ops.snnfast.max_pooling, torch.ops.snnfast.max_pooling_backward
    x = images((2, 5, 8, 8))
    largest, places = pooling(x, 2, 2, 2, 2)
    for message, call in {
        "x: expected channels_last": lambda: pooling(x.contiguous(), 2, 2, 2, 2),
        "x: expected float32": lambda: pooling(x.double(), 2, 2, 2, 2),
        "kernel: expected 1 to the size": lambda: pooling(x, 9, 2, 9, 2),
        "stride: expected that of the kernel": lambda: pooling(x, 2, 2, 1, 2),
        "at most 256 places": lambda: pooling(images((1, 4, 17, 17)), 17, 16, 17, 16),
        "places: expected uint8": lambda: backward(largest, largest, 8, 8, 2, 2, 2, 2),
        "wrong shape": lambda: backward(largest, places, 10, 8, 2, 2, 2, 2),
        "image: too large": lambda: backward(largest, places, 2**31, 8, 2, 2, 2**29, 2),
        "kernel: expected 1": lambda: backward(largest, places, 1, 8, 2, 2, 2, 2),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()


def test_an_empty_batch_and_no_channels_are_taken() -> None:
    for sizes, pooled in (((0, 5, 4, 4), (0, 5, 2, 2)), ((2, 0, 4, 4), (2, 0, 2, 2))):
        largest, places = torch.ops.snnfast.max_pooling(torch.empty(sizes), 2, 2, 2, 2)
        assert largest.shape == places.shape == pooled
