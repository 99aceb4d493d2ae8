"""The card, or in a dry run the emulator on the CPU: the same streams, graphs and waits, as far as it has them."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from snnfast import _ops

ROOT = Path(__file__).parent.parent.parent


class Card:
    """A CUDA device."""

    dry = False
    name = "cuda"
    device = torch.device("cuda")
    many = 1 << 18  # neurons from which on a thread takes several of them

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def other_stream(self) -> AbstractContextManager[Any]:
        """A stream other than the default one, for the length of a block."""
        return torch.cuda.stream(torch.cuda.Stream())

    def delay(self) -> None:
        """Keep the current stream busy for about 50 ms; what is not ordered after it comes before it."""
        torch.cuda._sleep(100_000_000)

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture what ``function`` launches in a CUDA graph; return its replay."""
        with self.other_stream():
            for _ in range(3):
                function()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay


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

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        return function


def open_card(dry_run: bool) -> Card:
    if dry_run:
        return DryRun()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --dry-run does without one")
    return Card()
