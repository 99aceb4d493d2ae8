"""The benchmarks run, count right and train all implementations alike; and their bars.

No timing is asserted.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import snnfast
from benchmarks import __main__ as command_line
from benchmarks import bars, collection, convolutions, lengths, measure, public, report, run, runner
from benchmarks.bars import FLOOR, SAVED
from benchmarks.collection import timing
from benchmarks.gpu import times, training, workload
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.ours import (
    APART,
    BACKEND,
    COMPILED_LOOP,
    DEFAULT,
    DENSE,
    NUMBERS,
    OURS,
    PRODUCTS,
    RECORDED,
    STEPS,
    SWAPPED,
    WITH_LOSS,
)
from benchmarks.peers.snntorch_loop import COMPILED, HOISTED, LOOP, NETWORK
from benchmarks.registry import NETWORKS, PAIR, TUTORIAL5, Case, case_named, suites
from benchmarks.runner import Row
from benchmarks.workloads import Network

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
SMALLEST = "lif [1, 1, 10] float32, forward"
CASES = [case for cases in suites("cpu").values() for case in cases]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_a_name_of_its_own_and_a_suite(device):
    known = suites(device)
    names = [case.name for cases in known.values() for case in cases]
    assert len(names) == len(set(names))
    assert all(case.suite == suite for suite, cases in known.items() for case in cases)
    assert all(case_named(name).name == name for name in names)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["lif"], "check"),
        (["run", "--suite", "nothing"], "inference"),
        (["run", "--peer", "nothing"], LOOP),
        (["run", "--case", SMALLEST, "--base", "no-such-revision"], "neither a file nor a revision"),
        (["run", "--case", SMALLEST, "--device", "cpu", "--json", "no/such/folder.json"], "[Errno 2]"),
    ],
    ids=["command", "suite", "peer", "base", "json"],
)
def test_what_there_is_not_is_an_error_that_says_so(wrong, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(wrong)
    assert said in capsys.readouterr().err


def _shrunk(device: str) -> dict[str, list[Case]]:
    """Up to three cases of each suite, in a size that takes no time."""
    small: dict[str, list[Case]] = {}
    for name, known in suites(device).items():
        few = [known[0], known[1 % len(known)], known[-1]]
        layers = [case if case.kind in NETWORKS else replace(case, shape=(8,) * len(case.shape)) for case in few]
        cases = [replace(case, T=3, B=2, hidden=(16,) * len(case.hidden)) for case in layers]
        small[name] = list({case.name: case for case in cases}.values())
    return small


@pytest.mark.needs_extension
@pytest.mark.parametrize("suite", suites("cpu"))
def test_each_suite_runs(suite, capsys, monkeypatch, tmp_path, digits):
    pytest.importorskip("snntorch")
    monkeypatch.setattr(run, "suites", _shrunk)
    file = tmp_path / "run.json"
    command = ["run", "--suite", suite, "--device", "cpu", "--seconds", "0.05", "--threads", "1", "--attempts", "1"]
    named = {"products": [DENSE], "norm": [STEPS, APART], "spikingjelly": []}
    others = named.get(suite, [LOOP])
    command_line.main([*command, "--peer", OURS, *others, "--json", str(file)])
    output = capsys.readouterr().out
    rows = [row for row in report.load(file)["rows"] if case_named(row.case) != PAIR]
    fit = [row for row in rows if row.problem != runner.UNFIT]
    assert {row.peer for row in fit} >= {OURS, *others}
    assert all(row.median > 0 and row.repeats > 0 and row.problem == "" and row.case in output for row in fit)
    assert all(row.agree in (None, 1.0) for row in fit)


def test_store_measures_what_the_documents_show(tmp_path, monkeypatch, capsys):
    case = Case("lif", "layer", 2, 1, (16,))
    planned = {case.name for case in run.plan_to_store(CPU)}
    assert {row.case for file in run.RESULTS.glob("*.json") for row in report.load(file)["rows"]} <= planned
    assert command_line.parse([]).function is run.store
    monkeypatch.setattr(run, "plan_to_store", lambda device: {case: [OURS]})
    assert command_line.main(["store", "--out", str(tmp_path), "--seconds", "0", "--device", "cpu"]) == 0
    (file,) = tmp_path.glob("*.json")
    assert report.load(file)["complete"]
    assert f"wrote {file}" in capsys.readouterr().out


# ---- rows


def test_missing_failing_and_slow_peers_are_rows_that_say_why(monkeypatch):
    def broken(case, device):
        raise RuntimeError("of its own")

    for name, module in (("absent", "package_that_is_not_there"), ("broken", "torch")):
        monkeypatch.setitem(PEERS, name, Peer(name, module, broken))
    rows = {row.peer: row for row in runner.run_case(Case("lif", "layer", 2, 1, (3,)), ["absent", "broken"], CPU, 0.0)}
    assert rows["absent"].problem == "not installed: No module named 'package_that_is_not_there'"
    assert rows["broken"].problem == "failed: RuntimeError: of its own"
    assert rows[OURS].median is not None
    rows = runner.run_case(Case("lif", "layer", 4096, 1, (10**7,)), [LOOP], CPU, 0.0)
    assert all(row.problem.startswith("left out") for row in rows)
    assert NETWORK not in run.peers_of(TUTORIAL5, False, CPU)
    assert NETWORK in run.peers_of(TUTORIAL5, True, CPU)


class Known(torch.autograd.Function):
    """Saves its input, its output and 100 bytes, twice."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y, extra = x * 2, torch.zeros(25)
        ctx.save_for_backward(x, y, extra, extra[5:])
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 2


