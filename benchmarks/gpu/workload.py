"""Forward and backward of layers and networks as training calls them, for tests and tools that look at the kernels."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import snnfast
from snnfast import spikingjelly

from . import training

LAYERS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.9},
    "Synaptic": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "RLeaky": {"beta": 0.9, "V": 0.5, "all_to_all": False},
    "RSynaptic": {"alpha": 0.9, "beta": 0.8, "V": 0.5, "all_to_all": False},
}
STRAIGHT = {"spike_grad": snnfast.surrogate.straight_through_estimator()}
# Options of a layer and of its call: those that choose another kernel, or another way through one.
OPTIONS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {"record_mem": True}),
    ({}, {"record_mem": False}),
    ({"learn_beta": True}, {"record_mem": True}),
    ({"learn_beta": True}, {"record_mem": False}),
    ({"reset_mechanism": "zero"}, {"record_mem": False}),
    (STRAIGHT, {"record_mem": True}),
    (STRAIGHT, {"record_mem": False, "reduce": "sum"}),
)
# The plain kernels of a few steps, and of sigmoid without a record.
SIGMOID = {"spike_grad": snnfast.surrogate.sigmoid()}
FEW: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (*OPTIONS[:5], (SIGMOID, {"record_mem": True}))
# Nodes of SpikingJelly; tau = 3 divides.
NODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LIFNode", {}),
    ("LIFNode", {"v_reset": None}),
    ("LIFNode", {"tau": 3.0}),
    ("ParametricLIFNode", {}),
    ("ParametricLIFNode", {"v_reset": None}),
)
# The plain backward kernels with all sums, which in half precision learn beta, too.
LEARNED: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = tuple(
    ({"learn_threshold": True}, {"record_mem": recorded}) for recorded in (True, False)
)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NORM_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORMED: dict[str, Callable[[], nn.Module]] = {  # neurons behind a batch normalisation
    "Leaky": lambda: snnfast.Leaky(0.9),
    "hard": spikingjelly.neuron.ParametricLIFNode,
    "soft": lambda: spikingjelly.neuron.LIFNode(v_reset=None),
}
MANY = 1 << 18  # neurons from which on a thread takes several of them
Call = tuple[str, int, int, torch.dtype, dict[str, Any], dict[str, Any]]  # layer, T, N, dtype, options


def watched(many: int = MANY) -> Iterator[Call]:
    """Every kernel, at a few neurons and at many. In float64 a thread has one neuron, however many there are."""
    for layer, call in OPTIONS:
        for dtype in DTYPES:
            for name in LAYERS:
                yield name, 18, 37, dtype, layer, call
                if dtype != torch.float64:
                    yield name, 18, many, dtype, layer, call
            yield "Leaky", 272, 37, dtype, layer, call  # the warps of a block divide the time among them
    for layer, call in LEARNED:
        for size in (37, many):
            yield "Leaky", 18, size, torch.float32, layer, call
    for recorded in (True, False):
        for size in (37, many):
            yield "Leaky", 18, size, torch.float32, SIGMOID, {"record_mem": recorded}
    for dtype in DTYPES:
        for layer, call in FEW:
            yield "Leaky", 4, many, dtype, layer, call
        for name, layer in NODES:
            for T, size in ((18, 37),) if dtype == torch.float64 else ((18, 37), (18, many), (4, many)):
                yield name, T, size, dtype, layer, {}
    for dtype in NORM_DTYPES:
        for channels_last, neurons in itertools.product((False, True), NORMED):
            for T, size in ((4, many), (7, many), (16, 37)):  # chunks of steps: one, several, of single neurons
                yield "normed", T, size, dtype, {"channels_last": channels_last, "neurons": neurons}, {}


def profiled(many: int = MANY) -> Iterator[Call]:
    """The layer and options that most networks have, at sizes that fill a card, and few neurons over many steps."""
    for layer, call in (*OPTIONS, *LEARNED):
        yield "Leaky", 100, many, torch.float32, layer, call
    for dtype in DTYPES[1:]:
        yield "Leaky", 100, many, dtype, *OPTIONS[0]
    for layer, call in (*OPTIONS[:2], (SIGMOID, {"record_mem": True}), (SIGMOID, {"record_mem": False})):
        for T in (4, 100):
            yield "Leaky", T, many, torch.float32, layer, call
    for name, layer in NODES:
        for T in (4, 100):
            yield name, T, many, torch.float32, layer, {}
    for channels_last, neurons in itertools.product((False, True), NORMED):
        yield "normed", 4, many, torch.float32, {"channels_last": channels_last, "neurons": neurons}, {}
    yield "Leaky", 100, many - 1, torch.float32, *OPTIONS[2]  # no vector fits
    yield "Leaky", 4096, min(many, 256), torch.float32, *OPTIONS[0]
    yield "Synaptic", 100, many, torch.float32, *OPTIONS[0]


def given(call: Call, device: torch.device) -> tuple[Tensor, Tensor]:
    """A current, and a gradient of the spikes."""
    _, T, N, dtype, _, options = call
    spk = (N,) if "reduce" in options else (T, N)
    return 2 * torch.rand(T, N, dtype=dtype, device=device), torch.rand(spk, dtype=dtype, device=device)


def run(call: Call, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The spikes, and the gradients of the current and of what the layer learns."""
    name, T, N, _, layer, options = call
    if name == "normed":
        return normed(x.view(T, -1, *((1, 1, 1) if N % 16 else (4, 2, 2))), grad, **layer)
    x = x.detach().requires_grad_()
    if name not in LAYERS:
        neuron = getattr(spikingjelly.neuron, name)(step_mode="m", **layer).to(x.device)
        spk = neuron(x)
    else:
        neuron = getattr(snnfast, name)(**LAYERS[name], **layer).to(x.device)
        spk, *_ = neuron.unroll(x, **options)
    return [spk.detach(), *torch.autograd.grad(spk, [x, *neuron.parameters()], grad)]


