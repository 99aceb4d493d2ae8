"""dynamo's graph as ATen calls."""

import torch
from compiler.forms import after, steps, tensor
from torch import Tensor


def test_each_call_has_one_spelling() -> None:
    def loop(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x.sum(axis=0), torch.sum(x, dim=0), torch.add(x, y), x + y, x.contiguous(), x.view(1, -1)]

    after("aten", loop, tensor(), tensor()).expect("""\
sum = sum(x, [0])
sum_1 = sum(x, [0])
add = add(x, x_1)
add_1 = add(x, x_1)
view = view(x, [1, -1])
return [sum, sum_1, add, add_1, x, view]""")


def test_grad_mode_and_autocast_belong_to_each_call() -> None:
    def loop(xs: list[Tensor]) -> list[Tensor]:
        found = []
        for x in xs:
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu"):
                found.append(y + 1)
        return found

    after("aten", loop, steps()).expect("""\
mul = mul(x, 2) under no_grad
add = add(mul, 1) under autocast
mul_1 = mul(x_1, 2) under no_grad
add_1 = add(mul_1, 1) under autocast
return [add, add_1]""")
