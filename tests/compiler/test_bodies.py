"""Calls of an ``autograd.Function`` that dynamo wrote out become calls again."""

from compiler.forms import after, steps, tensor
from loop_ops import Plain
from torch import Tensor


def test_a_first_step_without_a_gradient_is_a_call_as_all_others() -> None:
    def loop(xs: list[Tensor], mem: Tensor, w: Tensor) -> list[Tensor]:
        found = []
        for x in xs:
            found.append(Plain.apply(mem))
            mem = mem + w * x
        return found

    after("dead", loop, steps(), tensor(), tensor().requires_grad_()).expect("""\
autograd_function_apply = autograd_function_apply(body, body_1, x)
getitem = autograd_function_apply[0]
mul = mul(x_1, x_2)
add = add(x, mul)
autograd_function_apply_1 = autograd_function_apply(body, body_1, add)
getitem_1 = autograd_function_apply_1[0]
return [getitem, getitem_1]""")


def test_what_is_computed_in_the_line_of_a_call_is_no_part_of_it() -> None:
    """Python marks no columns of an expression that is the whole line, so that its text is that of its parts."""

    def loop(xs: list[Tensor], mem: Tensor, w: Tensor) -> list[Tensor]:
        found = []
        for x in xs:
            found.append(
                Plain.apply(mem - 1)
            )  # fmt: skip
            mem = mem + w * x
        return found

    text = after("dead", loop, steps(), tensor(), tensor().requires_grad_())
    assert text.count("autograd_function_apply(") == 2
