"""``reference.lif`` is snntorch.Leaky 1.0.0 in a loop: the same bits forward, the same gradients backward."""

import math
from typing import Any

import pytest
import snntorch
import torch
from helpers import (
    FLOATS,
    RESETS,
    SURROGATES,
    Case,
    Tensors,
    assert_bits_equal,
    assert_close,
    expected,
    inputs,
    leaves,
    random_cases,
)
from torch import Tensor

import snnfast
from snnfast import reference
from snnfast._core import ops


def reference_of(tensors: Tensors, case: Case) -> tuple[Tensor, ...]:
    return tuple(expected(tensors, case).values())


def snntorch_loop(tensors: Tensors, case: Case, spike_grad: Any, learn: bool = False) -> tuple[Tensor, Tensor, Tensors]:
    """Spikes and membranes of snnTorch's layer called step by step, and the tensors that it computed with."""
    layer = snntorch.Leaky(
        tensors["beta"],
        threshold=tensors["threshold"],
        spike_grad=spike_grad,
        learn_beta=learn,
        learn_threshold=learn,
        reset_mechanism=case.reset,
        graded_spikes_factor=tensors["graded_spikes_factor"],
        learn_graded_spikes_factor=learn,
        reset_delay=case.delay,
    )
    current, mem = tensors["current"], tensors["mem"]
    assert current is not None
    spk_rec, mem_rec = [], []
    for x in (current,) * case.steps if case.has("constant") else current.unbind(0):
        spk, mem = layer(x, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    used = {name: getattr(layer, name) for name in ("beta", "threshold", "graded_spikes_factor")}
    return torch.stack(spk_rec), torch.stack(mem_rec), {"current": current, "mem": tensors["mem"], **used}


def representable_in_float32(tensors: Tensors) -> Tensors:
    """snnTorch's own surrogates return float32, which rounds what they are multiplied with."""
    return {name: t if t is None else t.to(torch.float32).to(t.dtype) for name, t in tensors.items()}


def with_special_values(tensors: Tensors) -> Tensors:
    """NaN and infinities in the current and the initial membrane."""
    special = torch.tensor([math.nan, math.inf, -math.inf])
    for name, every in (("current", 7), ("mem", 5)):
        t = tensors[name]
        if t is not None:
            flat = t.flatten().clone()
            places = flat[::every]
            places.copy_(special.repeat(len(places))[: len(places)])
            tensors[name] = flat.view(t.shape)
    return tensors


def assert_same_forward(case: Case, tensors: Tensors, spike_grad: Any, what: str) -> None:
    spk_expected, mem_expected, _ = snntorch_loop(tensors, case, spike_grad)
    spk, mem = reference.lif(**tensors, **case.options)
    assert_bits_equal(spk, spk_expected.to(case.dtype), f"{what}: spikes")
    assert_bits_equal(mem, mem_expected if case.record_mem else mem_expected[-1], f"{what}: membranes")


def test_random_configurations() -> None:
    cases = random_cases(
        200,
        seed=1,
        steps=(1, 2, 7, 12),
        shape=((), (1,), (5,), (2, 3), (3, 10), (2, 3, 4), (2, 3, 2, 5)),
        dtype=FLOATS,
        reset=RESETS,
        delay=(True, False),
        record_mem=(True, True, False),
        neuron=("leaky",),
        variant=("unroll", "unroll", "constant"),
        spike_grad=(SURROGATES["atan"],),
    )
    spikes = resets_at_first_step = 0
    for i, case in enumerate(cases):
        tensors = inputs(case, seed=i, wild=i % 3 == 0)
        own = i % 2 == 0
        if not own:
            tensors = representable_in_float32(tensors)
        if i % 5 == 0:
            tensors = with_special_values(tensors)
        assert_same_forward(case, tensors, case.spike_grad if own else snntorch.surrogate.atan(), f"{i}: {case}")
        spikes += int(reference.lif(**tensors, **case.options)[0].count_nonzero())
        mem, threshold = tensors["mem"], tensors["threshold"]
        resets_at_first_step += 0 if mem is None or threshold is None else int((mem > threshold).sum())
    assert spikes > 1000
    assert resets_at_first_step > 100


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_membrane_at_the_threshold(reset: str, delay: bool, dtype: torch.dtype) -> None:
    case = Case("leaky", "unroll", 6, (4,), dtype, reset, delay)
    current = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=dtype).expand(6, 4)
    one = torch.ones((), dtype=dtype)
    mem = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=dtype)
    tensors = {"current": current, "mem": mem, "beta": one, "threshold": one, "graded_spikes_factor": one}
    assert_same_forward(case, tensors, snntorch.surrogate.atan(), str(case))
    assert reference.lif(**tensors, **case.options)[0][0, 0] == 0  # equal to the threshold is not above it


def gradients(spk: Tensor, mem: Tensor, tensors: Tensors) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in (spk, mem))
    return list(torch.autograd.grad(loss, [t for t in tensors.values() if t is not None]))


