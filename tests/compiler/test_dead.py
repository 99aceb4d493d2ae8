"""Calls whose results nobody reads are removed."""

from compiler.forms import after, steps, tensor
from torch import Tensor


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
