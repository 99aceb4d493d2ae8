"""The bars of the benchmarks, what becomes of those that are missed, and the gate. No timing is asserted."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command_line
from benchmarks import bars, run, runner
from benchmarks.bars import FLOOR, SAVED
from benchmarks.peers import PEERS
from benchmarks.peers.ours import LOOPED, NUMBERS, OURS
from benchmarks.peers.snntorch_loop import COMPILED, LOOP, NETWORK
from benchmarks.registry import PAIR, TUTORIAL5, Case, suites

CASES = {case.name: case for cases in suites("cpu").values() for case in cases}
LAYER = CASES["lif [25, 128, 1000] float32, forward + backward"]
GATE = [case for case in CASES.values() if case.gate]
HERE = ["run", "--case", LAYER.name, "--device", "cpu"]


def test_bars_name_cases_and_peers_that_exist_and_all_are_measured():
    judged = [bar for name in bars.BARS for bar in bars.judge(name, _rows(CASES[name]))]
    assert len(judged) == sum(map(len, bars.BARS.values()))
    assert [bar.name for bar in judged if bar.value is None] == []


def test_every_case_of_the_gate_has_a_bar_and_needs_nothing_but_snntorch():
    assert {case.suite for case in GATE} == {"lif", "loop", "neurons", "tutorial5", "events"}
    assert all(bars.judge(case.name, [], [LOOP]) for case in GATE)


def test_the_gate_misses_spikes_as_bits_where_they_are_lost(measured, monkeypatch, capsys):
    monkeypatch.setattr(run, "suites", lambda device: {"events": [PAIR]})
    for ratios, code in (([9.0], 0), ([1.0] * run.ATTEMPTS, 1)):  # of spikes as numbers to ours
        measured.ratios = ratios
        assert command_line.main(["check"]) == code
    assert f"{NUMBERS} / ours" in capsys.readouterr().out.splitlines()[-1]


def _rows(case: Case, **values: float | None) -> list[runner.Row]:
    of_layer = {"median": 1.0, "low": 1.0, "high": 1.0, "ratio": 1.0, "share_of_copy": 1.0, "saved": 1.0, "held": 0.1}
    filled = {**of_layer, **values}
    return [runner.Row(case.name, peer.name, **filled) for peer in PEERS.values() if peer.fits(case)]


def test_a_bar_holds_up_to_its_limit_and_is_missed_without_a_value_only_where_it_was_asked_for():
    def verdict(value: float | None, at_least: bool = False, required: bool = True) -> str:
        return bars.Bar("", value, 2.0, at_least, required=required).verdict

    assert [verdict(1.9), verdict(2.0), verdict(2.1)] == ["holds", "holds", "MISSED"]
    assert [verdict(1.9, True), verdict(2.0, True), verdict(2.1, True)] == ["MISSED", "holds", "holds"]
    assert [verdict(None), verdict(None, required=False)] == ["NOT MEASURED", "not measured"]
    assert [bar.missed for bar in (bars.Bar("", v, 2.0) for v in (1.0, 3.0, None))] == [False, True, True]
    assert not bars.Bar("", None, 2.0, required=False).missed


def test_bars_are_judged_by_copy_by_bytes_and_by_peers(monkeypatch):
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, SAVED: 4.3, LOOP: 8.0, COMPILED: 2.0})
    rows = _rows(LAYER, share_of_copy=0.4, saved=4.2, ratio=9.0)
    found = bars.judge(LAYER.name, rows, [LOOP], asked=[FLOOR])
    assert [bar.name.split(": ")[1] for bar in found] == ["time / copy_", "bytes saved", f"{LOOP} / ours"]
    assert [(bar.value, bar.bar, bar.verdict) for bar in found] == [
        (2.5, 2.0, "MISSED"),
        (4.2, 4.3, "holds"),
        (9.0, 8.0, "holds"),
    ]
    assert [bar.required for bar in found] == [True, False, False]
    assert [bar.verdict for bar in bars.judge(LAYER.name, [], asked=[FLOOR])] == ["NOT MEASURED"] + ["not measured"] * 3


def test_bars_between_two_peers_are_at_most_where_the_time_above_is_our_own(monkeypatch):
    limits = {LOOPED: 1.1, (LOOP, LOOPED): 7.5, (NETWORK, LOOPED): 1.0}
    monkeypatch.setitem(bars.BARS, TUTORIAL5.name, limits)
    ratios = {OURS: 1.0, LOOP: 9.0, LOOPED: 1.25}
    rows = [runner.Row(TUTORIAL5.name, peer, median=ratio, ratio=ratio) for peer, ratio in ratios.items()]
    rows.append(runner.Row(TUTORIAL5.name, NETWORK, problem="no compiler"))
    found = bars.judge(TUTORIAL5.name, rows, asked=[LOOPED, NETWORK])
    assert [bar.name.split(": ")[1] for bar in found] == [
        f"{LOOPED} / ours", f"{LOOP} / {LOOPED}", f"{NETWORK} / {LOOPED}"
    ]  # fmt: skip
    assert [(bar.value, bar.at_least, bar.verdict) for bar in found] == [
        (1.25, False, "MISSED"),
        (7.2, True, "MISSED"),
        (None, True, "NOT MEASURED"),
    ]
    assert found[2].detail == "no compiler"
    assert [bar.required for bar in found] == [True, False, True]
    assert [bar.name for bar in bars.judge(TUTORIAL5.name, rows, [LOOP])] == []
    assert len(bars.judge(TUTORIAL5.name, rows, [LOOP, LOOPED])) == 2


@pytest.fixture
def measured(monkeypatch):
    """In place of measuring: rows whose ratios the test sets; the cases that were measured."""
    found = SimpleNamespace(ratios=[], cases=[], problem="")

    def run_case(case: Case, peers: list[str], *rest: object) -> list[runner.Row]:
        found.cases.append(case.name)
        ratio = found.ratios.pop(0) if found.ratios else 1e3
        rows = [row for row in _rows(case, ratio=ratio, share_of_copy=1.0) if row.peer in (OURS, *peers)]
        for row in rows[1:] if found.problem else ():
            row.problem, row.median, row.ratio = found.problem, None, None
        return rows

    monkeypatch.setattr(run, "run_case", run_case)
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, LOOP: 8.0})
    return found


def test_a_missed_bar_is_the_exit_code_and_the_last_line(measured, capsys):
    measured.ratios = [9.0, 1.0]
    assert command_line.main([*HERE, "--attempts", "1"]) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert command_line.main([*HERE, "--attempts", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("MISSED             1 >= 8 ")


@pytest.mark.parametrize("command", [["check"], HERE], ids=["check", "run"])
def test_a_missed_bar_is_measured_again_before_it_fails(command, measured, monkeypatch, capsys):
    monkeypatch.setattr(run, "suites", lambda device: {"lif": [LAYER]})
    most = run.ATTEMPTS
    for ratios, code, attempts in (([9.0], 0, 1), ([1.0, 9.0], 0, 2), ([1.0] * most + [9.0], 1, most)):
        measured.ratios, measured.cases = ratios, []
        assert command_line.main(command) == code
        assert measured.cases == [LAYER.name] * attempts
    assert capsys.readouterr().out.count("once more, in case") == 1 + most - 1  # said before each that follows


def test_a_bar_that_held_once_is_not_missed_later(monkeypatch, capsys):
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, LOOP: 8.0})
    attempts = [(1.0, 1.0), (0.1, 9.0)]  # copy_ / time, ratio
    monkeypatch.setattr(
        run, "run_case", lambda *_: _rows(LAYER, **dict(zip(("share_of_copy", "ratio"), attempts.pop(0), strict=True)))
    )
    assert command_line.main(HERE) == 0
    assert not attempts


def test_what_is_not_measured_fails_only_where_it_was_asked_for(measured, capsys):
    measured.problem = "not installed"
    assert command_line.main(HERE) == 0
    assert command_line.main([*HERE, "--peer", LOOP]) == 1
    assert command_line.main(["check"]) == 1
    assert "not measured       - >= 8       lif [25, 128, 1000]" in (output := capsys.readouterr().out)
    assert "(not installed)" in output


def test_an_error_of_our_own_fails_a_run_though_no_bar_was_asked_for(monkeypatch, capsys):
    def make(case: Case, device: object) -> None:
        raise RuntimeError("of its own")

    case = replace(LAYER, T=3, B=2)
    monkeypatch.setattr(run, "suites", lambda device: {"lif": [case]})
    monkeypatch.setitem(PEERS, OURS, PEERS[OURS]._replace(make=make))
    assert command_line.main(["run", "--peer", OURS, "--device", "cpu", "--seconds", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{case.name}: {OURS} (failed: RuntimeError: of its own)")


def test_without_cases_the_selection_runs_and_lists_every_bar(measured, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "run"])
    command_line.main()
    output = capsys.readouterr().out
    assert set(measured.cases) == {case.name for case in CASES.values() if case.quick}
    assert all(output.count(f"{name}: ") >= len(limits) for name, limits in bars.BARS.items())


def test_the_gate_measures_all_its_cases_of_neurons_that_exist(measured, monkeypatch):
    monkeypatch.setattr(run, "lacking", lambda case: "is not there yet" if case.neuron == "synaptic" else "")
    assert command_line.main(["check"]) == 0
    assert set(measured.cases) == {case.name for case in GATE if case.neuron != "synaptic"}


def test_the_gate_runs(monkeypatch, capsys):
    pytest.importorskip("snntorch")
    small = [replace(case, T=3, B=2) for case in GATE if case.neuron == "leaky"]
    monkeypatch.setattr(run, "suites", lambda device: {"gate": small})
    command_line.main(["check", "--seconds", "0.05", "--threads", "1", "--attempts", "1"])
    output = capsys.readouterr().out
    assert all(output.count(case.name) >= 1 for case in small)
    assert output.count(f"{LOOP} ") >= len(small) - 1
    assert output.count(f"{NUMBERS} ") >= 1
