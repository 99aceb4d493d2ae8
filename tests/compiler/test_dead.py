"""Calls whose results nobody reads are removed."""

from compiler.forms import after, steps, tensor
from torch import Tensor

import snnfast


def test_only_calls_that_other_steps_need_are_kept() -> None:
    def loop(xs: list[Tensor], mem: Tensor) -> list[Tensor]:
        found = []
        for x in xs:
            x.exp()
            found.append(mem.sin())
            mem = mem + x
        return found

    after("dead", loop, steps(), tensor()).expect("""\
sin = sin(x_1)
add = add(x_1, x)
sin_1 = sin(add)
return [sin, sin_1]""")


def test_a_step_of_a_layer_keeps_results_that_nobody_reads() -> None:
    lif = snnfast.Leaky(beta=0.5)

    def loop(xs: list[Tensor], mem: Tensor) -> Tensor:
        for x in xs:
            spk, mem = lif(x, mem)
        return spk

    after("dead", loop, steps(), tensor()).expect("""\
step = step[leaky](x, x_1)
getitem = step[0]
getitem_1 = step[1]
step_1 = step[leaky](x_5, getitem_1)
getitem_2 = step_1[0]
getitem_3 = step_1[1]
return [getitem_2, getitem_3]""")
