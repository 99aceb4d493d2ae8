"""What each kind of case computes, written once for all implementations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from .peers import Neuron, Peer, Unsupported
from .registry import DTYPES, Case

INSIDE = "Linear inside the loop"
CLASSES, HIDDEN = 10, 1000


class Candidate(NamedTuple):
    """One implementation of one case."""

    run: Callable[[], object]
    """What is timed."""
    forward: Callable[[], tuple[Tensor, ...]]
    """Its forward pass alone: all that it returns, spikes first."""
    given: Sequence[Tensor]
    """Tensors that the caller holds anyway: inputs, weights, labels."""


class Data(NamedTuple):
    """The same inputs for all implementations."""

    x: Tensor
    grad: Tensor | None = None  # of the spikes
    labels: Tensor | None = None
    linear: nn.Linear | None = None


def make_data(case: Case, device: torch.device) -> Data:
    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    step = (case.B, *case.shape)
    if case.kind in ("tutorial5", "convolution"):
        return Data(torch.rand(step, device=device), labels=torch.randint(CLASSES, (case.B,), device=device))
    x = torch.randn(step if case.constant else (case.T, *step), dtype=dtype, device=device)
    if case.kind == "framework":
        return Data(x, linear=nn.Linear(case.shape[0], case.shape[0]).to(device))
    if not case.backward:
        return Data(x)
    return Data(x.requires_grad_(), torch.rand(case.T, *step, dtype=dtype, device=device))


def build(case: Case, peer: Peer, data: Data) -> Candidate:
    """Raise Unsupported where the implementation can't do it."""
    device = data.x.device
    if case.kind in ("tutorial5", "convolution"):
        assert data.labels is not None
        network, x, labels = Network(case, peer, device), data.x, data.labels
        given = [x, labels, *network.parameters]
        return Candidate(lambda: network.train(x, labels), lambda: (network.loss(x, labels),), given)
    neuron = peer.make(case, device)
    return {"layer": _layer, "loop": _loop, "framework": _framework}[case.kind](case, neuron, data)


def _over_time(neuron: Neuron, x: Tensor, T: int, record_mem: bool) -> tuple[Tensor, ...]:
    """The same current ``[B, *]`` at each of T steps."""
    if neuron.constant is not None:
        return neuron.constant(x, T, record_mem)
    return neuron.unroll(x.expand(T, *x.shape), record_mem)


def _gradient_of(spk: Tensor, grad: Tensor, cast: dict[torch.dtype, Tensor]) -> Tensor:
    """In the dtype of the spikes, which not all libraries take from the current; converted once, outside the clock."""
    if spk.dtype not in cast:
        cast[spk.dtype] = grad.to(spk.dtype)
    return cast[spk.dtype]


def _layer(case: Case, neuron: Neuron, data: Data) -> Candidate:
    wanted = [data.x, *neuron.parameters]
    cast: dict[torch.dtype, Tensor] = {}

    def forward() -> tuple[Tensor, ...]:
        if case.constant:
            return _over_time(neuron, data.x, case.T, case.options.record_mem)
        return neuron.unroll(data.x, case.options.record_mem)

    def run() -> object:
        if data.grad is None:
            with torch.no_grad():
                return forward()
        spk = forward()[0]
        return torch.autograd.grad(spk, wanted, _gradient_of(spk, data.grad, cast))

    return Candidate(run, forward, wanted)


def _loop(case: Case, neuron: Neuron, data: Data) -> Candidate:
    """One call per step on currents that arrive one by one."""
    step = neuron.step
    if step is None:
        raise Unsupported("has no one-step call")
    assert data.grad is not None
    currents = [x.detach().clone().requires_grad_() for x in data.x]
    wanted = [*currents, *neuron.parameters]
    grads = list(data.grad)

    def forward() -> tuple[Tensor, ...]:
        state = None
        spikes = []
        for x in currents:
            spk, state = step(x, state)
            spikes.append(spk)
        return tuple(spikes)

    return Candidate(lambda: torch.autograd.grad(forward(), wanted, grads), forward, wanted)


