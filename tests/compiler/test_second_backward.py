"""A second backward pass, of a result that shares nothing with that of the first one, or only a little."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_nets import QUICK_WAYS
from torch import Tensor

import snnfast
from snnfast import surrogate

pytestmark = [pytest.mark.needs_extension]


def step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + x
    spk = snnfast.spike(v - 1, surrogate.atan())
    return spk, v - spk


def on_the_same_lines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two populations, such as an actor and a critic."""
    states = [torch.zeros_like(x[0]), torch.zeros_like(y[0])]
    records: list[list[Tensor]] = [[], []]
    for t in range(len(x)):
        for i, given in enumerate((x, y)):
            spk, states[i] = step(states[i], given[t])
            records[i].append(spk)
    return torch.stack(records[0]), torch.stack(records[1])


def on_lines_of_their_own(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b, rec_a, rec_b = torch.zeros_like(x[0]), torch.zeros_like(y[0]), [], []
    for t in range(len(x)):
        a = torch.tanh(0.9 * a + x[t])
        b = torch.tanh(0.8 * b + y[t])
        rec_a.append(a)
        rec_b.append(b)
    return torch.stack(rec_a), torch.stack(rec_b)


def sharing_a_call(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd saves nothing of the call, so that the loop may go back through it twice."""
    a, b, rec_a, rec_b = torch.zeros_like(x[0]), torch.zeros_like(y[0]), [], []
    for t in range(len(x)):
        both = x[t] + 1
        a = torch.tanh(0.9 * a + both)
        b = torch.tanh(0.8 * b + both)
        rec_a.append(a)
        rec_b.append(b)
    return torch.stack(rec_a), torch.stack(rec_b)


def inputs(T: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    x, y = (torch.rand(T, 2, 3, generator=generator).requires_grad_() for _ in "xy")
    return x, y


def gradients(function: Callable[..., Any], T: int, **options: Any) -> list[Tensor]:
    """Those of two backward passes."""
    given = inputs(T)
    first, second = function(*given)
    first.sum().backward(**options)
    second.square().sum().backward()
    return [t.grad for t in given if t.grad is not None]


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("loop", [on_the_same_lines, on_lines_of_their_own])
def test_results_that_share_nothing_have_backward_passes_of_their_own(loop: Callable[..., Any], by: Any) -> None:
    compiled = by(loop)
    for T in (6, 9, 9, 12):
        torch.testing.assert_close(gradients(compiled, T), gradients(loop, T))
    said = snnfast.explain(loop, *inputs(9))
    (report,) = said.graphs
    assert sum("one recurrence" in line for line in report.merged) == 2


@pytest.mark.parametrize("by", QUICK_WAYS)
def test_results_that_share_a_call_go_back_twice_with_a_retained_graph(by: Any) -> None:
    compiled = by(sharing_a_call)
    found = gradients(compiled, 9, retain_graph=True)
    torch.testing.assert_close(found, gradients(sharing_a_call, 9))
