"""Backward passes of few neurons and many steps, divided in time among the CPU's threads: the bits of one pass."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from gradient_checks import check_against_reference, gradients
from helpers import FLOATS, HALVES, RESETS, SURROGATES, Case, assert_bits_equal, inputs, leaves
from torch import Tensor

import snnfast
from snnfast import _ops

pytestmark = pytest.mark.needs_extension
WHOLE = (1, 0)
T = TypeVar("T")


@pytest.fixture
def force() -> Iterator[Callable[[int, int], None]]:
    """Sets the number of ranges and the steps of their warm-up."""
    yield _ops.extension.force_time_ranges
    _ops.extension.force_time_ranges(0, 0)


@pytest.fixture
def chosen(force) -> None:
    """The library's own choice, as after a call in which no neuron was repeated."""
    force(2, 1024)
    of_current(torch.ones(2048, 4))
    force(0, 0)


def counted(function: Callable[..., T], *args: Any) -> tuple[T, int, int]:
    """What a call returns, its ranges and its repeated neurons."""
    before = _ops.extension.time_range_counts()
    result = function(*args)
    ranges, repeated = _ops.extension.time_range_counts()
    return result, ranges - before[0], repeated - before[1]


def of_current(grad_spk: Tensor, beta: float | Tensor = 0.9, num_steps: int | None = None) -> Tensor:
    """The gradient of a random current, from one of the spikes."""
    torch.manual_seed(0)
    current = torch.randn(grad_spk.shape[1:] if num_steps else grad_spk.shape).requires_grad_()
    with snnfast.use_backend("fused"):
        spk, _ = snnfast.functional.lif(current, beta=beta, record_mem=False, num_steps=num_steps)
        return torch.autograd.grad(spk, current, grad_spk)[0]


CASES = [
    Case(steps, shape, dtype, reset, delay, record_mem, False, "scalar", mem, count=count)
    for i, (dtype, reset, delay, record_mem) in enumerate(
        itertools.product(FLOATS + HALVES, RESETS, (True, False), (True, False))
    )
    for steps, shape, mem, count in [
        ((17, (3, 10), True, False), (48, (64,), False, False), (70, (1, 97), True, True), (131, (130,), True, False))[
            i % 4
        ]
    ]
]


