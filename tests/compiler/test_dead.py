"""Calls whose results nobody reads are removed."""

from compiler.forms import after, x, xs
from expecttest import assert_expected_inline
from torch import Tensor


def test_only_calls_that_other_steps_need_are_kept() -> None:
    def loop(xs: list[Tensor], mem: Tensor) -> list[Tensor]:
        found = []
        for x in xs:
            x.exp()
            found.append(mem.sin())
            mem = mem + x
        return found

    assert_expected_inline(
        after("dead", loop, xs(), x()),
        """\
sin = sin(x_1)
add = add(x_1, x)
sin_1 = sin(add)
return [sin, sin_1]""",
    )