def steps(profiled: bool, size: training.Size) -> Iterator[tuple[str, training.Make]]:
    """What launches kernels that the library does not have, or several kernels behind one another.

    They are those of neurons of your own, and of networks: connected neurons, batch normalisation, compiled loops.
    """
    for name, make in training.QUESTIONS.items():
        if not profiled or "own" in name or "adaptive" in name:
            yield name, make
    if not profiled:
        for dtype in DTYPES:
            yield f"a number of each neuron, {dtype}", partial(training.program, make=of_each(size), dtype=dtype)


def of_each(size: training.Size) -> training.MakeLayer:
    return lambda: training.own(beta=torch.full((size.neurons,), 0.9), learn_beta=True)


def normed(x: Tensor, grad: Tensor, channels_last: bool, neurons: str) -> list[Tensor]:
    """Batch normalisation in training of images ``[T, B, C, H, W]``, with neurons behind it."""
    net = snnfast.MultiStep(nn.BatchNorm2d(x.shape[2]), NORMED[neurons](), nn.Identity()).to(x.device)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x = x.detach().requires_grad_()
    spk = net(x)
    return [spk.detach(), *torch.autograd.grad(spk, [x, *net.parameters()], grad.view(x.shape))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.workload", description=__doc__)
    parser.add_argument("--profiled", action="store_true", help="a few launches that fill a card, instead of all kinds")
    args = parser.parse_args()
    device, size = torch.device("cuda"), training.Size() if args.profiled else training.SMALL
    with snnfast.use_backend("fused"):
        for call in profiled() if args.profiled else watched():
            print(*call)
            run(call, *given(call, device))
            torch.cuda.synchronize()  # an error belongs to this call
        for name, make in steps(args.profiled, size):
            print(name)
            make(device, size).call()
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
