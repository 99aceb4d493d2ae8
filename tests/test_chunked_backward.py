"""The backward kernel that shares out the time of few neurons among the warps of a block."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from emulator.build import Launch, last_launch, set_chunked_limits, set_seed
from gradient_checks import FLOWS, RELATIVE, check_against_reference, gradients
from helpers import (
    FIRST_SEED,
    FLOATS,
    HALVES,
    NEURONS,
    PARAMETERS,
    RESETS,
    SURROGATES,
    Case,
    assert_bits_equal,
    assert_close,
    expected,
    fused,
    inputs,
    leaves,
)

from snnfast import surrogate
from snnfast.functional import lif

DTYPES = FLOATS + HALVES
LIMITS = (256, 12288)  # steps from which, neurons up to which
ALWAYS, NEVER = (0, 1 << 40), (1 << 40, 0)
LANES = 32
# Around a chunk; fewer chunks than warps, as many, and more.
STEPS = (0, 1, 15, 16, 17, 33, 48, 127, 128, 129, 255, 256, 257, 273, 400)


def warps(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 16


def assert_chunked(case: Case) -> None:
    """The kernel that ran last was the one with many warps to a few neurons."""
    neurons = torch.Size(case.shape).numel()
    assert last_launch() == Launch(-(-neurons // LANES), LANES * warps(case.dtype)), f"{case}: another kernel ran"


@pytest.fixture
def forced(device: torch.device) -> Iterator[torch.device]:
    """The emulated device, where the kernel is taken for all shapes."""
    set_chunked_limits(*ALWAYS)
    yield device
    set_chunked_limits(*LIMITS)


emulated = pytest.mark.parametrize("device", [pytest.param("emulated", marks=pytest.mark.emulated)], indirect=True)


def check(case: Case, device: torch.device, flow: str = "both", seed: int = 0, wild: bool = False) -> None:
    check_against_reference(case, device, flow, seed, wild)
    assert_chunked(case)


def chunked_and_plain(case: Case, tensors: Any, flow: str = "both") -> Any:
    """The gradients of both kernels, by name."""
    chunked = gradients(fused, leaves(tensors), case, flow)
    assert_chunked(case)
    set_chunked_limits(*NEVER)
    plain = gradients(fused, leaves(tensors), case, flow)
    assert last_launch().threads <= 128
    set_chunked_limits(*ALWAYS)
    return [(name, chunked[name], plain[name]) for name in plain]


VARIANTS = ("unroll", "constant", "count", "count+constant")


@emulated
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_option(dtype: torch.dtype, variant: str, forced: torch.device) -> None:
    for i, (reset, delay, record_mem) in enumerate(itertools.product(RESETS, (True, False), (True, False))):
        for flow in FLOWS[i % 2 :: 2]:
            check(Case("leaky", variant, 75, (3, 11), dtype, reset, delay, record_mem, "neuron"), forced, flow)


@emulated
@pytest.mark.parametrize("steps", STEPS, ids=lambda n: f"T{n}")
def test_every_number_of_steps(steps: int, forced: torch.device) -> None:
    for i, (reset, delay) in enumerate(itertools.product(RESETS, (True, False))):
        for dtype in DTYPES:
            flow = FLOWS[i % 4] if steps > 0 else "both"
            variant = "constant" if i % 4 == 1 else "unroll"
            check(Case("leaky", variant, steps, (3, 11), dtype, reset, delay, i % 3 == 0, "neuron"), forced, flow)


@emulated
@pytest.mark.parametrize("shape", [(1,), (31,), (32,), (33,), (4, 8), (2, 3, 17)], ids=str)
def test_every_number_of_neurons(shape: tuple[int, ...], forced: torch.device) -> None:
    for i, kind in enumerate(PARAMETERS):
        variant, dtype = VARIANTS[i == 2], DTYPES[i % 4]
        case = Case("leaky", variant, 40, shape, dtype, RESETS[i % 3], i % 2 == 0, i > 3, kind, i % 5 != 4)
        check(case.fitted(), forced)


@emulated
@pytest.mark.parametrize("name", list(SURROGATES))
def test_every_surrogate(name: str, forced: torch.device) -> None:
    for i, (reset, delay) in enumerate(itertools.product(RESETS, (True, False))):
        options = {"parameters": "mixed", "spike_grad": SURROGATES[name]}
        case = Case("leaky", "unroll", 50, (3, 11), FLOATS[i % 2], reset, delay, i > 2, **options)
        check(case, forced, seed=i, wild=i % 2 == 0)


@emulated
@pytest.mark.parametrize("saved", ["rounded", "bits"])
def test_from_rounded_membranes_and_from_bits(saved: str, forced: torch.device) -> None:
    for i, (dtype, reset, steps) in enumerate(itertools.product(DTYPES, RESETS, (41, 290))):
        variant = saved + ("", "+constant", "+count")[i % 3]
        case = Case("leaky", variant, steps, (3, 11), dtype, reset, True, i % 2 == 0, "neuron").fitted()
        check(case, forced, FLOWS[i % 4])


@emulated
def test_a_derivative_from_outside(forced: torch.device) -> None:
    for i, (dtype, reset, record_mem) in enumerate(itertools.product(FLOATS, RESETS, (True, False))):
        variant = "callable+constant" if i % 3 == 1 else "callable"
        check(Case("leaky", variant, 60, (3, 11), dtype, reset, False, record_mem, "neuron"), forced)


@emulated
def test_a_neuron_whose_membrane_does_not_tell_all_has_the_plain_kernel(forced: torch.device) -> None:
    """As where there are more states: what a stretch hands back is then not one number times what enters it."""
    for neuron in NEURONS:
        case = Case(neuron, "unroll", 40, (3, 11), record_mem=False)
        check_against_reference(case, forced)
        assert (last_launch().threads > 128) == case.kind.ops.record_tells


@emulated
@pytest.mark.parametrize("steps", [40, 300])
def test_both_kernels_agree(steps: int, forced: torch.device) -> None:
    for i, (dtype, reset, delay) in enumerate(itertools.product(DTYPES, RESETS, (True, False))):
        variant = "constant" if i % 4 == 1 else "unroll"
        case = Case("leaky", variant, steps, (5, 11), dtype, reset, delay, i % 3 == 0, "element")
        for name, a, b in chunked_and_plain(case, inputs(case, forced)):
            assert_close(a, b, 10 * RELATIVE[case.acc] if name != "current" else RELATIVE[dtype], f"{case}: {name}")


@emulated
def test_a_single_chunk_has_the_numbers_of_the_plain_kernel(forced: torch.device) -> None:
    for dtype, reset, delay in itertools.product(DTYPES, RESETS, (True, False)):
        case = Case("leaky", "unroll", 16, (5, 11), dtype, reset, delay, True, "element")
        for name, a, b in chunked_and_plain(case, inputs(case, forced)):
            assert torch.equal(a, b), f"{case}: {name}"


@emulated
def test_the_order_of_threads_changes_no_bit(forced: torch.device, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: set_seed(FIRST_SEED))
    for dtype, record_mem in itertools.product(DTYPES, (True, False)):
        case = Case("leaky", "unroll", 75, (3, 30), dtype, "zero", record_mem, record_mem, "neuron")
        results = []
        for seed in range(8):
            set_seed(seed)
            results.append(gradients(fused, leaves(inputs(case, forced)), case))
            assert_chunked(case)
        for found, (name, grad) in itertools.product(results[1:], results[0].items()):
            assert_bits_equal(found[name], grad, f"{case}: {name}")


@emulated
def test_no_gradient_from_later_steps_stays_none_where_it_would_overflow(forced: torch.device) -> None:
    """A loss on the first spikes alone, where each step multiplies what comes from later ones by 1e30."""
    steep = surrogate.triangular(threshold=1e30)
    case = Case("leaky", "unroll", 64, (3, 11), delay=False, spike_grad=steep)
    found = []
    for function in (fused, expected):
        tensors = leaves(inputs(case, forced), ("current",))
        spk = function(tensors, case)["spk"]
        found += torch.autograd.grad(spk[0].sum(), [tensors["current"]])
        if function is fused:
            assert_chunked(case)
    assert found[1][0].abs().min() > 1e29
    assert_close(*found, RELATIVE[case.dtype])


@emulated
@pytest.mark.parametrize("reset", RESETS)
def test_nan_goes_where_it_goes_in_the_plain_kernel(reset: str, forced: torch.device) -> None:
    for delay, record_mem in itertools.product((True, False), (True, False)):
        case = Case("leaky", "unroll", 75, (40,), torch.float32, reset, delay, record_mem, "element")
        tensors = inputs(case, forced)
        tensors["current"][30, 3] = float("nan")
        tensors["beta"][5] = float("nan")
        found = chunked_and_plain(case, tensors)
        assert sum(b.isnan().any() for _, _, b in found) >= 3
        for name, a, b in found:
            assert torch.equal(a.isnan(), b.isnan()), f"{case}: {name}"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_many_steps_of_few_neurons(dtype: torch.dtype, device: torch.device, request: pytest.FixtureRequest) -> None:
    """The shapes that take the kernel of their own accord, on every device."""
    for i, (reset, delay) in enumerate(itertools.product(RESETS, (True, False))):
        variant = {2: "count", 4: "constant"}.get(i, "unroll")
        case = Case("leaky", variant, 256 + i, (3, 13), dtype, reset, delay, i % 3 == 0, "neuron")
        check_against_reference(case, device, FLOWS[i % 4])
        if "emulated" in request.node.name:
            assert_chunked(case)


@emulated
def test_the_shape_alone_decides_which_kernel_runs(device: torch.device) -> None:
    steps, neurons = LIMITS
    for T, N, chunked in ((steps, neurons, True), (steps - 1, 33, False), (steps, neurons + 1, False)):
        x = torch.rand(N, device=device).requires_grad_()
        spk, _ = lif(x, beta=0.9, num_steps=T, reduce="sum", record_mem=False)
        spk.sum().backward()
        assert (last_launch() == Launch(-(-N // LANES), LANES * 16)) == chunked, (T, N)
