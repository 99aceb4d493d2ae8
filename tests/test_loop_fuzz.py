"""Some of the random loops that ``tests/loop_fuzz.py`` draws by the thousand."""

import sys
import warnings
from typing import Any

import pytest
import torch
from helpers import THOROUGH
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loop_fuzz import OUTCOMES, wrong
from random_programs import Program

from snnfast import use_backend

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("first", range(0, 40 if THOROUGH else 20, 10))
def test_random_loops_equal_those_of_snntorch(first: int) -> None:
    torch.set_num_threads(1)
    differ: list[str] = []
    with use_backend("auto"):
        count, statistics = wrong(range(first, first + 10), report=differ.append)
    assert count == 0, "\n".join(differ)
    assert sum(statistics[name] for name in OUTCOMES) == 10
    assert statistics["last"] > statistics["looped"] / 2


# No database and no shrinking: a number near another one is another program altogether.
@settings(
    max_examples=20 if THOROUGH else 5,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(min_value=1000, max_value=10**9))
def test_any_loop_equals_that_of_snntorch(number: int) -> None:
    torch.set_num_threads(1)
    differ: list[str] = []
    with use_backend("auto"):
        assert wrong([number], report=differ.append)[0] == 0, "\n".join(differ)


def test_programs_are_drawn_by_their_number_alone_and_reach_what_users_write() -> None:
    programs = [Program(number) for number in range(400)]
    assert str(programs[7]) == str(Program(7))
    assert len({p.source for p in programs}) == 400
    text = "".join(p.source for p in programs)
    for part in (
        "snn.Synaptic", "snn.Lapicque", "init_hidden=True", "learn_beta", 'reset_mechanism="zero"', "inhibition=True",
        "nn.Conv2d", "nn.BatchNorm2d", "nn.ReLU(inplace=True)", "for xt in x:", "x[:, t]", "x[2 * t]",
        "F.cross_entropy", "torch.stack(", "sum(rec", ".detach()", "fed1 = spk", "[t] = ",
    ):  # fmt: skip
        assert part in text, part
    assert {p.dtype for p in programs} == {"float32", "float64"}
    assert {p.steps for p in programs} == set(range(7))


def test_a_wrong_program_is_found() -> None:
    """Of a backend that moves every result a little, whether an output, a loss or a state."""

    def disturbed(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        def moved(t: Any) -> Any:
            return t * (1 + 1e-6) if isinstance(t, torch.Tensor) and t.is_floating_point() else t

        return lambda *args: tuple(moved(t) for t in gm.forward(*args))

    numbers = [number for number in range(12) if Program(number).steps and Program(number).dtype == "float64"]
    with use_backend("auto"):
        count, _ = wrong(numbers, disturbed, lambda _: None)
        assert count > 0.9 * len(numbers)
        assert wrong(numbers[:3], "eager", lambda _: None)[0] == 0


def test_a_wrong_gradient_is_found() -> None:
    class Disturbed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Any) -> Any:
            return t.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] * (1 + 1e-6)

    def disturbed(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        def moved(t: Any) -> Any:
            return Disturbed.apply(t) if isinstance(t, torch.Tensor) and t.requires_grad else t  # type: ignore[no-untyped-call]

        return lambda *args: tuple(moved(t) for t in gm.forward(*args))

    some = [number for number in range(12) if Program(number).steps and Program(number).dtype == "float64"]
    numbers = [number for number in some if Program(number).grad and "nn.Parameter" in Program(number).source]
    differ: list[str] = []
    with use_backend("auto"):
        count, _ = wrong(numbers, disturbed, differ.append)
    assert count > 0.8 * len(numbers)
    assert all("grad of" in line.splitlines()[0] for line in differ)


def test_a_fault_of_the_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gm: Any) -> Any:
        raise KeyError("planted")

    monkeypatch.setattr(sys.modules["snnfast._loop.backend"], "capture", fails)
    differ: list[str] = []
    with warnings.catch_warnings(), use_backend("auto"):
        warnings.simplefilter("ignore")
        assert wrong([1], report=differ.append)[0] == 1
    assert "the pass failed: KeyError" in differ[0]
