"""Bytes: those kept between forward and backward, and the most that a call needs at once."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


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


def available(device: torch.device) -> int:
    """Free bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30
