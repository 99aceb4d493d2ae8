"""What each kind of case computes, written once for all implementations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .networks import CLASSES, OverTime, loss_of, over_time
from .peers import Neuron, Peer, Unsupported
from .registry import DTYPES, NETWORKS, Case

INSIDE = "Linear inside the loop"


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
    if case.kind in NETWORKS:
        return Data(torch.rand(step, device=device), labels=torch.randint(CLASSES, (case.B,), device=device))
    x = torch.randn(step if case.constant else (case.T, *step), dtype=dtype, device=device)
    if case.kind in ("framework", "recurrent"):
        return Data(x, linear=nn.Linear(case.shape[0], case.shape[0]).to(device))
    if not case.backward:
        return Data(x)
    return Data(x.requires_grad_(), torch.rand(case.T, *step, dtype=dtype, device=device))


def build(case: Case, peer: Peer, data: Data) -> Candidate:
    """Raise Unsupported where the implementation can't do it."""
    device = data.x.device
    if case.kind in NETWORKS:
        assert data.labels is not None
        network, x, labels = Network(case, peer, device), data.x, data.labels
        given = [x, labels, *network.parameters]
        return Candidate(lambda: network.train(x, labels), lambda: (network.loss(x, labels),), given)
    neuron = peer.make(case, device)
    if case.kind == "recurrent":
        return _recurrent(case, neuron, data, peer.compile)
    return {"layer": _layer, "loop": _loop, "framework": _framework}[case.kind](case, neuron, data)


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
            return over_time(neuron, data.x, case.T, case.options.record_mem)
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


def _recurrent(case: Case, neuron: Neuron, data: Data, compile_: Callable[[Any], Any] | None) -> Candidate:
    """Each step needs the spikes of the step before, so that there is nothing to merge; the loss is their number."""
    linear, step = data.linear, neuron.step
    assert linear is not None
    assert step is not None
    wanted = [*linear.parameters(), *neuron.parameters]

    def loop(x: Tensor) -> Tensor:
        spk, state = torch.zeros_like(x[0]), None
        spk_rec = []
        for t in range(x.size(0)):
            spk, state = step(x[t] + linear(spk), state)
            spk_rec.append(spk)
        return torch.stack(spk_rec)

    if compile_ is not None:
        loop = compile_(loop)
    return Candidate(
        lambda: torch.autograd.grad(loop(data.x).sum(), wanted), lambda: (loop(data.x),), [data.x, *wanted]
    )


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


class Network:
    """The network of a tutorial, its loss and its training step with Adam, the same weights at first for all peers."""

    def __init__(self, case: Case, peer: Peer, device: torch.device) -> None:
        torch.manual_seed(0)
        net = OverTime(case, lambda: peer.make(case, device)) if peer.network is None else peer.network(case)
        self.net: Any = net.to(device)
        compiled = peer.compile or (lambda loop: loop)
        if not peer.with_loss:
            self.net = compiled(self.net)
        self.loss = loss_of(case, self.net, peer.looped)
        if peer.with_loss:
            self.loss = compiled(self.loss)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        # For all alike the update in one kernel, so that most of the time is that of the layers.
        self.optimizer = torch.optim.Adam(self.parameters, lr=5e-4, fused=True)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Spikes ``[T, B, classes]`` and, where the loss is of them, membranes."""
        return self.net(x)

    def train(self, x: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(x, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
