"""The example for many processes: the losses of one process, and a worker that is killed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch.distributed as dist
from test_mnist_example import mnist  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)
EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--hidden", "24", "--num-steps", "5", "--batch-size", "16", "--device", "cpu", "--threads", "1", "--double"]
SMALL += ["--iterations", "6", "--print-every", "1", "--save-every", "2"]
STRATEGIES = ("ddp", "fsdp")
# One after the other in the same processes, whose start takes most of the time.
BOTH = """
import sys
sys.path.insert(0, {examples!r})
import mnist_distributed
mnist_distributed.dist.init_process_group("gloo")
for strategy in ("ddp", "fsdp"):
    assert mnist_distributed.main([*sys.argv[1:], "--strategy", strategy, "--checkpoints", strategy]) == 0
mnist_distributed.dist.destroy_process_group()
"""
Run = Callable[..., str]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mnist: Path, capsys: pytest.CaptureFixture[str]) -> Run:  # noqa: F811
    """Run the example in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        assert import_module("mnist_distributed").main([*SMALL, "--data-path", str(mnist), *args]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def launch(tmp_path: Path, mnist: Path) -> Run:  # noqa: F811
    """Run both strategies by torchrun in ``tmp_path``."""
    (tmp_path / "both.py").write_text(BOTH.format(examples=str(EXAMPLES)))
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}

    def run(processes: int, restarts: int, *args: str) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["--max-restarts", str(restarts), "both.py", *SMALL, "--data-path", str(mnist), *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def losses(out: str) -> list[tuple[int, float]]:
    return [(int(i), float(loss)) for i, loss in re.findall(r"^iteration (\d+) of \d+: loss (\S+)$", out, re.MULTILINE)]


def assert_losses(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [i for i, _ in found] == [i for i, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)


def test_four_processes_have_the_losses_of_one(alone: Run, launch: Run) -> None:
    expected = losses(alone("--checkpoints", "alone"))
    assert expected[-1][1] < expected[0][1]
    out = launch(4, 0)
    for strategy, text in zip(STRATEGIES, out.split("data: ")[1:], strict=True):
        assert f"4 processes, {strategy}: 4 of 16 images each" in text
        assert_losses(losses(text), expected)


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(alone: Run, launch: Run, tmp_path: Path) -> None:
    expected = losses(alone("--checkpoints", "alone"))
    out = launch(2, 1, "--kill-at", "3")
    # The first start ends in the first strategy, and the second one goes on from there and has the other as well.
    before, after, other = out.split("data: ")[1:]
    assert_losses(losses(before), expected[:3])
    assert "going on after iteration 2, from ddp" in after
    assert_losses(losses(after), expected[2:])
    assert "2 processes, fsdp" in other
    assert_losses(losses(other), expected)
    # Any number of processes can go on from each.
    longer = losses(alone("--checkpoints", "alone", "--iterations", "8"))
    assert [i for i, _ in longer] == [7, 8]
    for strategy in STRATEGIES:
        assert [path.name for path in sorted((tmp_path / strategy).iterdir())] == ["step_000000004", "step_000000006"]
        assert_losses(losses(alone("--checkpoints", strategy, "--iterations", "8")), longer)


def test_an_unfinished_checkpoint_is_passed_over(alone: Run, tmp_path: Path) -> None:
    expected = losses(alone("--checkpoints", "c"))
    (tmp_path / "c" / "step_000000006" / ".metadata").unlink()  # the last file that is written
    assert_losses(losses(alone("--checkpoints", "c")), expected[4:])


def test_a_checkpoint_of_another_network_is_an_error_in_one_line(
    alone: Run,
    mnist: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone("--checkpoints", "c")
    example = import_module("mnist_distributed")
    assert example.main([*SMALL, "--data-path", str(mnist), "--checkpoints", "c", "--hidden", "25"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --checkpoints: c/step_000000006 is not of this network, or corrupt: ValueError: Size"
    )
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("environment", "args", "message"),
    [
        ({}, ["--batch-size", "1000"], "--batch-size 1000 is more than the 160 training images"),
        ({"WORLD": 3}, [], "--batch-size 16 can't be shared out among 3 processes"),
        ({}, ["--checkpoints", ""], "--checkpoints: expected a folder"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    alone: Run,
    mnist: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, int],
    args: list[str],
    message: str,
) -> None:
    example = import_module("mnist_distributed")
    for name, value in environment.items():
        monkeypatch.setattr(example, name, value)
    try:
        code = example.main([*SMALL, "--data-path", str(mnist), *args])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not dist.is_initialized()


def test_restarts_that_would_share_a_store_are_refused(
    alone: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert import_module("mnist_distributed").main(SMALL) == 2
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err
