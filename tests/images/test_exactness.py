"""Behind a convolution, every operator is as exact as in the loop, in whatever order images lie in memory.

PyTorch has other kernels for images in channels_last order, and some of them add in float32 what the usual ones add in
float64. Each operator is compared with the loop's, both against float64, around zero and far from it.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import snnfast
from benchmarks.collection.neurons import Levels
from snnfast import MultiStep

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]
T, B, C, SIZE = 3, 8, 8, 16
FACTOR = 2
"""So many times the error of the loop may be."""
SMALLEST = 2.0**-23
"""An error, relative to what it is an error of, that counts for nothing."""
MEANS = (0.0, 100.0)
"""Of a channel, in standard deviations."""


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def classes(x: Tensor) -> Tensor:
    return torch.arange(x[:, 0].numel()).view(x[:, 0].shape) % C


def block() -> nn.Module:
    """Smooth: at a kink, the last digit would decide."""
    layers = nn.BatchNorm2d(C), nn.Sigmoid(), nn.AvgPool2d(2), nn.BatchNorm2d(C)
    return nn.Sequential(nn.Conv2d(C, C, 3, bias=False), *layers)


def batch_norm_by_hand(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(C),
    "batch norm without weights": lambda: nn.BatchNorm2d(C, affine=False),
    "batch norm without averages": lambda: nn.BatchNorm2d(C, track_running_stats=False),
    "batch norm in evaluation": lambda: nn.BatchNorm2d(C).eval(),
    "block": block,
    "group norm": lambda: nn.GroupNorm(4, C),
    "instance norm": lambda: nn.InstanceNorm2d(C, affine=True),
    "layer norm": lambda: nn.LayerNorm([C, SIZE, SIZE]),
    "rms norm": lambda: nn.RMSNorm(SIZE),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool, overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "average pool": lambda: nn.AvgPool2d(2),
    "average pool, overlapping": lambda: nn.AvgPool2d(3, 1, 1),
    "average pool of all": lambda: nn.AvgPool2d(SIZE),
    "adaptive average pool": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive average pool to five": lambda: nn.AdaptiveAvgPool2d(5),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(5),
    "power pool": lambda: nn.LPPool2d(2, 2),
    "relu": nn.ReLU,
    "prelu": lambda: nn.PReLU(C),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "softmax": lambda: nn.Softmax(1),
    "log softmax": lambda: nn.LogSoftmax(1),
    "shuffle": lambda: nn.PixelShuffle(2),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "area": lambda x: F.interpolate(x, size=(5, 5), mode="area"),
    "batch norm by hand": batch_norm_by_hand,
    "layer norm of channels": lambda x: F.layer_norm(x.movedim(1, -1), (C,)),
    "sum": lambda x: x.sum(), "sum of images": lambda x: x.sum((2, 3)), "sum of channels": lambda x: x.sum(1),
    "sum of a batch": lambda x: x.sum((0, 2, 3)), "sum of samples": lambda x: x.sum((1, 2, 3)),
    "mean": lambda x: x.mean(), "mean of images": lambda x: x.mean((2, 3)), "mean of channels": lambda x: x.mean(1),
    "mean of a batch": lambda x: x.mean((0, 2, 3)), "mean of rows": lambda x: x.flatten(1).mean(1),
    "variance": lambda x: x.var(), "variance of images": lambda x: x.var((2, 3)),
    "variance of a batch": lambda x: x.var((0, 2, 3)), "deviation of channels": lambda x: x.std(1),
    "norm": lambda x: x.norm(), "normalised channels": lambda x: F.normalize(x, dim=1),
    "largest": lambda x: x.amax((2, 3)), "running sum": lambda x: x.cumsum(1), "logsumexp": lambda x: x.logsumexp(1),
    "weighted by means": lambda x: x * x.mean((2, 3), keepdim=True),
    "cross entropy": lambda x: F.cross_entropy(x, classes(x)),
    "cross entropy of each": lambda x: F.cross_entropy(x, classes(x), reduction="none"),
    "squared error": lambda x: F.mse_loss(x, torch.ones_like(x)),
    "absolute error": lambda x: F.l1_loss(x, torch.zeros_like(x)),
    "binary cross entropy": lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x)),
}  # fmt: skip


class Layers(nn.Module):
    """Each layer runs over all steps before the next one, as networks for multi-step mode are written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(2, C, 3, padding=1)
        every = {name: make() for name, make in MODULES.items()} | {name: Of(f) for name, f in FUNCTIONS.items()}
        self.names, self.layers = list(every), nn.ModuleList(every.values())

    def spikes(self, x: Tensor) -> Tensor:
        mem, rec = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            mem = mem * 0.5 + x[t]
            spk = Levels.apply(mem)
            mem = mem - spk.detach()
            rec.append(spk)
        return torch.stack(rec)

    def forward(self, x: Tensor) -> list[Tensor]:
        images = self.conv(self.spikes(x).flatten(0, 1))
        return [layer(images) for layer in self.layers]


