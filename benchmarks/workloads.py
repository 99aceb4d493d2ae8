"""What each kind of case computes, written once for all implementations."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import snnfast
from snnfast._images.batch_norm import normalised

from . import mnist
from .networks import WHOLE, OverTime, loss_of, over_time
from .peers import PEERS, Neuron, Peer, Unsupported
from .peers.ours import CHECKPOINT, OURS, layer_of
from .registry import CLASSES, DTYPES, FORWARD, POOLED, SCALED, SCALING, WEIGHT_GRADIENT, Case

LEARNING_RATE = 5e-4
ITERATIONS = 150  # after which a network counts as trained
CURRENT = 0.15  # standard deviation that makes the layer of a pair spike about as often as a trained network


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
    weights: Sequence[Tensor] = ()  # of a trained network, in the order of its parameters
    rates: Sequence[float] = ()  # of each hidden layer: share of the neuron-steps with a spike


def make_data(case: Case, device: torch.device) -> Data:
    """Raise Unsupported where there is none."""
    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    step = (case.B, *case.shape)
    if case.trained:
        x, labels, weights, rates = trained(replace(case, trained=False, backward=True))
        return Data(x.to(device), labels=labels.to(device), weights=weights, rates=rates)
    if case.kind == "product":
        linear, spk_rec = nn.Linear(case.shape[0], case.shape[0]), torch.rand(case.T, *step) < case.rate
        return Data(spk_rec.float().to(device), torch.randn(case.T, *step, device=device), linear=linear.to(device))
    if case.kind in WHOLE:
        return Data(torch.rand(step, device=device), labels=torch.randint(CLASSES, (case.B,), device=device))
    if case.kind == SCALING:
        return Data(torch.ones(case.T, *step, device=device))
    if case.kind in ("norm", POOLED):
        x, grad = (torch.randn(case.T, *step, device=device).movedim(2, -1).contiguous().movedim(-1, 2) for _ in "xg")
        return Data(x.requires_grad_(), grad[..., ::2, ::2].clone() if case.kind == POOLED else grad)
    x = torch.randn(step if case.constant else (case.T, *step), dtype=dtype, device=device)
    if case.kind == "pair":
        x = (x * CURRENT).requires_grad_()
        linear, grad = nn.Linear(case.shape[0], CLASSES).to(device), torch.randn(case.T, case.B, CLASSES, device=device)
        spk_rec, _ = layer_of(case).unroll(x.detach(), num_steps=case.T, record_mem=False)
        return Data(x, grad, linear=linear, rates=[spk_rec.mean().item()])
    if case.kind == "recurrent":
        return Data(x, linear=nn.Linear(case.shape[0], case.shape[0]).to(device))
    if not case.backward:
        return Data(x)
    return Data(x.requires_grad_(), torch.rand(case.T, *step, dtype=dtype, device=device))


@cache
def trained(case: Case) -> tuple[Tensor, Tensor, Sequence[Tensor], Sequence[float]]:
    """Images and labels of a batch, weights after a short training with snnfast, and the rates with these."""
    digits = mnist.load()
    network = Network(case, PEERS[OURS], torch.device("cpu"))
    order = torch.randperm(len(digits.train_images), generator=torch.Generator().manual_seed(0))
    for batch in order.split(case.B)[:ITERATIONS]:
        x, labels = digits.train_images[batch], digits.train_labels[batch]
        network.train(x, labels)
    with torch.no_grad():
        *_, spikes = snnfast.MultiStep.forward(network.net, x, num_steps=case.T, return_spikes=True)
    weights = [parameter.detach() for parameter in network.parameters]
    return x, labels, weights, [spk_rec.mean().item() for spk_rec in spikes[:-1]]


def build(case: Case, peer: Peer, data: Data) -> Candidate:
    """Raise Unsupported where the implementation can't do it."""
    candidate = _build(case, peer, data)
    if peer.around is None:
        return candidate
    run, forward = (_inside(peer.around, function) for function in candidate[:2])
    return candidate._replace(run=run, forward=forward)


