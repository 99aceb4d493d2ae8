"""Some of the random loops that ``tests/compiler/loop_fuzz.py`` draws by the thousand."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from callables import function
from helpers import THOROUGH
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from internals import Form, Kinds, Reading, Recorder, merge
from loop_fuzz import having, main, wrong
from random_programs import BESIDE, KINDS, PARTS, PIECES, Program, name_of
from running import LEFT_OUT, SETTINGS, outcome, with_settings

from snnfast.compiler.passes import unstack
from snnfast.compiler.record import functions, waiting

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]
PROGRAMS, CHUNK = (500, 20) if THOROUGH else (12, 12)


def compare(numbers: range | list[int], how: str = "snnfast", long: bool = False) -> Counter[str]:
    differ: list[str] = []
    _, statistics = with_settings(lambda: wrong(numbers, differ.append, how, long))
    assert not differ, "\n".join(differ)
    return statistics


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_loops_do_what_they_do_uncompiled(first: int) -> None:
    statistics = compare(range(first, first + CHUNK))
    assert statistics["ran"] + statistics[LEFT_OUT[1]] == CHUNK
    assert statistics["last"] > statistics["compared"] / 2
    assert statistics["planned"] > 1


@pytest.mark.parametrize(
    ("first", "cases", "long"),
    [
        (0, 10, False),
        *(pytest.param(first, 35, False, marks=pytest.mark.thorough) for first in (10, 45)),
        pytest.param(0, 20, True, marks=pytest.mark.thorough),
    ],
)
def test_random_loops_do_what_they_do_unrecorded(first: int, cases: int, long: bool) -> None:
    assert compare(range(first, first + cases), "recording", long)["planned"] >= cases / 10


@pytest.mark.parametrize(
    ("first", "cases"), [(0, 5), *(pytest.param(first, 35, marks=pytest.mark.thorough) for first in (5, 40))]
)
def test_random_loops_do_what_they_do_uncompiled_by_default(first: int, cases: int) -> None:
    assert compare(range(first, first + cases), "default")["compared"] >= cases - 1


# No database and no shrinking: a number near another one is another program altogether.
@pytest.mark.thorough
@settings(
    max_examples=20, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.integers(min_value=10**6, max_value=10**9))
def test_any_loop_does_what_it_does_uncompiled(number: int) -> None:
    compare([number])


def test_programs_are_drawn_by_their_number_alone_and_have_every_statement_and_piece() -> None:
    programs = [Program(number) for number in range(600)]
    assert programs[7].source == Program(7).source
    assert len({p.source for p in programs}) == len(programs)
    counts = sum((p.s.drawn for p in programs), Counter[Any]())
    assert {f.__name__ for f in (*KINDS, *PARTS, *(p.write for p in PIECES)) if counts[f] < 4} == set()
    assert {p.dtype for p in programs} == {"float32", "float64"}
    assert {p.steps for p in programs} == set(range(6))


def test_programs_may_be_drawn_by_a_statement(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = list(islice(having("numpy memory", 7, 2), 2))
    assert all("np.zeros" in Program(number).source and number % 2 for number in numbers)
    with pytest.raises(SystemExit):
        main(["--with", "no such statement"])
    assert "numpy memory, one tensor" in " ".join(capsys.readouterr().err.split())


# ---- planted faults, in a backend that changes nothing else

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, snn):
        super().__init__()
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, rec, acc = torch.zeros_like(x[0]), [], torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            spk, mem = self.lif(x[t], mem)
            rec.append(mem)
            with torch.no_grad():
                acc += spk
        draws = [torch.rand(20) for _ in range(3)]
        return {"draws": draws, "rest": (torch.stack(rec), torch.stack(rec, 1), acc, torch.stack(list(x)))}
"""
CALLS = [{"resets": True, "inputs": {"x": ("input", (3, 2, 4))}}]
PLAIN = f"{NET}\n\nSETTINGS = {SETTINGS | {'calls': CALLS}}"
Disturbed = function(torch.clone, lambda grad, t: grad * (1 + 1e-6))


