"""The example for many processes: the losses of one process, and a worker that is killed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"),
]
ROOT = Path(__file__).parent.parent
SMALL = """
import torch, mnist_distributed
torch.set_num_threads(1)
mnist_distributed.HIDDEN, mnist_distributed.BATCH_SIZE, mnist_distributed.NUM_STEPS = 24, 16, 5
mnist_distributed.main()
"""


class Folder:
    """Runs of the example in a folder, each of which goes on from the checkpoints there."""

    def __init__(self, path: Path, data: Path) -> None:
        self.path = path
        (path / "small.py").write_text(SMALL)
        self.options = ["small.py", "--device", "cpu", "--double", "--data-path", str(data), "--save-every", "2"]
        search = [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
        own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), **own}

    def run(self, *args: str, launcher: tuple[str, ...] = ()) -> str:
        line = [sys.executable, *launcher, *self.options, *args]
        done = subprocess.run(line, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def torchrun(self, processes: int, restarts: int, *args: str) -> str:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        return self.run(*args, launcher=(*launcher, "--max-restarts", str(restarts)))


def losses(out: str) -> list[tuple[int, float]]:
    return [(int(i), float(loss)) for i, loss in re.findall(r"^iteration (\d+) of \d+: loss (\S+)$", out, re.MULTILINE)]


@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 4), ("fsdp", 2)])
def test_several_processes_have_the_losses_of_one(strategy: str, processes: int, mnist: Path, tmp_path: Path) -> None:
    here = Folder(tmp_path, mnist)
    alone = losses(here.run("--checkpoints", "alone", "--iterations", "8"))
    assert [i for i, _ in alone] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert alone[-1][1] < alone[0][1]
    expected = dict(alone)
    args = ("--strategy", strategy, "--checkpoints", "several", "--iterations", "6", "--kill-at", "3")
    # One restart is needed. The spare one is for a process that PyTorch aborts ("terminate called without an active
    # exception") while it exits, as it now and then does when another was killed. What counts is what the runs print.
    first, *later = here.torchrun(processes, 2, *args).split("data: ")[1:]
    resumed = losses("".join(later))
    assert f"{processes} processes, {strategy}; going on after iteration 0" in first
    assert f"{processes} processes, {strategy}; going on after iteration 2" in later[0]
    assert [i for i, _ in losses(first)] == [1, 2, 3]
    assert resumed[0][0] == 3
    assert resumed[-1][0] == 6
    assert "test accuracy: " in later[-1]
    for i, loss in losses(first) + resumed:
        assert loss == pytest.approx(expected[i], rel=1e-6)
    assert [path.name for path in sorted((tmp_path / "several").iterdir())] == ["step_000000004", "step_000000006"]
    # One process goes on from the checkpoint of several.
    one = losses(here.run("--checkpoints", "several", "--iterations", "8"))
    assert [i for i, _ in one] == [7, 8]
    assert [loss for _, loss in one] == pytest.approx([expected[7], expected[8]], rel=1e-6)


def test_an_unfinished_checkpoint_is_passed_over(mnist: Path, tmp_path: Path) -> None:
    here = Folder(tmp_path, mnist)
    expected = losses(here.run("--iterations", "4"))
    (tmp_path / "checkpoints" / "step_000000004" / ".metadata").unlink()  # the last file that is written
    assert dict(losses(here.run("--iterations", "4"))) == pytest.approx(dict(expected[2:]))


def test_restarts_that_would_share_a_store_are_refused(mnist: Path, tmp_path: Path) -> None:
    here = Folder(tmp_path, mnist)
    here.environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    with pytest.raises(AssertionError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        here.run()
