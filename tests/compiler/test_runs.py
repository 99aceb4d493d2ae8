"""The loops of a record."""

import time
from typing import Any

import pytest
import torch
from compiler.internals import ByRecording
from snntorch import utils
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast.compiler.record.runs import MOST, Run, runs_of


def record(*loops: tuple[int, int]) -> tuple[list[Any], list[tuple[int, ...]]]:
    """Loops of so many steps of so many calls, each of kinds of its own, and a call between two of them."""
    kinds: list[Any] = []
    for steps, period in loops:
        kinds += [object() for _ in range(period)] * steps
        kinds.append(object())
    return kinds, [(i,) for i in range(len(kinds))]


def test_the_loops_of_a_record_are_found_in_order() -> None:
    found = runs_of(*record((4, 2), (5, 1), (3, 3)))
    assert found == [Run(0, 2, 4, ((2,), (2,))), Run(9, 1, 5, ((1,),)), Run(15, 3, 3, ((3,), (3,), (3,)))]


@pytest.mark.parametrize("loops", [MOST, 1200])
def test_no_more_loops_are_looked_for_than_a_graph_may_have(loops: int) -> None:
    assert len(runs_of(*record(*[(4, 2)] * loops))) == min(loops, MOST + 1)


def test_a_loop_with_a_loop_in_each_of_its_odd_steps_runs_as_it_is_and_says_why() -> None:
    odd = [i * 7919 % 13 % 3 for i in range(1200)]  # how many events each step has

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros_like(x)
        for events in odd:
            for _ in range(events):
                mem = torch.tanh(mem)
            for _ in range(3):
                mem = mem * 0.9 + x
        return mem

    x, start = torch.ones(2, 3), time.process_time()
    torch.testing.assert_close(snnfast.compile(loop)(x), loop(x))
    assert time.process_time() - start < 10
    assert any("more than 64 loops" in note for note in snnfast.explain(loop, x).notes)


def test_a_reset_of_all_networks_of_the_process_is_no_loop_over_time() -> None:
    """``utils.reset`` of snnTorch sets the states of all layers of a class, also those of other networks."""

    def network() -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in ((5, 8), (8, 8), (8, 3)):
            layers += [nn.Linear(inputs, outputs), snn.Leaky(beta=0.9, init_hidden=True)]
        return nn.Sequential(*layers)

    def loop(net: nn.Module, x: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(step) for step in x])

    others = [network() for _ in range(7)]
    for other in others:
        loop(other, torch.rand(9, 2, 5)).sum().backward()
    net = network()
    recorded = ByRecording(loop)
    for T in (9, 9, 9, 13, 20, 9):
        x = torch.rand(T, 2, 5)
        torch.testing.assert_close(recorded(net, x), loop(net, x))
    assert [plan.is_general for plan in recorded.plans] == [True] * 2  # of the first states, and of the later ones


def test_the_largest_loop_stays_where_another_one_can_not_be_told() -> None:
    """A loop over tensors of the caller from the last one to the first, behind a loop over time."""

    def loop(x: Tensor, scales: list[Tensor]) -> Tensor:
        mem = torch.zeros_like(x[0])
        for x_t in x:
            mem = torch.tanh(mem * 0.9 + x_t)
        for scale in scales:
            mem = mem * torch.cos(scale)
        for scale in reversed(scales):
            mem = mem + torch.sin(scale)
        return mem

    recorded = ByRecording(loop)
    for T in (20, 20, 31):
        x, scales = torch.rand(T, 2, 5), list(torch.rand(6, 5))
        torch.testing.assert_close(recorded(x, scales), loop(x, scales))
    assert [plan.is_general for plan in recorded.plans] == [True]
