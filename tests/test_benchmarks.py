"""The benchmarks run, count right and can be read back. No timing is asserted."""

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import snnfast
from benchmarks import __main__ as command_line
from benchmarks import base, kinds, measure, memory_use, parity, pool, report, rounding, run, runner
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.ours import OURS
from benchmarks.peers.snntorch_loop import LOOP
from benchmarks.registry import NETWORKS, NEURONS, Case, Options, suites
from benchmarks.workloads import build, make_data

CPU = torch.device("cpu")
SUITES = ["lif", "loop", "neurons", "tutorial5", "events", "conv", "long", "framework", "memory", "inference"]
COMMANDS = [
    "store", "list", "run", "check", "parity", "epoch", "kinds", "compile", "overhead", "loops", "pool", "products",
    "held", "rounding", "page", "docs", "raster",
]  # fmt: skip
EMPTY_ARCHIVE = bytes(10240)  # as tar makes it
SMALLEST = "lif [1, 1, 10] float32, forward"
CASES = {case.name: case for cases in suites("cpu").values() for case in cases}
LAYER = CASES["lif [25, 128, 1000] float32, forward + backward"]
GATE = [case for case in CASES.values() if case.gate]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_a_name_of_its_own_and_a_suite(device):
    known = suites(device)
    assert list(known) == SUITES
    names = [case.name for cases in known.values() for case in cases]
    assert len(names) == len(set(names))
    assert all(case.suite == suite for suite, cases in known.items() for case in cases)
    assert all(any(case.quick for case in known[suite]) for suite in ("lif", "loop", "tutorial5", "inference"))


def test_list_shows_suites_and_peers(capsys):
    assert command_line.main(["list"]) == 0
    output = capsys.readouterr().out
    assert all(f"suite {suite}:" in output for suite in SUITES)
    assert all(peer in output for peer in PEERS)


