"""The backward kernel that shares out the time of few neurons among the warps of a block."""

import itertools
import random
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
    THOROUGH,
    VARIANTS,
    Case,
    assert_bits_equal,
    assert_close,
    expected,
    fused,
    inputs,
    leaves,
    random_cases,
)
from test_kernels import ORDINARY

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


def chunked_and_plain(case: Case, tensors: Any, flow: str = "both") -> Any:
    """The gradients of both kernels, by name."""
    chunked = gradients(fused, leaves(tensors), case, flow)
    assert_chunked(case)
    set_chunked_limits(*NEVER)
    plain = gradients(fused, leaves(tensors), case, flow)
    assert last_launch().threads <= 128
    set_chunked_limits(*ALWAYS)
    return [(name, chunked[name], plain[name]) for name in plain]


# Choices for the fields of the cases, by the name of what is special about them; what they leave open is drawn.
OPEN: dict[str, Any] = {
    "neuron": ("leaky",), "variant": ("unroll", "constant", "count", "count+constant"), "steps": (20, 41, 75),
    "shape": ((3, 11),), "spike_grad": tuple(SURROGATES.values()),
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    # Through many steps the gradient of a steep surrogate grows without end.
    **{f"T{n}": {"steps": (n,), "spike_grad": (SURROGATES["atan"],)} for n in STEPS},
    **{"x".join(map(str, shape)): {"shape": (shape,)} for shape in ((1,), (31,), (32,), (33,), (4, 8), (2, 3, 17))},
    **{f"parameters-{kind}": {"parameters": (kind,)} for kind in PARAMETERS},
    **{name: {"spike_grad": (spike_grad,)} for name, spike_grad in SURROGATES.items()},
    **{str(dtype)[6:]: {"dtype": (dtype,)} for dtype in DTYPES},
    **{variant: {"variant": (variant,)} for variant in VARIANTS if "step" not in variant},
    # A derivative from outside enters the kernel where the reset is immediate.
    **{variant: {"variant": (variant,), "delay": (False,)} for variant in ("callable", "callable+constant")},
}  # fmt: skip


@emulated
@pytest.mark.parametrize("name", ROWS)
def test_special_calls(name: str, forced: torch.device) -> None:
    draw = random.Random(name)
    for i, case in enumerate(random_cases(30 if THOROUGH else 6, name, **{**OPEN, **ROWS[name]})):
        check_against_reference(case, forced, draw.choice(FLOWS), i, wild=case.steps < 50)
        assert_chunked(case)


@emulated
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=lambda d: str(d)[6:])
def test_ordinary_calls(dtype: torch.dtype, forced: torch.device) -> None:
    """Where only the current learns."""
    for i, case in enumerate(random_cases(10, 1, **{**OPEN, **ORDINARY, "dtype": (dtype,), "steps": (1, 17, 75, 290)})):
        check_against_reference(case, forced, "spk", i, wrt=("current",))
        assert_chunked(case)


@emulated
def test_a_neuron_whose_membrane_does_not_tell_all_has_the_plain_kernel(forced: torch.device) -> None:
    """As where there are more states: what a stretch hands back is then not one number times what enters it."""
    for neuron in NEURONS:
        case = Case(neuron, "unroll", 40, (3, 11), record_mem=False)
        check_against_reference(case, forced)
        assert (last_launch().threads > 128) == case.kind.ops.record_tells


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
