"""Networks of SpikingJelly, as its users write them: step by step, and in step mode "m"."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import Tensor, nn

from . import events, frames, images, program


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


@program(images(28, 28), of_mean, T=50)
class PoissonCoded(nn.Module):
    """SpikingJelly's tutorial of a single layer: at each step, the pixels are drawn as spikes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoding.PoissonEncoder()
        node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan())
        self.layer = nn.Sequential(layer.Flatten(), layer.Linear(28 * 28, 10, bias=False), node)

    def forward(self, x: Tensor) -> Any:
        functional.reset_net(self)
        rates: Any = 0.0
        for _ in range(50):
            rates += self.layer(self.encoder(x))
        return rates / 50


@program(frames(28), of_mean, T=28)
class StatefulSynapses(nn.Module):
    """An image row by row in step mode "m": the currents of a layer decay with a time constant that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            layer.Linear(28, 64),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
            layer.SynapseFilter(tau=2.0, learnable=True),
            layer.Linear(64, 10),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.fc(x).mean(0)  # type: ignore[no-any-return]


class NonSpikingLIFNode(neuron.SimpleLIFNode):  # type: ignore[misc]
    """An integrator, whose membrane is what the network returns."""

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        return self.v  # type: ignore[no-any-return]


def of_actions(net: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    """The values of the actions that were taken against those that were expected."""
    values = net(x)
    return F.smooth_l1_loss(values.gather(1, y.unsqueeze(1)).squeeze(1), x.sum(1)), values


@program(lambda T, B: (torch.rand(B, 4), torch.randint(2, (B,))), of_actions, T=16, B=128)
class SpikingDeepQ(nn.Module):
    """Reinforcement learning: an observation at each of 16 steps, and the membranes after the last."""

    def __init__(self) -> None:
        super().__init__()
        out = NonSpikingLIFNode(tau=2.0, decay_input=True)
        self.fc = nn.Sequential(layer.Linear(4, 128), neuron.IFNode(), layer.Linear(128, 2), out)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        for _ in range(16):
            self.fc(x)
        return self.fc[-1].v  # type: ignore[no-any-return]


@program(images(1, 28, 28), of_mean, T=4, B=16)
class Fashion(nn.Module):
    """SpikingJelly's convolutional example in step mode "m": the same image four times."""

    def __init__(self) -> None:
        super().__init__()
        channels, options = 32, {"surrogate_function": surrogate.ATan()}
        self.conv_fc = nn.Sequential(
            layer.Conv2d(1, channels, kernel_size=3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(**options),
            layer.MaxPool2d(2, 2),
            layer.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(**options),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(channels * 49, channels * 4, bias=False),
            neuron.IFNode(**options),
            layer.Linear(channels * 4, 10, bias=False),
            neuron.IFNode(**options),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.conv_fc(x.unsqueeze(0).expand(4, -1, -1, -1, -1)).mean(0)  # type: ignore[no-any-return]


@program(images(1, 28, 28), of_mean, T=8, B=16)
class LearnedConstants(nn.Module):
    """The network of the paper on parametric LIF neurons: ten neurons vote for each class, over eight steps."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"init_tau": 2.0, "detach_reset": True, "surrogate_function": surrogate.ATan()}
        self.conv_fc = nn.Sequential(
            layer.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
            layer.BatchNorm2d(16),
            neuron.ParametricLIFNode(**options),
            layer.MaxPool2d(2, 2),
            layer.Conv2d(16, 16, kernel_size=3, padding=1, bias=False),
            layer.BatchNorm2d(16),
            neuron.ParametricLIFNode(**options),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Dropout(0.5),
            layer.Linear(16 * 49, 256),
            neuron.ParametricLIFNode(**options),
            layer.Dropout(0.5),
            layer.Linear(256, 100),
            neuron.ParametricLIFNode(**options),
            layer.VotingLayer(),
        )

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        spikes = self.conv_fc(x)
        for _ in range(1, 8):
            spikes += self.conv_fc(x)
        return spikes / 8  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two convolutions, whose spikes are added to those of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i in (1, 2):
            self.add_module(f"conv{i}", layer.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False))
            self.add_module(f"bn{i}", layer.BatchNorm2d(channels))
            self.add_module(f"sn{i}", neuron.IFNode(detach_reset=True, surrogate_function=surrogate.ATan()))

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn1(self.bn1(self.conv1(x)))
        return self.sn2(self.bn2(self.conv2(out))) + x  # type: ignore[no-any-return]


@program(events(2, 24, 24), of_mean, T=8, B=8)
class SpikeElementWise(nn.Module):
    """A residual network of event frames in step mode "m", whose blocks add up spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layer.Conv2d(2, 16, kernel_size=3, padding=1, bias=False)
        self.bn, self.sn = layer.BatchNorm2d(16), neuron.IFNode(detach_reset=True, surrogate_function=surrogate.ATan())
        self.blocks = nn.Sequential(Block(16), layer.MaxPool2d(2, 2), Block(16), layer.MaxPool2d(2, 2))
        self.fc = nn.Linear(16 * 36, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x = self.blocks(self.sn(self.bn(self.conv(x))))
        return self.fc(x.flatten(2).mean(0))  # type: ignore[no-any-return]


class Projection(nn.Module):
    """A linear layer of all tokens, batch normalisation, and neurons, for ``[T, B, tokens, features]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)
        options: dict[str, Any] = {"detach_reset": True, "surrogate_function": surrogate.ATan(), "step_mode": "m"}
        self.lif = neuron.LIFNode(tau=2.0, v_threshold=0.3, **options)

    def forward(self, x: Tensor) -> Tensor:
        T, B, N, _ = x.shape
        y = self.linear(x.flatten(0, 1))
        y = self.bn(y.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, -1).contiguous()
        return self.lif(y)  # type: ignore[no-any-return]


@program(events(16, 32), of_mean, T=4, B=16)
class SpikingTransformer(nn.Module):
    """One block of a spiking transformer in step mode "m": attention without softmax, and two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (Projection(32, 64) for _ in range(3))
        self.projected, self.fc1, self.fc2 = Projection(64, 64), Projection(64, 128), Projection(128, 64)
        self.attn_lif = neuron.LIFNode(
            tau=2.0, v_threshold=0.1, detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m"
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        T, B, N, _ = x.shape
        q, k, v = (of(x).reshape(T, B, N, 4, 16).permute(0, 1, 3, 2, 4).contiguous() for of in (self.q, self.k, self.v))
        x = ((q @ k.transpose(-2, -1)) @ v) * 0.125
        x = self.projected(self.attn_lif(x.transpose(2, 3).reshape(T, B, N, 64).contiguous()))
        x = x + self.fc2(self.fc1(x))
        return self.head(x.mean(2)).mean(0)  # type: ignore[no-any-return]


class SquareIFNode(neuron.SimpleBaseNode):  # type: ignore[misc]
    """A neuron of one's own, as SpikingJelly's documentation shows it: only how it charges is written."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + x**2


@program(events(2, 16, 16), of_mean, T=16, B=16)
class OwnCharge(nn.Module):
    """Neurons of one's own in a loop over the frames, whose results are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.Flatten(),
            layer.Linear(512, 100),
            SquareIFNode(v_threshold=0.5, surrogate_function=surrogate.ATan()),
            layer.Linear(100, 10),
            neuron.LIFNode(v_threshold=0.1, v_reset=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return torch.stack([self.net(frame) for frame in x]).mean(0)
