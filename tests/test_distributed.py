"""Data-parallel training: a membrane is no buffer to broadcast, and sharded layers unroll as well as they step."""

import os
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
import torch.distributed as dist
from helpers import assert_all_close, assert_bits_equal, assert_close
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


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    spk, mem = zip(*(net(step) for step in x), strict=True)
    return torch.stack(spk), torch.stack(mem)


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
    for name, library in (("ours", snn), ("theirs", snntorch)):
        net = DistributedDataParallel(Net(library))
        assert net.broadcast_buffers
        found[name] = run(net, data(rank))[1].detach()  # with a graph: else DDP broadcasts nothing
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
            expected = run(Net(snntorch), data(rank))[1]
        assert_bits_equal(ranks[rank]["ours"], expected)


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
