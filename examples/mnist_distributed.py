"""Train on many processes and machines, with checkpoints; a worker that dies costs the steps since the last one.

    torchrun --nproc-per-node 4 examples/mnist_distributed.py
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts 3 --nproc-per-node 4 examples/mnist_distributed.py

Each process takes its share of every minibatch. The loss is that of one process on the whole minibatch, to rounding.
The network and the loss are those of ``mnist.py``. Without torchrun it is a run of one process.
"""

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from startup import importing

with importing(__name__):
    import torch
    import torch.distributed as dist
    from common import add_data_path, add_length, count_iterations, describe, folder, integer, make_parser, run_main
    from data import CLASSES, SIDE, Digits, InputError, load
    from torch import Tensor, nn
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
    from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    import snnfast
    from snnfast.losses import ce_membrane_loss

BETA, LR = 0.95, 5e-4
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
KEPT = 2  # checkpoints


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    if dist.is_initialized():  # by a caller of main
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if WORLD > 1:
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    else:
        dist.init_process_group(backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
        """From the oldest on. The file .metadata is the last one that is written."""
        return sorted(path.parent for path in self.folder.glob("step_*/.metadata"))

    def save(self, iteration: int) -> None:
        net, optimizer = get_state_dict(self.net, self.optimizer)
        state = {"net": net, "optimizer": optimizer, "iteration": iteration}
        save_checkpoint(state, checkpoint_id=self.folder / f"step_{iteration:09}")
        if RANK == 0:
            for path in self.complete()[:-KEPT]:
                shutil.rmtree(path)

    def load(self) -> int:
        """Load the latest; returns the number of iterations behind it, 0 where there is none."""
        found = [self.complete()[-1:]]
        dist.broadcast_object_list(found)  # what the first process sees counts for all
        if not found[0]:
            return 0
        net, optimizer = get_state_dict(self.net, self.optimizer)
        state: dict[str, Any] = {"net": net, "optimizer": optimizer, "iteration": 0}
        try:
            load_checkpoint(state, checkpoint_id=found[0][0])
        except CheckpointException as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"--checkpoints: {found[0][0]} is not of this network, or corrupt: {reason}") from None
        set_state_dict(self.net, self.optimizer, model_state_dict=state["net"], optim_state_dict=state["optimizer"])
        return int(state["iteration"])


def shares(data: Digits, args: argparse.Namespace, start: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """This process's share of each minibatch; their order depends on the seed and the epoch alone."""
    per_epoch = len(data.train_images) // args.batch_size
    order = torch.empty(0)
    for iteration in range(start, stop):
        epoch, batch = divmod(iteration, per_epoch)
        if batch == 0 or iteration == start:
            shuffle = torch.Generator().manual_seed(args.seed + epoch)
            order = torch.randperm(len(data.train_images), generator=shuffle).to(data.train_images.device)
        mine = order[batch * args.batch_size : (batch + 1) * args.batch_size].chunk(WORLD)[RANK]
        yield iteration + 1, data.train_images[mine], data.train_labels[mine]


def mean_over_processes(value: Tensor) -> float:
    total = value.detach().double() if value.device.type == "cpu" else value.detach().clone()
    dist.all_reduce(total)
    return total.item() / WORLD


@torch.no_grad()
def accuracy(net: nn.Module, data: Digits, args: argparse.Namespace) -> float:
    """By rate code. Every process makes as many calls, as each of them gathers parameters; the last images repeat."""
    counts = torch.zeros(2, device=data.test_images.device)  # right, all
    indices = torch.arange(len(data.test_images), device=counts.device)
    padded = torch.cat([indices, indices[: -len(indices) % WORLD]])
    for mine in padded[RANK::WORLD].split(args.batch_size):
        spk, _ = net(data.test_images[mine].to(args.dtype), num_steps=args.num_steps)
        counts[0] += (spk.sum(0).argmax(1) == data.test_labels[mine]).sum()
        counts[1] += len(mine)
    dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def train(data: Digits, args: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(args.seed)  # the same weights on each process
    lif = snnfast.Leaky(beta=BETA), snnfast.Leaky(beta=BETA)
    layers = nn.Linear(SIDE * SIDE, args.hidden), lif[0], nn.Linear(args.hidden, CLASSES), lif[1]
    net = distribute(snnfast.MultiStep(*layers).to(device, args.dtype), args.strategy, device)
    optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=LR), ce_membrane_loss()
    checkpoints = Checkpoints(Path(args.checkpoints), net, optimizer)
    start, stop = checkpoints.load(), count_iterations(args, data)
    print(f"{WORLD} processes, {args.strategy}: {args.batch_size // WORLD} of {args.batch_size} images each")
    if start:
        print(f"going on after iteration {start}, from {args.checkpoints}", flush=True)
    seconds = []
    for iteration, images, labels in shares(data, args, start, stop):
        if iteration - 1 == args.kill_at and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begin = time.perf_counter()
        _, mem_rec = net(images.to(args.dtype), num_steps=args.num_steps)
        loss = loss_fn(mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % args.print_every == 0 or iteration == stop:
            print(f"iteration {iteration} of {stop}: loss {mean_over_processes(loss):.10f}", flush=True)
        seconds.append(time.perf_counter() - begin)
        if iteration % args.save_every == 0 or iteration == stop:
            checkpoints.save(iteration)
    if seconds:
        print(f"one training iteration: {1e3 * median(seconds):.2f} ms", flush=True)
    print(f"test accuracy (rate code): {accuracy(net, data, args):.4f}", flush=True)


def run(args: argparse.Namespace, device: torch.device) -> None:
    if args.batch_size % WORLD:
        raise InputError(f"--batch-size {args.batch_size} can't be shared out among {WORLD} processes")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        raise InputError(
            "--max-restarts: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun; else a worker that is started "
            "again may wait at the address of one that is dead"
        )
    args.dtype = torch.float64 if args.double else torch.float32
    with process_group(device):
        if RANK > 0:
            dist.barrier()  # the first process downloads
        data = load(args.data_path, device)
        if RANK == 0:
            dist.barrier()
        if len(data.train_images) < args.batch_size:
            raise InputError(
                f"--batch-size {args.batch_size} is more than the {len(data.train_images)} training images"
            )
        print(describe(data), flush=True)
        train(data, args, device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("Train on MNIST with many processes, which torchrun starts.", batch_size=128, num_steps=25)
    add_data_path(parser)
    add_length(parser)
    add = parser.add_argument
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="DistributedDataParallel, or FSDP2 (%(default)s)")
    add("--hidden", type=integer(), default=1000, help="neurons in the hidden layer (default: %(default)s)")
    add(
        "--checkpoints",
        type=folder,
        default="checkpoints",
        metavar="FOLDER",
        help="where the state of training is saved, and from where it goes on (default: %(default)s)",
    )
    add("--save-every", type=integer(), default=100, metavar="N", help="iterations (default: %(default)s)")
    add("--print-every", type=integer(), default=50, metavar="N", help="iterations (default: %(default)s)")
    add("--double", action="store_true", help="compute in double precision")
    add("--kill-at", type=integer(), metavar="N", help="kill the last process behind iteration N, to see it go on")
    args = parser.parse_args(argv)
    if args.device == "auto" and torch.cuda.is_available():
        args.device = f"cuda:{LOCAL_RANK}"
    with contextlib.redirect_stdout(sys.stdout if RANK == 0 else io.StringIO()):
        return run_main(run, args)


if __name__ == "__main__":
    sys.exit(main())
