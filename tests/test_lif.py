"""The fused forward pass equals ``reference.lif`` bit for bit, whatever the shape, layout, option or thread count."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import (
    FLOATS,
    HALVES,
    PARAMETERS,
    RESETS,
    SURROGATES,
    TENSORS,
    Case,
    assert_bits_equal,
    call,
    inputs,
    leaves,
    random_cases,
)
from torch import Tensor

from snnfast import reference
from snnfast.functional import lif

STEPS = (0, 1, 2, 8, 16, 17, 33, 129, 151)
SHAPES = ((), (0,), (1,), (7,), (3, 0), (0, 4), (3, 10), (1, 64), (2, 257), (2, 3, 5), (2, 3, 4, 5), (4, 1030))
Tensors = dict[str, Tensor | None]


def assert_equals_reference(tensors: Tensors, case: Case) -> tuple[Tensor, Tensor]:
    spk, mem = call(lif, tensors, case)
    spk_expected, mem_expected = call(reference.lif, tensors, case)
    assert_bits_equal(spk, spk_expected, f"{case}: spikes")
    assert_bits_equal(mem, mem_expected, f"{case}: membranes")
    assert spk.device == mem.device == tensors["current"].device  # type: ignore[union-attr]
    return spk, mem


OPTIONS = [
    Case(17, (3, 10), dtype, reset, delay, record_mem, constant)
    for dtype, reset, delay, (record_mem, constant) in itertools.product(
        FLOATS + HALVES, RESETS, (True, False), ((True, False), (False, False), (True, True), (False, True))
    )
]


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_every_option(case: Case, device: torch.device) -> None:
    assert_equals_reference(inputs(case, device), case)


@pytest.mark.parametrize("steps", STEPS, ids=lambda n: f"T{n}")
def test_every_number_of_steps(steps: int, device: torch.device) -> None:
    for i, case in enumerate(
        random_cases(
            12, seed=steps, steps=(steps,), shape=((5,), (3, 10), (2, 33)), dtype=FLOATS + HALVES, reset=RESETS,
            delay=(True, False), record_mem=(True, False), constant=(True, False), mem=(True, False),
        )
    ):  # fmt: skip
        assert_equals_reference(inputs(case, device, seed=i), case)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)) or "0d")
def test_every_shape_with_every_parameter_shape(shape: tuple[int, ...], device: torch.device) -> None:
    for i, parameters in enumerate(PARAMETERS):
        if parameters == "mixed" and len(shape) < 2:
            continue
        dtype, reset = (FLOATS + HALVES)[i % 4], RESETS[i % 3]
        case = Case(5, shape, dtype, reset, i % 2 == 0, i % 5 != 0, i % 4 == 3, parameters, i % 3 != 1)
        assert_equals_reference(inputs(case, device, seed=i), case)


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
def test_many_neurons_and_few(reset: str, delay: bool, device: torch.device) -> None:
    """Full vectors and what is left over, several blocks of neurons, and fewer neurons than a vector."""
    for shape in ((8, 4096), (3, 1367), (16,), (17,), (3,)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            case = Case(3, shape, dtype, reset, delay, parameters="neuron")
            assert_equals_reference(inputs(case, device), case)


@pytest.mark.parametrize("name", list(SURROGATES))
def test_the_surrogate_does_not_change_the_forward_pass(name: str, device: torch.device) -> None:
    expected = call(reference.lif, inputs(Case()), Case())
    case = Case(spike_grad=SURROGATES[name])
    for spike_grad in (case.spike_grad, lambda z: case.spike_grad(z)):  # known to the kernels, and any callable
        actual = lif(**inputs(case, device), **{**case.options, "spike_grad": spike_grad})
        for a, b in zip(actual, expected, strict=True):
            assert_bits_equal(a, b)


def with_layout(t: Tensor, layout: str) -> Tensor:
    """The values of ``t`` in another layout in memory."""
    if layout == "reversed":
        return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    if layout == "every_second":
        return torch.stack([t, t.new_full(t.shape, math.nan)], dim=-1).flatten(-2)[..., ::2]
    if layout == "misaligned":
        return torch.cat([t.new_full((1,), math.nan), t.flatten()])[1:].view(t.shape)
    if layout == "channels_last" and t.dim() > 1:
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.mT.contiguous().mT
    return t


@pytest.mark.parametrize("layout", ["reversed", "every_second", "misaligned", "channels_last"])
def test_the_layout_in_memory_changes_neither_results_nor_gradients(layout: str, device: torch.device) -> None:
    for i, shape in enumerate([(6, 3, 4, 5), (6, 40), (33,)]):
        for case in (
            Case(6, shape, torch.float32, RESETS[i], i != 1, parameters="element"),
            Case(6, shape, torch.bfloat16, RESETS[i], i == 1, record_mem=False, parameters="neuron"),
            Case(6, shape, torch.float64, RESETS[i], constant=True, parameters="element"),
        ):
            plain = leaves(inputs(case, device))
            moved = {n: with_layout(t.detach(), layout).requires_grad_() for n, t in plain.items() if t is not None}
            results = []
            for tensors in (plain, moved):
                spk, mem = call(lif, tensors, case)
                weights = with_layout(torch.full_like(spk, 0.5), layout)
                loss = (spk * weights).sum() + mem.sum()
                results.append((spk, mem, *torch.autograd.grad(loss, list(tensors.values()))))
            for a, b in zip(*results, strict=True):
                assert_bits_equal(b, a, f"{case}, {layout}")


def test_expanded_inputs(device: torch.device) -> None:
    case = Case(9, (4, 12), parameters="scalar")
    tensors = inputs(case, device)
    row = torch.rand(12, device=device)
    for expanded in (
        {"current": row.expand(9, 4, 12)},
        {"current": torch.rand(9, 4, 1, device=device).expand(9, 4, 12)},
        {"mem": row.expand(4, 12)},
        {"beta": row.expand(4, 12), "threshold": row[:1].expand(12), "graded_spikes_factor": row[0].expand(4, 1)},
    ):
        assert_equals_reference({**tensors, **expanded}, case)


def test_a_current_that_does_not_change_equals_num_steps(device: torch.device) -> None:
    for case in (Case(20, constant=True), Case(20, dtype=torch.float16, constant=True, record_mem=False)):
        tensors = inputs(case, device)
        spk, mem = call(lif, tensors, case)
        repeated = {**tensors, "current": tensors["current"].expand(20, 3, 10)}  # type: ignore[union-attr]
        spk_expected, mem_expected = lif(**repeated, **{**case.options, "num_steps": None})
        assert_bits_equal(spk, spk_expected)
        assert_bits_equal(mem, mem_expected)


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=lambda d: str(d)[6:])
def test_nan_infinities_and_negative_zero(dtype: torch.dtype, device: torch.device) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1e-40, 3e38, 0.7], device=device)
    current, mem = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    special = torch.tensor([0.9, math.nan, math.inf, -0.0], device=device)
    for reset, delay in itertools.product(RESETS, (True, False)):
        for beta, threshold, graded in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 2, 2), (3, 3, 3), (0, 0, 1)):
            case = Case(4, (81,), dtype, reset, delay)
            tensors: Tensors = {
                "current": torch.stack([current, current.roll(1), current.roll(5), current.roll(30)]).to(dtype),
                "mem": mem,
                **dict(zip(TENSORS[2:], special[[beta, threshold, graded]], strict=True)),
            }
            assert_equals_reference(tensors, case)


def test_subnormal_numbers_are_not_flushed_to_zero(device: torch.device) -> None:
    for dtype, small in ((torch.float32, 1e-42), (torch.float64, 1e-310)):
        case = Case(3, (40,), dtype, "none")
        tensors = {**inputs(case, device), "threshold": torch.zeros((), dtype=dtype, device=device)}
        tensors["current"] = torch.full((3, 40), small, dtype=dtype, device=device)
        tensors["mem"] = torch.full((40,), -small, dtype=dtype, device=device)
        spk, mem = assert_equals_reference(tensors, case)
        assert (mem[-1] > 0).all()
        assert (spk[-1] > 0).all()


def test_multiplication_and_addition_round_separately(device: torch.device) -> None:
    """A fused multiply-add would leave the rounding error of the product, 2^-25, in the membrane."""
    beta = torch.tensor(1 + 2.0**-12, device=device) / 2
    mem = torch.full((64,), 1 + 2.0**-12, device=device)
    current = -(beta * mem).expand(1, 64)
    spk, mem_rec = lif(current, mem, beta=beta, threshold=2.0)
    assert not mem_rec.any()
    assert not spk.any()


def test_dtypes_promote_as_in_the_reference(device: torch.device) -> None:
    single, double, half = (torch.rand(5, device=device).to(d) for d in (torch.float32, torch.float64, torch.float16))
    for current, mem, beta, threshold, record_mem in itertools.product(
        (single, double, half), (None, single, double, half), (single, double), (double, double[0], half), (True, False)
    ):
        args, kwargs = (current.expand(6, 5), mem), {"beta": beta, "threshold": threshold, "record_mem": record_mem}
        for a, b in zip(lif(*args, **kwargs), reference.lif(*args, **kwargs), strict=True):
            assert_bits_equal(a, b, f"{current.dtype}, {mem if mem is None else mem.dtype}, {kwargs}")


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_results_share_no_memory_with_inputs_or_each_other(steps: int, device: torch.device) -> None:
    for dtype, record_mem, constant in itertools.product((torch.float32, torch.float16), (True, False), (True, False)):
        case = Case(steps, (3, 10), dtype, record_mem=record_mem, constant=constant, parameters="element")
        tensors = inputs(case, device)
        before = {name: t.clone() for name, t in tensors.items() if t is not None}
        spk, mem = call(lif, tensors, case)
        spk.fill_(-5)
        assert not (mem == -5).any()
        mem.fill_(-7)
        assert not (spk == -7).any()
        for name, t in before.items():
            assert_bits_equal(tensors[name], t, f"{case}: {name}")  # type: ignore[arg-type]


def test_without_gradients_the_results_are_the_same(device: torch.device) -> None:
    for case in OPTIONS[::7]:
        tensors = inputs(case, device)
        expected = call(lif, leaves(tensors), case)
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                results = call(lif, tensors, case)
            for a, b in zip(results, expected, strict=True):
                assert_bits_equal(a, b, str(case))
                assert not a.requires_grad
                assert b.requires_grad


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_number_of_threads_and_repetition_change_no_bit(record_mem: bool, device: torch.device) -> None:
    case = Case(20, (7, 3001), record_mem=record_mem, delay=record_mem)
    tensors = leaves(inputs(case, device))
    weights = torch.rand(20, 7, 3001, device=device)
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        spk, mem = call(lif, tensors, case)
        loss_gradients = (weights, torch.ones_like(mem))
        results.append((spk, mem, *torch.autograd.grad((spk, mem), list(tensors.values()), loss_gradients)))
    for again in results[1:]:
        for name, a, b in zip(("spk", "mem", *TENSORS), again, results[0], strict=True):
            assert_bits_equal(a, b, name)


def test_results_keep_their_values_whatever_is_called_and_freed_later(device: torch.device) -> None:
    case = Case(20, (7, 4001), record_mem=False)
    spk, mem = call(lif, inputs(case, device), case)
    kept, expected = (spk[3], spk[-1, 2:], mem), (spk[3].clone(), spk[-1, 2:].clone(), mem.clone())
    del spk, mem
    for seed in range(1, 5):
        call(lif, inputs(case, device, seed), case)
    for a, b in zip(kept, expected, strict=True):
        assert_bits_equal(a, b)


def test_calls_from_several_threads_at_once(device: torch.device) -> None:
    cases = [Case(30, (7, 1001), dtype, reset) for dtype in FLOATS for reset in RESETS]

    def run(case: Case) -> list[Tensor]:
        tensors = leaves(inputs(case, device))
        spk, mem = call(lif, tensors, case)
        loss = spk.sum() + mem.square().sum()
        return [spk, mem, *torch.autograd.grad(loss, list(tensors.values()))]

    expected = [run(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for found, results in zip(pool.map(run, cases * 3), expected * 3, strict=True):
            for name, a, b in zip(("spk", "mem", *TENSORS), found, results, strict=True):
                assert_bits_equal(a, b, name)


def test_random_calls(device: torch.device) -> None:
    cases = random_cases(
        150, seed=3, steps=(1, 3, 16, 40), shape=((1,), (9,), (3, 10), (2, 3, 7), (2, 4, 3, 3)), dtype=FLOATS + HALVES,
        reset=RESETS, delay=(True, False), record_mem=(True, False), constant=(True, False, False),
        parameters=PARAMETERS, mem=(True, False),
    )  # fmt: skip
    for i, case in enumerate(cases):
        assert_equals_reference(inputs(case, device, seed=i, wild=i % 2 == 0), case)
