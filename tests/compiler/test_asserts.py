"""The conditions of an ``assert`` at all steps are checked at once."""

from compiler.forms import after, asserting, steps


def test_there_is_one_check_behind_the_last_condition() -> None:
    after("asserts", asserting, steps()).expect("""\
ge = ge(x, 0)
all = all(ge)
sin = sin(x)
ge_1 = ge(x_1, 0)
all_1 = all(ge_1)
stack = stack([all, all_1])
all_2 = all(stack)
_assert_async = _assert_async(all_2, 'negative')
sin_1 = sin(x_1)
return [sin, sin_1]""")
