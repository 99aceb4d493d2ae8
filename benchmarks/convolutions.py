"""Convolutions of spikes: by snnfast's kernels and by PyTorch's, alone and in networks that train."""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import snnfast
from snnfast._images.conv2d import conv2d

from . import collection, report
from .bars import Bar
from .measure import alternate, seconds_of
from .peers import PEERS, snntorch_loop
from .peers.ours import DEFAULT
from .runner import Row

OURS, PYTORCH, LOOP = "snnfast", "PyTorch", "loop"
RATES = (0.05, 0.1, 0.2, 0.4)
SIZES = ((32, 32), (64, 32), (128, 16), (256, 8), (512, 4))
"""Channels, and pixels along an edge: convolutions of 3x3 with as many channels behind them."""

IMAGES = 32
T, B, EDGE = 4, 8, 32
GAMMAS = (1.0, 0.7, 0.4)
"""Weights of all batch normalisations in the VGG, which set how often its neurons spike."""

CHANNELS = (64, 64, "P", 128, 128, "P", 256, 256, "P")
WARM = 12
"""So many calls of a program come first, which make its graphs."""

SECONDS, LEAST = 0.4, 3


class Layer(NamedTuple):
    """A convolution of 3x3 on spikes, and the gradient of its output."""

    x: Tensor
    weight: Tensor
    grad: Tensor

    @classmethod
    def of(cls, channels: int, edge: int, rate: float) -> "Layer":
        x = (torch.rand(IMAGES, channels, edge, edge) < rate).float()
        grad = torch.randn(IMAGES, channels, edge, edge)
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        return cls(x, torch.randn(channels, channels, 3, 3) / channels, grad)

    def double(self) -> "Layer":
        return Layer(*(t.double() for t in self))

    def forward(self, convolve: Callable[..., Tensor]) -> Callable[[], Tensor]:
        @torch.no_grad()
        def run() -> Tensor:
            return convolve(self.x, self.weight, None, 1, 1)

        return run

    def weight_gradient(self, convolve: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return self._backward(convolve, self.x, self.weight.detach().requires_grad_())

    def input_gradient(self, convolve: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return self._backward(convolve, self.x.detach().requires_grad_(), self.weight)

    def _backward(self, convolve: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
        y = convolve(x, weight, None, 1, 1)
        asking = x if x.requires_grad else weight

        def run() -> Tensor:
            (found,) = torch.autograd.grad(y, asking, self.grad, retain_graph=True)
            return found

        return run


DIRECTIONS: dict[str, Callable[[Layer, Callable[..., Tensor]], Callable[[], Tensor]]] = {
    "forward": Layer.forward, "weight gradient": Layer.weight_gradient, "input gradient": Layer.input_gradient,
}  # fmt: skip


def run(args: argparse.Namespace) -> list[Bar]:
    """Print tables of layers, of a VGG's training step, and of the convolutional programs of the collection."""
    header = report.header(torch.device("cpu"), [PEERS[snntorch_loop.LOOP]])
    report.print_header(header)
    load = report.Load()
    torch.manual_seed(0)
    rows: list[Row] = []
    for measure in (_layers, _networks, _programs):
        measure(args.case, rows)
    if args.json is not None:
        report.save(args.json, header | {"load": str(load)}, rows)
    return []


def _layers(text: str, rows: list[Row]) -> None:
    print(f"3x3, {IMAGES} images: PyTorch's time / ours (error of ours / PyTorch's: the largest, the root mean square)")
    for direction, of in DIRECTIONS.items():
        ratios: dict[float, list[float]] = {rate: [] for rate in RATES}
        for channels, edge in SIZES:
            name = f"{direction}, {channels} channels, {edge} x {edge}"
            if text not in name:
                continue
            cells = []
            for rate in RATES:
                layer = Layer.of(channels, edge, rate)
                ways = {OURS: of(layer, conv2d), PYTORCH: of(layer, F.conv2d)}
                exact = of(layer.double(), F.conv2d)()
                largest, rms = (a / b for a, b in zip(*(_errors(f() - exact) for f in ways.values()), strict=True))
                ours, theirs = _timed(f"{name}, {rate:.0%} spikes", ways, rows)
                ratios[rate].append(theirs / ours)
                cells.append(f"{rate:.0%} {theirs / ours:5.2f} ({largest:.2f}, {rms:.2f})")
            print(f"{name:40}" + "  ".join(f"{cell:23}" for cell in cells), flush=True)
        if ratios[RATES[0]]:
            print(f"{'median':40}" + "  ".join(f"{f'{rate:.0%} {median(ratios[rate]):5.2f}':23}" for rate in RATES))


def _errors(difference: Tensor) -> tuple[float, float]:
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def _networks(text: str, rows: list[Row]) -> None:
    name = "VGG, training step"
    if text not in name:
        return
    print(f"\n{name}: {'-'.join(map(str, CHANNELS))}, T = {T}, batch {B}; with PyTorch's convolutions / with ours")
    for gamma in GAMMAS:
        net, rates = _vgg(gamma)
        x, labels = torch.rand(T, B, 3, EDGE, EDGE), torch.randint(10, (B,))
        ways = {way: partial(_train, net, x, labels, way == OURS) for way in (OURS, PYTORCH)}
        for way in ways.values():
            way()
        ours, theirs = _timed(f"{name}, gamma {gamma}", ways, rows)
        share = f"{sum(rates) / len(rates):.0%} spikes"
        print(f"{share:12}{theirs * 1e3:8.1f} ms  {ours * 1e3:8.1f} ms  {ours / theirs:.2f} of the time", flush=True)


def _vgg(gamma: float) -> tuple[nn.Module, list[float]]:
    """A VGG of leaky neurons, and the spike rate of each hidden layer of them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels, edge = 3, EDGE
    for width in CHANNELS:
        if width == "P":
            layers.append(nn.MaxPool2d(2))
            edge //= 2
            continue
        norm = nn.BatchNorm2d(width)
        nn.init.constant_(norm.weight, gamma)
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), norm, snnfast.Leaky(beta=0.5)]
        channels = width
    net = snnfast.MultiStep(*layers, nn.Flatten(), nn.Linear(channels * edge**2, 10), snnfast.Leaky(beta=0.9))
    *_, spikes = net(torch.rand(T, B, 3, EDGE, EDGE), return_spikes=True)
    return net, [spk.mean().item() for spk in spikes[:-1]]


def _train(net: nn.Module, x: Tensor, labels: Tensor, ours: bool) -> None:
    with snnfast.use_events(ours):
        net.zero_grad()
        F.cross_entropy(net(x)[0].sum(0), labels).backward()


def _programs(text: str, rows: list[Row]) -> None:
    """The loop, and the program that is compiled, with our convolutions and with PyTorch's."""
    gains, shares = [], []
    for name, program in collection.programs().items():
        if text not in f"program {name}" or not any(isinstance(m, nn.Conv2d) for m in program.net().modules()):
            continue
        if not gains:
            print("\nprograms: the loop's time / ours; time with our convolutions / with PyTorch's")
        collection.forget_layers()
        ways = {}
        for way, how, events in ((OURS, DEFAULT, True), (PYTORCH, DEFAULT, False), (LOOP, snntorch_loop.LOOP, False)):
            ways[way] = partial(_step, *collection.built(program, how), program.inputs(program.T, program.B), events)
            for _ in range(WARM):
                ways[way]()
        ours, theirs, loop = _timed(f"program {name}", ways, rows)
        gains.append(loop / ours)
        shares.append(ours / theirs)
        print(f"{name:40}{gains[-1]:6.2f} times as fast; {shares[-1]:.2f} of the time", flush=True)
    if gains:
        print(f"{f'median of {len(gains)}':40}{median(gains):6.2f} times as fast; {median(shares):.2f} of the time")


def _step(net: nn.Module, train: Callable[..., Any], inputs: tuple[Any, ...], ours: bool) -> None:
    with snnfast.use_events(ours), collection.silence():
        net.zero_grad()
        collection.loss_of(train(*inputs)).backward()


def _timed(name: str, ways: dict[str, Callable[[], object]], rows: list[Row]) -> list[float]:
    """Measure in turns, enter rows, and return the medians."""
    times = alternate(ways, SECONDS, LEAST, 1.0, seconds_of)
    rows += [Row(name, way, median=median(taken), low=min(taken), repeats=len(taken)) for way, taken in times.items()]
    return [median(taken) for taken in times.values()]
