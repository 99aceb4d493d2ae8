"""A program begins where its steps have the fewest states."""

from typing import Any

import pytest
from compiler.forms import after_merging, tensor
from torch import Tensor

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def test_a_step_that_begins_in_the_middle_of_the_loops() -> None:
    """From ``gt`` on there is one state; from ``mul`` on there are two."""

    def loop(x: Tensor) -> list[Tensor]:
        mem: Any = 0
        spk: Any = 0
        out = []
        for t in range(5):
            mem = mem * 0.9 + x[t] - spk
            spk = (mem > 1).float()
            out.append(spk)
        return out

    after_merging("distribute", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(d[-1], 0.9)  Program; from step 1; first d[-1]: 0.0
  b = x_1[t]  Index
  c = add(a, b)  Program
  d = sub(c, f[-1])  Program
  e = gt(d, 1)  Program; until step 3; first d[-1]: 0.0
  f = to(e, torch.float32)  Program; until step 3""")
