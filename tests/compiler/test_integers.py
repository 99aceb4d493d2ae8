"""Whole numbers of a recurrence, such as the steps that a neuron still rests, are states of its program."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_nets import QUICK_WAYS
from loop_ops import Masked
from torch import Tensor

import snnfast
from benchmarks.collection.comparison import EXACT, difference, seen

pytestmark = [pytest.mark.usefixtures("nothing_compiled"), pytest.mark.needs_extension]


def _neuron(x: Tensor, start: Tensor, gate: Callable[..., Tensor], count: Callable[..., Tensor]) -> Any:
    v, r, rec, rests = torch.zeros_like(x[0]), start, [], []
    for x_t in x:
        v = 0.9 * v + gate(r, x_t)
        spk = Masked.apply(v - 1.0)
        v = v - spk
        r = count(r, spk)
        rec.append(spk)
        rests.append(r)
    return torch.stack(rec), torch.stack(rests), v, r


def _gated(r: Tensor, x: Tensor) -> Tensor:
    return torch.where(r > 0, torch.zeros_like(x), x)


COUNTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where": lambda r, s: torch.where(s > 0, torch.full_like(r, 2), (r - 1).clamp_min(0)),
    "number": lambda r, s: torch.where(s > 0, 2, torch.relu(r - 1)),
    "filled": lambda r, s: torch.clamp(r - 1, min=0).masked_fill(s > 0, 3),
    "added": lambda r, s: (r - 1).clamp(min=0) + 2 * (s > 0).to(r.dtype),
    "maximum": lambda r, s: torch.maximum(r - 1, 2 * (s > 0).to(r.dtype)).clamp(0, 5),
    "masked": lambda r, s: (r + (s > 0)) * (r < 3),
    "negative": lambda r, s: torch.where(s > 0, -2, torch.minimum(1 - (1 - r - 1), torch.zeros_like(r))),
}
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where": _gated,
    "product": lambda r, x: x * (r == 0),
    "difference": lambda r, x: x - r,
    "as float": lambda r, x: x * (1 - (r > 0).long()) - 0.25 * r.to(x.dtype),
}


def check(loop: Callable[..., Any], by: Any, dtype: torch.dtype, *inputs: Any) -> None:
    compiled = by(loop)
    for T in (9, 9, 12) if by is snnfast.compile else (9,):
        x = (torch.rand(T, 4, 5, generator=torch.Generator().manual_seed(T)) * 2).to(dtype).requires_grad_()
        left = []
        for function in (compiled, loop):
            found = function(x, *inputs)
            (gradient,) = torch.autograd.grad((found[0] * found[2]).square().sum() + found[2].sum(), x)
            left.append([*seen(found), ("grad of x", gradient)])
        assert difference(*left, EXACT[str(dtype).removeprefix("torch.")]) is None


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize(
    ("gate", "count", "whole", "dtype"),
    [
        (gate, count, *((torch.int64, torch.float32) if i % 2 else (torch.int32, torch.float64)))
        for i, (gate, count) in enumerate([("where", c) for c in COUNTS] + [(g, "where") for g in GATES])
    ],
)
def test_a_counter_is_a_state(
    gate: str, count: str, whole: torch.dtype, dtype: torch.dtype, by: Any, reports: list[Any]
) -> None:
    def loop(x: Tensor) -> Any:
        return _neuron(x, torch.zeros(x.shape[1:], dtype=whole), GATES[gate], COUNTS[count])

    check(loop, by, dtype)
    if count != "negative":  # whose first step is apart
        assert reports
        for report in reports:
            assert any("one recurrence" in str(line) for line in report.merged)
            assert not report.repeated


LARGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "doubled": lambda r, s: r + r + (s > 0),
    "product": lambda r, s: (r + (s > 0)) * 3,
    "squared": lambda r, s: (r + (s > 0)) * r.clamp(min=2),
    "number": lambda r, s: torch.where(s > 0, 2**31 + 1, r - 1),
    "division": lambda r, s: (r + 5 * (s > 0)) // 2,
    "bits": lambda r, s: (r + 5 * (s > 0)) & 6,
    "truncated": lambda r, s: r + (s * 2.5).to(r.dtype),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("count", LARGE)
def test_numbers_that_may_become_large_are_as_in_the_loop(count: str, by: Any) -> None:
    def loop(x: Tensor) -> Any:
        return _neuron(x, torch.zeros(x.shape[1:], dtype=torch.int64), _gated, LARGE[count])

    check(loop, by, torch.float32)
    (graph,) = snnfast.explain(loop, torch.rand(9, 4, 5)).graphs
    assert not any("one recurrence" in str(line) for line in graph.merged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [torch.full((4, 5), 2**30 + 1), torch.zeros(4, 5, dtype=torch.uint8)], ids=str)
def test_a_counter_of_the_caller_or_of_few_bits_is_as_in_the_loop(start: Tensor) -> None:
    def loop(x: Tensor, given: Tensor) -> Any:
        return _neuron(x, given, _gated, lambda r, s: r - (s > 0).to(r.dtype))

    check(loop, snnfast.compile, torch.float32, start)


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("start", [0, 3, 2**30 + 1])
def test_a_counter_may_begin_as_a_number(start: int, by: Any) -> None:
    def loop(x: Tensor) -> Any:
        v, r, rec = torch.zeros_like(x[0]), start, []
        for x_t in x:
            v = 0.9 * v + x_t
            spk = Masked.apply(v - 1.0 - 0.25 * (torch.as_tensor(r) == 2))
            v = v - spk
            r = torch.where(spk > 0, 2, r - 1)
            rec.append(spk)
        return torch.stack(rec), r, v

    check(loop, by, torch.float32)
