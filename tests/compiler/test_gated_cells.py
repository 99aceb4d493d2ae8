"""Where a step waits for the last one, gates are cut before they are computed, and a cell is spelled out."""

import pytest
import torch
from compiler.forms import after, steps, tensor
from torch import Tensor, nn

import snnfast
from benchmarks.collection.comparison import TOLERANCES, difference, seen

fc, rec, cell = nn.Linear(3, 4), nn.Linear(2, 4), nn.GRUCell(3, 2)


def test_gates_are_sums_of_pieces() -> None:
    def loop(xs: list[Tensor], h: Tensor) -> Tensor:
        for x in xs:
            i, g = (fc(x) + rec(h)).chunk(2, 1)
            h = i * g
        return h

    after("gates", loop, [*steps(2, 3), tensor(2, 3)], tensor(2, 2)).expect("""\
linear = linear(x, W, b)
linear_1 = linear(x_1, W_1, b_1)
slice = slice(linear, 1, 0, 2)
slice_1 = slice(linear_1, 1, 0, 2)
add = add(slice, slice_1)
slice_2 = slice(linear, 1, 2, 4)
slice_3 = slice(linear_1, 1, 2, 4)
add_1 = add(slice_2, slice_3)
mul = mul(add, add_1)
linear_2 = linear(x_2, W, b)
linear_3 = linear(mul, W_1, b_1)
slice_4 = slice(linear_2, 1, 0, 2)
slice_5 = slice(linear_3, 1, 0, 2)
add_2 = add(slice_4, slice_5)
slice_6 = slice(linear_2, 1, 2, 4)
slice_7 = slice(linear_3, 1, 2, 4)
add_3 = add(slice_6, slice_7)
mul_1 = mul(add_2, add_3)
linear_4 = linear(x_3, W, b)
linear_5 = linear(mul_1, W_1, b_1)
slice_8 = slice(linear_4, 1, 0, 2)
slice_9 = slice(linear_5, 1, 0, 2)
add_4 = add(slice_8, slice_9)
slice_10 = slice(linear_4, 1, 2, 4)
slice_11 = slice(linear_5, 1, 2, 4)
add_5 = add(slice_10, slice_11)
mul_2 = mul(add_4, add_5)
return [mul_2]""")


def test_a_cell_is_products_and_gates() -> None:
    def loop(xs: list[Tensor], h: Tensor) -> Tensor:
        for x in xs:
            h = cell(x, h)
        return h

    lines = after("gates", loop, [*steps(2, 3), tensor(2, 3)], tensor(2, 2)).splitlines()
    assert sum("linear(" in line for line in lines) == 6
    assert not any("gru_cell" in line for line in lines)


def test_gates_that_wait_for_nothing_stay() -> None:
    def loop(xs: list[Tensor], h: Tensor) -> Tensor:
        for x in xs:
            i, g = fc(x).chunk(2, 1)
            h = h + torch.sigmoid(i) * g + cell(x)
        return h

    form = after("gates", loop, [*steps(2, 3), tensor(2, 3)], tensor(2, 2))
    assert form.count("chunk(") == form.count("gru_cell(") == 3


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_part_of_a_state_shares_its_memory(kind: type) -> None:
    cell = kind(3, 2)

    def loop(x: Tensor) -> tuple[Tensor, ...]:
        state = None
        for x_t in x:
            state = cell(x_t, state)
            last = state[1] if isinstance(state, tuple) else state
            part = last[:, 1:]
        return last, part

    x = torch.rand(5, 2, 3)
    assert difference(seen(snnfast.compile(loop)(x)), seen(loop(x)), TOLERANCES["float32"]) is None
