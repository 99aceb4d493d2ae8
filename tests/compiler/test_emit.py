"""The new graph: one call for all steps, and what is made of its results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after_merging, leaky, tensor
from compiler.internals import ByRecording
from helpers import assert_bits_equal
from loop_nets import by_tracing
from torch import Tensor, nn

import snnfast

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def test_a_stack_is_the_result_of_the_unroll() -> None:
    after_merging("emit", leaky(made=torch.stack), tensor(5, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem_1)
detach_1 = detach(getitem)
return [detach, detach_1]""")


def test_a_sum_over_time_is_a_result_of_the_unroll() -> None:
    after_merging("emit", leaky(made=sum), tensor(5, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, True)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem_1)
detach_1 = detach(getitem)
return [detach, detach_1]""")


@pytest.mark.parametrize(("first", "stop"), [(2, 7), (0, 3), (5, 8)])
def test_steps_are_told_from_the_end_that_is_nearer(first: int, stop: int) -> None:
    form = after_merging("emit", leaky(made=lambda out: torch.stack(out[first:stop]), T=8), tensor(8, 2))
    told = [first if first < 4 else first - 8, stop if stop < 4 else stop - 8 or None]
    assert f"[slice({told[0]}, {told[1]}, None)]" in form


def test_single_steps() -> None:
    after_merging("emit", leaky(made=lambda out: (out[1], out[-2]), T=8), tensor(8, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
unbind = unbind(getitem_1, 0)
getitem_2 = unbind[-2]
getitem_3 = unbind[1]
detach = detach(getitem_3)
detach_1 = detach(getitem_2)
clone = clone(detach_1)
detach_2 = detach(getitem)
return [detach, clone, detach_2]""")


def test_numbers_that_differ_from_step_to_step() -> None:
    loop = leaky(lambda x, t: x[t] * (0.5 * t + 1.0) + 0.7**t, torch.stack)
    after_merging("emit", loop, tensor(5, 2)).expect("""\
_counted = _counted(1.0, 0.5, 5, torch.float32, cpu)
view = view(_counted, [-1, 1])
mul = mul(x, view)
tensor = tensor([1.0, 0.7, 0.48999999999999994, 0.3429999999999999, 0.24009999999999995])
view_1 = view(tensor, [-1, 1])
add = add(mul, view_1)
unroll_steps = unroll_steps('leaky', add, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem_1)
detach_1 = detach(getitem)
return [detach, detach_1]""")


class Normalised(nn.Module):
    """The same tensor is normalised at each step, and the program returns each result, or a view of it."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.lif, self.view = nn.BatchNorm1d(4), snnfast.Leaky(beta=0.9), view

    def forward(self, x: Tensor, T: int) -> list[Tensor]:
        mem, out = self.lif.reset_mem(), []
        for _ in range(T):
            current = self.norm(x)
            _, mem = self.lif(current, mem)
            out.append(self.view(current))
        return out


@pytest.mark.parametrize("by", [ByRecording, by_tracing])
@pytest.mark.parametrize("view", [lambda y: y, lambda y: y.view(-1)[:6], lambda y: y[:1].expand(3, 4)])
def test_results_that_are_computed_once_for_all_steps_are_separate(by: Any, view: Callable[[Tensor], Tensor]) -> None:
    net, x = by(Normalised(view)), torch.rand(3, 4)
    for T in (7, 7, 9):
        out = net(x, T)
        assert len({t.data_ptr() for t in out}) == T
        assert all(torch.equal(t, out[0]) for t in out)


@pytest.mark.parametrize("by", [ByRecording, by_tracing])
@pytest.mark.parametrize("kept", ["mem", "copy", "current"])
def test_a_result_of_a_step_can_be_changed_in_place(by: Any, kept: str) -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor, scale: Tensor) -> list[Tensor]:
        mem, out = torch.zeros(3), []
        for step in x:
            current = step * scale
            _, mem = lif(current, mem)
            out.append({"mem": mem, "copy": mem.clone(), "current": current}[kept])
        return out

    x, found = torch.rand(6, 3), []
    for function in (loop, by(loop)):
        scale = torch.ones(3, requires_grad=True)
        out = function(x, scale)
        out[-1][1:] = out[-1][:-1] * 2
        (grad,) = torch.autograd.grad(torch.stack(out).sum(), scale)
        found.append([*out, grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_zeros_of_both_signs_are_numbers_that_differ() -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, number, out = torch.zeros(3), 0.0, []
        for step in x:
            current = step - number
            _, mem = lif(current, mem)
            out.append(current)
            number = -number
        return torch.stack(out)

    x = -torch.zeros(6, 3)
    assert_bits_equal(torch.compile(loop, backend="snnfast")(x), loop(x))
