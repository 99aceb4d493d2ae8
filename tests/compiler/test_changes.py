"""A compiled network that changes between two calls does what it now says."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.dropout = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.lif1 = snn.Leaky(beta=0.9, learn_beta=True)
        self.fc2, self.lif2 = nn.Linear(16, 8), snn.Synaptic(alpha=0.8, beta=0.9)
        self.factor, self.between = 1.5, None
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        syn, mem2 = self.lif2.init_synaptic()
        rec = []
        for t in range(x.size(0)):
            h = self.dropout(self.norm(self.fc1(x[t]))) * self.scale * self.factor
            if self.between is not None:
                h = self.between(h)
            spk, mem1 = self.lif1(h, mem1)
            spk, syn, mem2 = self.lif2(self.fc2(spk), syn, mem2)
            rec.append((spk, mem2))
        spikes, membranes = zip(*rec, strict=True)
        return torch.stack(spikes), torch.stack(membranes)


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def other(seed: int, make: Callable[[], nn.Module] = Net) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


CHANGES: dict[str, Callable[[Any, int], Any]] = {
    # What the network computes with.
    "a number": lambda net, i: setattr(net, "factor", 1.0 + 0.3 * i),
    "a function": lambda net, i: setattr(net, "between", [None, torch.relu, torch.tanh, torch.sigmoid][i]),
    "training or evaluation": lambda net, i: net.train(i % 2 == 0),
    "evaluation of a layer": lambda net, i: net.norm.train(i % 2 == 0),
    "a momentum": lambda net, i: setattr(net.norm, "momentum", 0.1 * i),
    "the share of a dropout": lambda net, i: setattr(net.dropout, "p", 0.1 * i),
    "a layer": lambda net, i: setattr(net, "fc2", other(i, lambda: nn.Linear(16, 8, bias=i % 2 == 0))),
    "a forward by hand": lambda net, i: setattr(net.norm, "forward", torch.tanh if i % 2 else torch.sin),
    # Parameters and buffers.
    "a parameter": lambda net, i: setattr(net.fc1, "weight", nn.Parameter(random(16, 8, seed=i))),
    "the data of a parameter": lambda net, i: setattr(net.fc1.weight, "data", random(16, 8, seed=i)),
    "a parameter in place": lambda net, i: net.fc1.weight.data.add_(0.1),
    "a gradient that is asked for": lambda net, i: net.fc1.weight.requires_grad_(i % 2 == 0),
    "all gradients": lambda net, i: net.requires_grad_(i % 2 == 0),
    "a buffer": lambda net, i: setattr(net, "scale", random(16, seed=i)),
    "a state dict": lambda net, i: net.load_state_dict(other(i).state_dict()),
    "a state dict that is assigned": lambda net, i: net.load_state_dict(other(i).state_dict(), assign=True),
    "a parameter of two layers": lambda net, i: setattr(net.lif1, "beta", net.lif1.beta if i < 2 else net.fc1.bias),
    "weight_norm": lambda net, i: (
        parametrizations.weight_norm(net.fc1) if i == 1
        else parametrize.remove_parametrizations(net.fc1, "weight") if i == 3 else None
    ),
    "spectral_norm": lambda net, i: i == 1 and seeded(lambda: parametrizations.spectral_norm(net.fc1)),
    "pruning": lambda net, i: i in (1, 3) and prune.l1_unstructured(net.fc1 if i == 1 else net.fc2, "weight", 0.5),
    # Neurons.
    "a threshold": lambda net, i: setattr(net.lif1, "threshold", torch.tensor(0.5 + 0.2 * i, dtype=torch.float64)),
    "a threshold in place": lambda net, i: net.lif1.threshold.fill_(0.5 + 0.2 * i),
    "a decay": lambda net, i: setattr(net.lif2, "beta", torch.tensor(0.5 + 0.1 * i, dtype=torch.float64)),
    "a reset": lambda net, i: setattr(net.lif1, "reset_mechanism", ["subtract", "zero", "none", "zero"][i]),
    "the delay of a reset": lambda net, i: setattr(net.lif1, "reset_delay", i % 2 == 0),
    "a surrogate": lambda net, i: setattr(
        net.lif1, "spike_grad", [surrogate.atan(), surrogate.fast_sigmoid(slope=5), surrogate.sigmoid()][i % 3]
    ),
    "graded spikes": lambda net, i: setattr(net.lif1, "graded_spikes_factor", torch.tensor(1.0 + 0.5 * i)),
    "a neuron": lambda net, i: setattr(net, "lif2", snn.Synaptic(alpha=0.5 + i * 0.1, beta=0.6).double()),
    # Hooks.
    "a forward hook": lambda net, i: switch(net, i, lambda: net.fc1.register_forward_hook(lambda m, a, out: out * 2)),
    "a hook of a neuron": lambda net, i: switch(
        net, i, lambda: net.lif1.register_forward_hook(lambda m, a, out: (out[0] * 0.5, out[1]))
    ),
    "a backward hook": lambda net, i: switch(
        net, i, lambda: net.fc2.register_full_backward_hook(lambda m, into, out: (into[0] * 0.5,))
    ),
    "a hook of a parameter": lambda net, i: switch(net, i, lambda: net.fc1.weight.register_hook(lambda g: g * 3)),
}  # fmt: skip
QUICK = ("a number", "a layer", "a parameter", "a gradient that is asked for", "a reset", "a hook of a neuron")


def seeded(make: Callable[[], Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make()


def switch(net: Any, i: int, register: Callable[[], Any]) -> None:
    if i == 1:
        net.handle = register()
    if i == 3:
        net.handle.remove()


def left_by(net: nn.Module, function: Callable[[Tensor], tuple[Tensor, Tensor]], i: int) -> dict[str, Any]:
    """What a training step leaves."""
    net.zero_grad()
    torch.manual_seed(i)
    spk, mem = function(2 * random(7 if i < 3 else 9, 4, 8, seed=100 + i))
    if mem.requires_grad:
        (spk.sum() + mem.square().sum()).backward()
    return {
        "spikes": spk, "membranes": mem, "needs": (spk.requires_grad, mem.requires_grad), "random": torch.rand(3),
        **{f"gradient of {name}": p.grad for name, p in net.named_parameters()}, **dict(net.named_buffers()),
    }  # fmt: skip


@pytest.mark.parametrize(
    "how", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in CHANGES]
)
def test_a_network_that_changes_between_calls_does_what_it_now_says(how: str) -> None:
    net = other(0)
    with torch.no_grad():
        net.fc2.weight.mul_(4)  # so that most neurons spike
    loop = copy.deepcopy(net)
    compiled = snnfast.compile(net)
    spikes = set()
    for i in range(4):
        for network in (net, loop):
            CHANGES[how](network, i)
        found, expected = left_by(net, compiled, i), left_by(loop, loop, i)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert type(found[name]) is type(value), name
            if isinstance(value, Tensor):
                torch.testing.assert_close(found[name], value, msg=lambda told, name=name: f"{name}: {told}")
            else:
                assert found[name] == value, name
        spikes |= set(expected["spikes"].unique().tolist())
    assert 0 in spikes
    assert len(spikes) > 1
