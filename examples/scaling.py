"""Estimate a large run before it is paid for: memory, time and communication from figures measured on this machine.

    python examples/scaling.py
    torchrun --nproc-per-node 2 examples/scaling.py  # measures the all-reduce as well

The formulas are in docs/scaling.md.
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from startup import importing

with importing(__name__):
    import torch
    import torch.distributed as dist
    from common import integer, make_parser, positive, run_main
    from mnist_distributed import LOCAL_RANK, RANK, WORLD, process_group
    from torch import Tensor, nn

    import snnfast

MOVED = 20  # bytes of a neuron-step, forward and backward: current, spikes and their gradients, the current once more
FLOPS = 6  # of a weight, step and sample: a product and a sum forward, two of each backward
ADAM = 16  # bytes of a weight: itself, its gradient, two averages
WEIGHT = 4  # bytes
CHECKED = 32  # samples


class Measured(NamedTuple):
    copied: float  # bytes/s that copy_ reads and writes
    neuron_step: float  # seconds, forward and backward
    held: float  # bytes of a neuron-step, for the backward pass
    flops: float  # a second, of a Linear forward and backward
    reduced: float  # bytes/s of an all-reduce, sent by each process


class Estimate(NamedTuple):
    """Of one training step, for each process."""

    weights: float
    ddp: float  # bytes of weights, gradients and optimizer
    fsdp: float
    held: float  # bytes for the backward pass
    neurons: float  # seconds
    products: float
    ddp_sends: float
    fsdp_sends: float


def estimate(measured: Measured, neurons: float, fan_in: float, steps: int, batch: int, processes: int) -> Estimate:
    """``batch``: samples of each process."""
    weights, neuron_steps = neurons * fan_in, neurons * steps * batch
    share = WEIGHT * weights * (processes - 1) / processes
    return Estimate(
        weights,
        ADAM * weights,
        ADAM * weights / processes,
        measured.held * neuron_steps,
        measured.neuron_step * neuron_steps,
        FLOPS * fan_in * neuron_steps / measured.flops,
        2 * share / measured.reduced,  # all-reduce of the gradients: each is sent twice
        3 * share / measured.reduced,  # weights gathered forward and backward, gradients scattered
    )


def best_of(repeats: int, call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call, behind one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(args: argparse.Namespace, device: torch.device) -> Measured:
    size, width = args.size, args.width
    source, target = (torch.zeros(size, args.num_steps, device=device) for _ in range(2))
    copied = 2 * source.nbytes / best_of(args.repeats, lambda: target.copy_(source), device)
    print(f"copy_: {copied / 1e9:.1f} GB/s", flush=True)

    lif, current = snnfast.Leaky(beta=0.95), torch.rand(args.num_steps, 1, size, device=device).requires_grad_()
    grad = torch.ones_like(current)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def train() -> None:
        spk, _ = lif.unroll(current, record_mem=False)
        torch.autograd.grad(spk, current, grad)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif.unroll(current, record_mem=False)
    held = sum(saved.values()) / current.numel()
    neuron_step = best_of(args.repeats, train, device) / current.numel()
    print(
        f"a neuron-step, forward and backward: {1e9 * neuron_step:.3f} ns, {MOVED / neuron_step / 1e9:.1f} GB/s, "
        f"{held:.2f} bytes held"
    )

    fc, x = nn.Linear(width, width, device=device), torch.rand(width, width, device=device).requires_grad_()
    out_grad = torch.ones_like(x)

    def multiply() -> None:
        torch.autograd.grad(fc(x), (x, fc.weight), out_grad)

    flops = FLOPS * width**3 / best_of(args.repeats, multiply, device)
    print(f"a Linear of {width} to {width}, forward and backward: {flops / 1e9:.0f} GFLOP/s", flush=True)
    if WORLD == 1:
        print(f"all-reduce: {args.bandwidth:.1f} GB/s, as --bandwidth says")
        return Measured(copied, neuron_step, held, flops, 1e9 * args.bandwidth)
    sent = 2 * (WORLD - 1) / WORLD * source.nbytes
    with process_group(device):
        reduced = sent / best_of(args.repeats, lambda: dist.all_reduce(source), device)
    print(f"all-reduce among {WORLD} processes: {reduced / 1e9:.2f} GB/s sent by each")
    return Measured(copied, neuron_step, held, flops, reduced)


def check(measured: Measured, args: argparse.Namespace, device: torch.device) -> None:
    """A network that is small enough to run, beside what the formulas say of it."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(args.width, args.width), snnfast.Leaky(beta=0.95))]
    net = snnfast.MultiStep(*layers).to(device)
    x = torch.rand(args.num_steps, CHECKED, args.width, device=device)
    seconds = best_of(args.repeats, lambda: net(x)[0].sum().backward(), device)
    found = estimate(measured, 4 * args.width, args.width, args.num_steps, CHECKED, 1)
    print(
        f"check, 4 layers of {args.width} neurons, {CHECKED} samples: {1e3 * seconds:.1f} ms forward and backward, "
        f"estimated {1e3 * (found.neurons + found.products):.1f} ms at most (few spikes make products faster)",
        flush=True,
    )


def run(args: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(args.seed)
    measured = measure(args, device)
    check(measured, args, device)
    print(
        f"\none training step of {args.processes} processes, for each of them: {args.num_steps} steps, "
        f"{args.batch_size} samples, {args.fan_in} weights for each neuron"
    )
    titles = ("neurons", "weights", "DDP", "FSDP2", "held", "neurons", "products", "DDP sends", "FSDP2 sends")
    units = ("", "", "GB", "GB", "GB", "s", "s", "s", "s")
    for row in (titles, units):
        print("".join(f"{cell:>12}" for cell in row))
    for neurons in args.neurons:
        found = estimate(measured, neurons, args.fan_in, args.num_steps, args.batch_size, args.processes)
        gigabytes = [bytes_ / 1e9 for bytes_ in (found.ddp, found.fsdp, found.held)]
        cells = [f"{neurons:.0e}", f"{found.weights:.0e}", *(f"{n:.3g}" for n in (*gigabytes, *found[4:]))]
        print("".join(f"{cell:>12}" for cell in cells))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("Estimate a large run from figures measured here.", batch_size=1, num_steps=25)
    add = parser.add_argument
    add("--neurons", type=positive, nargs="+", default=[1e6, 1e7, 1e8], help="of the networks (%(default)s)")
    add("--fan-in", type=integer(), default=100, help="weights for each neuron (default: %(default)s)")
    add("--processes", type=integer(), default=8, help="of the large run (default: %(default)s)")
    add("--bandwidth", type=positive, default=10.0, help="GB/s of a process without torchrun (default: %(default)s)")
    add("--size", type=integer(), default=1_000_000, help="neurons to measure with (default: %(default)s)")
    add("--width", type=integer(), default=1024, help="of the Linear to measure with (default: %(default)s)")
    add("--repeats", type=integer(), default=5, help="of each measurement, the best counts (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.device == "auto" and torch.cuda.is_available():
        args.device = f"cuda:{LOCAL_RANK}"
    with contextlib.redirect_stdout(sys.stdout if RANK == 0 else io.StringIO()):
        return run_main(run, args)


if __name__ == "__main__":
    sys.exit(main())
