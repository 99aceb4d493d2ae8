"""``SNNFAST_VERIFY=1`` compares a compiled loop with the loop, and finds what is planted."""

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_bits_equal
from internals import rules, verified, verify
from loop_nets import WAYS, Net, currents, refused
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
        snnfast.compile(Net())(currents().requires_grad_())


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


@pytest.mark.parametrize("by", WAYS)
def test_random_numbers_are_not_compared(by: Any) -> None:
    lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(12, 4)

    def loop(x: Tensor) -> Tensor:
        mem, total = lif.reset_mem(), torch.zeros(x.shape[1], 4)
        for step in range(5):
            spk, mem = lif(nn.functional.dropout(fc(x[step]), 0.5), mem)
            total = total + spk
        return total

    assert re.search("test_loop_verify.py.* draws random numbers", refused(by(loop), currents()))


class Counting(nn.Module):
    """Writes to a buffer of its own and to a tensor that it is given."""

    count: Tensor

    def __init__(self, changes: str = "") -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))
        self.changes = changes

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        if self.changes != "a buffer":
            self.count.add_(1)
        if self.changes != "a tensor":
            x.mul_(2)
        if self.changes == "another tensor":
            y[0] += 1
        if self.changes == "the random state":
            torch.rand(1)
        return (x + 1,)


def _graph_of(net: Counting) -> Any:
    """Its graph, which is given the buffer, too, as those of compiled loops are."""
    forward = type(net).forward

    def loop(count: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
        held = SimpleNamespace(count=count, changes=net.changes)
        return forward(held, x, y)  # type: ignore[arg-type]

    return loop


WRITES = {
    "": None,
    "a buffer": r"input 0 \(the buffer 'count' of Counting\) of the loop at here .* nothing was written to it",
    "a tensor": r"input 1 \(a tensor of the caller\) of the loop at here .* nothing was written to it",
    "another tensor": r"input 2 \(a tensor of the caller\) of the loop at here .* the loop does not write to it",
    "the random state": "the random state after the loop at here",
}


@pytest.mark.parametrize(("changes", "message"), WRITES.items(), ids=WRITES)
def test_verification_finds_wrong_writes(changes: str, message: str | None) -> None:
    net, x, y = Counting(), torch.ones(3), torch.ones(2000)
    both = verified(_graph_of(net), _graph_of(Counting(changes)), GraphReport("here"))
    state = torch.get_rng_state()
    if message is None:
        both(net.count, x, y)
        assert_bits_equal(net.count, torch.ones(3))
        assert_bits_equal(x, torch.full((3,), 2.0))
    else:
        with pytest.raises(RuntimeError, match=f"SNNFAST_VERIFY: {message}"):
            both(net.count, x, y)
        assert_bits_equal(net.count, torch.zeros(3))  # the loop was not run
    assert_bits_equal(state, torch.get_rng_state())


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("of", ["buffer", "tensor"])
def test_verification_sees_what_a_compiled_loop_writes(of: str, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the write is left out, the tensor is named."""

    class Writing(Net):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: Tensor, total: Tensor) -> Tensor:  # type: ignore[override]
            mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
            for step in range(x.size(0)):
                spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
            (self.count if of == "buffer" else total).add_(mem2.detach().sum(0))
            return mem2

    net, x, total = Writing(), currents(), torch.zeros(4)
    compiled = by(copy.deepcopy(net))
    wanted = copy.deepcopy(total)
    net(x, wanted)
    for _ in range(2):
        compiled(x, total)
    torch.testing.assert_close(compiled.count, 2 * net.count)
    torch.testing.assert_close(total, 2 * wanted)

    def forgetful(merged: Any) -> Any:
        def call(*args: Any) -> Any:
            before = [a.clone() if isinstance(a, Tensor) else a for a in args]
            found = merged(*args)
            with torch.no_grad():
                for a, b in zip(args, before, strict=True):
                    if isinstance(a, Tensor) and not torch.equal(a, b):
                        a.copy_(b)
            return found

        return call

    right = verify.verified
    monkeypatch.setattr(verify, "verified", lambda loop, merged, report: right(loop, forgetful(merged), report))
    name = r"the buffer 'count' of Writing" if of == "buffer" else "a tensor of the caller"
    with pytest.raises(RuntimeError, match=rf"SNNFAST_VERIFY: input \d+ \({name}\) .* nothing was written to it"):
        by(copy.deepcopy(net))(x, total)
