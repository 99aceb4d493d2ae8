"""Counts become one, where nobody reads them in between."""

import torch
from compiler.forms import after, steps
from torch import Tensor


def test_calls_are_counted_at_once() -> None:
    def loop(xs: list[Tensor], count: Tensor) -> list[Tensor]:
        found = []
        for x in xs:
            count.add_(1)
            found.append(x.sin())
        return found

    after("counts", loop, steps(), torch.tensor(0)).expect("""\
sin = sin(x_1)
add_ = add_(x, 2)
sin_1 = sin(x_2)
return [sin, sin_1]""")


def test_a_count_that_is_read_in_between_stays() -> None:
    after("counts", lambda xs, count: [x * count.add_(1) for x in xs], steps(), torch.tensor(0)).expect("""\
add_ = add_(x, 1)
mul = mul(x_1, add_)
add__1 = add_(add_, 1)
mul_1 = mul(x_2, add__1)
return [mul, mul_1]""")
