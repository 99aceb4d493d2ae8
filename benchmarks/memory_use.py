"""Bytes: those kept between forward and backward, and the most that a call needs at once."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .registry import Case, case_of


class Kept(NamedTuple):
    """Bytes of unique storages that autograd saves for the backward pass."""

    saved: int  # all of them
    held: int  # of these, what neither the caller passed in nor the forward pass returned


def kept(forward: Callable[[], Iterable[Tensor]], given: Iterable[Tensor]) -> Kept:
    """Run ``forward`` and count what its graph keeps alive.

    Every tensor that a node of the graph saves passes ``saved_tensors_hooks``. A storage counts once, with its whole
    size, however many views of it are saved. ``given`` are tensors of the caller: inputs, weights. What a node hides
    elsewhere than among its saved tensors is not seen.
    """
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(storage)  # no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = tuple(forward())
    known = {tensor.untyped_storage().data_ptr() for tensor in (*outputs, *given)}
    return Kept(sum(storages.values()), sum(size for address, size in storages.items() if address not in known))


def peak_on_gpu(run: Callable[[], object]) -> int:
    """Most bytes allocated during a call, beyond those allocated before it."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(case: Case, peer: str) -> int | None:
    """By how many bytes two calls raise the largest resident size of a fresh process; None where it fails."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(case)), peer]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def largest_T(peaks: dict[int, int], limit: int) -> int | None:  # noqa: N802
    """Time steps that fit into ``limit`` bytes, by the straight line through the peaks of two numbers of steps."""
    (few, low), (many, high) = sorted(peaks.items())
    slope = (high - low) / (many - few)
    return int((limit - low) / slope + few) if slope > 0 else None


def available(device: torch.device) -> int:
    """Free bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30


def _most_resident() -> int:
    """Largest resident size so far. Linux's ru_maxrss begins with that of the process before exec, the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024


def _main() -> None:
    from .peers import PEERS
    from .workloads import build, make_data

    case = case_of(json.loads(sys.argv[1]))
    candidate = build(case, PEERS[sys.argv[2]], make_data(case, torch.device("cpu")))
    before = _most_resident()
    for _ in range(2):
        candidate.run()
    print(_most_resident() - before)


if __name__ == "__main__":
    _main()