def test_bytes_kept_are_those_of_a_function_that_is_known():
    x = torch.rand(50, requires_grad=True)
    assert measure.kept(lambda: (Known.apply(x),), [x]) == measure.Kept(200 + 200 + 100, 100)
    # What is neither given nor returned is held by the graph alone.
    assert measure.kept(lambda: (Known.apply(x).sum(),), []) == measure.Kept(500, 500)


# ---- networks, compiled or not


def test_the_peak_of_a_call_is_that_of_tensors_that_are_alive_together():
    x = torch.rand(1000)

    def run():
        a = x + 1
        b = a.view(10, 100) + 1  # a view is no memory of its own
        del a
        return (b.add_(1) + 1).sum()

    assert measure.peak_on_cpu(run) == 8004
    with torch.no_grad():
        assert measure.peak_on_cpu(lambda: x.square_()) == 0
    x.requires_grad_()
    assert measure.peak_on_cpu(lambda: x.exp().exp().sum().backward()) >= 12000  # two results and a gradient


@pytest.mark.parametrize(
    ("ours", "others", "said"),
    [
        (2.0, 0.0, "0.00 processors"),  # two threads of the benchmark itself
        (1.0, 0.1, "0.20 processors"),
        (0.5, 0.5, "1.00 processors: other programs are running, expect noise"),
    ],
)
def test_the_load_is_that_of_other_programs(ours, others, said, tmp_path, monkeypatch):
    """Of two processors within a second."""
    stat, tick, own = tmp_path / "stat", os.sysconf("SC_CLK_TCK"), [100.0]

    def write(busy: float, idle: float) -> None:
        times = [busy / 2, 0, busy / 4, idle / 2, idle / 2, 0, 0, busy / 4, 7, 7]  # two that the first has already
        stat.write_text(f"cpu  {' '.join(str(round(t * tick)) for t in times)}\ncpu0 1 2 3\n")

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "times", lambda: (own[0] / 2, own[0] / 4, own[0] / 8, own[0] / 8, 0.0))
    write(400, 600)
    load = report.Load(stat)
    own[0] += ours
    write(400 + ours + 2 * others, 600 + 2 - ours - 2 * others)
    assert str(load) == said
    assert str(report.Load(tmp_path / "none")) == "unknown"


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("peer", [RECORDED, WITH_LOSS, LOOP, HOISTED])
def test_networks_train_alike_whoever_computes_them(kind, peer):
    pytest.importorskip("snntorch")
    torch._dynamo.reset()
    case = replace(next(case for case in CASES if case.kind == kind), T=8, B=4, trained=False)
    ours, theirs = (Network(case, PEERS[name], CPU) for name in (OURS, peer))
    x, labels = torch.rand(case.B, *case.shape), torch.randint(10, (case.B,))
    with torch.no_grad():
        for parameter in (*ours.parameters, *theirs.parameters):
            parameter.mul_(4)  # so that all layers spike
    assert ours(x)[0].any()
    for _ in range(3):
        expected = ours.train(x, labels)
        torch.testing.assert_close(theirs.train(x, labels).reshape(()), expected)
    torch.testing.assert_close(list(ours.parameters), list(theirs.parameters), rtol=1e-3, atol=1e-4)


