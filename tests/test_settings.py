"""What the settings have in common: a statement, a block and a decorator choose, each for as long as it should."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import snnfast
from snnfast import _backend, _events, _gradients

# Of each setting: the function, the setting itself, two values, and a wrong one.
SETTINGS: dict[str, tuple[Callable[[Any], Any], Any, Any, Any, Any]] = {
    "backend": (snnfast.use_backend, _backend._setting, "reference", "fused", "cuda"),
    "events": (snnfast.use_events, _events.setting, False, True, "no"),
    "state_gradients": (snnfast.use_state_gradients, _gradients.setting, True, False, 2),
}


@pytest.fixture(params=SETTINGS)
def use(request: pytest.FixtureRequest) -> tuple[Callable[[Any], Any], Any, Any]:
    """The function, and two values."""
    choose, _, a, b, _ = SETTINGS[request.param]
    return choose, a, b


@pytest.fixture
def now(use: Any) -> Callable[[], Any]:
    """What is in force."""
    if use[0] is snnfast.use_backend:
        return lambda: snnfast.config()["backend"]
    return lambda: setting_of(use).value


def setting_of(use: Any) -> Any:
    return next(setting for choose, setting, *_ in SETTINGS.values() if choose is use[0])


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave no choice of a test behind."""
    every = [setting for _, setting, *_ in SETTINGS.values()]
    before = [(s.value, s.own.get(), set(s._hold)) for s in every]
    yield
    for setting, (value, own, hold) in zip(every, before, strict=True):
        setting.value, setting._hold = value, hold
        setting.own.set(own)


def test_a_statement_holds_from_then_on(use: Any, now: Any) -> None:
    choose, a, b = use
    choose(a)
    assert now() == a
    choose(b)
    assert now() == b


def test_a_block_restores_what_was_there(use: Any, now: Any) -> None:
    choose, a, b = use
    outside = now()
    for first, second in ((a, b), (b, a)):
        with choose(first):
            assert now() == first
            choose(second)  # a statement in a block ends with it
            assert now() == second
        assert now() == outside
        assert setting_of(use).value == outside
    choose(a)
    with pytest.raises(ZeroDivisionError), choose(b):
        raise ZeroDivisionError
    assert now() == a


def test_a_choice_can_be_made_now_and_entered_later_or_twice(use: Any, now: Any) -> None:
    choose, a, b = use
    choose(b)
    choice = choose(a)
    assert now() == a
    for _ in range(2):
        with choice:
            assert now() == a
        assert now() == b


def test_blocks_may_end_in_the_order_in_which_they_began(use: Any, now: Any) -> None:
    choose, a, b = use
    choose(b)
    first, second = choose(a), choose(a)
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert now() == setting_of(use).value == a
    second.__exit__()
    assert now() == setting_of(use).value == b


def test_a_decorator_holds_in_the_function(use: Any, now: Any) -> None:
    choose, a, b = use
    choose(b)

    @choose(a)
    def function(depth: int) -> list[Any]:
        return [now(), *(function(depth - 1) if depth else ())]

    assert now() == b
    assert function(2) == [a] * 3
    assert now() == b
    assert function.__name__ == "function"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_value_is_an_error_at_once(name: str) -> None:
    choose, setting, *_, wrong = SETTINGS[name]
    outside = setting.value
    with pytest.raises((TypeError, ValueError), match=r"^(name|wanted)\b"):
        choose(wrong)
    assert setting.value == outside


def test_statements_leave_nothing_behind_but_the_last(use: Any) -> None:
    choose, a, b = use
    setting = setting_of(use)
    before = len(setting._hold)
    for _ in range(10):
        choose(a)
        choose(b)
    assert len(setting._hold) <= before + 1


def test_tasks_whose_blocks_overlap_leave_the_setting_as_it_was(use: Any) -> None:
    choose, a, b = use
    setting = setting_of(use)
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