class Stand:
    """What is expected of a neuron of snnfast, computed by snnTorch's loop."""

    def __init__(self, name: str, **options: object) -> None:
        import snntorch

        options.pop("spike_grad", None)  # snnTorch's own is the same
        self.loop, self.states = getattr(snntorch, name)(**options), len(NEURONS[name.lower()].states)

    def __call__(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return self.loop(x, *states)

    def to(self, device: torch.device) -> "Stand":
        return self

    def parameters(self) -> list[Tensor]:
        return []

    def unroll(self, x: Tensor, *states: Tensor, record_mem: bool = True) -> tuple[Tensor, ...]:
        out, steps = (None, *(states or [torch.zeros_like(x[0])] * self.states)), []
        for current in x.unbind(0):
            out = self.loop(current, *out[1:])
            steps.append(out)
        records = tuple(map(torch.stack, zip(*steps, strict=True)))
        return records if record_mem else (records[0], *out[1:])


@pytest.fixture
def every_neuron(monkeypatch):
    """Those that snnfast lacks stand in for it."""
    pytest.importorskip("snntorch")
    for model in NEURONS.values():
        if not hasattr(snnfast, model.name):
            monkeypatch.setattr(snnfast, model.name, partial(Stand, model.name), raising=False)


def _shrunk(device: str) -> dict[str, list[Case]]:
    """Two cases of each suite, in a size that takes no time."""
    small: dict[str, list[Case]] = {}
    for name, known in suites(device).items():
        cases = [
            replace(
                case, T=3, B=2, shape=case.shape if case.kind in NETWORKS else (16,), hidden=(16,) * len(case.hidden)
            )
            for case in known
        ]
        small[name] = list({case.name: case for case in (cases[0], cases[1 % len(cases)], cases[-1])}.values())
    return small


@pytest.mark.parametrize("suite", SUITES)
def test_each_suite_runs(suite, capsys, monkeypatch, tmp_path, every_neuron, digits):
    monkeypatch.setattr(memory_use, "peak_on_cpu", lambda case, peer: 4096 * case.T)
    monkeypatch.setattr(run, "suites", _shrunk)
    file = tmp_path / "run.json"
    arguments = ["run", "--suite", suite, "--peer", OURS, LOOP, "--device", "cpu"]
    command_line.main([*arguments, "--seconds", "0.05", "--threads", "1", "--json", str(file)])
    output = capsys.readouterr().out
    content = report.load(file)
    for row in content["rows"]:
        assert row.problem == ""
        assert row.median is not None
        assert row.repeats > 0
        assert row.case in output
    assert {row.peer for row in content["rows"]} >= {OURS, LOOP}
    assert all(row.agree in (None, 1.0) for row in content["rows"])


def test_results_are_read_back_and_compared(capsys, tmp_path):
    file = tmp_path / "run.json"
    arguments = ["run", "--case", SMALLEST, "--peer", OURS, "--device", "cpu", "--seconds", "0.05"]
    command_line.main([*arguments, "--json", str(file)])
    content = json.loads(file.read_text())
    assert {bar["verdict"] for bar in content["bars"]} <= {"holds", "MISSED", "not measured", "NOT MEASURED"}
    first = report.load(file)["rows"]
    report.save(tmp_path / "again.json", content["header"], [], first, [])
    assert report.load(tmp_path / "again.json")["rows"] == first
    capsys.readouterr()
    command_line.main([*arguments, "--base", str(file)])
    assert f"{OURS}: {first[0].case}" in capsys.readouterr().out.split("old / new")[1]


def test_base_that_is_nothing_is_an_error(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["run", "--case", SMALLEST, "--base", "no-such-revision"])
    assert "neither a file nor a revision" in capsys.readouterr().err


@pytest.mark.parametrize("complete", [True, False])
def test_a_base_that_was_not_measured_to_its_end_is_an_error(complete, monkeypatch, tmp_path):
    def run(command, **given):
        if "setup.py" not in command and "git" not in command:
            assert given["env"]["SNNFAST_DATA"] == str(tmp_path / "data")
            report.save(Path(command[command.index("--json") + 1]), {"machine": "this"}, [], [], [], complete)
        return subprocess.CompletedProcess(command, 0, stdout=EMPTY_ARCHIVE)

    monkeypatch.setattr(base.subprocess, "run", run)
    monkeypatch.setattr(base.shutil, "copytree", lambda *arguments, **options: None)
    monkeypatch.setenv("SNNFAST_DATA", "data")
    monkeypatch.chdir(tmp_path)
    if complete:
        assert base.results("some-revision", [], False)["header"]["commit"] == "some-revision"
    else:
        with pytest.raises(ValueError, match="--base some-revision: its measurement failed"):
            base.results("some-revision", [], False)


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "run_case", None)
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["run", "--case", SMALLEST, "--device", "cpu", "--json", str(tmp_path / "none" / "x.json")])
    assert "--json: [Errno 2]" in capsys.readouterr().err


def test_copy_moves_as_many_bytes_as_the_layer(monkeypatch):
    copied = []
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append(self.nbytes + source.nbytes))
    for whole in (1 << 26, 1000):  # in one piece, and in several
        monkeypatch.setattr(runner, "COPIED", whole)
        copied.clear()
        runner.copying(20 * 12_800, CPU)()
        assert sum(copied) == 20 * 12_800


def test_floor_is_the_time_of_copy_over_that_of_the_layer():
    case = replace(LAYER, T=10, B=1, shape=(1000,))
    rows = {name: runner.Row(case.name, name, neuron_steps=case.neuron_steps) for name in (OURS, runner.COPY)}
    runner._fill(case, rows, {OURS: [3e-3] * 3, runner.COPY: [2e-3] * 3})
    assert rows[OURS].share_of_copy == pytest.approx(2 / 3)
    assert rows[OURS].bytes_worth == pytest.approx(30)
    assert rows[runner.COPY].bandwidth == pytest.approx(20 * 10_000 / 2e-3)


def test_a_neuron_that_snnfast_lacks_is_a_row_that_says_so(monkeypatch):
    monkeypatch.delattr(snnfast, "Synaptic", raising=False)
    rows = runner.run_case(CASES["neurons [25, 128, 1000] float32, synaptic, forward + backward"], [LOOP], CPU, 0.0)
    assert {row.problem for row in rows} == {"snnfast has no Synaptic yet"}


