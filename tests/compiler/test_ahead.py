"""Loops that read values as they go: their plan runs ahead, and they return, print and raise what the loop does."""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from compiler.internals import Reading, Recorder
from compiler.running import counted
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snnfast

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]
CALLS, STEPS = 5, 12
AHEAD = CALLS - 2  # the first one is remembered, and the second one may ask for lines


class Net(nn.Module):
    """Two layers; ``look`` is given the step, the spikes and the membrane of each step."""

    def __init__(self, look: Callable[..., Any], after: Callable[..., Any] = lambda told, y: told) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(12, 9), snnfast.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(9, 4), snnfast.Leaky(beta=0.8)
        self.look, self.after = look, after

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mem1, mem2, rec, told = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            found = self.look(t, spk1, mem2)
            told.append(found)
            if found == "stop":
                break
            rec.append(mem2)
        return torch.stack(rec), self.after(told, y)


def run(net: Net, function: Callable[..., Any], number: int, T: int) -> list[Any]:
    """All that a call leaves: what it returns and prints, or raises, and the gradients."""
    torch.manual_seed(number)
    x, y = torch.rand(T, 3, 12) * 2, torch.randint(4, (3,))
    net.zero_grad()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            out, told = function(x, y)
        except (AssertionError, ValueError) as error:
            return [repr(error), printed.getvalue()]
    (out.sum() + (told.sum() if isinstance(told, Tensor) else 0)).backward()
    return [out, told, printed.getvalue(), *(p.grad for p in net.parameters())]


def assert_same(found: Any, wanted: Any) -> None:
    """Tensors are close, and texts are equal."""
    (given, spec), (asked, like) = (pytree.tree_flatten(a) for a in (found, wanted))
    assert spec == like
    for a, b in zip(given, asked, strict=True):
        if isinstance(a, str) or a is None:
            assert a == b
        else:
            torch.testing.assert_close(a, b)


def ahead(look: Callable[..., Any], *after: Callable[..., Any], numbers: Any = (0,) * CALLS, T: Any = None) -> int:
    """Compare calls with those of the loop. Returns how many of them ran ahead."""
    plain, net = Net(look, *after), Net(look, *after)
    compiled = snnfast.compile(net)
    with counted(Reading, "end") as count:
        for number, steps in zip(numbers, T or [STEPS] * len(numbers), strict=True):
            wanted, found = run(plain, plain, number, steps), run(net, compiled, number, steps)
            assert_same(found, wanted)
    return count[0]


LOOKS: dict[str, Callable[..., Any]] = {
    "item": lambda t, spk, mem: spk.sum().item(),
    "float": lambda t, spk, mem: float(mem.detach().abs().max()),
    "int": lambda t, spk, mem: int((spk > 0).sum()),
    "bool": lambda t, spk, mem: bool(mem.sum() > 1e6),
    "tolist": lambda t, spk, mem: mem.detach()[0].tolist(),
    "text": lambda t, spk, mem: f"{mem.detach().mean():.3f}",
    "print": lambda t, spk, mem: print(t, spk.detach().sum()),
    "sometimes": lambda t, spk, mem: print(mem.mean().item()) if t % 4 == 0 else None,
    "several": lambda t, spk, mem: [spk.mean().item(), mem.max().item(), spk.mean().item()],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_loop_that_reads_values_runs_ahead(look: Any) -> None:
    assert ahead(look) >= AHEAD


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_each_call_reads_its_own_values(look: Any) -> None:
    assert ahead(look, numbers=range(CALLS)) >= AHEAD


def test_a_number_of_steps_that_was_seen_runs_ahead() -> None:
    numbers = (5, 7, 5, 9, 5, 7, 9)
    assert ahead(LOOKS["item"], numbers=range(7), T=numbers) >= 3


def test_a_tensor_that_is_changed_after_it_was_read_is_read_as_it_was() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> list[float]:
        count = spk.detach().sum(1)
        found = [count.sum().item()]
        count += 1
        return [*found, count.sum().item(), count.mul_(2).sum().item()]

    assert ahead(look) >= AHEAD


def test_labels_that_are_read_first_behind_the_loop_are_read() -> None:
    def after(told: list[float], y: Tensor) -> Tensor:
        return F.one_hot(y, 4).float().mul(told[-1]).sum()

    assert ahead(LOOKS["item"], after, numbers=range(CALLS)) >= AHEAD


def test_a_decision_that_falls_otherwise_is_the_loop_s() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> Any:
        if spk.sum() > 13:
            return mem.detach().sum().item()
        return (2 * spk.detach()).sum().item()

    ahead(look, numbers=[0, 0, 0, 1, 2, 0, 3, 4, 5, 6, 0])


def test_a_loop_that_ends_early_is_the_loop_s() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> Any:
        return "stop" if t > 1 and spk.sum() > 13 else 0

    ahead(look, numbers=[0, 0, 0, 1, 2, 0, 3, 4, 5, 6, 0])


def test_a_number_that_is_read_and_computed_with_is_the_loop_s() -> None:
    net = Net(lambda t, spk, mem: (mem * spk.mean().item()).detach().sum().item())
    numbers = range(8)
    assert ahead(net.look, numbers=numbers) == 0


def test_a_plan_that_has_run_in_vain_three_times_in_a_row_runs_ahead_no_more() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> float:
        return float((mem.detach() * (factor[0] if t > 2 else 1)).sum().item())

    net, factor = Net(look), [0]
    compiled = snnfast.compile(net)
    with counted(Recorder, "run_ahead") as count, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number in range(20):
            factor[0] = number
            run(net, compiled, 0, STEPS)
    assert count[0] == 3


def test_an_assert_raises_where_it_stands() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> None:
        print(t)
        assert mem.max() < 2.0, f"at {t}"

    ahead(look, numbers=[0, 0, 0, 1, 2, 3, 0, 4, 5])


def test_random_numbers_beside_are_those_of_the_loop() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> float:
        return (spk.detach() * torch.rand(9)).sum().item()

    assert ahead(look) == 0


def test_what_numpy_may_write_to_ends_a_record() -> None:
    def look(t: int, spk: Tensor, mem: Tensor) -> float:
        seen = spk.detach().numpy()
        seen *= 1
        return float(seen.sum())

    assert ahead(look) == 0


def test_a_tensor_from_outside_may_be_changed_beside() -> None:
    count = torch.zeros(9)

    def look(t: int, spk: Tensor, mem: Tensor) -> float:
        count.add_(spk.detach().sum(0))
        return count.sum().item() - count.sum().item()

    assert ahead(look) == 0
    assert count.sum() > 0


def test_explain_tells_of_a_loop_that_reads_values() -> None:
    net = Net(LOOKS["item"])
    told = str(snnfast.explain(net, torch.rand(7, 3, 12), torch.zeros(3, dtype=torch.long)))
    assert "7 steps of leaky: one unroll" in told
    assert "your code runs at each call" in told
