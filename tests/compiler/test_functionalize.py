"""Changes in place become new tensors, where nothing depends on the old ones."""

import torch
from compiler.forms import after, steps, tensor
from torch import Tensor


def test_a_record_is_a_stack_and_a_running_sum_makes_new_tensors() -> None:
    def loop(xs: list[Tensor]) -> tuple[Tensor, Tensor]:
        rec, acc = torch.zeros(2, 2), xs[0] * 0
        for t, x in enumerate(xs):
            rec[t] = x.sin()
            acc += x
        return rec, acc

    after("functionalize", loop, steps()).expect("""\
zeros = zeros([2, 2], device=cpu, pin_memory=False)
mul = mul(x, 0)
sin = sin(x)
add = add(mul, x)
sin_1 = sin(x_1)
stack = stack([sin, sin_1], 0)
add_1 = add(add, x_1)
return [stack, add_1]""")


def test_a_row_read_after_it_was_written_is_what_was_written() -> None:
    def loop(xs: list[Tensor]) -> Tensor:
        rec = torch.zeros(2, 2)
        for t, x in enumerate(xs):
            rec[t] = x + rec[t - 1]
        return rec

    after("functionalize", loop, steps()).expect("""\
zeros = zeros([2, 2], device=cpu, pin_memory=False)
zeros_1 = zeros([2, 2], device=cpu, pin_memory=False)
select = select(zeros_1, 0, 1)
add = add(x, select)
add_1 = add(x_1, add)
stack = stack([add, add_1], 0)
return [stack]""")


def test_what_is_read_through_a_view_or_comes_from_outside_stays_in_place() -> None:
    def loop(acc: Tensor) -> Tensor:
        twice = acc * 2
        view = twice[:1]
        twice += acc
        acc += view
        return view * 2

    after("functionalize", loop, tensor()).expect("""\
mul = mul(x, 2)
slice = slice(mul, 0, 0, 1)
add_ = add_(mul, x)
add__1 = add_(x, slice)
mul_1 = mul(slice, 2)
return [mul_1]""")
