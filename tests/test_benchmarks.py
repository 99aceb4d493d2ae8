"""The benchmarks run, count right and train all implementations alike. No timing is asserted."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks import __main__ as command_line
from benchmarks import bars, base, measure, memory_use, once, programs, report, run, runner
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.ours import DENSE, LOOPED, NUMBERS, OURS, SWAPPED, WITH_LOSS
from benchmarks.peers.snntorch_loop import HOISTED, LOOP, NETWORK
from benchmarks.registry import DIRECTIONS, NETWORKS, PAIR, TUTORIAL5, Case, Options, case_named, suites
from benchmarks.workloads import Network, build, make_data

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
EMPTY_ARCHIVE = bytes(10240)  # as tar makes it
SMALLEST = "lif [1, 1, 10] float32, forward"
CASES = [case for cases in suites("cpu").values() for case in cases]
TRAINED = next(case for case in CASES if case.trained)


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
        layers = [case if case.kind in NETWORKS else replace(case, shape=(16,)) for case in few]
        cases = [replace(case, T=3, B=2, hidden=(16,) * len(case.hidden)) for case in layers]
        small[name] = list({case.name: case for case in cases}.values())
    return small


@pytest.mark.needs_extension
@pytest.mark.parametrize("suite", [suite for suite in suites("cpu") if suite not in ("compile", "epoch")])
def test_each_suite_runs(suite, capsys, monkeypatch, tmp_path, digits):
    pytest.importorskip("snntorch")
    monkeypatch.setattr(run, "suites", _shrunk)
    file = tmp_path / "run.json"
    command = ["run", "--suite", suite, "--device", "cpu", "--seconds", "0.05", "--threads", "1", "--attempts", "1"]
    others = {"products": [DENSE], "numbers": ["snnfast, threshold=1"]}.get(suite, [LOOP])
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


def test_a_base_that_was_not_measured_to_its_end_is_an_error(monkeypatch, tmp_path):
    complete = [True, False]

    def called(command, **given):
        if "setup.py" not in command and "git" not in command:
            report.save(Path(command[command.index("--json") + 1]), {"machine": "this"}, [], complete.pop(0))
        return subprocess.CompletedProcess(command, 0, stdout=EMPTY_ARCHIVE)

    monkeypatch.setattr(base.subprocess, "run", called)
    monkeypatch.setattr(base.shutil, "copytree", lambda *arguments, **options: None)
    assert base.results("some-revision", [], False)["header"]["commit"] == "some-revision"
    with pytest.raises(ValueError, match="--base some-revision: its measurement failed"):
        base.results("some-revision", [], False)


def test_the_header_tells_no_path_of_the_environment(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/some/where/libone.so:/else/libtwo.so")
    environment = report.header(CPU, PEERS.values())["environment"]
    assert "LD_PRELOAD=libone.so libtwo.so" in environment
    assert "/" not in environment


# ---- rows


def test_missing_failing_and_slow_peers_are_rows_that_say_why(monkeypatch):
    def broken(case, device):
        raise RuntimeError("of its own")

    for name, module in (("absent", "package_that_is_not_there"), ("broken", "torch")):
        monkeypatch.setitem(PEERS, name, Peer(name, module, module, f"pip install {name}", broken))
    rows = {row.peer: row for row in runner.run_case(Case("lif", "layer", 2, 1, (3,)), ["absent", "broken"], CPU, 0.0)}
    assert rows["absent"].problem == "not installed: pip install absent"
    assert rows["broken"].problem == "failed: RuntimeError: of its own"
    assert rows[OURS].median is not None
    rows = runner.run_case(Case("lif", "layer", 4096, 1, (10**7,)), [LOOP], CPU, 0.0)
    assert all(row.problem.startswith("left out") for row in rows)
    assert NETWORK not in run.peers_of(TUTORIAL5, False, CPU)
    assert NETWORK in run.peers_of(TUTORIAL5, True, CPU)


def test_without_mnist_what_needs_it_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNFAST_DATA", str(tmp_path))
    for case in (replace(TRAINED, B=5), case_named("epoch [25, 128, 784] float32, forward + backward")):
        rows = runner.run_case(case, [OURS], CPU, 0.0)
        assert all(row.problem.startswith("needs MNIST (SNNFAST_DATA") for row in rows)


def test_copy_moves_as_many_bytes_as_the_layer_and_is_the_floor(monkeypatch):
    copied = []
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append(self.nbytes + source.nbytes))
    for whole in (1 << 26, 1000):  # in one piece, and in several
        monkeypatch.setattr(runner, "COPIED", whole)
        copied.clear()
        runner.copying(20 * 12_800, CPU)()
        assert sum(copied) == 20 * 12_800
    case = Case("lif", "layer", 10, 1, (1000,))
    ours, copy = rows = [runner.Row(case.name, name, median=s) for name, s in ((OURS, 3e-3), (runner.COPY, 2e-3))]
    runner.compare(case, rows)
    assert ours.share_of_copy == pytest.approx(2 / 3)
    assert copy.bandwidth == pytest.approx(20 * 10_000 / 2e-3)


def test_ideal_bytes():
    layer = Case("lif", "layer", 10, 1, (1,))
    recorded = {"options": Options(record_mem=True)}
    for changed, expected in (
        ({}, 20),
        (recorded, 24),
        ({"constant": True}, 8 + 1.2),
        ({"backward": False}, 8),
        ({"neuron": "synaptic", **recorded}, 28),  # both states are written, the membrane is read
    ):
        assert replace(layer, **changed).ideal_bytes == pytest.approx(expected)
    assert Case("loop", "loop", 10, 1, (1,)).ideal_bytes is None


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
    assert memory_use.kept(lambda: (Known.apply(x),), [x]) == memory_use.Kept(200 + 200 + 100, 100)
    # What is neither given nor returned is held by the graph alone.
    assert memory_use.kept(lambda: (Known.apply(x).sum(),), []) == memory_use.Kept(500, 500)


def test_slow_functions_take_short_turns():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in ("slow", "fast")}

    def clock(function) -> float:
        function()
        return 1.0 if called[-1] == "slow" else 1e-6

    times = measure.alternate(functions, seconds=0, warm_up=1, least=2, slow=0.1, clock=clock)
    assert (called.count("slow"), len(times["slow"])) == (4, 2)  # two to find out, then one in each turn
    assert (called.count("fast"), len(times["fast"])) == (15, 8)  # the first of a turn does not count


@pytest.mark.needs_extension
def test_spikes_as_bits_are_the_same_as_numbers_and_take_less_memory():
    data = make_data(PAIR, CPU)
    assert 0.02 < data.rates[0] < 0.08
    bits, numbers = (build(PAIR, PEERS[name], data) for name in (OURS, NUMBERS))
    for found, expected in zip(bits.run(), numbers.run(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    kept = [memory_use.kept(peer.forward, peer.given).held / PAIR.neuron_steps for peer in (bits, numbers)]
    assert kept[0] <= bars.BARS[PAIR.name][bars.HELD]
    assert kept[1] > 4
    for direction in DIRECTIONS:
        case = Case("products", "product", 9, 2, (70,), rate=0.1, variant=direction)
        found, expected = (build(case, PEERS[name], make_data(case, CPU)).run() for name in (OURS, DENSE))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# ---- networks, compiled or not


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("peer", [LOOPED, WITH_LOSS, LOOP, HOISTED])
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
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("peer", [LOOPED, WITH_LOSS])
def test_two_epochs_with_smaller_last_batches_and_evaluation_compile_three_graphs(peer):
    pytest.importorskip("snntorch")
    torch._dynamo.reset()
    counters.clear()
    network = Network(replace(TUTORIAL5, T=5), PEERS[peer], CPU)
    for _ in range(2):
        for size in (16, 16, 12):
            network.train(torch.rand(size, 784), torch.randint(10, (size,)))
        for size in (10, 10, 6):
            with torch.no_grad():
                network.loss(torch.rand(size, 784), torch.randint(10, (size,)))
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def test_what_is_measured_once_is_a_row_and_programs_are_cases(digits, monkeypatch):
    pytest.importorskip("snntorch")
    monkeypatch.setattr(once, "SEEDS", 1)
    epoch = Case("epoch", "epoch", 3, 64, (784,))
    ours, theirs = runner.run_case(epoch, [OURS, LOOP], CPU, 0.0)
    assert 0 <= ours.accuracy < 1 > theirs.accuracy >= 0
    monkeypatch.setitem(once.ONCE, "compile", lambda case, peer: {"median": once.seconds_to_compile(case, peer)})
    small = Case("compile", "compile", 3, 4, (784,))
    (row,) = runner.run_case(small, [LOOPED], CPU, 0.0)
    assert row.median > 0, row.problem
    (program,) = [case for case in programs.cases() if case.variant == "tutorial5"]
    rows = runner.run_case(program, [LOOPED, SWAPPED], CPU, 0.0)
    assert [bar.value > 0 for bar in bars.judge(program, rows)] == [True]
