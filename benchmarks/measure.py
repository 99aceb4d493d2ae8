"""Timing side by side, the bytes that are kept, and the machine."""

import math
import os
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TURN = 5  # calls, or
TURN_SECONDS = 0.05  # what is more


def alternate(
    functions: Mapping[str, Callable[[], object]],
    seconds: float,
    least: int,
    slow: float,
    clock: Callable[[Callable[[], object]], float],
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns, so that a slow moment of the machine hits all alike.

    A turn is ``TURN`` calls, or as many as take ``TURN_SECONDS``. Its first fifth is not counted: these calls find the
    caches as another function left them. There are at least ``least`` turns after an uncounted one, and the turns go on
    for ``seconds``. A function that takes longer than ``slow`` seconds gets turns of one call, which counts: what the
    caches hold does not matter to it. ``clock`` times one call.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = math.inf
    turns = 0
    calls = dict.fromkeys(functions, TURN)
    while functions and (turns <= least or time.perf_counter() < end):
        if turns == 1:
            end = time.perf_counter() + seconds
        for name, function in functions.items():
            taken = [clock(function) for _ in range(min(2, calls[name]))]
            if turns == 0:
                best = min(taken)
                calls[name] = 1 if best > slow else max(TURN, math.ceil(TURN_SECONDS / max(best, 1e-6)))
            taken += [clock(function) for _ in range(calls[name] - 2)]
            if turns > 0:
                times[name] += taken[len(taken) // TURN :]
        turns += 1
    return times


def seconds_of(function: Callable[[], object]) -> float:
    """The time of one call, until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    del result  # freed outside of the clock, before the next call
    return taken


def seconds_on_gpu(function: Callable[[], object]) -> float:
    """The time of one call by the clock of the card: from before its first kernel to after its last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = function()
    end.record()
    end.synchronize()
    del result
    return start.elapsed_time(end) / 1e3


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


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that ops return, while these are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given | self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _freed(self, address: int, size: int) -> None:
        self._known.remove(address)
        self.now -= size


def peak_on_cpu(run: Callable[[], object]) -> int:
    """Most bytes of tensors that are alive at once during a call, beyond those before it; not what ops use inside."""
    run()
    with _Alive() as alive:
        run()
    return alive.most


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


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> str:
    """Settings that change times. A path is cut to its last name: where files lie is not part of a result."""
    settings = {
        name: " ".join(Path(part).name for part in value.replace(":", " ").split())
        for name, value in sorted(os.environ.items())
        if name.startswith(("MALLOC_", "THP_", "OMP_", "LD_PRELOAD", "SNNFAST_"))
        and name not in ("SNNFAST_DATA", "SNNFAST_PUBLIC")
    }
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "default"
