"""The benchmarks of a compiled loop over time: the same numbers, and what compiling costs. No timing is asserted."""

from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import compilation, loops, overhead, run, runner
from benchmarks.peers import PEERS
from benchmarks.peers.ours import LOOPED, OURS, WITH_LOSS
from benchmarks.peers.snntorch_loop import HOISTED, LOOP, NETWORK
from benchmarks.registry import NETWORKS, TUTORIAL5, suites
from benchmarks.workloads import Network, build, make_data

CPU = torch.device("cpu")
CASES = [case for cases in suites("cpu").values() for case in cases]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("peer", [LOOPED, WITH_LOSS, LOOP, HOISTED])
def test_networks_train_alike_whoever_computes_them(kind, peer):
    pytest.importorskip("snntorch")
    torch._dynamo.reset()
    case = next(case for case in CASES if case.kind == kind)
    case = replace(case, T=8, B=4, trained=False)
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


def test_a_network_is_compiled_where_its_implementation_says_so():
    pytest.importorskip("snntorch")
    case = replace(TUTORIAL5, T=3, B=2)
    data = make_data(case, CPU)
    for name, graphs in ((OURS, 0), (LOOP, 0), (LOOPED, 1), (WITH_LOSS, 1)):
        torch._dynamo.reset()
        compilation.counters.clear()
        build(case, PEERS[name], data).run()
        assert compilation.graphs() == graphs, name


def test_in_the_recurrent_case_there_is_nothing_to_merge():
    case = replace(next(case for case in CASES if case.kind == "recurrent"), T=4, B=2)
    data = make_data(case, CPU)
    candidates = [build(case, PEERS[name], data) for name in (OURS, LOOPED)]
    with pytest.warns(UserWarning, match="loop runs as it is, without torch.compile"):
        eager, compiled = (candidate.forward()[0] for candidate in candidates)
    assert torch.equal(eager, compiled)
    assert eager.any()


def test_what_compiles_for_minutes_is_run_only_where_it_is_asked_for():
    pytest.importorskip("snntorch")
    assert NETWORK not in run.peers_of(TUTORIAL5, False, CPU)
    assert NETWORK in run.peers_of(TUTORIAL5, True, CPU)
    rows = {row.peer: row for row in runner.run_case(replace(TUTORIAL5, T=33, B=1), [NETWORK], CPU, 0.0)}
    assert rows[NETWORK].problem.startswith("compiles all steps")


def test_the_cost_of_compilation_is_that_of_the_calls_that_compile():
    pytest.importorskip("snntorch")
    cost = compilation.in_fresh_process(LOOPED, 2, threads=1)
    assert cost.graphs == 1
    assert cost.all >= cost.first > cost.later > 0


@pytest.mark.parametrize(("theirs", "verdict"), [(10.0, "holds"), (1.0, "MISSED")])
def test_compilation_is_judged_beside_that_of_snntorchs_network(theirs, verdict, monkeypatch, capsys):
    pytest.importorskip("snntorch")
    seconds = {LOOPED: 0.5, WITH_LOSS: 0.6, NETWORK: theirs}
    monkeypatch.setattr(
        compilation, "in_fresh_process", lambda name, T, threads: compilation.Cost(seconds[name], seconds[name], 0.1, 1)
    )
    monkeypatch.setattr(compilation, "STEPS", (2, 3))
    assert command_line.main(["compile", "--threads", "1"]) == (verdict == "MISSED")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{LOOPED}  ") for line in lines) == 2
    assert sum(line.startswith(f"{NETWORK}  ") for line in lines) == 1
    assert [line.split()[0] for line in lines if "compilation in the first call" in line] == [verdict] * 2
    assert [line.split()[0] for line in lines if line.endswith(": graphs compiled in two epochs")] == ["holds"] * 2


def test_without_snntorch_the_bars_of_compilation_are_missed(monkeypatch, capsys):
    for name in (LOOPED, WITH_LOSS, NETWORK):
        monkeypatch.setitem(PEERS, name, PEERS[name]._replace(module="package_that_is_not_there"))
    assert command_line.main(["compile"]) == 1
    assert capsys.readouterr().out.count("NOT MEASURED") == 4


@pytest.mark.parametrize("command", ["epoch", "parity"])
def test_what_is_compared_with_snntorch_alone_is_an_error_without_it(command, digits, monkeypatch, capsys):
    monkeypatch.setitem(PEERS, LOOP, PEERS[LOOP]._replace(module="package_that_is_not_there"))
    with pytest.raises(SystemExit, match="2"):
        command_line.main([command])
    assert f"{LOOP}: not installed: pip install 'snntorch>=1.0.0'" in capsys.readouterr().err


@pytest.mark.needs_extension
def test_what_compilation_adds_is_printed_by_backend_and_judged(monkeypatch, capsys):
    monkeypatch.setattr(overhead, "BACKENDS", ("snnfast", "eager"))
    monkeypatch.setattr(overhead, "STEPS", 3)
    monkeypatch.setattr(overhead, "OVERHEAD", 1e6)
    monkeypatch.setattr(overhead, "CASES", {n: overhead.CASES[n] for n in (overhead.TUTORIAL5, "two products")})
    assert command_line.main(["overhead", "--seconds", "0", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(name) and line.count("(") == 2 for line in lines) == 1 for name in overhead.CASES)
    assert lines[-1].startswith("holds")


def test_loops_prints_each_loop_and_judges_the_least_gain(monkeypatch, capsys):
    pytest.importorskip("snntorch")
    programs = loops._programs()
    monkeypatch.setattr(loops, "_programs", lambda: {name: programs[name] for name in ("tutorial5", "no-step")})
    monkeypatch.setattr(loops, "LOOPS", 1e-6)
    assert command_line.main(["loops", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("tutorial5", "no-step"))] == ["tutorial5", "no-step"]
    assert lines[-1].startswith("holds")
    monkeypatch.setattr(loops, "LOOPS", 1e6)
    assert command_line.main(["loops", "--seconds", "0"]) == 1
