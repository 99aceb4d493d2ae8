"""Many processes: states stay, sharded layers unroll, parameters without use are found, statistics are exchanged."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

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
ROOT = Path(__file__).parents[2]
STEPS, BATCH, ITERATIONS, LR = 5, 3, 5, 0.1
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
    """Learned parameters of one dimension: fully_shard takes none of no dimensions."""

    def __init__(self, by_unroll: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.fc = nn.Linear(6, 8)
        beta, threshold = torch.tensor([0.9]), torch.tensor([0.8])
        self.lif = snn.Leaky(beta, threshold=threshold, learn_beta=True, learn_threshold=True)
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


class PartlyUsed(Unrolled):
    """A network with a layer that is never called."""

    def __init__(self, by_unroll: bool) -> None:
        super().__init__(by_unroll)
        self.unused = nn.Linear(3, 3)


FINDS = partial(DistributedDataParallel, find_unused_parameters=True)
FINDING: dict[str, Callable[[nn.Module], nn.Module]] = {
    "unroll": FINDS,
    "recorded inside": lambda net: FINDS(snnfast.compile(net)),
    "recorded around": lambda net: snnfast.compile(FINDS(net)),
    "torch.compile inside": lambda net: FINDS(torch.compile(net, backend="snnfast")),
    "torch.compile around": lambda net: torch.compile(FINDS(net), backend="snnfast"),
    "static graph": lambda net: snnfast.compile(DistributedDataParallel(net, static_graph=True)),
}
"""Ways to train a network with a layer that is never called."""


def trained(net: nn.Module, batches: Callable[[int], Sequence[Tensor]]) -> list[Tensor]:
    """The parameters after a few iterations, each with the mean of the gradients of several batches."""
    for iteration in range(ITERATIONS):
        net.zero_grad()
        given = batches(iteration)
        for x in given:
            (loss(*net(x)) / len(given)).backward()
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= LR * p.grad
    return [p.detach().clone() for p in net.parameters()]


def finding(rank: int, way: str) -> tuple[list[Tensor], list[str]]:
    """The parameters that a process has trained, and its warnings."""
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = FINDING[way](PartlyUsed(by_unroll=way == "unroll"))
        found = trained(net, lambda iteration: [data(2 * iteration + rank)])
    return found, [str(w.message) for w in caught]


class Images(nn.Module):
    """A loop over time with batch normalisations, or the same layers in a MultiStep."""

    def __init__(self, by_unroll: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        spiking = snn.Leaky(0.9, learn_beta=True), snn.Leaky(0.8, learn_threshold=True)
        first, second = nn.BatchNorm2d(4), nn.BatchNorm1d(5, momentum=None)
        conv, fc = nn.Conv2d(2, 4, 3, bias=False), nn.Linear(64, 5, bias=False)
        layers = conv, first, spiking[0], nn.Flatten(), fc, second, spiking[1]
        self.layers = snnfast.MultiStep(*layers)
        self.by_unroll = by_unroll

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_unroll:
            return self.layers(x)
        conv, first, lif1, flatten, fc, second, lif2 = self.layers
        mem1, mem2, spks, mems = lif1.init_leaky(), lif2.init_leaky(), [], []
        for step in x:
            spk, mem1 = lif1(first(conv(step)), mem1)
            spk, mem2 = lif2(second(fc(flatten(spk))), mem2)
            spks.append(spk)
            mems.append(mem2)
        return torch.stack(spks), torch.stack(mems)


def synchronised(rank: int, way: str) -> tuple[dict[str, Tensor], int, list[str]]:
    """The weights and buffers of a network with SyncBatchNorm that was trained, its exchanges, and its warnings."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(Images(by_unroll=way == "unroll")).double()
    if way == "compiled":
        snnfast.compile(net)

    def images(iteration: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(2 * iteration + rank)
        return [torch.rand(STEPS, BATCH + rank, 2, 6, 6, generator=draw, dtype=torch.float64)]

    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as forward,
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as backward,
    ):
        warnings.simplefilter("always")
        trained(net, images)
    exchanges = forward.call_count + backward.call_count
    return net.state_dict(), exchanges, [str(w.message) for w in caught if "snnfast" in str(w.message)]


