"""Equal calls become one."""

import torch
from compiler.forms import after, steps, tensor
from torch import Tensor


def test_what_no_step_changes_is_computed_once() -> None:
    after("cse", lambda xs, image: [x * image.exp() for x in xs], steps(), tensor()).expect("""\
exp = exp(x)
mul = mul(x_1, exp)
mul_1 = mul(x_2, exp)
return [mul, mul_1]""")


def test_random_numbers_and_results_of_the_caller_stay_apart() -> None:
    def loop(image: Tensor) -> list[Tensor]:
        return [torch.bernoulli(image), torch.bernoulli(image), image.exp(), image.exp()]

    after("cse", loop, tensor()).expect("""\
bernoulli = bernoulli(x)
bernoulli_1 = bernoulli(x)
exp = exp(x)
exp_1 = exp(x)
return [bernoulli, bernoulli_1, exp, exp_1]""")