def _inside(around: Callable[[], Any], function: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with around():
            return function()

    return call


def _build(case: Case, peer: Peer, data: Data) -> Candidate:
    device = data.x.device
    if case.kind == "product":
        return _product(case, data, dense=peer.name != OURS)
    if case.kind == "norm":
        return _norm(case, data, by_step=peer.name != OURS)
    if case.kind == POOLED:
        return _pooled(case, data, apart=peer.name != OURS)
    if case.kind == SCALING:
        return _scaling(case, data, checkpoint=peer.name == CHECKPOINT)
    if case.kind in WHOLE:
        assert data.labels is not None
        network, x, labels = Network(case, peer, device, data.weights), data.x, data.labels
        given = [x, labels, *network.parameters]
        run = (lambda: network.train(x, labels)) if case.backward else (lambda: network.infer(x))
        forward = (lambda: (network.loss(x, labels),)) if case.backward else (lambda: network.infer(x))
        return Candidate(replayed(run) if peer.graph else run, forward, given)
    neuron = peer.make(case, device)
    if case.kind == "recurrent":
        return _recurrent(case, neuron, data, peer.compile)
    return {"layer": _layer, "loop": _loop, "pair": _pair}[case.kind](case, neuron, data)


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """What a function launches, captured in a CUDA graph, to be launched as one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries set up at their first calls must not happen while a graph is captured
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


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


def _pair(case: Case, neuron: Neuron, data: Data) -> Candidate:
    """A layer on a constant current and the Linear behind it: gradients of the current, the weight and the bias."""
    assert data.linear is not None
    assert neuron.followed_by is not None
    wanted = [data.x, *data.linear.parameters(), *neuron.parameters]
    both = neuron.followed_by(data.linear)
    return Candidate(
        lambda: torch.autograd.grad(both(data.x, case.T), wanted, data.grad), lambda: (both(data.x, case.T),), wanted
    )


def _product(case: Case, data: Data, dense: bool) -> Candidate:
    """Spikes times weights, or the gradient of the weights: PyTorch's product, or that of spikes as bits."""
    spk_rec, linear, grad = data.x, data.linear, data.grad
    assert linear is not None
    assert grad is not None
    weight, bias, one = linear.weight.detach(), linear.bias.detach(), torch.tensor(1.0)
    # Bytes of eight steps [(T + 7) // 8, B, N], the first step in the lowest bit.
    whole = F.pad(spk_rec, (0, 0, 0, 0, 0, -case.T % 8)).unflatten(0, (-1, 8))
    bits = (whole * 2 ** torch.arange(8).view(8, 1, 1)).sum(1).to(torch.uint8)
    run = {
        (FORWARD, True): lambda: F.linear(spk_rec, weight, bias),
        (FORWARD, False): lambda: torch.ops.snnfast.spikes_linear(bits, weight, bias, one, case.T),
        (WEIGHT_GRADIENT, True): lambda: grad.flatten(0, 1).t() @ spk_rec.flatten(0, 1),
        (WEIGHT_GRADIENT, False): lambda: torch.ops.snnfast.spikes_linear_weight(bits, grad, one),
    }[case.variant, dense]
    return Candidate(run, lambda: (run(),), [spk_rec, weight, bias, grad])


def _norm(case: Case, data: Data, by_step: bool) -> Candidate:
    """Batch normalisation in training, each step with its own statistics, and all its gradients."""
    layer = nn.BatchNorm2d(case.shape[0]).to(data.x.device)
    wanted = [data.x, *layer.parameters()]
    steps, grads = data.x.detach().unbind(), data.grad.unbind() if data.grad is not None else ()
    leaves = [step.requires_grad_() for step in steps]

    def of_steps() -> None:
        for step, grad in zip(leaves, grads, strict=True):
            torch.autograd.grad(layer(step), [step, *layer.parameters()], grad)

    def forward() -> tuple[Tensor, ...]:
        return (normalised(layer, data.x),)

    return Candidate(
        of_steps if by_step else lambda: torch.autograd.grad(forward(), wanted, data.grad), forward, wanted
    )


def _pooled(case: Case, data: Data, apart: bool) -> Candidate:
    """Neurons and a pooling behind a batch normalisation, and all gradients: in one call, or in three for all steps."""
    norm, neurons, pool = nn.BatchNorm2d(case.shape[0]), snnfast.Leaky(beta=0.9), nn.MaxPool2d(2)
    layers = (norm, nn.Identity(), neurons, nn.Identity(), pool) if apart else (norm, neurons, pool, nn.Identity())
    net, wanted = snnfast.MultiStep(*layers).to(data.x.device), [data.x, *norm.parameters()]

    def forward() -> tuple[Tensor, ...]:
        return (net(data.x),)

    return Candidate(lambda: torch.autograd.grad(forward(), wanted, data.grad), forward, wanted)


def _scaling(case: Case, data: Data, checkpoint: bool) -> Candidate:
    """Gradients of the mean spike with respect to the parameters, as jaxpike's ``memory_scaling.py`` has them."""
    sizes = (*case.shape, *SCALED)
    torch.manual_seed(0)
    net = snnfast.MultiStep(*(layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), layer_of(case))))
    wanted = [p for p in net.to(data.x.device).parameters() if p.requires_grad]

    def forward() -> tuple[Tensor, ...]:
        return (net(data.x, record_mem=False, reduce="sum", checkpoint=checkpoint)[0],)

    return Candidate(
        lambda: torch.autograd.grad(forward()[0].mean() / case.T, wanted), forward, [data.x, *net.parameters()]
    )


class Network:
    """A network, its loss and its training step with Adam: with given weights or the same at first for all peers."""

    def __init__(self, case: Case, peer: Peer, device: torch.device, weights: Sequence[Tensor] = ()) -> None:
        if peer.with_loss and not case.backward:
            raise Unsupported("has no loss here")
        torch.manual_seed(0)
        net = OverTime(case, lambda: peer.make(case, device)) if peer.network is None else peer.network(case)
        self.net: Any = net.to(device)
        compiled = peer.compile or (lambda loop: loop)
        if not peer.with_loss:
            self.net = compiled(self.net)
        self.loss = loss_of(case, self.net, peer.looped, peer.loss)
        if peer.with_loss:
            self.loss = compiled(self.loss)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        if weights:
            with torch.no_grad():
                for parameter, given in zip(self.parameters, weights, strict=True):
                    parameter.copy_(given)
        # For all alike the update in one kernel, so that most of the time is that of the layers.
        rate = 0.0 if case.trained else LEARNING_RATE
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, fused=True, capturable=peer.graph)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Spikes ``[T, B, classes]`` and, where the loss is of them, membranes."""
        return self.net(x)

    @torch.no_grad()
    def infer(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.net(x)

    def train(self, x: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(x, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