def _peer(name: str, make, module: str = "torch") -> Peer:
    return Peer(name, module, module, f"pip install {name}", make)


def test_missing_and_failing_peers_are_rows(monkeypatch, capsys):
    def broken(case, device):
        raise RuntimeError("of its own")

    monkeypatch.setitem(PEERS, "absent", _peer("absent", broken, "package_that_is_not_there"))
    monkeypatch.setitem(PEERS, "broken", _peer("broken", broken))
    case = Case("lif", "layer", 2, 1, (3,))
    rows = {row.peer: row for row in runner.run_case(case, ["absent", "broken"], CPU, 0.0)}
    assert rows["absent"].problem == "not installed: pip install absent"
    assert rows["broken"].problem == "failed: RuntimeError: of its own"
    assert rows[OURS].median is not None
    report.print_case(case, list(rows.values()))
    assert "pip install absent" in capsys.readouterr().out


def test_a_model_that_resets_at_once_is_compared_where_ours_rounds_membranes(monkeypatch):
    def make(case, device):
        only = replace(case, options=replace(case.options, reset_delay=False, membrane_dtype=None))
        return PEERS[OURS].make(only, device)

    peer = _peer("immediate", make)._replace(nearest=lambda case: {"reset_delay": False})
    monkeypatch.setitem(PEERS, "immediate", peer)
    case = Case("lif", "layer", 9, 3, (10,), options=Options(membrane_dtype="bfloat16"))
    rows = {row.peer: row for row in runner.run_case(case, ["immediate"], CPU, 0.0)}
    assert rows["immediate"].problem == ""
    assert rows["immediate"].agree == 1.0


def test_what_would_take_too_long_is_left_out():
    rows = runner.run_case(Case("lif", "layer", 4096, 1, (10**7,)), [LOOP], CPU, 0.0)
    assert all(row.problem.startswith("left out") for row in rows)


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


@pytest.mark.needs_extension
def test_bytes_kept_of_a_layer_are_its_current_and_checkpoints():
    case = Case("lif", "layer", 32, 1, (64,))
    data = make_data(case, CPU)
    candidate = build(case, PEERS[OURS], data)
    with snnfast.use_backend("reference"):
        loop = memory_use.kept(candidate.forward, candidate.given)
    assert loop.saved > 0
    with snnfast.use_backend("fused"):
        found = memory_use.kept(candidate.forward, candidate.given)
    assert 4 <= found.saved / case.neuron_steps <= 4.5
    assert found.held == pytest.approx(found.saved - 4 * case.neuron_steps)


def test_ideal_bytes():
    layer = Case("lif", "layer", 10, 1, (1,))
    assert layer.ideal_bytes == 20
    assert Case("lif", "layer", 10, 1, (1,), "float16").ideal_bytes == 10
    assert Case("lif", "layer", 10, 1, (1,), options=Options(record_mem=True)).ideal_bytes == 24
    assert Case("lif", "layer", 10, 1, (1,), constant=True).ideal_bytes == pytest.approx(8 + 1.2)
    assert Case("inference", "layer", 10, 1, (1,), backward=False).ideal_bytes == 8
    assert Case("loop", "loop", 10, 1, (1,)).ideal_bytes is None


def test_ideal_bytes_of_a_neuron_with_two_states():
    recorded = Options(record_mem=True)
    synaptic = Case("neurons", "layer", 10, 1, (1,), neuron="synaptic")
    assert synaptic.ideal_bytes == 20
    assert replace(synaptic, options=recorded).ideal_bytes == 28  # both states are written, the membrane read
    assert replace(synaptic, backward=False).ideal_bytes == 8
    assert replace(synaptic, backward=False, options=recorded).ideal_bytes == 16


def test_largest_number_of_steps_is_on_the_line_through_two_peaks():
    assert memory_use.largest_T({10: 1100, 20: 2100}, 10_100) == 100
    assert memory_use.largest_T({10: 100, 20: 100}, 10_100) is None


