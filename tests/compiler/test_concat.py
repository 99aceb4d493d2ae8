"""Products of what is concatenated become sums of products, where one part waits for the step before."""

import torch
from compiler.forms import after, steps, tensor
from torch import Tensor, nn

import snnfast
from benchmarks.collection.comparison import TOLERANCES, difference, seen

fc = nn.Linear(3, 1)


def test_a_product_of_input_and_spikes_is_a_sum_of_two() -> None:
    def loop(xs: list[Tensor], spk: Tensor) -> Tensor:
        for x in xs:
            spk = fc(torch.cat((x, spk), 1))
        return spk

    after("concat", loop, [*steps(2, 2), tensor(2, 2)], tensor(2, 1)).expect("""\
slice = slice(W, 1, 0, 2)
slice_1 = slice(W, 1, 2, 3)
linear = linear(x, slice, b)
linear_1 = linear(x_1, slice_1)
add = add(linear, linear_1)
linear_2 = linear(x_2, slice, b)
linear_3 = linear(add, slice_1)
add_1 = add(linear_2, linear_3)
linear_4 = linear(x_3, slice, b)
linear_5 = linear(add_1, slice_1)
add_2 = add(linear_4, linear_5)
return [add_2]""")


def test_a_part_of_a_product_shares_its_memory() -> None:
    def loop(x: Tensor) -> tuple[Tensor, ...]:
        spk = x[0, :, :1]
        for x_t in x:
            spk = fc(torch.cat((x_t, spk), 1))
            part = spk[1:]
        return spk, part

    x = torch.rand(5, 3, 2)
    assert difference(seen(snnfast.compile(loop)(x)), seen(loop(x)), TOLERANCES["float32"]) is None