def _framework(case: Case, neuron: Neuron, data: Data) -> Candidate:
    """Linear(n, n) and a layer of neurons; the loss is the number of spikes, as in Open Neuromorphic's benchmark."""
    linear, step = data.linear, neuron.step
    assert linear is not None
    wanted = [*linear.parameters(), *neuron.parameters]

    def hoisted() -> tuple[Tensor, ...]:
        return (neuron.unroll(linear(data.x), False)[0],)

    def inside() -> tuple[Tensor, ...]:
        assert step is not None
        state = None
        spikes = []
        for x in data.x.unbind(0):
            spk, state = step(linear(x), state)
            spikes.append(spk)
        return (torch.stack(spikes),)

    if case.variant == INSIDE and step is None:
        raise Unsupported("has no one-step call")
    forward = inside if case.variant == INSIDE else hoisted
    return Candidate(lambda: torch.autograd.grad(forward()[0].sum(), wanted), forward, [data.x, *wanted])


def _stages(case: Case) -> list[nn.Module]:
    """The layers between the neurons: of snnTorch's tutorial 5, and of its tutorial 6."""
    if case.kind == "tutorial5":
        return [nn.Linear(case.shape[0], HIDDEN), nn.Linear(HIDDEN, CLASSES)]
    return [
        nn.Sequential(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, CLASSES)),
    ]


def network_neurons(case: Case) -> int:
    """Neurons per step of a network."""
    return case.B * (HIDDEN + CLASSES if case.kind == "tutorial5" else 12 * 12 * 12 + 64 * 4 * 4 + CLASSES)


class Network:
    """The network of a tutorial, its loss and its training step with Adam, the same weights at first for all peers."""

    def __init__(self, case: Case, peer: Peer, device: torch.device) -> None:
        torch.manual_seed(0)
        self.T = case.T
        self.on_membranes = case.kind == "tutorial5"  # the loss; tutorial 6 takes that of the spike count
        self.in_loop = peer.network_in_loop
        self.modules = nn.ModuleList(_stages(case)).to(device)
        self.neurons = [peer.make(case, device) for _ in self.modules]
        self.parameters = [*self.modules.parameters(), *(p for neuron in self.neurons for p in neuron.parameters)]
        # For all alike the update in one kernel, so that most of the time is that of the layers.
        self.optimizer = torch.optim.Adam(self.parameters, lr=5e-4, fused=True)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Spikes ``[T, B, classes]``, and membranes where the loss needs them and there are any."""
        return self._looped(x) if self.in_loop else self._unrolled(x)

    def _unrolled(self, x: Tensor) -> tuple[Tensor, ...]:
        last = len(self.neurons) - 1
        out = _over_time(self.neurons[0], self.modules[0](x), self.T, False)
        for i in range(1, len(self.neurons)):
            current = self.modules[i](out[0].flatten(0, 1)).unflatten(0, (self.T, -1))
            out = self.neurons[i].unroll(current, self.on_membranes and i == last)
        return out

    def _looped(self, images: Tensor) -> tuple[Tensor, ...]:
        states: list[Any] = [None] * len(self.neurons)
        spikes, membranes = [], []
        for _ in range(self.T):
            x = images
            for i, (module, neuron) in enumerate(zip(self.modules, self.neurons, strict=True)):
                assert neuron.step is not None
                x, states[i] = neuron.step(module(x), states[i])
            spikes.append(x)
            membranes.append(states[-1][-1])
        return torch.stack(spikes), torch.stack(membranes)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        out = self(x)
        if not self.on_membranes:
            return F.cross_entropy(out[0].sum(0), labels)
        if self.in_loop:
            # As the tutorial writes it.
            return sum((F.cross_entropy(out[-1][t], labels) for t in range(self.T)), torch.zeros((), device=x.device))
        return F.cross_entropy(out[-1].flatten(0, 1), labels.repeat(self.T)) * self.T

    def train(self, x: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(x, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
