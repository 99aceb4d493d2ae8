"""What is cut into gates is cut before it is computed, and a cell is spelled out, where each step waits for the last."""

import torch
from compiler.forms import after, steps, tensor
from torch import Tensor, nn

fc, rec, cell = nn.Linear(3, 4), nn.Linear(2, 4), nn.GRUCell(3, 2)


def test_gates_are_sums_of_pieces() -> None:
    def loop(xs: list[Tensor], h: Tensor) -> Tensor:
        for x in xs:
            i, g = (fc(x) + rec(h)).chunk(2, 1)
            h = i * g
        return h

    after("gates", loop, [*steps(2, 3), tensor(2, 3)], tensor(2, 2)).expect("""""")


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
