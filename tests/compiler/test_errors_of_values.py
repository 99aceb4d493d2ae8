"""An error that PyTorch raises for the values of a step is raised for those of all steps, too."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from loop_nets import WAYS
from torch import Tensor

pytestmark = [pytest.mark.needs_extension]


def classes(x: Tensor, number: int) -> Tensor:
    mem, rec = torch.zeros_like(x[0]), []
    for x_t in x:
        mem = 0.9 * mem + x_t
        rec.append(F.one_hot(mem.long(), number))
    return torch.stack(rec)


@pytest.mark.parametrize("by", WAYS)
def test_a_class_that_is_too_large_or_negative_is_an_error(by: Any) -> None:
    compiled = by(classes)
    for sign, number in ((1, 8), (1, 4), (-1, 4)):
        x = torch.full((9, 2, 3), 1.0 * sign)
        try:
            expected = classes(x, number)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=str(error)):
                compiled(x, number)
        else:
            torch.testing.assert_close(compiled(x, number), expected)


@pytest.mark.parametrize("by", WAYS)
def test_one_hot_without_a_number_of_classes_is_that_of_the_loop(by: Any) -> None:
    def loop(x: Tensor) -> Tensor:
        mem, found = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = torch.tanh(mem + x_t)
            found.append(F.one_hot((3 * mem).long()).sum())
        return torch.stack(found)

    x = torch.rand(9, 2, 3)
    torch.testing.assert_close(by(loop)(x), loop(x))
