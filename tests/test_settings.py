"""What the settings have in common: a statement, a block and a decorator choose, each for as long as it should."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import snnfast
from snnfast import _backend, _events

# Of each setting: the function, what is in force, two values, and a wrong one.
SETTINGS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any], Any, Any, Any]] = {
    "backend": (snnfast.use_backend, lambda: snnfast.config()["backend"], "reference", "fused", "cuda"),
    "events": (snnfast.use_events, lambda: _events.setting.value, False, True, "no"),
}
settings = pytest.mark.parametrize("use", list(SETTINGS))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave no choice of a test behind."""
    every = _backend._setting, _events.setting
    before = [(s.value, s.own.get(), set(s._hold)) for s in every]
    yield
    for setting, (value, own, hold) in zip(every, before, strict=True):
        setting.value, setting._hold = value, hold
        setting.own.set(own)


@settings
def test_a_statement_holds_from_then_on(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    choose(a)
    assert now() == a
    choose(b)
    assert now() == b


@settings
def test_a_block_restores_what_was_there(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    outside = now()
    with choose(a):
        assert now() == a
        choose(b)  # a statement in a block ends with it
        assert now() == b
    assert now() == outside
    choose(a)
    with pytest.raises(ZeroDivisionError), choose(b):
        raise ZeroDivisionError
    assert now() == a


@settings
def test_a_choice_can_be_made_now_and_entered_later_or_twice(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    choose(b)
    choice = choose(a)
    assert now() == a
    for _ in range(2):
        with choice:
            assert now() == a
        assert now() == b


@settings
def test_a_decorator_holds_in_the_function(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    choose(b)

    @choose(a)
    def function(depth: int) -> list[Any]:
        return [now(), *(function(depth - 1) if depth else ())]

    assert now() == b
    assert function(2) == [a] * 3
    assert now() == b
    assert function.__name__ == "function"


@settings
def test_a_wrong_value_is_an_error_at_once(use: str) -> None:
    choose, now, *_, wrong = SETTINGS[use]
    outside = now()
    with pytest.raises((TypeError, ValueError), match=r"^(name|wanted)\b"):
        choose(wrong)
    assert now() == outside


@settings
def test_statements_leave_nothing_behind_but_the_last(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    setting = _backend._setting if use == "backend" else _events.setting
    before = len(setting._hold)
    for _ in range(10):
        choose(a)
        choose(b)
    assert len(setting._hold) <= before + 1


@settings
def test_tasks_whose_blocks_overlap_leave_the_setting_as_it_was(use: str) -> None:
    choose, now, a, b, _ = SETTINGS[use]
    setting: Any = _backend._setting if use == "backend" else _events.setting
    outside = setting.value

    async def work(value: Any, rounds: int) -> None:
        with choose(value):
            for _ in range(rounds):
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(work(a, 1), work(b, 3), work(a, 2))

    asyncio.run(both())
    assert setting.value == outside
    with choose(a):  # a task that is made in a block outlives it
        pass
    assert setting.value == outside


def test_a_statement_about_events_holds_for_all_threads_and_one_about_the_backend_for_its_own() -> None:
    def work() -> None:
        snnfast.use_backend("reference")
        snnfast.use_events(False)
        seen.append(snnfast.config()["backend"])

    seen: list[str] = []
    outside = snnfast.config()["backend"]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["reference"]
    assert snnfast.config()["backend"] == outside
    assert not _events.setting.value


def test_compiled_code_follows_a_statement() -> None:
    torch._dynamo.reset()
    layer, x = snnfast.Leaky(0.9), torch.rand(4, 2, 3)

    def steps(x: torch.Tensor) -> torch.Tensor:
        return layer.unroll(x)[0]

    graphs: list[str] = []

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(gm.graph))
        return gm.forward

    compiled = torch.compile(steps, backend=backend)
    for name in ("auto", "reference", "auto"):
        snnfast.use_backend(name)
        assert torch.equal(compiled(x), steps(x))
    assert ["snnfast.unroll" in graph for graph in graphs] == [True, False]