@pytest.mark.parametrize("flow", ["both", "last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranges_of_time_give_the_bits_of_one_pass(case, flow, force):
    # Only these two: sums have a test of their own.
    asked = {"current", "mem"}
    tensors = leaves(inputs(case))
    tensors |= {name: t.detach() for name, t in tensors.items() if t is not None and name not in asked}
    results = {}
    for ranges in (WHOLE, (2, 16), (3, 32), (5, 16), (2, 1024)):
        force(*ranges)
        results[ranges], made, _ = counted(gradients, snnfast.functional.lif, tensors, case, flow)
        assert made >= 2 or ranges == WHOLE or case.steps <= 16
    for ranges, found in results.items():
        for name, expected in results[WHOLE].items():
            if expected is not None:
                assert_bits_equal(found[name], expected, f"{ranges}: {name}")


@pytest.mark.parametrize("kept", ["membranes in bfloat16", "bits"])
@pytest.mark.parametrize("reset", RESETS)
def test_ranges_of_time_read_whatever_was_kept(kept, reset, force):
    case = Case(75, (2, 33), reset=reset, record_mem=False)
    lif = snnfast.functional.lif
    if kept == "bits":
        case = Case(75, (2, 33), reset=reset, record_mem=False, spike_grad=SURROGATES["straight_through_estimator"])
    else:
        lif = functools.partial(lif, membrane_dtype=torch.bfloat16)
    tensors = leaves(inputs(case))
    tensors |= {name: tensors[name].detach() for name in ("beta", "threshold", "graded_spikes_factor")}
    force(*WHOLE)
    expected = gradients(lif, tensors, case)
    for ranges in ((2, 16), (4, 16), (3, 1024)):
        force(*ranges)
        assert_bits_equal(gradients(lif, tensors, case)["current"], expected["current"])


def test_neurons_that_have_not_forgotten_are_done_once_more(force):
    grad_spk = torch.rand(320, 200)
    beta = torch.full((200,), 0.5)
    beta[70] = 1.0
    force(*WHOLE)
    expected = of_current(grad_spk, beta)
    force(2, 96)
    found, ranges, repeated = counted(of_current, grad_spk, beta)
    assert ranges == 2
    assert repeated == 64  # those that are done together with neuron 70
    assert_bits_equal(found, expected)


def test_few_neurons_and_many_steps_are_divided(chosen):
    torch.set_num_threads(2)
    grad_spk = torch.rand(4096, 1, 256)
    assert counted(of_current, grad_spk, 0.95)[1:] == (2, 0)


@pytest.mark.parametrize(
    ("shape", "beta", "threads"),
    [
        ((4096, 256), 1.0, 2), ((4096, 256), 0.999, 2), ((100, 256), 0.95, 2), ((500, 40000), 0.5, 2),
        ((4096, 256), 0.9, 1),
    ],
    ids=["no decay", "little decay", "few steps", "many neurons", "one thread"],
)  # fmt: skip
def test_what_would_not_gain_is_one_pass(shape, beta, threads, chosen):
    torch.set_num_threads(threads)
    assert counted(of_current, torch.rand(shape), beta)[1:] == (0, 0)


SUMS = [
    Case(steps, (1, neurons), dtype, reset, delay, record_mem, constant, parameters, count=count)
    for i, (delay, record_mem, constant, count) in enumerate(itertools.product((True, False), repeat=4))
    for j, (dtype, reset) in enumerate(itertools.product((*FLOATS, torch.float16), RESETS))
    for steps, neurons, parameters in [((257, 40, "neuron"), (700, 97, "scalar"), (1025, 130, "neuron"))[(i + j) % 3]]
]
"""Beyond 256 steps, which are summed up by themselves."""


@pytest.mark.parametrize("case", SUMS, ids=str)
def test_sums_over_time_have_one_order(case, force):
    tensors = leaves(inputs(case, wild=True))
    force(*WHOLE)
    expected = gradients(snnfast.functional.lif, tensors, case)
    for ranges in ((2, 64), (3, 512), (4, 16), (2, 4096)):
        force(*ranges)
        found, made, _ = counted(gradients, snnfast.functional.lif, tensors, case)
        assert made >= 2
        for name, gradient in expected.items():
            assert_bits_equal(found[name], gradient, f"{ranges}: {name}")


@pytest.mark.parametrize("ranges", [WHOLE, (3, 64)], ids=["whole", "divided"])
@pytest.mark.parametrize("case", SUMS, ids=str)
def test_sums_over_many_steps_equal_the_reference(case, ranges, force):
    force(*ranges)
    # The reference adds up so many steps one by one.
    relative = 1e-4 if case.dtype == torch.float32 else None
    check_against_reference(case, torch.device("cpu"), wild=True, relative=relative)


@pytest.mark.parametrize("keep", ["rounded", "bits"])
def test_sums_of_what_is_kept_in_less_have_one_order(keep, force):
    torch.manual_seed(0)
    current = torch.randn(600, 100, requires_grad=True)
    threshold = torch.rand(100).add(0.5).requires_grad_()
    options = {
        "rounded": {"membrane_dtype": torch.bfloat16},
        "bits": {"spike_grad": snnfast.surrogate.straight_through_estimator()},
    }[keep]
    spk, _ = snnfast.functional.lif(current, beta=0.9, threshold=threshold, record_mem=False, **options)
    grad_spk, found = torch.rand_like(spk), []
    for ranges in (WHOLE, (2, 64), (3, 16)):
        force(*ranges)
        found.append(torch.autograd.grad(spk, (current, threshold), grad_spk, retain_graph=True))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert_bits_equal(a, b)
    # From all steps at once, in another way: threshold enters through the distance and through what a spike takes away.
    leaf = threshold.detach().clone().requires_grad_()
    with snnfast.use_backend("reference"):
        spk, _ = snnfast.functional.lif(current.detach(), beta=0.9, threshold=leaf, record_mem=False, **options)
        (expected,) = torch.autograd.grad(spk, leaf, grad_spk)
    tolerance = 2**-7 if keep == "rounded" else 1e-5
    torch.testing.assert_close(found[0][1], expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(("steps", "ranges"), [(600, (2, 96)), (1100, (2, 96)), (1100, (4, 96))], ids=str)
def test_sums_of_repeated_neurons_are_right(steps, ranges, force):
    beta = torch.full((200,), 0.5)
    beta[70] = 1.0
    current, grad_spk = torch.randn(steps, 200), torch.rand(steps, 200)
    found = []
    for divided in (WHOLE, ranges):
        force(*divided)
        leaf = beta.clone().requires_grad_()
        spk, _ = snnfast.functional.lif(current, beta=leaf, record_mem=False)
        (gradient,), _, repeated = counted(torch.autograd.grad, spk, leaf, grad_spk)
        found.append((gradient, repeated))
    assert found[0][1] == 0
    assert found[1][1] == 64 * (ranges[0] - 1)
    assert_bits_equal(found[1][0], found[0][0])


def test_a_parameters_gradient_does_not_depend_on_what_else_is_asked_for(force):
    """Divided or not, and with the gradient of a constant current rounded to 16 bits beside it or not."""
    torch.manual_seed(0)
    for steps in (100, 700):
        current, beta = torch.randn(64, dtype=torch.float16), torch.rand(64).requires_grad_()
        found = []
        for asks, ranges in itertools.product((True, False), (WHOLE, (2, 64))):
            force(*ranges)
            x = current.clone().requires_grad_(asks)
            spk, _ = snnfast.functional.lif(x, beta=beta, num_steps=steps, record_mem=False)
            found.append(torch.autograd.grad(spk, beta, torch.ones_like(spk))[0])
        for other in found[1:]:
            assert_bits_equal(other, found[0])


@pytest.mark.parametrize(("neurons", "ranges"), [(128, 2), (256, 0)])
def test_where_no_gradient_has_a_row_for_each_step_fewer_neurons_are_divided(neurons, ranges, chosen):
    torch.set_num_threads(2)
    torch.manual_seed(1)
    beta = torch.tensor(0.95, requires_grad=True)
    spk, _ = snnfast.functional.lif(torch.randn(4096, 1, neurons), beta=beta, record_mem=False)
    assert counted(torch.autograd.grad, spk, beta, torch.rand_like(spk))[1:] == (ranges, 0)
    assert counted(of_current, torch.rand(4096, neurons), 0.95, 4096)[1:] == (ranges, 0)


def test_neurons_that_learn_are_divided(chosen):
    torch.set_num_threads(2)
    torch.manual_seed(1)
    current, beta = torch.randn(4096, 1, 256, requires_grad=True), torch.tensor(0.95, requires_grad=True)
    spk, _ = snnfast.functional.lif(current, beta=beta, record_mem=False)
    assert counted(torch.autograd.grad, spk, (current, beta), torch.rand_like(spk))[1:] == (2, 0)


def test_calls_that_have_to_repeat_neurons_become_rare(chosen):
    torch.set_num_threads(2)
    # Gradients at the end alone, which only decay from there.
    grad_spk = torch.zeros(4096, 64)
    grad_spk[-1] = 1
    tried = [counted(of_current, grad_spk, 0.95)[1] for _ in range(20)]
    assert tried[0] == 2
    assert 2 <= sum(made == 2 for made in tried) <= 5
    for _ in range(65):
        of_current(grad_spk, 0.95)
    assert sum(counted(of_current, grad_spk, 0.95)[1] == 2 for _ in range(70)) in (1, 2)


def test_gradients_that_are_not_finite_give_the_bits_of_one_pass(force):
    grad_spk = torch.rand(200, 40)
    grad_spk[150, 3], grad_spk[20, 7] = float("inf"), float("nan")
    force(*WHOLE)
    expected = of_current(grad_spk)
    force(4, 16)
    assert_bits_equal(of_current(grad_spk), expected)
