"""The script for a card: what becomes of its steps, what it keeps, what it reads of tools. Needs no card."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import setup
from benchmarks import measure
from benchmarks.gpu import __main__ as script
from benchmarks.gpu import bandwidth, environment, kernels, pack, runner
from benchmarks.gpu.plan import SHORT, steps
from benchmarks.gpu.runner import Outcome, Step


def python(code: str, seconds: float = 20, **fields: object) -> Step:
    return replace(Step("step", [sys.executable, "-c", code], seconds), **fields)


def test_a_step_passes_or_fails_by_its_exit_code_and_its_output_is_kept() -> None:
    passed = runner.run(python("print('done')"), 60)
    assert (passed.verdict, passed.output) == ("passed", "done\n")
    failed = runner.run(python("import sys; sys.exit('why not')"), 60)
    assert (failed.verdict, failed.output) == ("failed", "why not\n")


@pytest.mark.parametrize(("limit", "left"), [(3, 60), (60, 3)])
def test_a_step_out_of_time_is_interrupted_and_what_it_said_and_left_is_kept(
    limit: float, left: float, tmp_path: Path
) -> None:
    code = f"""
import pathlib, time
pathlib.Path({str(tmp_path / "found.json")!r}).write_text("[1]")
print("begun", flush=True)
try:
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""
    found = runner.run(python(code, limit, results=tmp_path / "found.json"), left)
    assert (found.verdict, found.output, found.results) == ("timed out", "begun\ninterrupted\n", [1])
    assert found.seconds < 15


def test_a_step_that_will_not_end_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.5)
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    child = f"{deaf} time.sleep(60)"
    found = runner.run(python(f"{deaf} subprocess.run([sys.executable, '-c', {child!r}])", 2), 60)
    assert found.verdict == "timed out"
    assert found.seconds < 10


def test_ctrl_c_ends_a_step_with_the_script(tmp_path: Path) -> None:
    step = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    run = f"runner.run(runner.Step('step', [sys.executable, '-c', {step!r}], 60), 60)"
    # A shell may have started these tests so that they ignore Ctrl-C.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal, sys; from benchmarks.gpu import runner; {heard}; {run}"
    script = subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert script.poll() is None
        time.sleep(0.05)
    (child,) = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    script.send_signal(signal.SIGINT)
    _, error = script.communicate(timeout=60)
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert not Path(f"/proc/{child}").exists()


def test_without_its_tool_or_without_time_a_step_is_skipped_and_says_so() -> None:
    assert runner.run(python("", tool="no-such-tool"), 60).output == "no-such-tool was not found"
    assert runner.run(python(""), 0).output == "no time was left"


