"""Estimate a large run before it is paid for: memory, time and communication from figures measured on this machine.

    python examples/scaling.py
    torchrun --nproc-per-node 2 examples/scaling.py  # measures the all-reduce as well

The formulas are in `estimate`.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import snnfast

MOVED = 20  # bytes of a neuron-step, forward and backward: current, spikes and their gradients, the current once more
FLOPS = 6  # of a weight, step and sample: a product and a sum forward, two of each backward
ADAM = 16  # bytes of a weight: itself, its gradient, two averages
WEIGHT = 4  # bytes
SIZE, WIDTH, SAMPLES, REPEATS = 1_000_000, 1024, 32, 5  # neurons and width of a Linear to measure with


class Measured(NamedTuple):
    neuron_step: float  # seconds, forward and backward
    held: float  # bytes of a neuron-step, for the backward pass
    flops: float  # a second, of a Linear forward and backward
    reduced: float  # bytes/s of an all-reduce, sent by each process


def estimate(
    measured: Measured, neurons: float, fan_in: int, num_steps: int, batch_size: int, processes: int
) -> list[tuple[str, str, float]]:
    """Title, unit and value of each column: one training step, for each process with its ``batch_size`` samples."""
    weights, neuron_steps = neurons * fan_in, neurons * num_steps * batch_size
    share = WEIGHT * weights * (processes - 1) / processes
    return [
        ("neurons", "", neurons),
        ("weights", "", weights),
        ("DDP", "GB", ADAM * weights / 1e9),
        ("FSDP2", "GB", ADAM * weights / processes / 1e9),
        ("held", "GB", measured.held * neuron_steps / 1e9),
        ("neurons", "s", measured.neuron_step * neuron_steps),
        ("products", "s", FLOPS * fan_in * neuron_steps / measured.flops),
        ("DDP sends", "s", 2 * share / measured.reduced),  # all-reduce of the gradients: each is sent twice
        ("FSDP2 sends", "s", 3 * share / measured.reduced),  # weights for forward and backward, gradients
    ]


def best_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call; the first does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure(num_steps: int, bandwidth: float, device: torch.device) -> Measured:
    source, target = (torch.zeros(SIZE, num_steps, device=device) for _ in range(2))
    copied = 2 * source.nbytes / best_of(lambda: target.copy_(source), device)
    print(f"copy_: {copied / 1e9:.1f} GB/s", flush=True)

    lif, current = snnfast.Leaky(beta=0.95), torch.rand(num_steps, 1, SIZE, device=device).requires_grad_()
    grad = torch.ones_like(current)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif.unroll(current, record_mem=False)
    held = sum(saved.values()) / current.numel()

    def train() -> None:
        spk, _ = lif.unroll(current, record_mem=False)
        torch.autograd.grad(spk, current, grad)

    neuron_step = best_of(train, device) / current.numel()
    print(
        f"a neuron-step, forward and backward: {1e9 * neuron_step:.3f} ns, {MOVED / neuron_step / 1e9:.1f} GB/s, "
        f"{held:.2f} bytes held"
    )

    fc, x = nn.Linear(WIDTH, WIDTH, device=device), torch.rand(WIDTH, WIDTH, device=device).requires_grad_()
    seconds = best_of(lambda: torch.autograd.grad(fc(x), (x, fc.weight), torch.ones_like(x)), device)
    flops = FLOPS * WIDTH**3 / seconds
    print(f"a Linear of {WIDTH} to {WIDTH}, forward and backward: {flops / 1e9:.0f} GFLOP/s", flush=True)

    if not dist.is_initialized():
        print(f"all-reduce: {bandwidth:.1f} GB/s, as --bandwidth says")
        return Measured(neuron_step, held, flops, 1e9 * bandwidth)
    world = dist.get_world_size()
    reduced = 2 * (world - 1) / world * source.nbytes / best_of(lambda: dist.all_reduce(source), device)
    print(f"all-reduce among {world} processes: {reduced / 1e9:.2f} GB/s sent by each")
    return Measured(neuron_step, held, flops, reduced)


def check(measured: Measured, num_steps: int, device: torch.device) -> None:
    """A network that is small enough to run, beside what the formulas say of it."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), snnfast.Leaky(beta=0.95))]
    net, x = snnfast.MultiStep(*layers).to(device), torch.rand(num_steps, SAMPLES, WIDTH, device=device)
    seconds = best_of(lambda: net(x)[0].sum().backward(), device)
    found = estimate(measured, 4 * WIDTH, WIDTH, num_steps, SAMPLES, 1)
    most = sum(value for title, unit, value in found if unit == "s" and title in ("neurons", "products"))
    print(
        f"check, 4 layers of {WIDTH} neurons, {SAMPLES} samples: {1e3 * seconds:.1f} ms forward and backward, "
        f"estimated {1e3 * most:.1f} ms at most (few spikes make products faster)",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Estimate a large run from figures measured here.")
    add = parser.add_argument
    add("--neurons", type=float, nargs="+", default=[1e6, 1e7, 1e8], help="of the networks (default: 1e6 1e7 1e8)")
    add("--fan-in", type=int, default=100, help="weights for each neuron (default: 100)")
    add("--num-steps", type=int, default=25, help="time steps (default: 25)")
    add("--batch-size", type=int, default=1, help="samples of each process (default: 1)")
    add("--processes", type=int, default=8, help="of the large run (default: 8)")
    add("--bandwidth", type=float, default=10.0, help="GB/s of each process, without torchrun (default: 10)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    device = torch.device(args.device)
    if "RANK" in os.environ:  # torchrun sets it
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    measured = measure(args.num_steps, args.bandwidth, device)
    check(measured, args.num_steps, device)
    print(
        f"\none training step of {args.processes} processes, for each of them: {args.num_steps} steps, "
        f"{args.batch_size} samples, {args.fan_in} weights for each neuron"
    )
    sizes = args.fan_in, args.num_steps, args.batch_size, args.processes
    rows = [estimate(measured, neurons, *sizes) for neurons in args.neurons]
    print("".join(f"{title:>12}" for title, _, _ in rows[0]))
    print("".join(f"{unit:>12}" for _, unit, _ in rows[0]))
    for row in rows:
        print("".join(f"{value:>12.3g}" for _, _, value in row))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
