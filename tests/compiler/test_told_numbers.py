"""Numbers that a program tells: told apart from one another, and from numbers of steps."""

from typing import Any

import pytest
import torch
from loop_nets import WAYS
from torch import Tensor

import snnfast

pytestmark = [pytest.mark.needs_extension]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Also the signs of zeros."""
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(1 / found, 1 / expected)


@pytest.mark.parametrize("zeros", [(0.0, 0.0, 0.0, -0.0), (-0.0, -0.0, -0.0, 0.0), (0.0, -0.0, 0.0, -0.0)])
def test_zeros_of_both_signs_differ_at_any_size_of_a_batch(zeros: tuple[float, ...]) -> None:
    def loop(x: Tensor, zero: float) -> Tensor:
        mem = torch.zeros_like(x[0])
        for x_t in x:
            mem = (0.5 * mem + x_t) * zero
        return mem

    compiled = snnfast.compile(loop)
    for batch, zero in zip((3, 5, 4, 6), zeros, strict=True):
        x = torch.ones(7, batch, 2)
        assert_same(compiled(x, zero), loop(x, zero))


def test_a_number_that_is_not_a_number_has_one_graph_for_any_size_of_a_batch() -> None:
    def loop(x: Tensor, fill: float) -> Tensor:
        mem = torch.zeros_like(x[0])
        for x_t in x:
            mem = torch.tanh(0.5 * mem + x_t)
        return mem.masked_fill(mem > 0.9, fill)

    compiled = snnfast.compile(loop)
    for batch in (3, 5, 4):
        x = torch.ones(7, batch, 2)
        torch.testing.assert_close(compiled(x, torch.nan), loop(x, torch.nan), equal_nan=True)


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("odd", [0, 3, 7])
def test_a_zero_of_another_sign_at_one_step_stays(odd: int, by: Any) -> None:
    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rec = torch.zeros_like(x[0]), []
        for t in range(len(x)):
            mem = (0.5 * mem + x[t]) * (-0.0 if t == odd else 0.0)
            rec.append(mem)
        return torch.stack(rec), mem

    x = torch.ones(8, 2, 3)
    for found, expected in zip(by(loop)(x), loop(x), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("number", [7, 9, 10, 17])
def test_an_index_that_a_program_tells_is_no_number_of_steps(number: int) -> None:
    def loop(x: Tensor, bias: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        for x_t in x:
            mem = torch.tanh(0.5 * mem + x_t)
        return (mem + bias[number]) * number

    said = snnfast.explain(loop, torch.rand(12, 2, 3), torch.rand(30, 3))
    assert "its graph is for any number of steps" in said.notes
