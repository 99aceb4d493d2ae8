"""Some of the random steps that ``tests/program/step_fuzz.py`` draws by the thousand."""

from collections import Counter
from typing import Any

import pytest
import random_steps
import torch
from fuzzing import wrong
from helpers import THOROUGH
from random_steps import BACKWARD_WAYS, CONTEXTS, StepProgram
from step_fuzz import Session, found

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]
PROGRAMS, CHUNK = 5000 if THOROUGH else 100, 100


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_steps_do_what_they_do_in_a_loop(first: int) -> None:
    torch.set_num_threads(1)
    drawn = {number: found(number) for number in range(first, first + CHUNK)}
    assert wrong(drawn.__getitem__, drawn) == []
    assert sum(one.kind == "equal" for one in drawn.values()) > CHUNK / 3


def test_steps_are_drawn_by_their_number_alone_and_read_all_that_a_step_may_read() -> None:
    programs = [StepProgram(number) for number in range(3000)]
    assert str(programs[7]) == str(StepProgram(7))
    counts = sum((p.tags for p in programs), Counter[str]())
    everything = (*random_steps.NUMBERS_OUTSIDE, *random_steps.FLAGS_OUTSIDE, *random_steps.FUNCTIONS_OUTSIDE)
    everything += (*random_steps.SPIKES_OUTSIDE, *(f"changes itself: {kind}" for kind in random_steps.OWN_CHANGES))
    assert [kind for kind in everything if counts[kind] < 5] == []
    calls = [call for p in programs for call in p.calls]
    for option, values in (("forward", set(CONTEXTS)), ("backward", set(BACKWARD_WAYS))):
        assert {call[option] for call in calls if option in call} == values
    assert {call["dtype"] for call in calls} == {"float16", "bfloat16", "float32", "float64"}
    assert {0, 1, 2, 5} < {call["steps"] for call in calls}


# ---- planted faults


def differ(numbers: range) -> int:
    return sum(found(number).kind.startswith("differs") for number in numbers)


def test_old_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Session._change
    monkeypatch.setattr(Session, "_change", lambda self, numbers: change(self, numbers if self.plain else ()))
    assert differ(range(60)) > 6


@pytest.mark.parametrize("what", ["outputs", "gradients"])
def test_other_numbers_are_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Session._call

    def wrong(self: Session, *args: Any) -> Any:
        seen = call(self, *args)
        if self.plain:
            return seen
        return seen._replace(**{what: [None if t is None else t * (1 + 1e-3) for t in getattr(seen, what)]})

    monkeypatch.setattr(Session, "_call", wrong)
    assert differ(range(60)) > 20