def real(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def needs_grad(t: Any) -> bool:
    return real(t) and t.requires_grad


def without(name: str, gm: torch.fx.GraphModule) -> Any:
    """The graph without the calls of a name; what reads them reads their first argument."""
    for node in [n for n in gm.graph.nodes if name in str(n.target)]:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    gm.recompile()
    return gm


def of_outputs(change: Any) -> Any:
    return lambda gm, inputs: lambda *args: tuple(map(change, gm(*args)))


FAULTS = {
    "a moved output": ("off by", of_outputs(lambda t: t * (1 + 1e-6) if real(t) else t)),
    "a wrong gradient": ("grad of x", of_outputs(lambda t: Disturbed.apply(t) if needs_grad(t) else t)),
    "a gradient that is lost": ("grad of x", of_outputs(lambda t: t.detach() if needs_grad(t) else t)),
    "a gradient too many": ("needs a gradient", lambda gm, _: without("_set_grad_enabled", gm)),
    "a write that is dropped": ("off by", lambda gm, _: without("iadd", gm)),
    "a write too many": ("input x", lambda gm, _: lambda *args: (gm(*args), args[0].data.mul_(0.5))[0]),
    "results that share memory": ("shared memory", lambda gm, _: lambda *args: shared(gm(*args))),
    "equal random numbers": ("same draws", of_outputs(lambda t: torch.zeros(20) if t.shape == (20,) else t)),
    "an error": ("KeyError", lambda gm, _: lambda *args: {}["planted"]),
}


def shared(results: Any) -> Any:
    first = next(i for i, t in enumerate(results) if t.dim() == 3)
    return [results[first].transpose(0, 1) if i == first + 1 else t for i, t in enumerate(results)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    message, backend = FAULTS[fault]
    found = with_settings(lambda: outcome(PLAIN, backend, Counter()))
    assert found is not None
    assert message in found


def test_a_program_that_raises_compiled_only_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gm: Any) -> Any:
        raise KeyError("planted")

    monkeypatch.setattr(merge, "roll", fails)
    found = with_settings(lambda: outcome(PLAIN, "recording", Counter()))
    assert found is not None
    assert found.startswith("a fault of snnfast")


def test_a_program_that_does_not_end_is_wrong() -> None:
    def hangs(gm: Any, inputs: Any) -> Any:
        return lambda *args: time.sleep(1000)

    assert with_settings(lambda: outcome(PLAIN, hangs, Counter(), seconds=1)) == "no end in 1 s"


@pytest.mark.parametrize("how", ["recording", "default"])
def test_a_first_call_that_takes_too_long_is_wrong(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("running.FIRST_CALL", 0.0)
    found = with_settings(lambda: outcome(PLAIN, how, Counter()))
    assert found is not None
    assert found.startswith("the first call took")


# ---- planted faults that statements are there to find


def _waits_at(*names: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Calls wait where functions of these names are called."""
    rest = tuple(entry for entry in functions._RUN_FIRST if entry[1] not in names)
    assert len(rest) < len(functions._RUN_FIRST)
    return lambda monkeypatch: monkeypatch.setattr(functions, "_RUN_FIRST", rest)


def _replaced(where: Any, name: str, function: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(where, name, function)


def _draws_whenever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting.Draws, "wait", lambda self, device: None)
    monkeypatch.setattr(
        functions._Generator, "__getattr__", lambda self, name: getattr(torch._C.default_generator, name)
    )


def _expects_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, empty in (("_TAKE", {}), ("_RAISE", set()), ("_DIVIDE", set())):
        monkeypatch.setattr(waiting, name, empty)
    monkeypatch.setattr(waiting.MayRaise, "look_at", lambda *args: None)


def _sees_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("record.recorded", "choice"):
        monkeypatch.setattr(f"snnfast.compiler.{module}.function_modes_see", lambda: False)


def _reads_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def applied(self: Any, cls: Any, objects: Any) -> Any:
        return self._functions.setdefault((cls, objects), functions.Applied(cls, objects))

    monkeypatch.setattr(Kinds, "applied", applied)
    monkeypatch.setattr(functions.Applied, "is_current", lambda self: True)


def _erases_calls_with_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    def erase(node: torch.fx.Node) -> None:
        if not node.users:
            node.graph.erase_node(node)

    monkeypatch.setattr(unstack, "erase_unread", erase)


_RECORDER: Any = sys.modules[Recorder.__module__]

# By the names of the statements beside calls of PyTorch: what brings the fault back that they have been written for.
PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "numpy memory": _replaced(_RECORDER, "is_shared", lambda t: False),
    "array view": _replaced(_RECORDER, "is_shared", lambda t: False),
    "forked": _replaced(Recorder, "settle", lambda self: None),
    "threads": _waits_at("notify", "wait", "start", "submit"),
    "default dtype": _waits_at("_set_default_dtype", "_set_default_tensor_type"),
    "function mode": _sees_no_mode,
    "forward mode": _waits_at("enter_dual_level", "exit_dual_level"),
    "inference state": _replaced(sys.modules[Form.__module__], "out_of_inference", lambda t: t),
    "seeds": _draws_whenever,
    "numbers of objects": _reads_when_it_runs,
    "join into buffer": _erases_calls_with_effects,
    "weak references": _replaced(_RECORDER.weakref, "getweakrefcount", lambda t: 0),
    "marks": _replaced(_RECORDER, "is_marked", lambda t: False),
    "errors inside": _expects_no_error,
    "errors outside": _expects_no_error,
    "made parameter": _waits_at("__new__"),
    "values read": _replaced(Reading, "_goes_on", lambda self, whole: True),
}
ENOUGH, QUICK = 300, ("array view", "errors inside")


def test_each_statement_beside_calls_of_pytorch_has_a_planted_fault() -> None:
    assert set(PLANTED) == {name_of(kind) for kind in BESIDE}


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.thorough) for kind in PLANTED]
)
def test_a_statement_finds_its_planted_fault(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[kind](monkeypatch)
    numbers = islice(having(kind), ENOUGH)
    assert with_settings(lambda: any(wrong([number], [].append, "recording", kind=kind)[0] for number in numbers))
