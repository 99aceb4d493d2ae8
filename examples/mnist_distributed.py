"""Train on many processes and machines, with checkpoints; a worker that dies costs the steps since the last one.

    torchrun --nproc-per-node 4 examples/mnist_distributed.py
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts 3 --nproc-per-node 4 examples/mnist_distributed.py

Each process takes its share of every minibatch. The loss is that of one process on the whole minibatch, to rounding.
The network and the loss are those of ``mnist.py``. Without torchrun it is a run of one process.
"""

import argparse
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from data import Digits, load
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import snnfast
from snnfast.losses import ce_membrane_loss

BETA, LR, HIDDEN, BATCH_SIZE, NUM_STEPS = 0.95, 5e-4, 1000, 128, 25  # BATCH_SIZE: of all processes together
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them
KEPT = 2  # checkpoints


def distribute(net: snnfast.MultiStep, strategy: str, device: torch.device) -> nn.Module:
    """DistributedDataParallel: a whole network on each process. FSDP2: a share of each layer, gathered when used."""
    if strategy == "ddp":
        return DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (WORLD,))
    for layer in (*(layer for layer in net.layers if isinstance(layer, nn.Linear)), net):
        fully_shard(layer, mesh=mesh)
    return net


class Checkpoints:
    """The state of training in a folder that all machines see; any number of processes can go on from it."""

    def __init__(self, folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.folder, self.net, self.optimizer = folder, net, optimizer

    def complete(self) -> list[Path]:
        """From the oldest on. PyTorch writes the file .metadata last, under another name, and renames it."""
        return sorted(path.parent for path in self.folder.glob("step_*/.metadata"))

    def save(self, iteration: int) -> None:
        net, optimizer = get_state_dict(self.net, self.optimizer)
        state = {"net": net, "optimizer": optimizer, "iteration": iteration}
        save_checkpoint(state, checkpoint_id=self.folder / f"step_{iteration:09}")
        if RANK == 0:
            for path in self.complete()[:-KEPT]:
                shutil.rmtree(path)

    def load(self) -> int:
        """Load the latest; returns the number of iterations it has seen, 0 where there is none."""
        found = [self.complete()[-1:]]
        dist.broadcast_object_list(found)  # what the first process sees counts for all
        if not found[0]:
            return 0
        net, optimizer = get_state_dict(self.net, self.optimizer)
        state: dict[str, Any] = {"net": net, "optimizer": optimizer, "iteration": 0}
        load_checkpoint(state, checkpoint_id=found[0][0])
        set_state_dict(self.net, self.optimizer, model_state_dict=state["net"], optim_state_dict=state["optimizer"])
        return int(state["iteration"])


def shares(data: Digits, start: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """This process's share of each minibatch. Their order depends on the epoch alone, so that a restart repeats it."""
    per_epoch = len(data.train_images) // BATCH_SIZE
    for iteration in range(start, stop):
        epoch, batch = divmod(iteration, per_epoch)
        order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(epoch))
        mine = order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE].chunk(WORLD)[RANK]
        yield iteration + 1, data.train_images[mine], data.train_labels[mine]


def mean_over_processes(value: Tensor) -> float:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total.item() / WORLD


@torch.no_grad()
def accuracy(net: nn.Module, data: Digits, dtype: torch.dtype) -> float:
    """Every process makes as many calls, as each of them gathers parameters: the last images are left out."""
    share = len(data.test_images) // WORLD
    mine = slice(RANK * share, (RANK + 1) * share)
    right = []
    for images, labels in zip(data.test_images[mine].split(500), data.test_labels[mine].split(500), strict=True):
        spk_rec, _ = net(images.to(dtype), num_steps=NUM_STEPS)
        right.append(spk_rec.sum(0).argmax(1) == labels)
    return mean_over_processes(torch.cat(right).float().mean())


def train(data: Digits, args: argparse.Namespace, device: torch.device) -> None:
    dtype = torch.float64 if args.double else torch.float32
    torch.manual_seed(0)  # the same weights on each process
    layers = nn.Linear(784, HIDDEN), snnfast.Leaky(BETA), nn.Linear(HIDDEN, 10), snnfast.Leaky(BETA)
    net = distribute(snnfast.MultiStep(*layers).to(device, dtype), args.strategy, device)
    optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=LR), ce_membrane_loss()
    checkpoints = Checkpoints(args.checkpoints, net, optimizer)
    start, stop = checkpoints.load(), args.iterations or data.epochs * (len(data.train_images) // BATCH_SIZE)
    say(f"{data}; {WORLD} processes, {args.strategy}; going on after iteration {start}")
    for iteration, images, labels in shares(data, start, stop):
        if iteration - 1 == args.kill_at and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        _, mem_rec = net(images.to(dtype), num_steps=NUM_STEPS)
        loss = loss_fn(mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration <= 10 or iteration % 50 == 0:
            mean = mean_over_processes(loss)
            say(f"iteration {iteration} of {stop}: loss {mean:.10f}")
        if iteration % args.save_every == 0 or iteration == stop:
            checkpoints.save(iteration)
    share = accuracy(net, data, dtype)
    say(f"test accuracy: {share:.4f}")


def say(text: str) -> None:
    if RANK == 0:
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train on MNIST with many processes, which torchrun starts.")
    add = parser.add_argument
    add("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download into ./data)")
    add("--iterations", type=int, help="default: one epoch")
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="DistributedDataParallel, or FSDP2 (default: ddp)")
    add("--checkpoints", type=Path, default=Path("checkpoints"), help="the folder (default: checkpoints)")
    add("--save-every", type=int, default=100, metavar="N", help="iterations (default: 100)")
    add("--double", action="store_true", help="compute in double precision")
    add("--kill-at", type=int, metavar="N", help="kill the last process after iteration N, to see it go on")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    if BATCH_SIZE % WORLD:
        parser.error(f"{BATCH_SIZE} images can't be shared out among {WORLD} processes")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        parser.error("--max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: else a worker may wait for a dead one")
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if WORLD > 1:
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    else:
        dist.init_process_group(backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        if RANK > 0:
            dist.barrier()  # the first process downloads
        data = load(args.data_path, device)
        if RANK == 0:
            dist.barrier()
        train(data, args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
