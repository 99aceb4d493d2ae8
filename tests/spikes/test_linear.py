"""Spikes as bits between neurons and the linear layer behind them: the numbers of both, and when it is not done."""

import contextlib
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from callables import steep
from gradient_checks import FLOWS, Operators, bytes_of, saved_by
from helpers import (
    KINDS,
    NEURONS,
    SURROGATES,
    Case,
    assert_all_bits_equal,
    assert_all_close,
    assert_bits_equal,
    assert_close,
    expected,
    fused,
    leaves,
    random_cases,
)
from linear_checks import by_events, check, counting, fits, with_linear
from torch import Tensor

import snnfast
from snnfast import functional
from snnfast._core import ops

pytestmark = pytest.mark.needs_extension
neurons, every_neuron = (pytest.mark.parametrize("neuron", names) for names in (NEURONS, KINDS))
ROWS = ((), (1,), (4,), (2, 3))  # dimensions of a step before that of the inputs
PARAMETERS = ("scalar", "one", "neuron", "channel", "element", "mixed")


@pytest.fixture(autouse=True)
def fused_backend() -> Iterator[None]:
    with snnfast.use_backend("fused"):
        yield


def random_calls(number: int, seed: int | str, **choices: Any) -> Iterator[tuple[Case, int]]:
    """Cases, and the number of outputs."""
    draw = random.Random(seed)
    common = {"variant": ("unroll", "unroll", "constant"), "steps": (1, 3, 8, 9, 25), "parameters": PARAMETERS}
    for case in random_cases(number, seed, **{**common, **choices}):
        yield case, draw.choice((1, 3, 10, 17, 40, 300))


# ---- numbers


@every_neuron
@pytest.mark.parametrize("variant", ["unroll", "constant"])
def test_random_calls_equal_the_reference(variant: str, neuron: str, isa: str) -> None:
    shapes = [(*rows, n) for rows, n in itertools.product(ROWS, (1, 7, 33, 65, 1000))]
    for i, (case, outputs) in enumerate(random_calls(12, isa, neuron=(neuron,), variant=(variant,), shape=shapes)):
        check(case, outputs, bias=i % 3 > 0, flow=FLOWS[i % 5], seed=i)
        assert by_events(fused, with_linear(case), case) == fits(case), str(case)
        with torch.no_grad():
            spk = fused(with_linear(case), case)["spk"]
        assert_bits_equal(spk, fused(leaves(with_linear(case)), case)["spk"])


@neurons
@pytest.mark.parametrize("wrt", ["current", "states", "decays", "threshold", "graded_spikes_factor", "weight", "bias"])
def test_a_gradient_for_some_inputs_only(wrt: str, neuron: str) -> None:
    for i, (case, outputs) in enumerate(random_calls(6, 2, neuron=(neuron,), shape=((3, 12),), states=(True,))):
        groups = {"states": case.kind.ops.states, "decays": case.kind.decays}
        check(case, outputs, wrt=groups.get(wrt, (wrt,)), flow=FLOWS[i % 2])


@pytest.mark.parametrize(("steps", "shape"), [(0, (3, 5)), (4, (0, 5)), (4, (3, 0)), (0, (0, 0))])
def test_nothing_is_a_number_of_steps_rows_or_inputs(steps: int, shape: tuple[int, ...]) -> None:
    for variant, outputs in itertools.product(("unroll", "constant"), (3, 0)):
        check(Case("leaky", variant, steps, shape, record_mem=steps > 0), outputs)


def test_currents_in_any_layout() -> None:
    case = Case("leaky", "unroll", 9, (4, 6))
    tensors = leaves(with_linear(case))
    current = tensors["current"]
    assert current is not None
    for layout in (current.transpose(0, 2).contiguous().transpose(0, 2), current[..., :1].expand(9, 4, 6)):
        given = layout.detach().requires_grad_()
        found, wanted = (f({**tensors, "current": given}, case)["spk"] for f in (fused, expected))
        assert_close(found, wanted, 1e-6)
        assert_all_close(*(torch.autograd.grad(t.square().sum(), [given]) for t in (found, wanted)), relative=1e-5)


def test_the_sum_of_the_spikes_is_what_the_linear_layer_is_given_with_reduce() -> None:
    check(Case("leaky", "count", 9, (4, 6)))
    check(Case("synaptic", "count+constant", 9, (4, 6), record_mem=False))


# ---- memory


@neurons
def test_neither_the_spikes_nor_their_gradient_are_ever_numbers(neuron: str) -> None:
    for spike_grad in (SURROGATES["atan"], SURROGATES["straight_through_estimator"]):
        case = Case(neuron, "constant", 25, (4, 100), record_mem=False, spike_grad=spike_grad)
        tensors = leaves(with_linear(case), ("current", "weight", "bias"))
        with Operators(floating=True) as ran:
            fused(tensors, case)["spk"].square().sum().backward()
        assert 0 < ran.elements < 25 * 400


