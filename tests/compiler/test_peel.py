"""A first step that differs is taken in where it is the same step with numbers as states."""

from collections.abc import Callable
from typing import Any

import pytest
from compiler.forms import after_merging, tensor
from torch import Tensor

import snnfast

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def beginning(first: Callable[[Tensor], Tensor]) -> Any:
    """A neuron by hand, with another formula for its first membrane."""

    def loop(x: Tensor) -> list[Tensor]:
        mem, out = first(x[0]), []
        for t in range(5):
            mem = mem * 0.9 + x[t] if t else mem
            spk = (mem > 1).float()
            mem = mem - spk
            out.append(spk)
        return out

    return loop


def test_a_first_membrane_that_is_the_input() -> None:
    after_merging("distribute", beginning(lambda x: x), tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(f[-1], 0.9)  Program; from step 1; first f[-1]: -0.0
  b = x_1[t]  Index
  c = add(a, b)  Program; from step 1
  d = gt(c, 1)  Program
  e = to(d, torch.float32)  Program
  f = sub(c, e)  Program""")


def test_a_first_membrane_of_another_formula_stays_outside() -> None:
    after_merging("distribute", beginning(lambda x: x.tanh()), tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(f[-1], 0.9)  Program; from step 1; first f[-1]: sub_1
  b = x_1[t]  Index
  c = add(a, b)  Program; from step 1
  d = gt(c, 1)  Program; from step 1
  e = to(d, torch.float32)  Program; from step 1
  f = sub(c, e)  Program; from step 1""")


@pytest.mark.parametrize(
    ("first", "said"), [(lambda x: x, "5 steps of 5 calls"), (lambda x: x.tanh(), "4 steps of 5 calls")]
)
def test_explain_tells_the_steps_of_the_program(first: Callable[[Tensor], Tensor], said: str) -> None:
    (report,) = snnfast.explain(beginning(first), tensor(5, 2)).graphs
    (line,) = report.merged
    assert line.startswith(said)