def synchronise_on_the_cpu() -> torch.library.Library:
    """Give SyncBatchNorm what PyTorch has for GPUs alone: the kernels between which the processes communicate."""

    def dims(x: Tensor) -> list[int]:
        return [d for d in range(x.dim()) if d != 1]

    def wide(of_channels: Tensor, x: Tensor) -> Tensor:
        return of_channels.view(-1, *(1,) * (x.dim() - 2))

    def stats(x: Tensor, eps: float) -> Any:
        return x.mean(dims(x)), (x.var(dims(x), unbiased=False) + eps).rsqrt()

    def gather(x: Any, mean: Any, invstd: Any, to_mean: Any, to_var: Any, momentum: Any, eps: Any, counts: Any) -> Any:
        n = counts.view(-1, 1)
        every = (mean * n).sum(0) / n.sum()
        squares = ((invstd**-2 - eps + (mean - every) ** 2) * n).sum(0)
        to_mean.lerp_(every, momentum)
        to_var.lerp_(squares / (n.sum() - 1), momentum)
        return every, (squares / n.sum() + eps).rsqrt()

    def elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
        return (x - wide(mean, x)) * wide(invstd * weight, x) + wide(bias, x)

    def reduce(grad: Any, x: Any, mean: Any, invstd: Any, weight: Any, *needed: Any) -> Any:
        of_bias, with_x = grad.sum(dims(x)), (grad * (x - wide(mean, x))).sum(dims(x))
        return of_bias, with_x, with_x * invstd, of_bias

    def of_x(grad: Any, x: Any, mean: Any, invstd: Any, weight: Any, of_bias: Any, with_x: Any, counts: Any) -> Any:
        n = counts.sum()
        centred = (x - wide(mean, x)) * wide(with_x * invstd**2 / n, x)
        return (grad - wide(of_bias / n, x) - centred) * wide(invstd * weight, x)

    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("batch_norm_stats", stats, "CPU")
    kernels.impl("batch_norm_gather_stats_with_counts", gather, "CPU")
    kernels.impl("batch_norm_elemt", elemt, "CPU")
    kernels.impl("batch_norm_backward_reduce", reduce, "CPU")
    kernels.impl("batch_norm_backward_elemt", of_x, "CPU")
    forward = nn.SyncBatchNorm.forward

    def checked(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        with mock.patch.object(torch._C, "_get_privateuse1_backend_name", return_value="cpu"):  # it allows that
            return forward(self, x)

    nn.SyncBatchNorm.forward = checked  # type: ignore[method-assign]
    return kernels


def large(rank: int) -> list[Tensor]:
    """Gradients under ``fully_shard``, which frees parameters. Records of 128 KiB or more have memory of snnfast."""
    net = snnfast.MultiStep(*large_layers())
    for module in (net[0], net[2], net):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    loss(*net(torch.cat([data(rank)] * 128, 1))).backward()
    return [p.grad.full_tensor() for p in net.parameters()]  # type: ignore[union-attr]


def large_layers() -> list[nn.Module]:
    torch.manual_seed(7)
    return [nn.Linear(6, 256), snn.Leaky(0.9), nn.Linear(256, 256), snn.Leaky(torch.tensor([0.9]), learn_beta=True)]


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
    parallel = (
        snnfast.compile(DistributedDataParallel(net)) if around else DistributedDataParallel(snnfast.compile(net))
    )
    loss(*parallel(data(rank))).backward()
    return [p.grad for p in net.parameters()]  # type: ignore[misc]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    net = DistributedDataParallel(Net(snn))
    assert net.broadcast_buffers
    found["membranes"] = over_time(net, data(rank))[1].detach()  # with a graph: else DDP broadcasts nothing
    net = DistributedDataParallel(Net(snn))
    with net.no_sync():
        for step in data(rank)[:-1]:
            net(step)
        net.module.lif.mem.detach_()
    loss(*net(data(rank)[-1])).backward()
    found["grads"] = [p.grad for p in net.parameters()]
    found["sharded"] = {way: sharded(rank, way) for way in SHARDED}
    found["large"] = large(rank)
    found["compiled"] = [compiled(rank, around) for around in (False, True)]
    found["finding"] = {way: finding(rank, way) for way in FINDING}
    kernels = synchronise_on_the_cpu()
    found["synchronised"] = {way: synchronised(rank, way) for way in SHARDED}
    del kernels
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


def test_records_in_memory_of_snnfast_beside_freed_parameters(ranks: list[dict[str, Any]]) -> None:
    grads = []
    for rank in range(2):
        net = snnfast.MultiStep(*large_layers())
        loss(*net(torch.cat([data(rank)] * 128, 1))).backward()
        grads.append([p.grad for p in net.parameters()])
    expected = [torch.stack(pair).mean(0) for pair in zip(*grads, strict=True)]
    for found in (r["large"] for r in ranks):
        assert_all_close(found, expected, relative=1e-5)


def expected_parameters() -> list[Tensor]:
    """One process has the batches of both, in a loop."""
    return trained(PartlyUsed(by_unroll=False), lambda iteration: [data(2 * iteration), data(2 * iteration + 1)])


@pytest.mark.parametrize("way", FINDING)
def test_parameters_without_use_are_found(ranks: list[dict[str, Any]], way: str) -> None:
    for found, warned in (r["finding"][way] for r in ranks):
        assert_all_close(found, expected_parameters(), relative=1e-5)
        assert not [message for message in warned if "runs as it is" in message]


def test_statistics_of_all_steps_are_exchanged_at_once(ranks: list[dict[str, Any]]) -> None:
    for (expected, by_loop, _), (found, exchanges, warned) in (
        (r["synchronised"]["steps"], r["synchronised"]["unroll"]) for r in ranks
    ):
        assert list(found) == list(expected)
        assert_all_close(found.values(), expected.values(), relative=1e-9)
        assert by_loop == STEPS * exchanges == STEPS * 2 * 2 * ITERATIONS  # layers, forward and backward
        assert not warned


def test_a_loop_with_synchronised_statistics_is_not_compiled(ranks: list[dict[str, Any]]) -> None:
    for (expected, by_loop, _), (found, exchanges, warned) in (
        (r["synchronised"]["steps"], r["synchronised"]["compiled"]) for r in ranks
    ):
        assert_all_close(found.values(), expected.values(), relative=1e-9)
        assert exchanges == by_loop
        assert len(warned) == 1
        assert "SyncBatchNorm exchanges statistics with other processes at each step" in warned[0]


def test_one_process_needs_no_other() -> None:
    """SyncBatchNorm is then the usual normalisation, also with one current for all steps."""
    for steps in (None, STEPS):
        found = []
        for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, lambda net: net):
            net = convert(Images(by_unroll=True)).double()
            shape = (BATCH, 2, 6, 6) if steps else (STEPS, BATCH, 2, 6, 6)
            x = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            spk, mem = net.layers(x, num_steps=steps)
            loss(spk, mem).backward()
            found.append([spk, mem, *(p.grad for p in net.parameters()), *net.buffers()])
        assert_all_close(*found, relative=1e-9)


