"""Each statement of a loop becomes one of a part: a call for all steps, an unroll, a program, or it is repeated."""

from typing import Any

import pytest
import torch
from compiler.forms import after_merging, tensor
from torch import Tensor, nn

import snnfast

pytestmark = pytest.mark.usefixtures("nothing_compiled")
lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(2, 2)


def test_the_part_of_each_statement_and_a_running_sum_that_is_repeated() -> None:
    def loop(x: Tensor) -> list[Any]:
        mem, trace, total, out = lif.reset_mem(), torch.zeros(2), torch.ones(2), []
        for t in range(5):
            spk, mem = lif(fc(x[t]), mem)
            trace = trace * 0.5 + spk
            total = total + spk
            out.append((trace, total))
        return out

    after_merging("distribute", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]  Index
  b = linear(a, W_1, b_1)  Call
  c, d = step[leaky](b, d[-1])  Unroll; first d[-1]: zeros
  e = mul(f[-1], 0.5)  Program; first f[-1]: zeros_1
  f = add(e, c)  Program
  g = add(g[-1], c)  Repeat: each call takes its own result of the step before, as a running sum does; first g[-1]: ones_1""")  # noqa: E501


def test_two_layers_that_share_a_state_are_one_program() -> None:
    def loop(x: Tensor) -> list[Tensor]:
        mem, out = lif.reset_mem(), []
        for t in range(5):
            spk, mem = lif(x[t], mem)
            spk, mem = lif(spk * 0.5, mem)
            out.append(spk)
        return out

    after_merging("distribute", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]  Index
  b, c = step[leaky](a, f[-1])  Program; first f[-1]: 0.0
  d = mul(b, 0.5)  Program
  e, f = step[leaky](d, c)  Program""")


def test_calls_of_last_steps_that_nobody_reads_are_dropped() -> None:
    def loop(x: Tensor) -> list[Tensor]:
        mem, current, out = lif.reset_mem(), torch.zeros(2), []
        for t in range(5):
            spk, mem = lif(current, mem)
            current = fc(x[t])
            out.append(spk)
        return out

    after_merging("distribute", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a, b = step[leaky](d[-1], b[-1])  Unroll; first d[-1]: zeros_1; first b[-1]: zeros
  c = x_1[t]  Index; until step 3
  d = linear(c, W_1, b_1)  Call; until step 3""")
