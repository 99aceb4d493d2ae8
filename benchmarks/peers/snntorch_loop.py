"""snnTorch: its layer in a loop over time, as its tutorials write it; and that loop under ``torch.compile``."""

import torch

from ..registry import NEURONS, Case
from .base import Neuron, Peer, stepping, unrolled
from .ours import layer_options

LOOP, COMPILED, HOISTED = "snnTorch, loop", "snnTorch, compiled loop", "snnTorch, loop, hoisted layers"
WHOLE = 32  # steps up to which the whole loop is compiled; more take minutes to compile, so the step is


def make(case: Case, device: torch.device) -> Neuron:
    import snntorch

    model = NEURONS[case.neuron]
    surrogate = getattr(snntorch.surrogate, case.options.surrogate)()
    layer = getattr(snntorch, model.name)(spike_grad=surrogate, **layer_options(case)).to(device)
    if case.dtype == "float64":
        layer = layer.double()
    step = stepping(layer, len(model.states))
    return Neuron(unrolled(step, list), step, [p for p in layer.parameters() if p.requires_grad])


def make_compiled(case: Case, device: torch.device) -> Neuron:
    torch._dynamo.reset()  # shapes of other cases would make this one's dynamic
    eager = make(case, device)
    if case.kind == "layer" and case.T <= WHOLE:
        return Neuron(torch.compile(eager.unroll, dynamic=False), None, eager.parameters)
    step = torch.compile(eager.step, dynamic=False)
    return Neuron(unrolled(step, list), step, eager.parameters)


INSTALL = "pip install 'snntorch>=1.0.0'"
PEERS = [
    Peer(LOOP, "snntorch", "snntorch", INSTALL, make, network_in_loop=True, neurons=tuple(NEURONS)),
    Peer(
        HOISTED,
        "snntorch",
        "snntorch",
        INSTALL,
        make,
        "networks with their stateless layers applied to all steps at once; only the neurons stay in the loop",
        kinds=("tutorial5", "convolution"),
    ),
    Peer(
        COMPILED,
        "snntorch",
        "snntorch",
        INSTALL + " (and a C++ compiler, on a GPU Triton)",
        make_compiled,
        f"torch.compile of the whole loop up to {WHOLE} steps, of the step beyond; its compilation is not counted",
        compiled=True,
        kinds=("layer", "loop", "framework"),
        neurons=tuple(NEURONS),
    ),
]
