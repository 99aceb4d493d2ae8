"""Training steps of networks and layers on a card: launches, copies, waits, and times with and without a graph.

:mod:`benchmarks.gpu.times` measures the kernels of layers by themselves, and ``python -m benchmarks run`` compares
libraries. This asks what the host does between the kernels: it should copy nothing, wait for nothing, and take less
time than the card.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snnfast
from snnfast import spikingjelly, surrogate

from ..registry import CLASSES, HIDDEN
from .times import captured, seconds_of, write_each

SEVERAL = 5  # calls that are timed together without a graph, behind a warm-up of as many


class Size(NamedTuple):
    """How large the questions are; ``SMALL`` is for tools that look at each access."""

    batch: int = 128
    hidden: int = HIDDEN
    channels: int = 128
    pixels: int = 32
    neurons: int = 1 << 20
    steps: int = 100


SMALL = Size(batch=2, hidden=8, channels=4, pixels=8, neurons=300, steps=18)


class Work(NamedTuple):
    """A call to measure."""

    call: Callable[[], object]
    moved: float | None = None  # bytes at least, where it is nothing but neurons
    graphed: Callable[[], object] | None = None  # by snnfast.graphed, where it is a training step


Make = Callable[[torch.device, Size], Work]
MakeLayer = Callable[[], nn.Module]

# ---- networks: forward, backward and optimizer


def trained(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Work:
    on_card = device.type == "cuda"
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True, capturable=on_card)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Work(step, graphed=snnfast.graphed(step, optimizer))


class Loop(nn.Module):
    """Tutorial 5 as it is written."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, size.hidden), nn.Linear(size.hidden, CLASSES)
        self.lif1, self.lif2 = snnfast.Leaky(0.95), snnfast.Leaky(0.95)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(25):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            mem_rec.append(mem2)
        return torch.stack(mem_rec)


def tutorial5(device: torch.device, size: Size, compiled: bool) -> Work:
    x = torch.rand(size.batch, 784, device=device)
    labels, loss_fn = torch.randint(CLASSES, (size.batch,), device=device), snnfast.losses.ce_membrane_loss()
    loop = Loop(size).to(device)
    if compiled:
        net = snnfast.compile(loop)
        return trained(net, lambda: loss_fn(net(x), labels), device)
    layers = snnfast.MultiStep(loop.fc1, loop.lif1, loop.fc2, loop.lif2)
    return trained(layers, lambda: loss_fn(layers(x, num_steps=25)[1], labels), device)


def convolutions(
    device: torch.device, size: Size, over_time: bool, channels_last: bool = False, autocast: bool = False
) -> Work:
    c, pixels, batch = size.channels, size.pixels, max(1, size.batch // 2)
    layers: list[nn.Module] = []
    for inputs in (3, c, c, c):
        layers += [nn.Conv2d(inputs, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), snnfast.Leaky(0.5)]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(c * pixels * pixels // 4, CLASSES)]
    net = snnfast.MultiStep(*layers, batch_norm_over_time=over_time).to(device)
    x, labels = torch.rand(4, batch, 3, pixels, pixels, device=device), torch.randint(CLASSES, (batch,), device=device)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, batch))

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return cross_entropy(net(x).mean(0), labels)

    return trained(net, loss, device)


def recurrent(device: torch.device, size: Size, T: int, B: int, N: int) -> Work:
    T, B, N = min(T, size.steps * 10), min(B, size.batch), min(N, size.hidden * 2)
    layer = snnfast.RLeaky(0.9, linear_features=N).to(device)
    x = torch.rand(T, B, N, device=device)
    return trained(layer, lambda: layer.unroll(x, record_mem=False)[0].mean(), device)


# ---- layers: forward and backward


def differentiated(call: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter]) -> Work:
    x.requires_grad_()
    grad = torch.rand_like(x)
    # Forward: the current and the spikes. Backward: the gradient of the spikes, the current, and its gradient.
    return Work(lambda: torch.autograd.grad(call(x), [x, *parameters], grad), 5.0 * x.numel() * x.element_size())


def node(device: torch.device, size: Size, make: MakeLayer) -> Work:
    layer, reset = make().to(device), spikingjelly.functional.reset_net

    def call(x: Tensor) -> Tensor:
        reset(layer)
        return layer(x)  # type: ignore[no-any-return]

    shape = 4, size.batch, size.channels // 2, size.pixels, size.pixels
    return differentiated(call, torch.rand(shape, device=device), list(layer.parameters()))


