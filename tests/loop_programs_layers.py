"""Loops that differ in their spiking layers: the neuron, its options, where its states are, and how it is called."""

from typing import Any

import torch
from loop_programs import (
    NOTHING,
    Net,
    Tutorial5,
    add,
    batch_first,
    constant,
    program,
    step_first,
)
from snntorch.functional import quant
from torch import Tensor, nn

# ---- neurons


@program(step_first(12))
class Synaptic(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Synaptic(alpha=0.5, beta=0.75)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero", learn_alpha=True, learn_beta=True)

    def forward(self, x: Tensor) -> Any:
        syn1, mem1 = self.lif1.init_synaptic()
        syn2, mem2 = self.lif2.reset_mem()
        spk_rec, syn_rec, mem_rec = [], [], []
        for t in range(x.size(0)):
            spk1, syn1, mem1 = self.lif1(self.fc1(x[t]), syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk_rec.append(spk2)
            syn_rec.append(syn2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(syn_rec), torch.stack(mem_rec)


@program(step_first(12))
class Lapicque(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Lapicque(R=2.0, C=0.75)
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Lapicque(beta=0.25)

    def forward(self, x: Tensor) -> Any:
        mem1 = self.lif1.init_lapicque()
        mem2 = self.lif2.reset_mem()
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@program(step_first(12))
class MixedNeurons(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Synaptic(alpha=0.5, beta=0.75)
        self.fc2 = nn.Linear(16, 16)
        self.lif2 = snn.Leaky(beta=0.9)
        self.fc3 = nn.Linear(16, 5)
        self.lif3 = snn.Lapicque(beta=0.25, init_hidden=True)

    def forward(self, x: Tensor) -> Any:
        syn1, mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        self.lif3.reset_mem()
        out = 0
        for t in range(x.size(0)):
            spk1, syn1, mem1 = self.lif1(self.fc1(x[t]), syn1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + self.lif3(self.fc3(spk2))
        return out, syn1, mem2


# ---- options of Leaky, in the loop of tutorial 5


class _Step(torch.autograd.Function):
    """A surrogate as many users write theirs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.exp(-z.abs())


def _straight_through(z: Tensor) -> Tensor:
    linear = (0.5 * z).clamp(-0.5, 0.5)
    return (z > 0).float() + (linear - linear.detach())


OPTIONS: dict[str, dict[str, Any]] = {
    "reset-zero": {"reset_mechanism": "zero"},
    "reset-none": {"reset_mechanism": "none"},
    "learned": {"learn_beta": True, "learn_threshold": True},
    "learned-graded": {"learn_graded_spikes_factor": True, "graded_spikes_factor": 0.75},
    "no-surrogate": {"surrogate_disable": True},
    "graded": {"graded_spikes_factor": 0.5},
    "reset-at-once": {"reset_delay": False},
    "reset-at-once-zero": {"reset_delay": False, "reset_mechanism": "zero"},
}
for _name, _options in OPTIONS.items():
    add(f"option-{_name}", lambda snn, options=_options: Tutorial5(snn, **options), constant(12), other=None)

SURROGATES = {
    "atan": lambda snn: snn.surrogate.atan(alpha=2.0),
    "fast-sigmoid": lambda snn: snn.surrogate.fast_sigmoid(slope=5),
    "sigmoid": lambda snn: snn.surrogate.sigmoid(slope=4),
    "straight-through": lambda snn: snn.surrogate.straight_through_estimator(),
    "lambda": lambda snn: lambda z: snn.surrogate.fast_sigmoid(slope=5)(z),
    "function": lambda snn: _Step.apply,
    "detached": lambda snn: _straight_through,
}
for _name, _surrogate in SURROGATES.items():
    add(
        f"surrogate-{_name}",
        lambda snn, of=_surrogate: Tutorial5(snn, spike_grad=of(snn)),
        constant(12),
        # An autograd.Function that is not recognised has its own two graphs, which are called as a whole.
        repeats=("autograd_function_apply", "getitem") if _name in ("lambda", "function") else (),
        other=None,
    )

# Not on the kernels: these layers run step by step (docs/snntorch.md).
add(
    "option-state-quant",
    lambda snn: Tutorial5(snn, state_quant=quant.state_quant(num_bits=4, threshold=1.0)),
    constant(12),
    expects=NOTHING,
    breaks="StateQuant reads the sizes of its input from a tensor",
    other=None,
)


# What competes must not be equal: which of two equal membranes wins is not told. So no exact numbers here.
@program(
    lambda T, B: (torch.rand(T, B, 12),),
    exact=False,
    simple=False,
    repeats=("autograd_function_apply", "getitem"),
)
class OptionInhibition(Net):
    def __init__(self, snn: Any) -> None:
        super().__init__(snn, inhibition=True, threshold=0.25)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        spk_rec = []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec), mem2


@program(step_first(12))
class ValuesPerNeuron(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.lif1 = snn.Leaky(beta=torch.linspace(0.5, 1, 16), threshold=torch.linspace(0.5, 1.5, 16))
        self.fc2 = nn.Linear(16, 5)
        self.lif2 = snn.Leaky(
            beta=torch.linspace(0.5, 1, 5), threshold=torch.ones(5), learn_beta=True, learn_threshold=True
        )

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        out = torch.zeros(x.size(1), 5)
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out += spk2
        return out, mem2


# ---- states that the layers hold


def sequential(snn: Any, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 16),
        snn.Leaky(beta=0.9, init_hidden=True, **options),
        nn.Linear(16, 5),
        snn.Leaky(beta=0.8, init_hidden=True, output=True, **options),
    )


@program(constant(12))
def hidden_forward_pass(snn: Any) -> Any:
    """As in tutorial 6: the loop is in a function outside of the network."""
    net = sequential(snn)

    def forward_pass(net: nn.Module, num_steps: int, data: Tensor) -> Any:
        mem_rec = []
        spk_rec = []
        snn.utils.reset(net)
        for _ in range(num_steps):
            spk_out, mem_out = net(data)
            spk_rec.append(spk_out)
            mem_rec.append(mem_out)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    return net, forward_pass, lambda f, data, num_steps: f(net, num_steps, data)


@program(step_first(12), input_grad=False)
def hidden_reset_outside(snn: Any) -> Any:
    """As in the tutorial on neuromorphic data; what is compiled goes on from what the layers hold."""
    net = sequential(snn)

    def forward_pass(net: nn.Module, data: Tensor) -> Tensor:
        spk_rec = []
        for step in range(data.size(0)):
            spk_out, _mem_out = net(data[step])
            spk_rec.append(spk_out)
        return torch.stack(spk_rec)

    def call(f: Any, data: Tensor) -> Any:
        snn.utils.reset(net)
        return f(net, data)

    return net, forward_pass, call


class Hidden(nn.Module):
    def __init__(self, snn: Any, **options: Any) -> None:
        super().__init__()
        self.net = sequential(snn, **options)

    def reset(self) -> None:
        for layer in self.net:
            if hasattr(layer, "reset_mem"):
                layer.reset_mem()

    def forward(self, x: Tensor) -> Any:
        self.reset()
        spk_rec, mem_rec = [], []
        for t in range(x.size(1)):
            spk, mem = self.net(x[:, t])
            spk_rec.append(spk)
            mem_rec.append(mem)
        return torch.stack(spk_rec, dim=1), mem_rec[-1]


add("hidden-reset-mem", Hidden, batch_first(12))
add("hidden-learned", lambda snn: Hidden(snn, learn_beta=True, learn_threshold=True), batch_first(12))


@program(step_first(12))
class HiddenReadFromLayers(Hidden):
    """The membrane is not returned by the layer but read where the layer holds it."""

    def forward(self, x: Tensor) -> Any:
        self.reset()
        rec = []
        for xt in x:
            self.net(xt)
            rec.append(self.net[1].mem)
        return torch.stack(rec).mean(0), self.net[3].mem


@program(step_first(12))
def hidden_carried_between_calls(snn: Any) -> Any:
    """A long signal in chunks: the layers hold their states in between, cut from the graph."""
    net = sequential(snn)

    def chunk(x: Tensor) -> Tensor:
        out = 0
        for xt in x:
            spk, _ = net(xt)
            out = out + spk
        return out

    def call(f: Any, x: Tensor) -> Any:
        snn.utils.reset(net)
        first = f(x[:2])
        for layer in (net[1], net[3]):
            layer.mem = layer.mem.detach()
        return first, f(x[2:])

    return net, chunk, call


@program(step_first(12))
class HiddenSynaptic(nn.Module):
    def __init__(self, snn: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 16),
            snn.Synaptic(alpha=0.5, beta=0.75, init_hidden=True),
            nn.Linear(16, 5),
            snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True, output=True),
        )

    def forward(self, x: Tensor) -> Any:
        self.net[1].reset_mem()
        self.net[3].reset_mem()
        rec = []
        for t in range(x.size(0)):
            _spk, _syn, mem = self.net(x[t])
            rec.append(mem)
        return torch.stack(rec)


@program(step_first(12))
class MembranesNotPassed(Net):
    """Without ``init_hidden``; a step without a membrane goes on from the last one all the same."""

    def forward(self, x: Tensor) -> Any:
        self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, _ = self.lif1(self.fc1(x[t]))
            spk2, _ = self.lif2(self.fc2(spk1))
            rec.append(spk2)
        return torch.stack(rec)
