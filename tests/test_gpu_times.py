"""How the kernels are timed on a card, with fakes of its streams and graphs. Needs no card."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import kernels
from benchmarks.gpu.card import Card


class Streams:
    """Of PyTorch: which is current, and which is being captured."""

    def __init__(self) -> None:
        self.default = object()
        self.current = [self.default]
        self.captured: object = None

    @contextmanager
    def on(self, stream: object) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()

    @contextmanager
    def graph(self, graph: object, stream: object = None) -> Iterator[None]:
        self.captured = stream or object()
        with self.on(self.captured):
            yield
        self.captured = None


class Event:
    def __init__(self, enable_timing: bool) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 0.25  # milliseconds


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()
    for name, fake in {
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "Event": Event,
        "Stream": object,
        "current_stream": lambda: found.current[-1],
        "default_stream": lambda: found.default,
        "graph": found.graph,
        "stream": found.on,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def rows(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[dict[str, Any]]:
    """What is found as on a card, on the tensors of a dry run."""

    class Faked(Card):
        dry, device = True, torch.device("cpu")

        def cache_bytes(self) -> int:
            return 0

    file = folder / "kernels.json"
    monkeypatch.setattr(kernels, "open_card", lambda dry_run: Faked())
    monkeypatch.setattr(sys, "argv", ["kernels", "--json", str(file), *arguments])
    kernels.main()
    found = json.loads(file.read_text())
    assert found["complete"]
    return list(found["rows"])


@pytest.mark.needs_extension
def test_the_way_back_is_captured_on_the_stream_where_it_was_made(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd's node of a leaf stays on the stream that was current when it was made, and can't leave it."""
    made: dict[kernels.Passes, object] = {}
    forward, backward = kernels.Passes.forward, kernels.Passes.backward

    def forward_here(passes: kernels.Passes) -> Tensor:
        made.setdefault(passes, streams.current[-1])
        return forward(passes)

    def backward_there(passes: kernels.Passes) -> Any:
        if streams.captured is not None and made[passes] is not streams.captured:
            raise RuntimeError("operation would make the legacy stream depend on a capturing blocking stream")
        return backward(passes)

    monkeypatch.setattr(kernels.Passes, "forward", forward_here)
    monkeypatch.setattr(kernels.Passes, "backward", backward_there)
    found = rows(tmp_path, monkeypatch, "--short")
    assert [(row["who"], row["pass"], row.get("error")) for row in found] == [
        (who, what, None) for who in ("snnfast", "copy_") for what in ("forward", "backward")
    ]
    assert streams.default not in made.values()


@pytest.mark.needs_extension
def test_a_graph_is_of_so_many_calls_that_its_launch_counts_for_little(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in rows(tmp_path, monkeypatch, "--short"):
        assert (row["call us"], row["kernel us"]) == (250, 250 / 4)  # a millisecond's worth of calls


def test_ours_are_timed_before_the_peers_which_may_compile_for_long(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(kernels, "cases", lambda short, dry: ["first", "second"])
    monkeypatch.setattr(kernels, "of_case", lambda card, case, who, seconds: order.append(f"{case}: {min(who)}") or [])
    monkeypatch.setattr(kernels, "of_copy", lambda card, case, seconds: order.append(f"{case}: copy_") or [])
    rows(tmp_path, monkeypatch)
    ours = [f"{case}: {who}" for case in ("first", "second") for who in ("snnfast", "copy_")]
    assert order == [*ours, "first: SpikingJelly", "second: SpikingJelly"]


@pytest.mark.needs_extension
def test_whatever_stops_a_peer_stops_no_other(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(case: object, device: object) -> None:
        raise AssertionError

    monkeypatch.setattr(kernels, "peers", lambda card: {"broken": broken, **kernels.OURS})
    found = rows(tmp_path, monkeypatch)
    assert [(row["who"], row.get("error")) for row in found[4:]] == [
        ("broken", "AssertionError: "), ("snnfast", None), ("snnfast", None),
    ]  # fmt: skip
