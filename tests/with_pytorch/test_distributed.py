"""Data-parallel training: a membrane is no buffer to broadcast, and sharded layers unroll as well as they step."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
import torch.distributed as dist
from helpers import assert_all_close, assert_bits_equal, assert_close
from snntorch_checks import over_time
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import snnfast
import snnfast.snntorch as snn

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"),
]
STEPS, BATCH = 5, 3
SHARDED = ("steps", "unroll", "compiled")  # ways to run a network whose layers are sharded


class Net(nn.Module):
    """One time step, with the state in the layers."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.fc = nn.Linear(6, 8)
        self.lif = library.Leaky(0.9, init_hidden=True, output=True, learn_beta=True)

    def forward(self, x: Tensor) -> Any:
        return self.lif(self.fc(x))


def data(rank: int) -> Tensor:
    return torch.rand(STEPS, BATCH, 6, generator=torch.Generator().manual_seed(rank)) * 3


def loss(spk: Tensor, mem: Tensor) -> Tensor:
    return spk.mean() + mem.square().mean()


class Unrolled(nn.Module):
    """A learned decay of one dimension: fully_shard takes none of no dimensions."""

    def __init__(self, by_unroll: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.fc = nn.Linear(6, 8)
        self.lif = snn.Leaky(torch.tensor([0.9]), learn_beta=True)
        self.by_unroll = by_unroll

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_unroll:
            return self.lif.unroll(self.fc(x))
        mem, spks, mems = self.lif.init_leaky(), [], []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            spks.append(spk)
            mems.append(mem)
        return torch.stack(spks), torch.stack(mems)


def sharded(rank: int, way: str) -> list[Tensor]:
    """Gradients of every parameter under ``fully_shard`` of each layer and of the whole."""
    net = Unrolled(by_unroll=way == "unroll")
    if way == "compiled":
        snnfast.compile(net)
    for module in (net.fc, net.lif, net):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    register_fsdp_forward_method(net.lif, "unroll")
    loss(*net(data(rank))).backward()
    return [p.grad.full_tensor() for p in net.parameters()]  # type: ignore[union-attr]


def compiled(rank: int, around: bool) -> list[Tensor]:
    """Gradients of the loop, compiled around DistributedDataParallel or in it."""
    torch._dynamo.reset()
    net = Unrolled(by_unroll=False)
    trained = snnfast.compile(DistributedDataParallel(net)) if around else DistributedDataParallel(snnfast.compile(net))
    loss(*trained(data(rank))).backward()
    return [p.grad for p in net.parameters()]  # type: ignore[misc]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    net = DistributedDataParallel(Net(snn))
    assert net.broadcast_buffers
    found["membranes"] = over_time(net, data(rank))[1].detach()  # with a graph: else DDP broadcasts nothing
    trained = DistributedDataParallel(Net(snn))
    with trained.no_sync():
        for step in data(rank)[:-1]:
            trained(step)
        trained.module.lif.mem.detach_()
    loss(*trained(data(rank)[-1])).backward()
    found["grads"] = [p.grad for p in trained.parameters()]
    found["sharded"] = {way: sharded(rank, way) for way in SHARDED}
    found["compiled"] = [compiled(rank, around) for around in (False, True)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that is taken down while the other one closes its connections


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


def test_every_process_keeps_its_own_membrane(ranks: list[dict[str, Any]]) -> None:
    for rank in range(2):
        with torch.no_grad():
            expected = over_time(Net(snntorch), data(rank))[1]
        assert_bits_equal(ranks[rank]["membranes"], expected)


def test_gradients_are_averaged(ranks: list[dict[str, Any]]) -> None:
    grads = []
    for rank in range(2):
        net = Net(snn)
        for step in data(rank)[:-1]:
            net(step)
        net.lif.mem.detach_()
        loss(*net(data(rank)[-1])).backward()
        grads.append([p.grad for p in net.parameters()])
    for first, second, expected in zip(*(r["grads"] for r in ranks), zip(*grads, strict=True), strict=True):
        assert_bits_equal(first, second)
        assert_close(first, torch.stack(expected).mean(0), 1e-5)
        assert not torch.equal(expected[0], expected[1])


def averaged(by_unroll: bool) -> list[Tensor]:
    """The gradients that the two processes have together."""
    grads = []
    for rank in range(2):
        net = Unrolled(by_unroll)
        loss(*net(data(rank))).backward()
        grads.append([p.grad for p in net.parameters()])
    return [torch.stack(pair).mean(0) for pair in zip(*grads, strict=True)]  # type: ignore[arg-type]


@pytest.mark.parametrize("way", SHARDED)
def test_fully_sharded_layers(ranks: list[dict[str, Any]], way: str) -> None:
    for found in (r["sharded"][way] for r in ranks):
        assert_all_close(found, averaged(by_unroll=way == "unroll"), relative=1e-5)


@pytest.mark.parametrize("around", [False, True], ids=["inside", "around"])
def test_a_compiled_loop(ranks: list[dict[str, Any]], around: bool) -> None:
    for found in (r["compiled"][around] for r in ranks):
        assert_all_close(found, averaged(by_unroll=False), relative=1e-5)


# ---- the example for many processes: the losses of one process, and a worker that is killed


ROOT = Path(__file__).parents[2]
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