class Steps(Layers):
    """The loop over time is outermost."""

    def forward(self, x: Tensor) -> list[Tensor]:
        spikes: Any = self.spikes(x)
        steps = []
        for t in range(x.shape[0]):
            images = self.conv(spikes[t])
            steps.append([layer(images) for layer in self.layers])
        return [torch.stack(every) for every in zip(*steps, strict=True)]


def input_of(order: torch.memory_format, dtype: torch.dtype) -> Tensor:
    """Of few bits, so that every membrane is exact."""
    torch.manual_seed(2)
    x = ((torch.randn(T * B, 2, SIZE, SIZE) * 8 + 8).round() / 8).to(dtype)
    return x.contiguous(memory_format=order).unflatten(0, (T, B)).requires_grad_()


@torch.no_grad()
def shift(conv: Any, mean: float) -> None:
    """Let the channels of the output have such means."""
    conv.bias.copy_(mean * torch.linspace(1, 2, C))


def results(
    outputs: Sequence[Tensor], names: Sequence[str], x: Tensor, parameters: Callable[[str], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """For each operator its output, and the gradients of the input and of parameters."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, y in zip(names, outputs, strict=True):
        asking = {"gradient of the input": x, **parameters(name)}
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype) + 0.5
        grads = torch.autograd.grad(y, list(asking.values()), weights, retain_graph=True)
        found[name] = {"output": y.detach(), **dict(zip(asking, grads, strict=True))}
    return found


def size(t: Tensor) -> float:
    return float(t.detach().double().square().mean().sqrt())


def assert_as_exact(found: dict[str, Any], loop: dict[str, Any], exact: dict[str, Any], what: str) -> None:
    worse = []
    for name, wanted in exact.items():
        largest = max((size(t) for key, t in wanted.items() if key.startswith("gradient")), default=0.0)
        for key, t in wanted.items():
            if key.startswith("gradient") and size(t) <= 1e-4 * largest:
                continue  # zero but for rounding, as of a bias before batch norm
            scale = max(size(t), 0.1 * largest if key.startswith("gradient") else 1e-30)
            ours, theirs = (size(each[name][key].double() - t) / scale for each in (found, loop))
            if ours > FACTOR * max(theirs, SMALLEST):
                worse.append(f"{name}, {key}, {what}: off by {ours:.1e}, in the loop by {theirs:.1e}")
    assert not worse, "\n".join(worse)


@pytest.mark.parametrize("kind", [Layers, Steps])
@pytest.mark.parametrize("order", ["contiguous_format", pytest.param("channels_last", marks=pytest.mark.thorough)])
def test_a_compiled_loop_is_as_exact_as_the_loop(kind: type[Layers], order: str) -> None:
    def parameters(net: Any, name: str) -> dict[str, Tensor]:
        layer = net.layers[net.names.index(name)]
        own = {f"gradient of {n}": p for n, p in layer.named_parameters()}
        if kind is Layers:
            return own | {f"gradient of the convolution's {n}": p for n, p in net.conv.named_parameters()}
        # A sum over the samples of all steps at once is rounded as that of a larger batch, in any order in memory.
        return own if name.startswith("batch norm") else {}

    memory_format = getattr(torch, order)
    net = kind().to(memory_format=memory_format)
    compiled, exact = snnfast.compile(copy.deepcopy(net)), copy.deepcopy(net).double()
    for mean in MEANS:
        shift(net.conv, mean)
        every = []
        for each in (compiled, net, exact):
            each.load_state_dict(net.state_dict())
            x = input_of(memory_format, each.conv.weight.dtype)
            every.append(results(each(x), each.names, x, partial(parameters, each)))
            every[-1]["averages"] = {n: b for n, b in each.named_buffers() if b.is_floating_point()}
        assert_as_exact(*every, f"means of {mean}")


class Unconverted(nn.Module):
    """Layers that a loop over time calls, as ``MultiStep`` is told to run them."""

    def __init__(self, net: MultiStep) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        conv, layer = self.net
        if self.net.batch_norm_over_time:
            return layer(conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return torch.stack([layer(conv(step)) for step in x])


@pytest.mark.parametrize("name", [name for name in MODULES if name != "block"])
def test_multistep_is_as_exact_as_the_loop(name: str) -> None:
    torch.manual_seed(1)
    net = MultiStep(nn.Conv2d(2, C, 3, padding=1), MODULES[name]())
    norm = name.startswith("batch norm")
    for over_time, mean in itertools.product((False, True)[: 1 + norm], MEANS):
        net.batch_norm_over_time = over_time
        shift(net[0], mean)
        every = []
        for dtype, unconverted in ((torch.float32, False), (torch.float32, True), (torch.float64, True)):
            each = copy.deepcopy(net).to(dtype)
            x = input_of(torch.contiguous_format, dtype)
            asking = {f"gradient of {n}": p for n, p in each[1].named_parameters() if norm}
            y = (Unconverted(each) if unconverted else each)(x)
            every.append(results([y], [name], x, lambda _, asking=asking: asking))
            every[-1]["averages"] = {n: b for n, b in each.named_buffers() if b.is_floating_point()}
        assert_as_exact(*every, f"means of {mean}")