def leaky(device: torch.device, size: Size) -> Work:
    """As many neurons and steps as those of SpikingJelly."""
    layer, shape = snnfast.Leaky(0.5).to(device), (4, size.batch, size.channels // 2, size.pixels, size.pixels)
    return differentiated(lambda x: layer.unroll(x, record_mem=False)[0], torch.rand(shape, device=device), [])


@snnfast.neuron
def own(x: Tensor, v: Tensor, *, beta: float = 0.9, tau: float = 3.0) -> Any:
    v = beta * v + x / tau
    spk = snnfast.spike(v - 1.0, surrogate.atan())
    return spk, v * (1 - spk)


@snnfast.neuron
def adaptive(x: Tensor, v: Tensor, a: Tensor, *, beta: float = 0.9, rho: float = 0.95) -> Any:
    v = beta * v + (1 - beta) * x
    spk = snnfast.spike(v - 1.0 - 0.1 * a, surrogate.atan())
    return spk, v - spk * (1.0 + 0.1 * a), rho * a + spk


def program(device: torch.device, size: Size, make: MakeLayer, dtype: torch.dtype, neurons: int = 1 << 20) -> Work:
    layer: Any = make().to(device)
    x = torch.rand(size.steps, 1, min(neurons, size.neurons), device=device).to(dtype)
    return differentiated(lambda x: layer.unroll(x, record_mem=False)[0], x, list(layer.parameters()))


NODES: dict[str, MakeLayer] = {
    "IFNode": lambda: spikingjelly.neuron.IFNode(step_mode="m"),
    "LIFNode": lambda: spikingjelly.neuron.LIFNode(step_mode="m"),
    "LIFNode, ATan, detached": lambda: spikingjelly.neuron.LIFNode(
        surrogate_function=spikingjelly.surrogate.ATan(), detach_reset=True, step_mode="m"
    ),
    "LIFNode, tau=3": lambda: spikingjelly.neuron.LIFNode(tau=3.0, step_mode="m"),
    "LIFNode, soft reset": lambda: spikingjelly.neuron.LIFNode(v_reset=None, step_mode="m"),
    "ParametricLIFNode": lambda: spikingjelly.neuron.ParametricLIFNode(step_mode="m"),
}
HALF, WHOLE = torch.float16, torch.float32
QUESTIONS: dict[str, Make] = {
    "tutorial 5, MultiStep": partial(tutorial5, compiled=False),
    "tutorial 5, compiled loop": partial(tutorial5, compiled=True),
    "convolutions, batch norm per step": partial(convolutions, over_time=False),
    "convolutions, batch norm per step, channels_last": partial(convolutions, over_time=False, channels_last=True),
    "convolutions, batch norm over time": partial(convolutions, over_time=True),
    "convolutions, batch norm over time, channels_last, bfloat16": partial(
        convolutions, over_time=True, channels_last=True, autocast=True
    ),
    "Leaky": leaky,
    **{name: partial(node, make=make) for name, make in NODES.items()},
    "own neuron, float32": partial(program, make=lambda: own(learn_beta=True), dtype=WHOLE),
    "own neuron, float16": partial(program, make=lambda: own(learn_beta=True), dtype=HALF),
    "own neuron, 1000 neurons": partial(program, make=lambda: own(learn_beta=True), dtype=WHOLE, neurons=1000),
    "adaptive neuron, float32": partial(program, make=adaptive, dtype=WHOLE),
    "adaptive neuron, float16": partial(program, make=adaptive, dtype=HALF),
    **{f"RLeaky [{T}, {B}, {N}]": partial(recurrent, T=T, B=B, N=N) for T, B, N in (
        (100, 64, 256), (1000, 32, 512), (100, 128, 1024),
    )},
}  # fmt: skip


# ---- answers


def launches(call: Callable[[], object]) -> dict[str, Any]:
    """How often each kernel is launched in a call; copies and fills of memory are among them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    names = Counter(e.name for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    from_host = sum(n for name, n in names.items() if name.startswith("Memcpy") and "DtoD" not in name)
    return {"launches": names.total(), "copies from or to the host": from_host, "names": dict(names.most_common())}


def waits(call: Callable[[], object]) -> str:
    """What the host waits for, or nothing."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def called(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Median seconds of a call, and those of them in which the host is not yet done with it."""
    host, whole = [], []
    start = time.perf_counter()
    while time.perf_counter() < start + seconds or len(whole) < 2:
        torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(SEVERAL):
            call()
        host.append((time.perf_counter() - before) / SEVERAL)
        torch.cuda.synchronize()
        whole.append((time.perf_counter() - before) / SEVERAL)
    return {"host": median(host[1:]), "call": median(whole[1:])}


def answer(work: Work, seconds: float, found: dict[str, Any]) -> None:
    """Put what is found into ``found``, so that it is there if a later part fails: a step that waits has no graph."""
    for _ in range(SEVERAL):
        work.call()
    torch.cuda.reset_peak_memory_stats()
    work.call()
    found["peak bytes"] = torch.cuda.max_memory_allocated()
    found["waits"] = waits(work.call)
    found |= launches(work.call) | called(work.call, seconds)
    replay = captured([work.call])
    found["graph"] = median([seconds_of(replay) for _ in range(SEVERAL)][1:])
    if work.graphed is not None:
        for _ in range(SEVERAL):
            work.graphed()
        found |= {f"graphed, {name}": taken for name, taken in called(work.graphed, seconds).items()}
    if work.moved is not None:
        found["GB/s"] = 1e-9 * work.moved / found["graph"]


def line(found: dict[str, Any]) -> str:
    speed = f", {found['GB/s']:5.0f} GB/s" if "GB/s" in found else ""
    if "graphed, call" in found:
        speed = f", {1e6 * found['graphed, call']:8.0f} us by graphed"
    wait = f", WAITS: {found['waits']}" if found["waits"] else ""
    return (
        f"{found['launches']:5} launches, {found['copies from or to the host']} host copies, "
        f"{1e6 * found['host']:8.0f} us of the host, {1e6 * found['call']:8.0f} us, "
        f"{1e6 * found['graph']:8.0f} us as a graph{speed}{wait}: {found['question']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.training", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="written after each question")
    parser.add_argument("--only", default="", help="only questions with this text in their name")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a time without graph (default: %(default)g)")
    args = parser.parse_args()

    def add(rows: list[dict[str, Any]], name: str) -> None:
        rows.append({"question": name})
        answer(QUESTIONS[name](torch.device("cuda"), Size()), args.seconds, rows[-1])
        print(line(rows[-1]), flush=True)

    write_each(args.json, ((name, partial(add, name=name)) for name in QUESTIONS if args.only in name))


if __name__ == "__main__":
    main()
