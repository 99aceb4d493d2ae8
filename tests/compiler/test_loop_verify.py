"""``SNNFAST_VERIFY=1`` compares a compiled loop with the loop, and finds what is planted."""

import copy
import re
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_bits_equal
from internals import rules, verified
from loop_nets import Net, by_tracing, currents, refused
from torch import Tensor, nn

import snnfast
from snnfast import GraphReport

pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.fixture(autouse=True)
def verifying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFAST_VERIFY", "1")


def test_verification_passes_what_is_right() -> None:
    net, x = Net(), currents().requires_grad_()
    other = copy.deepcopy(net)
    found = snnfast.compile(net)(x)
    assert_all_bits_equal(found, other(x))
    found[1].sum().backward()
    assert net.fc1.weight.grad is not None


def test_verification_passes_views_made_without_gradients() -> None:
    lif = snnfast.Leaky(beta=0.5)

    def loop(x: Tensor) -> tuple[list[Tensor], Tensor]:
        mem, rec = lif.reset_mem(), []
        for step in range(x.size(0)):
            _, mem = lif(x[step], mem)
            rec.append(mem)
        with torch.no_grad():
            return [mem[:] for mem in rec], mem

    x = currents().requires_grad_()
    views, _ = snnfast.compile(loop)(x)
    assert_all_bits_equal(views, loop(x)[0])


PLANTED = {
    "steps in another order": (
        lambda step, right: step.emit(torch.flip, right, [0]),
        r"SNNFAST_VERIFY: output \d of the loop at .*loop_nets.py.* elements differ",
    ),
    "gradients cut": (
        lambda step, right: step.emit(torch.detach, right),
        r"SNNFAST_VERIFY: gradient of input \d+ .* relative error",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), PLANTED.values(), ids=PLANTED)
def test_verification_finds_a_wrong_rule(wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(step: rules.StepCall) -> Any:
        right = rules.with_batch(step)
        return None if right is None else wrong(step, right)

    monkeypatch.setitem(rules.RULES, "linear", planted)
    with pytest.raises(RuntimeError, match=message):
        by_tracing(Net())(currents().requires_grad_())


def test_verification_leaves_running_averages_to_the_loop() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lif1 = nn.Sequential(nn.BatchNorm1d(9), self.lif1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mem, rec = self.lif1[1].reset_mem(), []
            for step in range(x.size(0)):
                spk, mem = self.lif1[1](self.lif1[0](self.fc1(x[step])), mem)
                rec.append(spk)
            return (torch.stack(rec),)

    net = Normed()
    snnfast.compile(net)(currents())
    assert int(net.lif1[0].num_batches_tracked) == 5


@pytest.mark.parametrize("by", ["recording", "tracing"])
def test_random_numbers_are_not_compared(by: str) -> None:
    lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(12, 4)

    def loop(x: Tensor) -> Tensor:
        mem, total = lif.reset_mem(), torch.zeros(x.shape[1], 4)
        for step in range(5):
            spk, mem = lif(nn.functional.dropout(fc(x[step]), 0.5), mem)
            total = total + spk
        return total

    assert re.search("test_loop_verify.py.* draws random numbers", refused(snnfast.compile(loop, by=by), currents()))


def test_verification_finds_wrong_changes_in_place() -> None:
    def adds(number: int) -> Any:
        def change(x: Tensor) -> tuple[Tensor]:
            x.add_(number)
            return (x * 0,)

        return change

    loop, x = torch.fx.symbolic_trace(adds(1)), torch.ones(3)
    verified(loop, adds(1), GraphReport("here"))(x)
    assert_bits_equal(x, torch.full((3,), 2.0))
    with pytest.raises(RuntimeError, match="SNNFAST_VERIFY: input 0 of the loop at here"):
        verified(loop, adds(2), GraphReport("here"))(x)
