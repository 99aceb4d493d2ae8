"""Networks of each kind that a CUDA graph can capture, and their training steps.

No layer before a batch normalisation has a bias: its gradient is rounding alone, of which Adam makes whole steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snnfast
from snnfast import spikingjelly, surrogate

STEPS, BATCH, CLASSES = 5, 4, 10


@snnfast.neuron
def adaptive(x: Tensor, v: Tensor, a: Tensor, *, beta: float = 0.9, tau: Any = 3.0) -> tuple[Tensor, ...]:
    v = beta * v + x / tau
    spk = snnfast.spike(v - 1.0 - 0.1 * a, surrogate.atan())
    return spk, v * (1 - spk), 0.9 * a + spk


def convolutions() -> nn.Module:
    return snnfast.MultiStep(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), snnfast.Leaky(0.5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, CLASSES, bias=False), nn.BatchNorm1d(CLASSES, momentum=None),
        snnfast.Leaky(0.5, learn_beta=True),
    )  # fmt: skip


class Jelly(nn.Sequential):
    def __init__(self) -> None:
        layer, neuron, m = spikingjelly.layer, spikingjelly.neuron, {"step_mode": "m"}
        super().__init__(
            layer.Conv2d(2, 8, 3, padding=1, bias=False, **m), layer.BatchNorm2d(8, **m), neuron.LIFNode(**m),
            layer.SeqToANNContainer(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)), neuron.IFNode(**m),
            layer.Flatten(**m), layer.Linear(512, CLASSES, **m), neuron.ParametricLIFNode(**m),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        spikingjelly.functional.reset_net(self)
        return super().forward(x)  # type: ignore[no-any-return]


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(128, 50, bias=False), nn.BatchNorm1d(50), nn.Linear(50, CLASSES)
        self.lif1, self.lif2 = snnfast.Leaky(0.9), snnfast.Leaky(0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, spk_rec = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in x.flatten(2):
            spk, mem1 = self.lif1(self.norm(self.fc1(step)), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spk_rec.append(spk)
        return torch.stack(spk_rec)


def recurrent() -> nn.Module:
    layer = snnfast.RLeaky(0.9, linear_features=CLASSES)
    return snnfast.MultiStep(nn.Flatten(), nn.Linear(128, CLASSES), layer)


def own() -> nn.Module:
    return snnfast.MultiStep(nn.Flatten(), nn.Linear(128, CLASSES), nn.Dropout(0.0), adaptive(learn_beta=True))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MultiStep": convolutions, "compiled loop": Loop, "spikingjelly": Jelly, "recurrent": recurrent, "own neuron": own,
}  # fmt: skip


def minibatch(batch: int = BATCH, device: str = "cuda") -> tuple[Tensor, Tensor]:
    return torch.rand(STEPS, batch, 2, 8, 8, device=device), torch.randint(CLASSES, (batch,), device=device)


def training(
    name: str, amp: bool = False, backward: Callable[[Tensor], object] = Tensor.backward, device: str = "cuda"
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor, Tensor], Tensor]]:
    """A network, its optimizer, and its training step; with ``amp`` in mixed precision with a scaler."""
    with torch.device(device):
        net = NETWORKS[name]()
    called = snnfast.compile(net) if name == "compiled loop" else net
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True, capturable=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=amp)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.float16, enabled=amp):
            out = called(x)
            spk = out if isinstance(out, Tensor) else out[0]
            loss = cross_entropy(spk.mean(0), labels)
        optimizer.zero_grad()
        backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        return loss

    return net, optimizer, step
