"""The card, or in a dry run the emulator on the CPU: the same streams, graphs and waits, as far as it has them."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from snnfast import _ops

ROOT = Path(__file__).parent.parent.parent
GROUPS = 5  # of calls that are timed together


class Card:
    """A CUDA device."""

    dry = False
    name = "cuda"
    device = torch.device("cuda")
    many = 1 << 18  # neurons from which on a thread takes several of them

    def __init__(self) -> None:
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def other_stream(self) -> AbstractContextManager[Any]:
        """A stream other than the default one, for the length of a block."""
        return torch.cuda.stream(torch.cuda.Stream())

    def delay(self) -> None:
        """Keep the current stream busy for about 50 ms; what is not ordered after it comes before it."""
        torch.cuda._sleep(100_000_000)

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        """Capture what ``function`` launches in a CUDA graph; return its replay.

        Autograd calls a node of the backward pass on the stream where it was made, and the default stream can't be
        captured. So whatever ``function`` goes back through must have been made on the current stream, and not the
        default one, or in ``function`` itself.
        """
        current = torch.cuda.current_stream()
        stream = torch.cuda.Stream() if current == torch.cuda.default_stream() else current
        self.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            function()
        self.graphs.append(graph)  # what it wrote may be read by others
        return graph.replay

    def timed(self, function: Callable[[], object], seconds: float) -> float:
        """Median time of a call in seconds, of groups of calls that the card runs one after another."""
        self.seconds_of(function, 1)
        calls = max(1, min(1000, int(seconds / GROUPS / self.seconds_of(function, 1))))
        return median(self.seconds_of(function, calls) / calls for _ in range(GROUPS))

    def seconds_of(self, function: Callable[[], object], calls: int) -> float:
        """By the clock of the card, from before the first kernel to after the last."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.synchronize()
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return max(start.elapsed_time(end) / 1e3, 1e-7)

    def cache_bytes(self) -> int:
        """Of the L2 cache."""
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)


class DryRun(Card):
    """The emulated ops, or without the toolkit's headers those of the CPU: every line runs, and little is proven."""

    dry = True
    device = torch.device("cpu")
    many = 64

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from emulator.build import load

        try:
            load()
        except RuntimeError as error:
            self.name = f"dry run on the CPU kernels ({error})"
        else:
            _ops.use("snnfast_emulated")
            self.name = "dry run on the emulator"

    def synchronize(self) -> None:
        pass

    def other_stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def delay(self) -> None:
        pass

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        return function

    def seconds_of(self, function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - start

    def cache_bytes(self) -> int:
        return 0


def open_card(dry_run: bool) -> Card:
    if dry_run:
        return DryRun()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --dry-run does without one")
    return Card()