@neurons
def test_held_for_backward_are_bits_and_what_the_neurons_hold_anyway(neuron: str) -> None:
    """In bytes for each neuron and step, beyond inputs other than the current and outputs."""
    states = {"synaptic": 2}.get(neuron, 1)
    bits, current = 5 / 40, 4.0 + 4 * 2 / 40 * states  # with its checkpoints
    calls: list[tuple[tuple[str, ...], dict[str, Any], float]] = [
        (("current", "weight"), {}, current + bits), (("current",), {}, current), (("weight", "bias"), {}, bits),
        (("bias",), {}, 0),
    ]  # fmt: skip
    if neuron == "leaky":
        straight = {"spike_grad": SURROGATES["straight_through_estimator"]}
        of_records = (("current", "weight"), {"record_mem": True}, bits)  # the membranes are an output
        calls += [of_records, (("current", "weight"), straight, bits)]
    for wrt, options, wanted in calls:
        case = Case(neuron, "unroll", 40, (4, 100), **{"record_mem": False, "states": False, **options})
        tensors = leaves(with_linear(case), wrt)
        outputs, kept = saved_by(partial(fused, tensors, case))
        known = [t for name, t in tensors.items() if name != "current"] + list(outputs.values())
        number = 4  # a copy of the threshold, and a record without memory, where they are needed
        assert bytes_of(kept, beyond=known) - round(wanted * 40 * 400) in (0, number, 2 * number), (wrt, options)


# ---- other ways to call


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@snnfast.use_backend("auto")
def test_a_second_derivative_is_that_of_the_loop(reset: str, lengths: bool) -> None:
    given = torch.arange(8) if lengths else None
    for name, record_mem, wrt in itertools.product(
        ("atan", "straight_through_estimator"), (True, False), (("current", "mem", "threshold"), ("weight", "bias"))
    ):
        options = {"record_mem": record_mem, "reset": reset, "spike_grad": SURROGATES[name]}
        case = Case("leaky", "unroll", 40, (8, 6), torch.float64, **options)  # type: ignore[arg-type]
        others = () if name != "atan" else ("beta", "graded_spikes_factor")
        tensors = leaves(with_linear(case), ("current", "weight", *wrt, *others))
        asking = [t for t in tensors.values() if t is not None and t.requires_grad]
        found = []
        for function, calls in ((fused, counting), (expected, contextlib.nullcontext)):
            with calls() as events:
                outputs = function(tensors, case, lengths=given)
            assert function is expected or events
            loss = outputs["spk"].square().sum() + outputs["mem"].sum()
            first = torch.autograd.grad(loss, asking, create_graph=True)
            again = sum(g.square().sum() for g in first)
            found.append([*first, *torch.autograd.grad(again, asking, allow_unused=True)])  # type: ignore[arg-type]
        for a, b in zip(*found, strict=True):
            if a is not None or b is not None:
                a, b = torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b
                assert_close(a.detach(), b.detach(), 1e-10)


def test_forward_mode_differentiation_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.rand(4, 2, 3), torch.ones(4, 2, 3))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            functional.lif(x, beta=0.9, weight=torch.rand(2, 3))


# ---- where it is not done


def test_what_can_not_be_done_by_bits_is_done_with_numbers() -> None:
    x, weight = torch.rand(9, 4, 6) * 2, torch.randn(3, 6)

    def lif(x: Tensor = x, **options: Any) -> bool:
        given = {"beta": 0.9, **options}
        with counting() as calls:
            out = functional.lif(x, **given, weight=weight.to(x.dtype))[0]
        assert_bits_equal(out, F.linear(functional.lif(x, **given)[0], weight.to(x.dtype)))
        return bool(calls)

    assert_close(functional.lif(x, beta=0.9, weight=weight)[0], F.linear(functional.lif(x, beta=0.9)[0], weight), 1e-6)
    assert not lif(spike_grad=steep)
    assert not lif(spike_grad=steep, reset_delay=False)
    assert not lif(inhibition=True)
    assert not lif(reduce="sum")
    assert not lif(graded_spikes_factor=torch.rand(4, 1))
    assert not lif(beta=torch.full((6,), 0.9, dtype=torch.float64))  # which widens the arithmetic
    with snnfast.use_backend("auto"), warnings.catch_warnings(action="ignore"):  # that it is slow
        assert not lif(state_quant=lambda mem: mem)
    with snnfast.use_backend("reference"):
        assert not lif()
    with snnfast.use_events(False):
        assert not lif()
    with torch.autocast("cpu", torch.bfloat16):
        assert not lif()


def test_torch_func() -> None:
    x, weight = torch.rand(5, 9, 4, 6) * 2, torch.randn(3, 6)
    with counting() as calls:
        mapped = torch.vmap(lambda x: functional.lif(x, beta=0.9, weight=weight)[0])(x)
    assert calls == []
    for a, b in zip(mapped, x, strict=True):
        assert_close(a, functional.lif(b, beta=0.9, weight=weight)[0], 1e-6)
    weights = torch.randn(5, 3, 6)
    mapped = torch.vmap(lambda w: functional.lif(x[0], beta=0.9, weight=w)[0])(weights)
    for a, w in zip(mapped, weights, strict=True):
        assert_close(a, functional.lif(x[0], beta=0.9, weight=w)[0], 1e-6)


