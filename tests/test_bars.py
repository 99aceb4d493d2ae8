"""The bars of the benchmarks, what becomes of those that are missed, and the gate. No timing is asserted."""

from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command_line
from benchmarks import bars, run
from benchmarks.bars import FLOOR, SAVED
from benchmarks.peers import PEERS
from benchmarks.peers.ours import NUMBERS, OURS
from benchmarks.peers.snntorch_loop import COMPILED, LOOP
from benchmarks.registry import PAIR, Case, case_named, suites
from benchmarks.runner import Row

pytestmark = pytest.mark.thorough

CASES = [case for cases in suites("cpu").values() for case in cases]
LAYER = case_named("lif [25, 128, 1000] float32, forward + backward")
GATE = [case for case in CASES if case.gate]
HERE = ["run", "--case", LAYER.name, "--device", "cpu"]


def _rows(case: Case, **values: object) -> list[Row]:
    filled = {"share_of_copy": 1.0, "saved": 1.0, "held": 0.1, "accuracy": 0.93, "median": 1.0, **values}
    return [Row(case.name, peer.name, **filled) for peer in PEERS.values() if peer.fits(case)]


def test_bars_name_cases_and_peers_that_exist_and_all_are_measured():
    judged = [bar for name in bars.BARS for bar in bars.judge(case_named(name), _rows(case_named(name)))]
    assert len(judged) == sum(map(len, bars.BARS.values()))
    assert [bar.name for bar in judged if bar.value is None] == []
    assert all(bars.judge(case, [], [LOOP, NUMBERS]) for case in GATE)
    program = Case("programs", "program", 5, 4, (), variant="tutorial5")
    assert [bar.bar for bar in bars.judge(program, _rows(program))] == [0.95]


def test_a_bar_holds_up_to_its_limit_and_is_missed_without_a_value_only_where_it_was_asked_for():
    def verdict(value: float | None, at_least: bool = False, required: bool = True) -> str:
        return bars.Bar("", value, 2.0, at_least, required=required).verdict

    assert [verdict(1.9), verdict(2.0), verdict(2.1)] == ["holds", "holds", "MISSED"]
    assert [verdict(1.9, True), verdict(2.0, True), verdict(2.1, True)] == ["MISSED", "holds", "holds"]
    assert [verdict(None), verdict(None, required=False)] == ["NOT MEASURED", "not measured"]
    assert [bar.missed for bar in (bars.Bar("", v, 2.0) for v in (1.0, 3.0, None))] == [False, True, True]


def test_bars_are_judged_by_copy_by_bytes_and_by_peers(monkeypatch):
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, SAVED: 4.3, LOOP: 8.0, COMPILED: 2.0})
    rows = _rows(LAYER, share_of_copy=0.4, saved=4.2)
    rows[0].median = 0.1
    found = bars.judge(LAYER, rows, [LOOP], asked=[FLOOR])
    assert [(bar.name.split(": ")[1], bar.value, bar.verdict, bar.required) for bar in found] == [
        ("time / copy_", 2.5, "MISSED", True),
        ("bytes saved", 4.2, "holds", False),
        (f"{LOOP} / ours", 10.0, "holds", False),
    ]
    assert [bar.verdict for bar in bars.judge(LAYER, [], asked=[FLOOR])] == ["NOT MEASURED"] + ["not measured"] * 3


@pytest.fixture
def measured(monkeypatch):
    """In place of measuring: rows whose ratios the test sets; the cases that were measured."""
    found = SimpleNamespace(ratios=[], cases=[], problem="")

    def run_case(case: Case, peers: list[str], *rest: object) -> list[Row]:
        found.cases.append(case.name)
        ratio = found.ratios.pop(0) if found.ratios else 1e3
        rows = [row for row in _rows(case, median=ratio) if row.peer in (OURS, *peers)]
        rows[0].median = 1.0
        for row in rows[1:] if found.problem else ():
            row.problem, row.median = found.problem, None
        return rows

    monkeypatch.setattr(run, "run_case", run_case)
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, LOOP: 8.0})
    return found


@pytest.mark.parametrize("command", [["check"], HERE], ids=["check", "run"])
def test_a_missed_bar_is_measured_again_before_it_is_the_exit_code_and_the_last_line(
    command, measured, monkeypatch, capsys
):
    monkeypatch.setattr(run, "suites", lambda device: {"lif": [LAYER]})
    most = run.ATTEMPTS
    for ratios, code, attempts in (([9.0], 0, 1), ([1.0, 9.0], 0, 2), ([1.0] * most + [9.0], 1, most)):
        measured.ratios, measured.cases = ratios, []
        assert command_line.main(command) == code
        assert measured.cases == [LAYER.name] * attempts
    output = capsys.readouterr().out
    assert output.count("once more, in case") == 1 + most - 1  # said before each that follows
    assert output.splitlines()[-1].startswith("MISSED             1 >= 8 ")


def test_what_is_not_measured_fails_only_where_it_was_asked_for(measured, capsys):
    measured.problem = "not installed"
    assert command_line.main(HERE) == 0
    assert command_line.main([*HERE, "--peer", LOOP]) == 1
    assert command_line.main(["check"]) == 1
    assert "(not installed)" in capsys.readouterr().out


def test_the_gate_measures_all_its_cases_and_misses_spikes_as_bits_where_they_are_lost(measured, monkeypatch, capsys):
    assert command_line.main(["check"]) == 0
    assert set(measured.cases) == {case.name for case in GATE}
    monkeypatch.setattr(run, "suites", lambda device: {"events": [PAIR]})
    measured.ratios = [1.0] * run.ATTEMPTS  # of spikes as numbers to ours
    assert command_line.main(["check"]) == 1
    assert f"{NUMBERS} / ours" in capsys.readouterr().out.splitlines()[-1]
