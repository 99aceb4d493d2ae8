"""Elementwise calls of T copies of a tensor become calls of the tensor itself."""

from compiler.forms import after, tensor


def test_an_image_is_copied_behind_the_calls_that_change_each_copy_alike() -> None:
    after("repeats", lambda image: (image.repeat(3, 1) * 2).clamp(0, 1).sum(0), tensor()).expect("""\
mul = mul(x, 2)
clamp = clamp(mul, 0, 1)
repeat = repeat(clamp, [3, 1])
sum = sum(repeat, [0])
return [sum]""")