def test_where_results_tell_the_exit_code_does_not(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    for complete in (True, False):
        file.write_text(json.dumps({"complete": complete}))
        found = runner.run(python("raise SystemExit(1)", results=file, complete=lambda f: f["complete"]), 60)
        assert found.verdict == ("passed" if complete else "failed")


def test_results_that_cannot_be_read_fail_their_step_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text('{"rows": [')  # cut off
    found = runner.run(python("print('done')", results=file), 60)
    assert (found.verdict, found.results) == ("failed", None)
    assert found.output.startswith("done\n\nits results can't be read: JSONDecodeError")


def test_paths_of_the_machine_are_not_kept() -> None:
    kept = runner.public(f"{runner.ROOT}/tests {sys.prefix}/lib {Path.home()}/x")
    assert all(str(path) not in kept for path in (runner.ROOT, sys.prefix, Path.home()))


def test_a_dry_run_has_the_steps_of_a_run_and_needs_no_tool(tmp_path: Path) -> None:
    real, dry = steps(tmp_path), steps(tmp_path, dry_run=True)
    assert [step.name for step in real] == [step.name for step in dry]
    assert [step.name for step in real if step.gating] == ["smoke"]
    assert {step.tool for step in real} == {"", "ncu", "compute-sanitizer"}
    assert {step.tool for step in dry} == {""}
    assert [step.name for step in steps(tmp_path, short=True)] == list(SHORT)
    assert all("cuda" not in step.command for step in dry)
    of_card, others = (step.command for step in real if step.name in ("card", "tests"))
    assert "tests/test_gpu.py" in of_card
    assert "--ignore=tests/test_gpu.py" in others  # it has run


def test_only_the_smoke_test_ends_a_run_and_decides_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for failing, ran, code in (("smoke", ["smoke"], 1), ("lif", ["smoke", "lif", "tests"], 0)):
        plan = [
            python(f"raise SystemExit({name == failing})", name=name, gating=name == "smoke")
            for name in ("smoke", "lif", "tests")
        ]
        monkeypatch.setattr(script, "steps", lambda *arguments, plan=plan: plan)
        seen: list[str] = []
        monkeypatch.setattr(
            script, "run", lambda step, left, seen=seen: seen.append(step.name) or runner.run(step, left)
        )
        assert script.main([]) == code
        assert seen == ran


def test_the_environment_comes_before_the_steps_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text('{"cards": [{"name": "Some Card"}]}')
    plan = [python("", name="environment", results=facts), python("", name="smoke"), python("", name="tests")]
    monkeypatch.setattr(script, "steps", lambda *arguments: plan)
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    assert script.main(["--steps", "tests"]) == 0
    (file,) = (tmp_path / "results").iterdir()
    assert [step["name"] for step in json.loads(file.read_text())["steps"]] == ["environment", "tests"]


def test_the_time_of_all_steps_together_is_limited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [python("import time; time.sleep(60)", name="first"), python("", name="second")]
    monkeypatch.setattr(script, "steps", lambda *arguments: plan)
    script.main(["--seconds", "2"])
    printed = capsys.readouterr().out
    assert "first timed out" in printed
    assert "second skipped" in printed


def test_results_are_kept_with_card_driver_and_versions_under_the_name_of_the_card(tmp_path: Path) -> None:
    facts = {"cards": [{"name": "NVIDIA H100 80GB HBM3"}], "driver": "580.1", "snnfast": {"torch": "2.11.0+cu130"}}
    outcomes = [Outcome("environment", "passed", results=facts), Outcome("lif", "passed", results={"rows": [1]})]
    file = script.save(script.summary(outcomes, False, datetime(2026, 11, 1, tzinfo=UTC)), tmp_path / "results")
    assert file.name == "nvidia-h100-80gb-hbm3-2026-11-01-00-00-utc.json"
    kept = json.loads(file.read_text())
    assert kept["environment"] == facts
    assert [step["results"] for step in kept["steps"]] == [None, {"rows": [1]}]


def test_every_step_must_pass_in_a_dry_run() -> None:
    outcomes = [Outcome("smoke", "passed"), Outcome("memcheck", "failed")]
    assert (script.exit_code(outcomes, dry_run=True), script.exit_code(outcomes, dry_run=False)) == (1, 0)


def test_the_environment_names_versions_and_cards() -> None:
    found = environment.facts()
    assert found["snnfast"]["torch"] == torch.__version__
    assert len(found["cards"]) == torch.cuda.device_count()


def test_the_kernels_come_out_of_a_wheel_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    wheel = tmp_path / "snnfast.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("snnfast/__init__.py", "")
    with pytest.raises(SystemExit, match=r"snnfast\.whl has no .*built without the kernels"):
        environment.unpack(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(setup.LIBRARY, "kernels")
    environment.unpack(wheel)
    assert [file.name for file in (tmp_path / "snnfast").iterdir()] == [Path(setup.LIBRARY).name]


NCU = """\
==PROF== Connected to process 5268
==PROF== Profiling "forward_kernel" - 0: 0%....50%....100% - 2 passes
"ID","Process ID","Kernel Name","Context","dram__bytes_read.sum","dram__bytes_write.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","smsp__inst_executed.sum"
"","","","","byte","byte","%","ns","inst"
"0","5268","void snnfast::cuda::(anonymous namespace)::forward_kernel<snnfast::Leaky, float, (int)4, (bool)0>(snnfast::Forward<T1>, bool)","1","419,430,400","419,430,400","85.5","300,000","43,253,760"
"""  # noqa: E501


def test_bandwidth_is_read_from_the_report_of_the_profiler() -> None:
    (found,) = bandwidth.parse(NCU)
    assert found["kernel"] == "forward_kernel<snnfast::Leaky, float, (int)4, (bool)0>"
    assert found["seconds"] == pytest.approx(3e-4)
    assert found["bytes per second"] == pytest.approx(2 * 419430400 / 3e-4)
    assert found["share of peak"] == pytest.approx(0.855)
    assert found["instructions"] == 43253760
    assert bandwidth.parse("==ERROR== The user does not have permission") == []


def tool(folder: Path, name: str, code: str) -> None:
    """A program on the search path that behaves as the real one does, as far as the script sees it."""
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport subprocess, sys\n{code}\n")
    file.chmod(0o755)


def test_the_profiler_is_asked_for_a_report_that_is_read_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(
        tmp_path,
        "ncu",
        f"open(sys.argv[sys.argv.index('--log-file') + 1], 'w').write({NCU!r})\n"
        "assert '--kernel-name' in sys.argv and '--csv' in sys.argv\n"
        "program = sys.argv[sys.argv.index(sys.executable):]\n"
        "sys.exit(subprocess.call(program))",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (step,) = [step for step in steps(tmp_path) if step.name == "bandwidth"]
    command = [sys.executable if "python" in word else word for word in step.command]
    command[command.index("-m") :] = ["-c", "print('profiled')"]
    found = runner.run(replace(step, command=command), 60)
    assert (found.verdict, found.output) == ("passed", "profiled\n")
    assert [row["instructions"] for row in found.results] == [43253760]


@pytest.mark.parametrize(("errors", "verdict"), [(0, "passed"), (2, "failed")])
def test_errors_that_a_sanitizer_counts_fail_its_step(
    errors: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(
        tmp_path,
        "compute-sanitizer",
        "assert sys.argv[1:3] == ['--tool', 'memcheck']\n"
        "print('========= COMPUTE-SANITIZER')\n"
        f"print('========= ERROR SUMMARY: {errors} errors')\n"
        f"sys.exit(int(sys.argv[sys.argv.index('--error-exitcode') + 1]) if {errors} else 0)",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (step,) = [step for step in steps(tmp_path) if step.name == "memcheck"]
    found = runner.run(step, 60)
    assert found.verdict == verdict
    assert f"ERROR SUMMARY: {errors} errors" in found.output


def test_the_driver_is_what_its_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.driver() == "unknown"
    tool(tmp_path, "nvidia-smi", "print('580.159.04')")
    assert environment.driver() == "580.159.04"


def test_what_was_found_is_kept_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    save = script.save
    monkeypatch.setattr(
        script, "save", lambda content, folder: kept.append(len(content["steps"])) or save(content, folder)
    )
    monkeypatch.setattr(script, "steps", lambda *arguments: [python("", name="first"), python("", name="second")])
    script.main(["--output", str(tmp_path)])
    assert kept == [1, 2]
    (file,) = tmp_path.iterdir()
    assert [step["name"] for step in json.loads(file.read_text())["steps"]] == ["first", "second"]


@pytest.mark.needs_extension
def test_kernels_are_timed_beside_a_copy_of_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    printed = dry_run("kernels", "--short", "--json", str(file))
    rows = json.loads(file.read_text())["rows"]
    assert [(row["who"], row["pass"]) for row in rows] == [
        (who, what) for who in ("snnfast", "copy_") for what in ("forward", "backward")
    ]
    assert all(row["kernel us"] > 0 and row["call us"] > 0 for row in rows)
    (case,) = kernels.cases(short=True, dry=True)
    assert [row["bytes"] for row in rows[2:]] == [8 * case.neuron_steps, 12 * case.neuron_steps]
    assert "copy_" in printed


def test_the_largest_shapes_come_first() -> None:
    sizes = [case.neuron_steps for case in kernels.cases(short=False, dry=False) if case.dtype == "float32"]
    assert sizes[0] == max(sizes)
    assert len(kernels.cases(short=True, dry=False)) == 3


def test_a_call_on_a_card_is_timed_from_an_idle_card_to_its_last_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            Event.made += 1
            self.name = f"event {Event.made}"

        def record(self) -> None:
            order.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            order.append(f"{self.name} awaited")

        def elapsed_time(self, end: "Event") -> float:
            assert (self.name, end.name) == ("event 1", "event 2")
            return 2.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("idle"))
    assert measure.seconds_on_gpu(lambda: order.append("called")) == pytest.approx(2.5e-3)
    assert order == ["idle", "event 1 recorded", "called", "event 2 recorded", "event 2 awaited"]


def dry_run(name: str, *arguments: str) -> str:
    """In a process of its own, since it changes which ops are called."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=runner.ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs_extension
@pytest.mark.parametrize("which", [[], ["--profiled"]], ids=["watched", "profiled"])
def test_the_calls_that_tools_see_fit_the_ops_and_agree_with_the_cpu(which: list[str]) -> None:
    dry_run("workload", *which)


def test_a_folder_to_carry_has_a_wheel_for_the_card_and_fails_where_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def wheel(folder: Path, **variables: str) -> Path:
        asked.append(variables["TORCH_CUDA_ARCH_LIST"])
        (folder / "snnfast.whl").write_text("wheel")
        return folder / "snnfast.whl"

    monkeypatch.setattr(pack, "wheel", wheel)
    monkeypatch.setattr(pack, "packages", lambda folder, python: asked.append((folder.name, python)))
    assert pack.main([str(tmp_path / "carry"), "--arch", "7.5"]) == 0
    assert asked == ["7.5", ("site", "3.12")]
    monkeypatch.setattr(pack, "MOST_BYTES", 4)
    assert pack.main([str(tmp_path / "other")]) == 1


def test_a_folder_to_carry_takes_nothing_from_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="2"):
        pack.main([str(tmp_path)])
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine").exists()
