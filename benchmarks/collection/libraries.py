"""Networks of SpikingJelly and of Norse, as their users write them."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from . import events, frames, program


def of_mean(net: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    """The mean of the spikes of ten classes against labels as rates."""
    rates = net(x)
    return F.mse_loss(rates, F.one_hot(y, rates.shape[-1]).to(rates.dtype)), rates


@program(events(2, 16, 16), of_mean, T=16, B=16)
class StepByStep(nn.Module):
    """SpikingJelly's first example: a loop over the frames, and the mean of the spikes."""

    def __init__(self) -> None:
        super().__init__()
        sigmoid = surrogate.ATan()
        self.net = nn.Sequential(
            layer.Flatten(),
            layer.Linear(512, 100),
            neuron.LIFNode(tau=2.0, v_threshold=0.3, surrogate_function=sigmoid),
            layer.Linear(100, 10),
            neuron.LIFNode(tau=2.0, v_threshold=0.1, surrogate_function=sigmoid),
        )

    def forward(self, x: Tensor) -> Any:
        functional.reset_net(self)
        out: Any = 0.0
        for t in range(x.shape[0]):
            out = out + self.net(x[t])
        return out / x.shape[0]


@program(events(2, 24, 24), of_mean, T=8, B=16)
class StepByStepOnImages(nn.Module):
    """Convolutions, and neurons that learn their time constant; the first step is in front of the loop."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"v_threshold": 0.3, "detach_reset": True, "surrogate_function": surrogate.ATan()}
        self.features = nn.Sequential(
            layer.Conv2d(2, 16, 3, padding=1, bias=False),
            layer.BatchNorm2d(16),
            neuron.ParametricLIFNode(**options),
            layer.MaxPool2d(2),
            layer.Conv2d(16, 16, 3, padding=1, bias=False),
            layer.BatchNorm2d(16),
            neuron.ParametricLIFNode(**options),
            layer.MaxPool2d(2),
        )
        self.head = nn.Sequential(layer.Flatten(), layer.Linear(16 * 36, 10), neuron.ParametricLIFNode(**options))

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        spikes = self.head(self.features(x[0]))
        for t in range(1, x.shape[0]):
            spikes = spikes + self.head(self.features(x[t]))
        return spikes / x.shape[0]  # type: ignore[no-any-return]


@program(events(2, 24, 24), of_mean, T=8, B=16)
class AllStepsOnImages(nn.Module):
    """Step mode "m": each layer is called once, with all steps."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"v_threshold": 0.3, "surrogate_function": surrogate.ATan()}
        self.net = nn.Sequential(
            layer.Conv2d(2, 16, 3, padding=1, bias=False),
            layer.BatchNorm2d(16),
            neuron.IFNode(**options),
            layer.MaxPool2d(2),
            layer.Conv2d(16, 32, 3, padding=1, bias=False),
            layer.BatchNorm2d(32),
            neuron.IFNode(**options),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(32 * 36, 10),
            neuron.IFNode(**options),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.net(x).mean(0)  # type: ignore[no-any-return]


@program(frames(28), of_mean, T=28)
class RowsOfAnImage(nn.Module):
    """An image row by row: neurons whose spikes come back through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.Linear(28, 64),
            layer.LinearRecurrentContainer(neuron.IFNode(v_threshold=0.4), 64, 64),
            layer.Linear(64, 10),
            neuron.IFNode(v_threshold=0.2),
        )

    def forward(self, x: Tensor) -> Any:
        functional.reset_net(self)
        out: Any = 0.0
        for row in x:
            out = out + self.net(row)
        return out / len(x)


def of_membranes(net: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    voltages = net(x)
    return F.nll_loss(F.log_softmax(voltages.max(0)[0], 1), y), voltages


@program(events(14, 14), of_membranes, T=32)
class NorseCells(nn.Module):
    """Norse's cells, which make their first states in the loop; the largest voltage decides."""

    def __init__(self) -> None:
        super().__init__()
        import norse.torch as norse  # which takes seconds

        self.fc1, self.fc2 = nn.Linear(196, 100), nn.Linear(100, 10)
        self.lif, self.out = norse.LIFCell(norse.LIFParameters(alpha=100.0, v_th=torch.tensor(0.3))), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        of_lif = of_out = None
        voltages = []
        for step in range(x.shape[0]):
            z, of_lif = self.lif(10 * self.fc1(x[step].flatten(1)), of_lif)
            v, of_out = self.out(self.fc2(z), of_out)
            voltages.append(v)
        return torch.stack(voltages)