def test_programs_are_cases(capsys):
    pytest.importorskip("snntorch")
    (program,) = [case for case in collection.cases() if case.variant == "dense: price"]
    names = run.peers_of(program, True, CPU)
    assert names == [DEFAULT, PRODUCTS, LOOP]
    rows = timing.measure(program, names, 0.0)
    assert [row.problem for row in rows] == [""] * 3
    assert [(bar.value > 0, bar.bar) for bar in bars.judge(program, rows)] == [(True, 1)]
    assert [row.peer for row in rows if row.first] == [DEFAULT]
    assert [row.peer for row in rows if row.varied] == [DEFAULT, LOOP]
    assert all(bars.gains_of(rows, name)[program.name] > 0 for name in names)
    report.print_gains(rows)
    assert re.search(r" \(other sizes [\d.]+, products alone [\d.]+, first call [\d.]+ s\)", capsys.readouterr().out)


def test_a_program_that_fails_or_differs_is_a_row_that_says_why(monkeypatch):
    pytest.importorskip("snntorch")
    (program,) = [case for case in collection.cases() if case.variant == "dense: price"]

    def fails_for_others(program, how):
        def step(inputs):
            if how != LOOP and inputs[0].shape[:2] != (program.T, program.B):
                raise ValueError("other sizes")

        return step

    monkeypatch.setattr(timing, "_step", fails_for_others)
    monkeypatch.setattr(timing, "differences", lambda *args, how, **_: [])
    rows = {row.peer: row for row in timing.measure(program, [DEFAULT, LOOP], 0.0)}
    assert rows[DEFAULT].problem == "failed: ValueError: other sizes"
    assert rows[DEFAULT].median is None
    assert rows[LOOP].problem == ""
    monkeypatch.setattr(timing, "differences", lambda *args, how, **_: ["call 0: it differs"])
    (row,) = timing.measure(program, [DEFAULT], 0.0)
    assert row.problem == "failed: AssertionError: call 0: it differs"


@pytest.mark.parametrize(("T", "B"), [(1, 1), (4, 32), (25, 8), (100, 128)])
def test_other_sizes_are_others_in_every_call(T, B):
    sizes = list(timing.sizes(T, B))
    assert len(sizes) == timing.BEFORE + timing.TIMED
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(sizes))
    assert len({B for _, B in sizes}) == len(sizes)
    assert all(max(1, 0.7 * T - 1) <= t <= 1.3 * T + 2 and 1 <= b <= B + timing.BEFORE + timing.TIMED for t, b in sizes)


def test_the_bars_of_the_collection_are_medians_and_the_worst_of_what_was_measured():
    names = [f"collection [25, 32] float32, dense: {n}, forward + backward" for n in range(3)]
    rows = [Row(name, LOOP, median=1.0, varied=1.0) for name in names]
    rows += [
        Row(name, DEFAULT, median=median, varied=varied, first=first)
        for name, median, varied, first in zip(names, (0.1, 0.2, 2.0), (0.5, 0.4, 0.1), (0.1, 0.8, 2.0), strict=True)
    ]
    found = [(bar.value, bar.bar, bar.verdict) for bar in bars.judge_collection(rows)]
    assert found == [(5, 4, "holds"), (2.5, 3.5, "MISSED"), (0.8, 0.7, "MISSED"), (2.0, 3, "holds")]
    assert bars.judge_collection([row for row in rows if row.peer == LOOP]) == []


# ---- the bars of the benchmarks, what becomes of those that are missed, and the gate. No timing is asserted


LAYER = case_named("lif [25, 128, 1000] float32, forward + backward")
GATE = [case for case in CASES if case.gate]
HERE = ["run", "--case", LAYER.name, "--device", "cpu"]


def _rows(case: Case, **values: object) -> list[Row]:
    filled = {"share_of_copy": 1.0, "saved": 1.0, "held": 0.1, "median": 1.0, **values}
    return [Row(case.name, peer.name, **filled) for peer in PEERS.values() if peer.fits(case)]


def test_bars_name_cases_and_peers_that_exist_and_all_are_measured():
    judged = [bar for name in bars.BARS for bar in bars.judge(case_named(name), _rows(case_named(name)))]
    assert len(judged) == sum(map(len, bars.BARS.values()))
    assert [bar.name for bar in judged if bar.value is None] == []
    assert all(bars.judge(case, [], [LOOP, NUMBERS]) for case in GATE)