# ---- launchers


def launched(how: str, file: str) -> None:
    """What each process does that a launcher has started."""
    torch.set_num_threads(1)
    net: Any = PartlyUsed(by_unroll=False)
    if how == "ddp":
        dist.init_process_group("gloo")
        parallel = FINDS(snnfast.compile(net))
    else:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        accelerator = Accelerator(
            cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        if how == "compiled before prepare":
            parallel = accelerator.prepare(snnfast.compile(net))
        else:
            parallel = snnfast.compile(accelerator.prepare(net))
        assert accelerator.unwrap_model(parallel) is net
        assert isinstance(parallel, DistributedDataParallel)
    rank = dist.get_rank()
    found = trained(parallel, lambda iteration: [data(2 * iteration + rank)])
    torch.save(found, f"{file}{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize(
    ("launcher", "how"),
    [
        ("torch.distributed.run", "ddp"),
        ("torch.distributed.launch", "ddp"),
        ("torch.distributed.run", "compiled before prepare"),
        ("torch.distributed.run", "compiled after prepare"),
    ],
)
def test_launchers(launcher: str, how: str, tmp_path: Path) -> None:
    search = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node", "2", __file__, how, f"{tmp_path}/"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert_all_close(torch.load(tmp_path / f"{rank}.pt"), expected_parameters(), relative=1e-5)


# ---- the example for many processes: the losses of one process, and a worker that is killed


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


if __name__ == "__main__":
    launched(*[arg for arg in sys.argv[1:] if not arg.startswith("--local-rank")])
