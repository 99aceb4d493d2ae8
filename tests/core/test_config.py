"""Which backend runs, who is told, what the configuration says, and for how long a setting holds."""

import asyncio
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from fresh import fresh

import snnfast
from snnfast import functional
from snnfast._core import backend, ops, settings
from snnfast._unroll import state_gradients

CURRENT = torch.rand(3, 4)


def test_an_extension_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for extension in (types.SimpleNamespace(), types.SimpleNamespace(resets=["zero", "subtract", "none"])):
        monkeypatch.setattr(ops, "extension", extension)
        with pytest.raises(ImportError, match=r"its resets are .* build it again"):
            ops.check_names("resets", ops.RESET_MECHANISMS)


@pytest.mark.needs_extension
def test_how_the_extension_was_built() -> None:
    facts = snnfast.config()
    assert facts["fused on cpu"] == "yes"
    for name in ("compiler", "built for torch", "CPU instructions", "CUDA compiler", "CUDA architectures"):
        assert facts[name]
    assert (facts["CUDA compiler"] != "none") == ops.extension.cuda


@pytest.mark.needs_extension
def test_a_build_without_cuda_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ops.extension.cuda_missing == "") == ops.extension.cuda
    monkeypatch.setattr(ops.extension, "cuda", False)
    monkeypatch.setattr(ops.extension, "cuda_missing", "no nvcc was found at install time")
    reason = "snnfast was built without CUDA: no nvcc was found at install time"
    assert snnfast.config()["fused on cuda"] == f"no: {reason}"
    assert snnfast.config()["fused on cpu"] == "yes"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> str:
    """As installed without a compiler."""
    reason = "there was no compiler"
    monkeypatch.setattr(ops, "extension", None)
    monkeypatch.setattr(ops, "missing", reason)
    return reason


def test_without_the_extension(no_extension: str) -> None:
    with snnfast.use_backend("auto"):
        with pytest.warns(UserWarning, match=f"slow reference path on cpu: {no_extension}") as caught:
            spk, mem = functional.lif(CURRENT, beta=0.9)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        with warnings.catch_warnings(action="error"):
            functional.lif(CURRENT, beta=0.9)
            snnfast.Leaky(0.9).unroll(CURRENT)
    expected = snnfast.reference.lif(CURRENT, beta=0.9)
    assert torch.equal(spk, expected[0])
    assert torch.equal(mem, expected[1])


def test_fused_without_the_extension(no_extension: str) -> None:
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=f"'fused'.*cpu.*{no_extension}"):
        functional.lif(CURRENT, beta=0.9)
    assert no_extension in snnfast.config()["fused on cpu"]
    with snnfast.use_backend("reference"), warnings.catch_warnings(action="error"):
        functional.lif(CURRENT, beta=0.9)


# ---- imports, in processes of their own

BACKEND, EVENTS = (
    "import snnfast; print(snnfast.config()['backend'])",
    "import snnfast; print(snnfast.config()['events'])",
)
ELSEWHERE = """
import pathlib, sys
pathlib.Path.exists = lambda path: False
sys.platform = {!r}
import snnfast; print(snnfast.config()['fused on cpu'])
"""
SAID: dict[str, tuple[str, dict[str, str], str]] = {
    "unset": (BACKEND, {}, "auto"),
    "empty": (BACKEND, {"SNNFAST_BACKEND": "", "SNNFAST_ISA": ""}, "auto"),
    **{name: (BACKEND, {"SNNFAST_BACKEND": name}, name) for name in ("auto", "fused", "reference")},
    "events": (EVENTS, {"SNNFAST_EVENTS": "1"}, "yes"),
    "no events": (EVENTS, {"SNNFAST_EVENTS": "0"}, "no: spikes go to linear layers as numbers"),
    "empty events": (EVENTS, {"SNNFAST_EVENTS": ""}, "yes"),
    "elsewhere": (ELSEWHERE.format("aix"), {}, "no: snnfast has kernels for Linux, macOS and Windows, and this is aix"),
    **{
        f"no kernels, {system}": (
            ELSEWHERE.format(system),
            {},
            "no: snnfast was installed without its compiled kernels",
        )
        for system in ("linux", "darwin", "win32")
    },
}


@pytest.mark.parametrize("case", SAID)
def test_the_configuration_of_a_process(case: str) -> None:
    code, variables, said = SAID[case]
    assert fresh(code, **variables).startswith(said)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SNNFAST_BACKEND", r"SNNFAST_BACKEND: expected 'auto', 'fused' or 'reference', got 'mmx'"),
        ("SNNFAST_EVENTS", r"SNNFAST_EVENTS: expected 0 or 1, got 'mmx'"),
        pytest.param("SNNFAST_ISA", "SNNFAST_ISA: this .* kernels for .*'mmx'", marks=pytest.mark.needs_extension),
    ],
)
def test_a_wrong_variable_is_an_error_at_import(variable: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh("import snnfast", **{variable: "mmx"})


def test_what_an_import_does_not_do() -> None:
    """It prints nothing, needs neither numpy nor snnTorch, runs no compiler and no backward pass (of threads)."""
    code = """
import io, sys, warnings, torch
warnings.simplefilter("error")
sys.stderr = io.StringIO()
torch.autograd.grad = torch.Tensor.backward = None
sys.modules["numpy"] = sys.modules["snntorch"] = None
before = "torch._dynamo" in sys.modules
import snnfast
assert before or "torch._dynamo" not in sys.modules
assert not sys.stderr.getvalue()
assert snnfast.losses.accuracy_rate(torch.ones(2, 1, 3), torch.tensor([0])) == 1.0
snnfast.reset(snnfast.Leaky(0.9))
"""
    assert fresh(code) == ""


@pytest.mark.parametrize("mode", ["torch.inference_mode()", "FakeTensorMode()", "torch.device('meta')"])
def test_an_import_under_any_mode(mode: str) -> None:
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {mode}: import snnfast
print(snnfast.Leaky(0.9).unroll(torch.rand(3, 2, 4))[0].device)
if "meta" in {mode!r}:
    print(snnfast.RLeaky(0.9, linear_features=4).unroll(torch.rand(3, 2, 4))[0].device)
"""
    assert set(fresh(code).split()) == {"cpu"}


def test_the_module_prints_what_show_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    snnfast.show_config()
    shown = capsys.readouterr().out
    found = fresh("import runpy, sys; sys.argv[:] = ['snnfast']; runpy.run_module('snnfast', run_name='__main__')")
    names = ("python", "backend", "fused on cpu", "fused on cuda", "threads")
    for text in (shown, found):
        for fact in (snnfast.__version__, torch.__version__, *names):
            assert fact in text
    facts = snnfast.config()
    assert len(shown.splitlines()) == len(facts)
    assert all(value in shown for value in facts.values())


@pytest.mark.parametrize(
    "statement",
    [
        "import snnfast.snntorch._convert", "import snnfast.snntorch._drop_ins", "import snnfast.snntorch",
        "import snnfast; snnfast.snntorch.Leaky", "from snnfast import snntorch",
        "import snnfast.snntorch.functional.probe", "from snnfast.snntorch.functional import quant",
        "import snnfast.snntorch.spikegen as spikegen", "from snnfast.snntorch._convert import Report",
    ],
)  # fmt: skip
def test_every_module_can_be_the_first_to_be_imported(statement: str) -> None:
    fresh(statement)


# ---- what the settings have in common: a statement, a block and a decorator choose, each for as long as it should


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
    "backend": Use(snnfast.use_backend, backend._setting, "reference", "fused"),
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