@pytest.mark.parametrize(("instructions", "limit", "verdict"), [("avx512", 2.0, "MISSED"), ("avx2", 4.0, "holds")])
def test_bars_are_judged_by_copy_by_bytes_and_by_peers(instructions, limit, verdict, monkeypatch):
    monkeypatch.setattr(snnfast, "config", lambda: {"CPU instructions": f"{instructions} in use; available: none"})
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, SAVED: 4.3, LOOP: 8.0, COMPILED: 2.0})
    rows = _rows(LAYER, share_of_copy=0.4, saved=4.2)
    rows[0].median = 0.1
    found = bars.judge(LAYER, rows, [LOOP])
    assert [(bar.name.split(": ")[1], bar.value, bar.bar, bar.verdict) for bar in found] == [
        ("time / copy_", 2.5, limit, verdict),
        ("bytes saved", 4.2, 4.3, "holds"),
        (f"{LOOP} / ours", 10.0, 8.0, "holds"),
    ]
    # Without a value, those that were asked for are missed.
    found = bars.judge(LAYER, [], asked=[FLOOR])
    assert [(bar.verdict, bar.missed) for bar in found] == [("NOT MEASURED", True)] + [("not measured", False)] * 3


@pytest.fixture
def measured(monkeypatch):
    """In place of measuring: rows whose ratios the test sets; the cases that were measured."""
    found = SimpleNamespace(ratios=[], cases=[])

    def run_case(case: Case, peers: list[str], *rest: object) -> list[Row]:
        found.cases.append(case.name)
        ratio = found.ratios.pop(0) if found.ratios else 1e3
        rows = [row for row in _rows(case, median=ratio) if row.peer in (OURS, *peers)]
        rows[0].median = 1.0
        return rows

    monkeypatch.setattr(run, "run_case", run_case)
    monkeypatch.setitem(bars.BARS, LAYER.name, {FLOOR: 2.0, LOOP: 8.0})
    return found


@pytest.mark.parametrize("command", [["check"], HERE], ids=["check", "run"])
def test_a_missed_bar_is_measured_again_before_it_is_the_exit_code(command, measured, monkeypatch, capsys):
    monkeypatch.setattr(run, "suites", lambda device: {"lif": [LAYER]})
    most = run.ATTEMPTS
    for ratios, code, attempts in (([9.0], 0, 1), ([1.0, 9.0], 0, 2), ([1.0] * most + [9.0], 1, most)):
        measured.ratios, measured.cases = ratios, []
        assert command_line.main(command) == code
        assert measured.cases == [LAYER.name] * attempts
    output = capsys.readouterr().out
    assert output.count("once more, in case") == 1 + most - 1  # said before each that follows
    assert output.splitlines()[-1].startswith("MISSED             1 >= 8 ")


def test_the_gate_measures_all_its_cases_and_misses_spikes_as_bits_where_they_are_lost(measured, monkeypatch, capsys):
    assert command_line.main(["check"]) == 0
    assert set(measured.cases) == {case.name for case in GATE}
    monkeypatch.setattr(run, "suites", lambda device: {"events": [PAIR]})
    measured.ratios = [1.0] * run.ATTEMPTS  # of spikes as numbers to ours
    assert command_line.main(["check"]) == 1
    assert f"{NUMBERS} / ours" in capsys.readouterr().out.splitlines()[-1]


# ---- what runs on a GPU

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
STAND_IN = """#!/bin/sh
case "$*" in
  "-m snnfast") echo "fused on cuda       yes" ;;
  *times*) echo measuring; sleep 60 ;;
  *test_gpu.py) [ "$SNNFAST_REQUIRE_EXT$SNNFAST_REQUIRE_GPU" = 11 ] ;;
  *) exit 3 ;;
esac
"""