def assert_same_gradients(case: Case, spike_grad: Any, ours: Any, relative: float, seed: int, wild: bool) -> None:
    tensors = inputs(case, seed=seed, wild=wild)
    spk, mem, used = snntorch_loop(leaves(tensors), case, spike_grad, learn=True)
    expected = gradients(spk.to(case.dtype), mem if case.record_mem else mem[-1], used)
    tensors = leaves(tensors)
    spk, mem = reference.lif(**tensors, **{**case.options, "spike_grad": ours})
    names = [name for name in tensors if tensors[name] is not None]
    for name, a, b in zip(names, gradients(spk, mem, tensors), expected, strict=True):
        assert_close(a, b, relative, f"{case}: grad of {name}")


@pytest.mark.parametrize("parameters", ["scalar", "neuron", "channel", "mixed"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_in_float64(reset: str, delay: bool, parameters: str) -> None:
    for i, (constant, record_mem, mem) in enumerate([(False, True, True), (True, False, True), (False, False, False)]):
        variant = "constant" if constant else "unroll"
        case = Case("leaky", variant, 8, (2, 3, 2, 2), torch.float64, reset, delay, record_mem, parameters, mem)
        # Our surrogate keeps float64, where snnTorch's own would round the spikes' gradients to float32.
        assert_same_gradients(case, case.spike_grad, case.spike_grad, 1e-12, seed=i, wild=i == 0)


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "LSO"])
def test_gradients_with_snntorchs_surrogates(name: str) -> None:
    ours = SURROGATES[name]
    theirs = getattr(snntorch.surrogate, name)(*ours.__dict__.values())
    for i, (reset, delay) in enumerate((reset, delay) for reset in RESETS for delay in (True, False)):
        case = Case("leaky", "unroll", 6, (3, 10), torch.float32, reset, delay, parameters="mixed")
        assert_same_gradients(case, theirs, ours, 1e-5, seed=i, wild=False)


CLOSED = ops.clamp_is_closed()


@pytest.mark.parametrize(("beta", "passes"), [(-0.1, False), (0.0, CLOSED), (0.5, True), (1.0, CLOSED), (1.1, False)])
def test_the_gradient_of_a_clamped_beta(beta: float, passes: bool) -> None:
    case = Case("leaky", "unroll", 5, (4,), torch.float64)
    tensors = leaves({**inputs(case), "beta": torch.tensor(beta, dtype=torch.float64)})
    spk, mem = reference_of(tensors, case)
    (grad,) = torch.autograd.grad(spk.sum() + mem.sum(), [tensors["beta"]])
    assert (grad != 0) == passes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    case = Case("leaky", "unroll", 40, (3, 10), dtype, parameters="mixed")
    tensors = inputs(case)
    spk, mem = reference_of(tensors, case)
    assert tensors["current"] is not None
    spk32, mem32 = reference_of({**tensors, "current": tensors["current"].float()}, case)
    assert_bits_equal(spk, spk32.to(dtype))
    assert_bits_equal(mem, mem32.to(dtype))


def test_a_callable_that_returns_another_dtype() -> None:
    case = Case(dtype=torch.float64)
    tensors = inputs(case)
    expected_ = reference_of(tensors, case)
    actual = reference.lif(**tensors, **{**case.options, "spike_grad": snntorch.surrogate.fast_sigmoid()})
    for a, b in zip(actual, expected_, strict=True):
        assert_bits_equal(a, b)


def test_the_documented_numbers() -> None:
    current = torch.full((4, 1), 0.75)
    expected = {
        ("subtract", True): ([0, 1, 1, 0], [0.75, 1.5, 1.25, 1.0]),
        ("zero", True): ([0, 1, 0, 1], [0.75, 1.5, 0.75, 1.5]),
        ("none", True): ([0, 1, 1, 1], [0.75, 1.5, 2.25, 3.0]),
        ("subtract", False): ([0, 1, 1, 0], [0.75, 0.5, 0.25, 1.0]),
        ("zero", False): ([0, 1, 0, 1], [0.75, 0.0, 0.75, 0.0]),
        ("none", False): ([0, 1, 1, 1], [0.75, 1.5, 2.25, 3.0]),
    }
    for (reset, delay), (spk_expected, mem_expected) in expected.items():
        spk, mem = snnfast.reference.lif(current, beta=1.0, reset_mechanism=reset, reset_delay=delay)
        assert (spk.flatten().tolist(), mem.flatten().tolist()) == (spk_expected, mem_expected), (reset, delay)


def test_tensors_of_inference_mode_where_others_learn(backend: str) -> None:
    with torch.inference_mode():
        mem, beta = torch.rand(3, 4), torch.rand(4)
    x = torch.rand(5, 3, 4, requires_grad=True)
    snnfast.functional.lif(x, mem, beta=beta)[1].sum().backward()
    expected = x.grad.clone()
    x.grad = None
    snnfast.functional.lif(x, mem.clone(), beta=beta.clone())[1].sum().backward()
    assert torch.equal(x.grad, expected)


def test_a_beta_outside_of_its_range_has_no_gradient(device: torch.device) -> None:
    beta = torch.tensor([1.5, -0.5, math.nan, 0.5], requires_grad=True)
    mem = torch.full((1, 4), math.inf, device=device)
    _, mem = snnfast.functional.lif(torch.ones(1, 1, 4, device=device), mem, beta=beta.to(device))
    mem.sum().backward()
    assert_bits_equal(beta.grad[:3], torch.zeros(3))
    assert not beta.grad[3].isfinite()
