"""``examples/mnist.py --cuda-graph``: training by replays is training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal
from torch import Tensor

pytest.importorskip("torchvision.datasets")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS, LR = 5, 1e-2


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module("mnist")


def batches(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(16, 784, generator=generator).to(device), torch.randint(10, (16,), generator=generator).to(device))
        for _ in range(4)
    ]


def trained(net: Any, train_on: Any, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and weights."""
    losses = [train_on(*batch)[0] for batch in batches(device)]
    return losses, [p.detach().clone() for p in net.parameters()]


def test_without_a_gpu_the_error_names_the_option(mnist: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist.main(["--cuda-graph", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: --cuda-graph: needs a CUDA device, not cpu\n"


def test_replays_train_from_the_first_weights_on_each_batch(mnist: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph that keeps the function that it captured, and calls it for each replay."""
    cpu = torch.device("cpu")
    now = SimpleNamespace(capturing=False, captured=None)

    @contextmanager
    def capturing(graph: object) -> Iterator[None]:
        now.capturing = True
        yield
        now.capturing = False

    class Graph:
        def replay(self) -> None:
            now.captured()

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    torch.manual_seed(0)
    expected = mnist.build(20, 0.9)
    net = mnist.build(20, 0.9)
    net.load_state_dict(expected.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    loss, spk_rec = torch.zeros(()), torch.zeros(STEPS, 16, 10)

    def train_on(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        def step() -> None:
            spk, mem = net(images, num_steps=STEPS)
            found = mnist.ce_membrane_loss()(mem, labels)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            loss.copy_(found.detach())
            spk_rec.copy_(spk.detach())

        if now.capturing:
            now.captured = step
        else:
            step()
        return loss, spk_rec

    replay = mnist.capture(train_on, net, optimizer, *batches(cpu)[-1])
    found = trained(net, replay, cpu)
    for a, b in zip(found, trained(expected, mnist.make_trainer(expected, STEPS, LR), cpu), strict=True):
        for x, y in zip(a, b, strict=True):
            assert_bits_equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("code", ["rate", "latency"])
def test_a_captured_step_trains_as_an_eager_one(code: str, mnist: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    device = torch.device("cuda")
    results = []
    for graph in (False, True):
        torch.manual_seed(0)
        net = mnist.build(20, 0.9).to(device)
        train_on = mnist.make_trainer(net, STEPS, LR, code, batches(device)[-1] if graph else None)
        results.append(trained(net, train_on, device))
    for a, b in zip(*results, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)
