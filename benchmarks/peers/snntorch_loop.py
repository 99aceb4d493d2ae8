"""snnTorch: its layer in a loop over time, as its tutorials write it; and that loop under ``torch.compile``."""

import torch
from torch import Tensor

from ..registry import Case
from .base import Neuron, Peer, unrolled
from .ours import layer_options

LOOP, COMPILED, HOISTED = "snnTorch, loop", "snnTorch, compiled loop", "snnTorch, loop, hoisted layers"
WHOLE = 32  # steps up to which the whole loop is compiled; more take minutes to compile, so the step is


def make(case: Case, device: torch.device) -> Neuron:
    import snntorch

    surrogate = getattr(snntorch.surrogate, case.options.surrogate)()
    lif = snntorch.Leaky(spike_grad=surrogate, **layer_options(case)).to(device)
    if case.dtype == "float64":
        lif = lif.double()

    def step(x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
        spk, mem = lif(x, torch.zeros_like(x) if mem is None else mem)
        return spk, mem

    return Neuron(unrolled(step, lambda mem: mem), step, [p for p in lif.parameters() if p.requires_grad])


def make_compiled(case: Case, device: torch.device) -> Neuron:
    torch._dynamo.reset()  # shapes of other cases would make this one's dynamic
    eager = make(case, device)
    if case.kind == "layer" and case.T <= WHOLE:
        return Neuron(torch.compile(eager.unroll, dynamic=False), None, eager.parameters)
    step = torch.compile(eager.step, dynamic=False)
    return Neuron(unrolled(step, lambda mem: mem), step, eager.parameters)


INSTALL = "pip install 'snntorch>=1.0.0'"
PEERS = [
    Peer(LOOP, "snntorch", "snntorch", INSTALL, make, network_in_loop=True),
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
    ),
]
