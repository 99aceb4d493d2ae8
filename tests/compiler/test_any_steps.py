"""A graph that was made for some number of steps runs for any other."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from callables import function
from compiler.internals import ByRecording
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snnfast

pytestmark = pytest.mark.needs_extension


def spikes(factor: float = 0.5, layers: int = 1, made: Callable[[Any], Any] = torch.stack, **options: Any) -> Any:
    """A loop of leaky neurons behind one another, and what is made of its spikes."""
    neurons = [snnfast.Leaky(beta=0.9, **options) for _ in range(layers)]

    def loop(x: Tensor) -> Any:
        mems, out = [neuron.reset_mem() for neuron in neurons], []
        for t in range(len(x)):
            spk = x[t] * factor
            for i, neuron in enumerate(neurons):
                spk, mems[i] = neuron(spk, mems[i])
            out.append(spk)
        return made(out)

    return loop


def generality(loop: Callable[[Tensor], Any], steps: tuple[int, ...], needs: bool = True) -> list[bool]:
    """Of each plan of a loop, whether it is for any number of steps. Calls with these numbers do what the loop does.

    Their results may be changed in place, each by itself.
    """
    recorded = ByRecording(loop)
    for T in steps:
        x = torch.rand(T, 4, requires_grad=needs)
        found, expected = (pytree.tree_leaves(f(x)) for f in (recorded, loop))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert [t.requires_grad for t in found] == [t.requires_grad for t in expected]
        torch.testing.assert_close([t.mul_(2) for t in found], [t.mul_(2) for t in expected], rtol=0, atol=0)
    return [plan.is_general for plan in recorded.plans]


@pytest.mark.parametrize(
    ("other", "needs"),
    [
        (spikes(0.6), False),
        (spikes(reset_mechanism="zero"), False),
        (spikes(layers=2), False),
        (spikes(), True),
        (spikes(made=lambda out: torch.stack([t * spk for t, spk in enumerate(out)])), False),
    ],
    ids=["constant", "option", "layers", "gradient", "numbers"],
)
def test_a_loop_that_differs_by_more_than_its_steps_has_another_graph(other: Any, needs: bool) -> None:
    loops = spikes(), other
    recorded = ByRecording(lambda x, which: loops[which](x))
    for which, T in ((0, 7), (0, 9), (1, 7), (1, 9), (0, 6), (1, 12)):
        x = 2 * torch.rand(T, 4, requires_grad=needs and which == 1)
        found, expected = recorded(x, which), loops[which](x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert found.requires_grad == expected.requires_grad


@pytest.mark.parametrize(
    ("made", "needs", "general"),
    [
        (list, True, [True]),
        (list, False, [False]),  # each entry is detached by a call of its own
        (torch.stack, True, [True]),
        (sum, True, [True]),
        (lambda out: (out[0], out[-1]), True, [True]),
        (lambda out: torch.stack(out[-3:]), True, [False]),
    ],
    ids=["list", "detached", "stack", "sum", "ends", "last"],
)
def test_results_of_another_number_of_steps(made: Callable[[Any], Any], needs: bool, general: list[bool]) -> None:
    assert generality(spikes(2.0, made=made), (9, 6, 17, 9), needs) == general


def test_a_loop_of_few_steps_has_a_graph_of_its_own() -> None:
    assert generality(spikes(2.0, made=list), (2, 2, 7, 7, 3, 3, 3, 3)) == [False, True, False]


# Not elementwise. PyTorch gives each call of it a graph of its own.
Share = function(lambda x: x / (1 + x.sum()), lambda grad, x: grad)


@pytest.mark.parametrize(
    ("combine", "general"), [(torch.logaddexp, True), (lambda a, b: Share.apply(a + b), False)], ids=["loop", "calls"]
)
def test_what_is_repeated_is_a_loop_where_that_is_possible(
    combine: Callable[[Tensor, Tensor], Tensor], general: bool
) -> None:
    loop = spikes(2.0, made=lambda out: torch.stack(list(itertools.accumulate(out, combine))))
    assert generality(loop, (7, 12, 9)) == [general]


def test_a_number_of_a_neuron_is_no_size() -> None:
    """Sixteen of twenty steps have a result. The options of the neuron's kernel are sixteen, too."""
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, out = lif.reset_mem(), []
        for t, x_t in enumerate(x):
            spk, mem = lif(x_t, mem.detach() if t == 4 else mem)
            if t >= 4:
                out.append(spk)
        return torch.stack(out)

    assert generality(loop, (20, 31, 12)) == [True]


def test_numbers_of_steps_that_keep_changing_make_no_new_graphs() -> None:
    """A layer runs at each fourth step, so that each number of steps has steps of another kind at its end."""
    fc, lif = nn.Linear(6, 6), snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, slow, out = lif.reset_mem(), torch.zeros_like(x[0]), []
        for t, x_t in enumerate(x):
            spk, mem = lif(x_t, mem)
            if t % 4 == 0:
                slow = slow * 0.5 + fc(spk)
            out.append(spk + slow)
        return torch.stack(out)

    recorded = ByRecording(loop)
    for T in (14, 15, 16, 17, 18, 19, 13, 12, 11, 10, 14):
        x = torch.rand(T, 3, 6)
        torch.testing.assert_close(recorded(x), loop(x))
    assert len(recorded.plans) == 1
    for _ in range(3):
        recorded(torch.rand(19, 3, 6))
    assert len(recorded.plans) == 2  # it came again