def on_gpu(output: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(GPU), str(output), *steps]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_steps_for_a_gpu_fail_without_one(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = on_gpu(tmp_path, "card", PYTHON=sys.executable)
    assert done.returncode == 1
    assert "fused on cpu" in done.stdout
    assert done.stdout.endswith("=== failed: the kernels do not run on a card here; no other step was begun\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda/test_gpu.py"]
    command += ["-k", "two_devices"]
    environment = os.environ | {"SNNFAST_REQUIRE_GPU": "1"}
    tests = subprocess.run(command, cwd=GPU.parent.parent, env=environment, capture_output=True, text=True, check=False)
    assert tests.returncode == 1
    assert "SNNFAST_REQUIRE_GPU=1, but torch sees no CUDA device" in tests.stdout


def test_a_step_for_a_gpu_that_hangs_or_fails_leaves_the_others(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    done = on_gpu(tmp_path / "out", "times", "benchmarks", "card", PYTHON=str(python), LIMIT="1")
    assert done.returncode == 1
    *_, headline, last = done.stdout.splitlines()
    assert (headline, last) == ("=== card", "=== failed: times (exit code 124) benchmarks (exit code 3)")
    assert (tmp_path / "out" / "gpu.log").read_text() == done.stdout
    assert "measuring" in done.stdout
    assert on_gpu(tmp_path / "out", "card", PYTHON=str(python)).returncode == 0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A card of the test, on which the CPU computes; the modes in which it was told to find waits."""
    modes: list[str] = []
    for name, answer in {"synchronize": None, "reset_peak_memory_stats": None, "max_memory_allocated": 9}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(training, "captured", lambda calls: calls[0])
    monkeypatch.setattr(training, "seconds_of", lambda replay: 2e-6)
    return modes


@pytest.mark.needs_extension
def test_training_steps_for_a_gpu(card: list[str]) -> None:
    for name, make in workload.steps(False, training.SMALL):
        work = make(CPU, training.SMALL)
        work.call()
        assert (work.moved is None) == name.startswith(("tutorial", "convolutions", "RLeaky")), name
    found = {"question": "it"}
    training.answer(training.leaky(CPU, training.SMALL), 0.0, found)
    assert training.line(found).endswith("2 us as a graph,    10 GB/s: it")
    assert card == ["error", "default"]
    training.answer(training.tutorial5(CPU, training.SMALL, compiled=False), 0.0, found)
    assert re.search(r"2 us as a graph, +[1-9]\d+ us by graphed: it$", training.line(found))


def test_a_training_step_that_waits(card: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def wait() -> None:
        if card[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    def refuse(calls: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    found = {"question": "it"}
    training.answer(training.Work(wait), 0.0, found)
    assert training.line(found).endswith(" us as a graph, WAITS: called a synchronizing CUDA operation: it")
    monkeypatch.setattr(training, "captured", refuse)
    with pytest.raises(RuntimeError, match="when stream is capturing"):
        training.answer(training.Work(wait), 0.0, found := {})
    assert {"waits", "launches", "host"} <= set(found)


def test_a_measurement_on_a_gpu_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The others are still made and written; the exit code and the file tell of it."""
    for name, answer in {
        "is_available": True,
        "get_device_name": "a card",
        "Stream": None,
        "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(snnfast, "use_backend", lambda backend: nullcontext())
    monkeypatch.setattr(snnfast, "config", dict)

    def fail(rows: list[object]) -> None:
        raise RuntimeError("no memory")

    measurements = ("first", fail), ("second", lambda rows: rows.append({"kernel": 1.0}))
    with pytest.raises(SystemExit, match="FAILED: first: no memory"):
        times.write_each(tmp_path / "times.json", measurements)
    written = json.loads((tmp_path / "times.json").read_text())
    assert (written["card"], written["rows"]) == ("a card", [{"kernel": 1.0}])
    assert written["failed"] == {"first": "no memory"}


def test_batches_of_other_numbers_of_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    works = [work._replace(steps=(6, 9), batch=2) for work in lengths.WORKS if work.name.startswith("two")]
    monkeypatch.setattr(lengths, "WORKS", works)
    monkeypatch.setattr(lengths, "BATCHES", 2)
    monkeypatch.setattr(lengths, "STEPS", (6, 7))
    monkeypatch.setattr(lengths, "CALLED", [("a recurrent layer", lengths.Recurrent, 2, (700,))])
    assert command_line.main(["lengths", "--threads", str(torch.get_num_threads())]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    rows = [line for line in first.splitlines() if "times as fast" in line]
    assert [next(way for way in lengths.WAYS if way in row) for row in rows] == list(lengths.WAYS)
    rows = [line for line in second.splitlines() if " steps " in line]
    assert [line.split(" steps ")[0].split()[-1] for line in rows] == ["6", "7"]
    assert all(re.search(r"( +\d+\.\d+){5} of it", row) for row in rows)


@pytest.mark.needs_extension
def test_convolutions_of_spikes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in {
        "SIZES": ((32, 8),), "IMAGES": 2, "GAMMAS": (1.0,), "CHANNELS": (32, "P"), "B": 2, "WARM": 1, "SECONDS": 0.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(convolutions, name, value)
    edges = {"edges": collection.programs()["edges"]}
    monkeypatch.setattr(collection, "programs", lambda: edges)
    file = tmp_path / "found.json"
    assert command_line.main(["convolutions", "--json", str(file)]) == 0
    tables = capsys.readouterr().out.split("\n\n")
    assert [len(re.findall(r"\d% +\d+\.\d\d \(\d", table)) for table in tables] == [
        0,
        3 * len(convolutions.RATES),
        0,
        0,
    ]
    assert re.search(r"\d% spikes +[\d.]+ ms +[\d.]+ ms +[\d.]+ of the time", tables[2])
    assert re.search(r"edges +[\d.]+ times as fast; [\d.]+ of the time", tables[3])
    peers = {peer for rows in json.loads(file.read_text())["cases"].values() for peer in rows}
    assert peers == {convolutions.OURS, convolutions.PYTORCH, convolutions.LOOP}


# ---- benchmarks of others


STAND_INS = {
    "jaxpike/benchmarks/__init__.py": "",
    "jaxpike/benchmarks/torch_shd.py": """
import sys
def build(*args):
    import torch
    return torch.nn.Linear(2, 2)
def main():
    assert "--smoke" in sys.argv
    library, nets = sys.argv[sys.argv.index("--library") + 1], [build(1), build(1)]
    if library == "norse":
        raise SystemExit("Norse is not there")
    neurons = __import__(library)
    ours = hasattr(neurons, "of_snnfast") or getattr(neurons, "Leaky", main).__module__.startswith("snnfast")
    kept = nets[0] is nets[1] and nets[0]._compiled_call_impl is not None
    print("  trial 0 (warm-up, discarded): 9.00 s")
    for trial in (1, 2):
        print(f"  trial {trial}: {2 - ours - 0.5 * kept:.2f} s")
""",
    "spikingjelly/spikingjelly/__init__.py": "",
    "spikingjelly/benchmark/benchmark_train_backends.py": """
import spikingjelly
WARMUP, ITERS = 20, 100
def main():
    ours = hasattr(spikingjelly, "of_snnfast")
    print(f"torch backend                   avg_step={25 - 5 * ours + ITERS:8.3f} ms  throughput=  1.0")
    print("torch + torch.compile           failed (RuntimeError: it does not)")
""",
    "sparx/benchmarks/bench_lif.py": "print('  unroll=1      23.12 ms'); print('  folded over time         805.13 ms')",
}


def test_benchmarks_of_others_run_with_ours_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("snntorch")
    monkeypatch.setenv(public.VARIABLE, str(tmp_path))
    for case in public.cases():
        assert {row.problem.partition(":")[0] for row in public.measure(case, [], CPU)} <= {
            f"SNNFAST_PUBLIC has no {public.BENCHMARKS[case].name}"
        }
    for name, text in STAND_INS.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    rows = [{row.peer: row for row in public.measure(case, public.names_of(case), CPU)} for case in public.cases()]
    assert all(next(iter(found)) == OURS for found in rows)
    assert all(found[OURS].median > 0 and found[OURS].ratio == 1 for found in rows)
    shd, images, scan, layers = ({name: row.median for name, row in found.items()} for found in rows)
    assert shd.pop("Norse") is None
    assert rows[0]["Norse"].problem == "failed: Norse is not there"
    assert shd == {OURS: 1.0, COMPILED_LOOP: 0.5, SWAPPED: 1.0, "SpikingJelly": 2.0, LOOP: 2.0}
    assert rows[0][LOOP].repeats == 2
    assert images == {OURS: 0.025, BACKEND: None, "SpikingJelly": 0.03, "SpikingJelly, compiled": None}
    assert rows[1][BACKEND].problem == "failed: no time was printed"
    assert (scan["sparx, unroll=1"], scan["sparx, unroll=2"]) == (0.02312, None)
    assert layers["sparx, folded over time"] == 0.80513


def test_a_benchmark_of_others_is_a_table_and_a_file(tmp_path, monkeypatch, capsys):
    row = runner.Row(public.cases()[0].name, OURS, median=0.5, low=0.4, high=0.6, repeats=2, ratio=1.0)
    monkeypatch.setattr(public, "measure", lambda case, names, device: [row])
    monkeypatch.setenv(public.VARIABLE, str(tmp_path))
    (tmp_path / "jaxpike").mkdir()
    file = tmp_path / "run.json"
    assert command_line.main(["run", "--suite", "public", "--case", "jaxpike", "--json", str(file)]) == 0
    assert report.load(file)["rows"][0].median == 0.5
    printed = capsys.readouterr().out
    assert "jaxpike unknown" in printed
    assert "500.000" in printed