def test_peak_is_at_least_what_the_gradient_takes():
    case = Case("memory", "layer", 64, 16, (4096,))
    peak = memory_use.peak_on_cpu(case, OURS)
    assert peak is not None
    assert 8 * case.neuron_steps <= peak <= 32 * case.neuron_steps  # spikes and gradient, and not many copies


def test_header_is_complete():
    found = report.header(CPU, PEERS.values())
    assert set(found) == {
        "date", "machine", "device", "system", "commit", "snnfast", "versions", "threads", "load", "environment",
        "peers",
    }  # fmt: skip
    assert "torch" in found["versions"]
    assert set(found["peers"]) == {peer.package for peer in PEERS.values()} - {"snnfast"}
    assert all(found.values())


def test_the_header_tells_no_path_of_the_environment(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/some/where/libone.so:/else/libtwo.so")
    monkeypatch.setenv("SNNFAST_DATA", "/some/data")
    environment = report.header(CPU, [])["environment"]
    assert "LD_PRELOAD=libone.so libtwo.so" in environment
    assert "/" not in environment
    assert "SNNFAST_DATA" not in environment


def test_slow_functions_take_short_turns():
    counts = {"slow": 0, "fast": 0}

    def count(name: str):
        def call() -> None:
            counts[name] += 1
            if name == "slow":
                torch.mm(torch.rand(300, 300), torch.rand(300, 300)).sum().item()

        return call

    times = measure.alternate({n: count(n) for n in counts}, seconds=0, warm_up=1, least=2, slow=1e-9)
    assert counts["slow"] == 4  # two to find out, then one in each turn
    assert len(times["slow"]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help_and_takes_no_option_of_another(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks {command} ")
    other = ["--base", "HEAD"] if command in ("store", "parity") else ["--configurations", "1"]
    with pytest.raises(SystemExit, match="2"):
        command_line.main([command, *other])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["lif"], "parity"), (["run", "--suite", "nothing"], "inference"), (["run", "--peer", "nothing"], LOOP)],
    ids=["command", "suite", "peer"],
)
def test_what_there_is_not_is_an_error_that_says_what_there_is(wrong, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(wrong)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_a_number_of_threads_that_cannot_be_is_an_error(threads, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["rounding", "--threads", threads])
    assert f"--threads: expected a positive integer, got '{threads}'" in capsys.readouterr().err


def test_parity_counts_the_bits_of_every_neuron(every_neuron, monkeypatch, capsys):
    assert set(parity.TABLE) == set(NEURONS)
    assert command_line.main(["parity", "--configurations", "5"]) == 0
    output = capsys.readouterr().out
    assert all(output.count(f"\n{neuron}: 5 random configurations") == 1 for neuron in NEURONS)
    unroll = snnfast.Leaky.unroll

    def off(self, current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        spk_rec, mem_rec = unroll(self, current, mem)
        return spk_rec, torch.nextafter(mem_rec, mem_rec + 1)

    monkeypatch.setattr(snnfast.Leaky, "unroll", off)
    assert command_line.main(["parity", "--configurations", "2"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == ["holds", "holds", "MISSED"]


@pytest.mark.needs_extension
def test_measurements_of_one_thing_are_printed_and_judged(monkeypatch, capsys):
    monkeypatch.setattr(pool, "STEPS", 2)
    monkeypatch.setattr(pool, "MILLION", 10**5)
    monkeypatch.setattr(pool, "SECONDS", 0.01)
    command_line.main(["pool"])
    assert "MiB kept idle" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(kinds, "SHAPES", ((1, 10),))
    command_line.main(["kinds", "--seconds", "0", "--threads", "1"])
    assert capsys.readouterr().out.count(" / float32, [") == 8


def test_error_of_rounded_membranes_is_printed_and_judged(monkeypatch, capsys):
    monkeypatch.setattr(rounding, "SHAPE", (25, 4, 100))
    assert command_line.main(["rounding"]) == 0
    assert capsys.readouterr().out.count("holds") == 3
