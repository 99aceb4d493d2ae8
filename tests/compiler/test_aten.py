"""The graph of a loop as ATen calls."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after, steps, tensor
from compiler.internals import Recorded
from torch import Tensor, nn

from snnfast.compiler.graph import aten

RUNNING: Any = aten._Running


def test_each_call_has_one_spelling() -> None:
    def loop(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x.sum(axis=0), torch.sum(x, dim=0), torch.add(x, y), x + y, x.contiguous(), x.view(1, -1)]

    after("aten", loop, tensor(), tensor()).expect("""\
sum = sum(x, [0])
sum_1 = sum(x, [0])
add = add(x, x_1)
add_1 = add(x, x_1)
view = view(x, [1, -1])
return [sum, sum_1, add, add_1, view]""")


def test_grad_mode_and_autocast_belong_to_each_call() -> None:
    def loop(xs: list[Tensor]) -> list[Tensor]:
        found = []
        for x in xs:
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu"):
                found.append(y + 1)
        return found

    after("aten", loop, steps()).expect("""\
mul = mul(x, 2) under no_grad
add = add(mul, 1) under autocast
mul_1 = mul(x_1, 2) under no_grad
add_1 = add(mul_1, 1) under autocast
return [add, add_1]""")


CHANGES = nn.BatchNorm1d(3)
LINEAR = nn.Linear(3, 3)


def changes(xs: Tensor) -> Tensor:
    state, found = torch.zeros(4, 3), []
    for x in xs:
        state = state * 0.9 + CHANGES(LINEAR(x))
        state += nn.functional.softplus(state.flatten(1)).view(4, 3)
        first, *others = state.split(1, 1)
        found.append(torch.cat([first, *others], 1).contiguous() - 1.0)
    return torch.stack(found)


def draws(xs: Tensor) -> Tensor:
    state, found = torch.zeros(4, 3), []
    for x in xs:
        with torch.no_grad():
            kept = nn.functional.dropout(x, 0.5)
        state = nn.functional.dropout(state, 0.5, training=False) * 0.5 + nn.functional.dropout(kept * LINEAR.weight[0])
        found.append(state.gt(0.5).to(x.dtype) * state)
        found[-1].mul_(2)
    return torch.stack(found)


def counted(calls: Counter[str], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, target: Any, *given: Any) -> Any:
        calls[str(target)] += 1
        return function(self, target, *given)

    return call


@pytest.mark.parametrize("function", [changes, draws])
def test_a_call_like_an_earlier_one_is_spelled_as_that_one(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not traced again. The graph must be the one that is traced."""
    xs, traced = torch.rand(6, 4, 3), []
    for spells in (True, False):
        calls = Counter[str]()
        monkeypatch.setattr(RUNNING, "call_function", counted(calls, RUNNING.call_function))
        if not spells:
            monkeypatch.setattr(RUNNING, "_key", lambda *_: None)
        traced.append((Recorded(function, "").explain(xs).graphs[0].stages["aten"], calls.total()))
        monkeypatch.undo()
    (found, few), (wanted, all_calls) = traced
    assert found == wanted
    assert few < all_calls / 2
