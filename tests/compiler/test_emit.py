"""The new graph: one call for all steps, and what is made of its results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after_merging, leaky, tensor
from helpers import assert_bits_equal
from loop_nets import QUICK_WAYS
from torch import Tensor, nn

import snnfast

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def test_a_stack_is_the_result_of_the_unroll() -> None:
    after_merging("emit", leaky(made=torch.stack), tensor(5, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem)
detach_1 = detach(getitem_1)
return [detach, detach_1]""")


def test_a_sum_over_time_is_a_result_of_the_unroll() -> None:
    after_merging("emit", leaky(made=sum), tensor(5, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, True)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem)
detach_1 = detach(getitem_1)
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
detach = detach(getitem)
detach_1 = detach(getitem_1)
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


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("view", [lambda y: y, lambda y: y.view(-1)[:6], lambda y: y[:1].expand(3, 4)])
def test_results_that_are_computed_once_for_all_steps_are_separate(by: Any, view: Callable[[Tensor], Tensor]) -> None:
    net, x = by(Normalised(view)), torch.rand(3, 4)
    for T in (7, 7, 9):
        out = net(x, T)
        assert len({t.data_ptr() for t in out}) == T
        assert all(torch.equal(t, out[0]) for t in out)


def test_neurons_behind_a_layer_that_has_the_same_input_at_every_step_are_given_one_step() -> None:
    norm, lif = nn.BatchNorm1d(4), snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, out = lif.reset_mem(), []
        for _ in range(5):
            spk, mem = lif(norm(x), mem)
            out.append(spk)
        return torch.stack(out)

    after_merging("emit", loop, tensor(3, 4)).expect("""\
add_ = add_(x, 5)
batch_norm_of_constant = batch_norm_of_constant(x_1, b, b_1, x_2, x_3, 0.1, 1e-05, 5)
expand = expand(batch_norm_of_constant, [5, -1, -1])
unroll_steps = unroll_steps('leaky', batch_norm_of_constant, [None, x_4, x_5, x_6], 16, 0, 2.0, 0.0, 'auto', 5, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
return [getitem, getitem_1]""")  # noqa: E501


def test_states_of_zeros_are_not_read() -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> list[Tensor]:
        mem, u, v, out = torch.zeros(3, 4), torch.zeros(1, 4), torch.zeros(3, 4), []
        for step in x:
            spk, mem = lif(step, mem)
            u, v = u * 0.5 + step, (v * 0.5 + step).tanh()
            out.append(spk + u + v)
        return out

    after_merging("emit", loop, tensor(5, 3, 4)).expect("""\
zeros = zeros([1, 4], device=cpu, pin_memory=False)
unroll_steps = unroll_steps('leaky', x, [None, x_1, x_2, x_3], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
recurrence = recurrence(x, getitem_1, zeros, 0.0)
getitem_2 = recurrence[0]
unbind = unbind(getitem_2, 0)
getitem_3 = unbind[-1]
getitem_4 = unbind[-2]
getitem_5 = unbind[2]
getitem_6 = unbind[1]
getitem_7 = unbind[0]
detach = detach(getitem_7)
detach_1 = detach(getitem_6)
clone = clone(detach_1)
detach_2 = detach(getitem_5)
clone_1 = clone(detach_2)
detach_3 = detach(getitem_4)
clone_2 = clone(detach_3)
detach_4 = detach(getitem)
detach_5 = detach(getitem_3)
clone_3 = clone(detach_5)
return [detach, clone, clone_1, clone_2, detach_4, clone_3]""")


@pytest.mark.parametrize(("number", "read"), [(0.0, False), (-0.0, True)])
def test_states_that_are_filled_with_a_number_are_read_unless_it_is_zero(number: float, read: bool) -> None:
    def loop(x: Tensor) -> list[Tensor]:
        mem, out = torch.full((), number).expand(3, 4), []
        for t in range(5):
            mem = mem * 0.9 + x[t]
            out.append(mem * (mem < 1))
        return out

    text = after_merging("emit", loop, tensor(5, 3, 4))
    assert ("full" in text) == read


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("make", [
    lambda x: torch.zeros(3, 4).add_(0.5), lambda x: torch.zeros(3, 4, requires_grad=True), lambda x: torch.zeros(4),
    lambda x: torch.zeros(3, 4, dtype=torch.float64), lambda x: torch.zeros(1).expand(3, 4), torch.zeros_like,
    lambda x: torch.full((), 0.0).expand(3, 4), lambda x: torch.full_like(x, -0.0), lambda x: torch.full((3, 4), 0.5),
], ids=["changed", "learned", "broadcast", "wide", "expanded", "like", "full", "negative", "not-zeros"])  # fmt: skip
def test_states_that_begin_with_zeros_have_the_numbers_of_the_loop(by: Any, make: Callable[[Tensor], Tensor]) -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> list[Tensor]:
        first = make(x[0])
        mem, u, out = first, first, []
        for step in x:
            spk, mem = lif(step, mem)
            u = u * 0.5 + step
            out.append(spk + u)
        found = torch.stack(out)
        return [found, mem, u, *torch.autograd.grad(found.sum(), first)] if first.requires_grad else [found, mem, u]

    x = torch.rand(6, 3, 4)
    compiled = by(loop)
    for _ in range(2):
        for found, wanted in zip(compiled(x), loop(x), strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("by", QUICK_WAYS)
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
