"""What the settings have in common: a statement, a block and a decorator choose, each for as long as it should."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch

import snnfast
from snnfast._core import backend as _backend
from snnfast._core import settings
from snnfast._unroll import state_gradients


class Use(NamedTuple):
    """A setting, the function that chooses it, and two values."""

    choose: Callable[[Any], Any]
    setting: Any
    a: Any
    b: Any

    @property
    def now(self) -> Any:
        """What is in force."""
        return snnfast.config()["backend"] if self.choose is snnfast.use_backend else self.setting.value


SETTINGS = {
    "backend": Use(snnfast.use_backend, _backend._setting, "reference", "fused"),
    "events": Use(snnfast.use_events, settings.events, False, True),
    "state_gradients": Use(snnfast.use_state_gradients, state_gradients.setting, True, False),
}
every = pytest.mark.parametrize("use", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave no choice of a test behind."""
    settings = [use.setting for use in SETTINGS.values()]
    before = [(s.value, s.own.get(), set(s._hold)) for s in settings]
    yield
    for setting, (value, own, hold) in zip(settings, before, strict=True):
        setting.value, setting._hold = value, hold
        setting.own.set(own)


@every
def test_a_statement_holds_until_the_next_and_leaves_nothing_behind(use: Use) -> None:
    before = len(use.setting._hold)
    for value in (use.a, use.b) * 10:
        use.choose(value)
        assert use.now == value
    assert len(use.setting._hold) <= before + 1


@every
def test_a_block_restores_what_was_there(use: Use) -> None:
    outside = use.now
    for first, second in ((use.a, use.b), (use.b, use.a)):
        with use.choose(first):
            assert use.now == first
            use.choose(second)  # a statement in a block ends with it
            assert use.now == second
        assert use.now == outside
        assert use.setting.value == outside
    use.choose(use.a)
    with pytest.raises(ZeroDivisionError), use.choose(use.b):
        raise ZeroDivisionError
    assert use.now == use.a


@every
def test_a_choice_can_be_made_now_and_entered_later_or_twice(use: Use) -> None:
    use.choose(use.b)
    choice = use.choose(use.a)
    assert use.now == use.a
    for _ in range(2):
        with choice:
            assert use.now == use.a
        assert use.now == use.b


@every
def test_blocks_may_end_in_the_order_in_which_they_began(use: Use) -> None:
    use.choose(use.b)
    first, second = use.choose(use.a), use.choose(use.a)
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert use.now == use.setting.value == use.a
    second.__exit__()
    assert use.now == use.setting.value == use.b


@every
def test_a_decorator_holds_in_the_function(use: Use) -> None:
    use.choose(use.b)

    @use.choose(use.a)
    def function(depth: int) -> list[Any]:
        return [use.now, *(function(depth - 1) if depth else ())]

    assert use.now == use.b
    assert function(2) == [use.a] * 3
    assert use.now == use.b
    assert function.__name__ == "function"


@every
def test_tasks_whose_blocks_overlap_leave_the_setting_as_it_was(use: Use) -> None:
    outside = use.setting.value

    async def work(value: Any, rounds: int) -> None:
        with use.choose(value):
            for _ in range(rounds):
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(work(use.a, 1), work(use.b, 3), work(use.a, 2))

    asyncio.run(both())
    assert use.setting.value == outside
    with use.choose(use.a):  # a task that is made in a block outlives it
        pass
    assert use.setting.value == outside


def test_a_statement_about_events_holds_for_all_threads_and_one_about_the_backend_for_its_own() -> None:
    def work() -> Any:
        snnfast.use_backend("reference")
        snnfast.use_events(False)
        return snnfast.config()["backend"]

    outside = snnfast.config()["backend"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == "reference"
    assert snnfast.config()["backend"] == outside
    assert not settings.events.value


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
