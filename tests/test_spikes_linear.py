"""The ops of a Linear behind the neurons, on spikes as bits: at any rate, with any instruction set and threads."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_all_bits_equal, assert_bits_equal
from torch import Tensor

import snnfast

pytestmark = pytest.mark.needs_extension

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 4e-3, torch.bfloat16: 3e-2}
RATES = (0.0, 0.01, 0.2, 0.6, 1.0)  # with many outputs the last two take the dense product
SHAPES = (  # T, samples, neurons, outputs
    (25, 4, 100, 10), (8, 3, 64, 16), (1, 1, 1, 1), (9, 2, 65, 300), (40, 5, 200, 130), (3, 7, 33, 49),
    (16, 1, 2100, 5),
)  # fmt: skip


def random_spikes(steps: int, samples: int, neurons: int, rate: float) -> Tensor:
    """``[T, R, N]`` bool."""
    return torch.rand(steps, samples, neurons, generator=torch.Generator().manual_seed(0)) < rate


def as_bits(spikes: Tensor) -> Tensor:
    steps, *shape = spikes.shape
    whole = torch.zeros((steps + 7) // 8 * 8, *shape, dtype=torch.uint8)
    whole[:steps] = spikes
    places = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8).view(1, 8, *(1,) * len(shape))
    return (whole.view(-1, 8, *shape) * places).sum(1, dtype=torch.uint8)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    scale = max(expected.abs().max().item(), 1)
    assert (found.double() - expected).abs().max().item() <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_numbers(shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    steps, samples, neurons, outputs = shape
    weight, bias = random(outputs, neurons, dtype=dtype), random(outputs, dtype=dtype)
    grad = random(steps, samples, outputs, dtype=dtype)
    for rate, graded in itertools.product(RATES, (torch.tensor(0.5), torch.rand(neurons) + 0.5)):
        spikes = random_spikes(steps, samples, neurons, rate)
        bits, heights = as_bits(spikes), spikes * graded.double()
        for b in (bias, None):
            found = torch.ops.snnfast.spikes_linear(bits, weight, b, graded, steps)
            close(found, F.linear(heights, weight.double(), None if b is None else b.double()), dtype)
        found = torch.ops.snnfast.spikes_linear_weight(bits, grad, graded)
        close(found, torch.einsum("tro,trn->on", grad.double(), heights), dtype)


@pytest.mark.parametrize("outputs", [10, 100])
def test_results_do_not_depend_on_the_number_of_threads(outputs: int, isa: str) -> None:
    weight, grad, one = random(outputs, 700), random(25, 40, outputs), torch.tensor(1.0)
    bits, found = as_bits(random_spikes(25, 40, 700, 0.1)), []
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        product = torch.ops.snnfast.spikes_linear(bits, weight, None, one, 25)
        found.append((product, torch.ops.snnfast.spikes_linear_weight(bits, grad, one)))
    for again in found[1:]:
        assert_all_bits_equal(again, found[0])


def test_layouts_of_weights_and_gradients() -> None:
    bits, one = as_bits(random_spikes(9, 3, 50, 0.3)), torch.tensor(1.0)
    weight, grad, bias = random(50, 60).t(), random(60, 3, 9).permute(2, 1, 0), random(120)[::2]
    found = torch.ops.snnfast.spikes_linear(bits, weight, bias, one, 9)
    expected = torch.ops.snnfast.spikes_linear(bits, weight.contiguous(), bias.contiguous(), one, 9)
    assert_bits_equal(found, expected, "product")
    found = torch.ops.snnfast.spikes_linear_weight(bits, grad, one)
    assert_bits_equal(found, torch.ops.snnfast.spikes_linear_weight(bits, grad.contiguous(), one), "gradient")


def test_nothing_to_multiply() -> None:
    one = torch.tensor(1.0)
    for steps, samples, neurons, outputs in ((0, 2, 3, 4), (5, 0, 3, 4), (5, 2, 3, 0)):
        bits = torch.zeros((steps + 7) // 8, samples, neurons, dtype=torch.uint8)
        found = torch.ops.snnfast.spikes_linear(bits, torch.ones(outputs, neurons), None, one, steps)
        assert found.shape == (steps, samples, outputs)
        found = torch.ops.snnfast.spikes_linear_weight(bits, torch.ones(steps, samples, outputs), one)
        assert torch.equal(found, torch.zeros(outputs, neurons))


def test_a_gradient_beyond_the_caches_is_written_as_any_other(isa: str, stream_bytes: Callable[[int], int]) -> None:
    """By non-temporal stores: the blocks of samples that the dense product is made for need not end with a register."""
    current = torch.rand(1100, 192, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = []
    for limit in (0, 1 << 40):
        stream_bytes(limit)
        out, _ = snnfast.functional.lif(current, beta=0.9, record_mem=False, weight=random(40, 10))
        found.append(torch.autograd.grad(out.sum(), current)[0])
    assert_bits_equal(*found, "gradient")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": torch.zeros(1, 2, 3)}, "bits"),
        ({"bits": torch.zeros(2, 2, 3, dtype=torch.uint8)}, "bits"),
        ({"bits": torch.zeros(1, 3, 2, dtype=torch.uint8).transpose(1, 2)}, "bits"),
        ({"weight": torch.zeros(4, 2)}, "weight"),
        ({"weight": torch.zeros(4)}, "weight"),
        ({"weight": torch.zeros(4, 3, dtype=torch.int32)}, "weight"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, "bias"),
        ({"graded": torch.zeros(2)}, "graded"),
        ({"steps": 9}, "bits"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_an_op_reads_no_memory_that_is_not_its_own(change: dict[str, object], message: str) -> None:
    given = {"bits": torch.zeros(1, 2, 3, dtype=torch.uint8), "weight": torch.zeros(4, 3), "bias": torch.zeros(4)}
    given |= {"graded": torch.tensor(1.0), "steps": 5}
    assert torch.ops.snnfast.spikes_linear(*given.values()).shape == (5, 2, 4)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.snnfast.spikes_linear(*(given | change).values())
    if "weight" not in change and "bias" not in change:
        own = given | change
        grad = torch.zeros(own["steps"], 2, 4)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.snnfast.spikes_linear_weight(own["bits"], grad, own["graded"])