# ---- the ops: at any rate, with any instruction set and threads


TOLERANCES = {torch.float32: 3e-6, torch.float64: 1e-14, torch.float16: 4e-3, torch.bfloat16: 3e-2}
RATES = (0.0, 0.01, 0.2, 0.6, 1.0)  # with many outputs the last two take the dense product
OF_PRODUCTS = (  # T, samples, neurons, outputs
    (25, 4, 100, 10), (8, 3, 64, 16), (1, 1, 1, 1), (9, 2, 65, 300), (40, 5, 200, 130), (3, 7, 33, 49),
    (16, 1, 2100, 5), (41, 30, 500, 16), (9, 70, 20, 2000),
)  # fmt: skip
OF_EXACTNESS = (  # T, samples, neurons, outputs
    (25, 128, 1000, 10), (25, 128, 1000, 256), (100, 128, 512, 10), (8, 32, 4096, 256),
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


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    scale = max(expected.abs().max().item(), 1)
    assert (found.double() - expected).abs().max().item() <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", OF_PRODUCTS, ids=str)
def test_products_are_those_of_numbers(shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    steps, samples, neurons, outputs = shape
    weight, bias = normal(outputs, neurons, dtype=dtype), normal(outputs, dtype=dtype)
    grad = normal(steps, samples, outputs, dtype=dtype)
    for rate, graded in itertools.product(RATES, (torch.tensor(0.5), torch.rand(neurons) + 0.5)):
        spikes = random_spikes(steps, samples, neurons, rate)
        bits, heights = as_bits(spikes), spikes * graded.double()
        for b in (bias, None):
            found = torch.ops.snnfast.spikes_linear(bits, weight, b, graded, steps)
            assert_near(found, F.linear(heights, weight.double(), None if b is None else b.double()), dtype)
        found = torch.ops.snnfast.spikes_linear_weight(bits, grad, graded)
        assert_near(found, torch.einsum("tro,trn->on", grad.double(), heights), dtype)


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """The largest and the root mean square, each relative to that of what is exact."""
    error = found.double() - exact
    return torch.stack(
        [size(error) / size(exact) for size in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt())]
    )


@pytest.mark.parametrize("shape", OF_EXACTNESS, ids=str)
def test_sums_are_as_exact_as_those_of_the_loop(shape: tuple[int, ...]) -> None:
    """On average over signed and positive numbers: one long chain of sums would be several times less exact."""
    steps, samples, neurons, outputs = shape
    one, of_products, of_gradients = torch.tensor(1.0), [], []
    for rate, of in itertools.product((0.1, 0.3), (torch.Tensor.clone, torch.Tensor.abs)):
        weight, grad = of(normal(outputs, neurons)), of(normal(steps, samples, outputs))
        spikes = random_spikes(steps, samples, neurons, rate)
        bits, spk = as_bits(spikes), spikes.float()
        exact = spikes.double() @ weight.double().t()
        by_bits = torch.ops.snnfast.spikes_linear(bits, weight, None, one, steps)
        of_products.append([errors(t, exact) for t in (by_bits, torch.stack([F.linear(s, weight) for s in spk]))])
        exact = grad.double().flatten(0, 1).t() @ spikes.double().flatten(0, 1)
        by_bits = torch.ops.snnfast.spikes_linear_weight(bits, grad, one)
        in_loop = sum(g.t() @ s for g, s in zip(grad.flip(0), spk.flip(0), strict=True))
        of_gradients.append([errors(t, exact) for t in (by_bits, in_loop)])
    for found in (of_products, of_gradients):
        ours, loop = torch.stack([torch.stack(pair) for pair in found]).mean(0)
        assert (ours <= 1.1 * loop).all(), (ours / loop).tolist()


@pytest.mark.parametrize("outputs", [3, 10, 16, 17, 40, 100, 300])
def test_no_bit_depends_on_threads_or_the_instruction_set(outputs: int, isa: str) -> None:
    """At a rate at which both products are by events with each of them."""
    bits, one = as_bits(random_spikes(25, 40, 700, 0.1)), torch.tensor(1.0)
    weight, grad, found = normal(outputs, 700), normal(25, 40, outputs), []
    for threads, used in ((1, ops.extension.isa_available()[0]), (1, isa), (2, isa), (3, isa), (7, isa)):
        torch.set_num_threads(threads)
        ops.extension.set_isa(used)
        product = torch.ops.snnfast.spikes_linear(bits, weight, None, one, 25)
        found.append((product, torch.ops.snnfast.spikes_linear_weight(bits, grad, one)))
    for again in found[1:]:
        assert_all_bits_equal(again, found[0])


def test_layouts_of_weights_and_gradients() -> None:
    bits, one = as_bits(random_spikes(9, 3, 50, 0.3)), torch.tensor(1.0)
    weight, grad, bias = normal(50, 60).t(), normal(60, 3, 9).permute(2, 1, 0), normal(120)[::2]
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
        out, _ = snnfast.functional.lif(current, beta=0.9, record_mem=False, weight=normal(40, 10))
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
