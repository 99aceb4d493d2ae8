"""snnTorch: its layer in a loop over time, as its tutorials write it; and that loop under ``torch.compile``."""

from functools import partial
from typing import Any

import torch
from torch import nn

from ..networks import in_loop
from ..registry import NETWORKS, NEURONS, SEQUENCE, SNNTORCH, Case
from .base import KINDS, Neuron, Peer, Unsupported, layer_options, stepping, unrolled

LOOP, COMPILED, HOISTED = "snnTorch, loop", "snnTorch, compiled loop", "snnTorch, loop, hoisted layers"
NETWORK = "snnTorch, compiled network"
WHOLE = 32  # steps up to which the whole loop is compiled; more take minutes to compile, so the step is


def layer_of(case: Case) -> nn.Module:
    import snntorch

    surrogate = getattr(snntorch.surrogate, case.options.surrogate)()
    layer = getattr(snntorch, NEURONS[case.neuron].name)(spike_grad=surrogate, **layer_options(case))
    return layer.double() if case.dtype == "float64" else layer


def network(case: Case) -> nn.Module:
    return in_loop(case, partial(layer_of, case))


def network_to_compile(case: Case) -> nn.Module:
    if case.T > WHOLE:
        raise Unsupported(f"compiles all steps, for many minutes beyond {WHOLE} of them")
    return network(case)


def make(case: Case, device: torch.device) -> Neuron:
    layer = layer_of(case).to(device)
    step = stepping(layer, NEURONS[case.neuron])
    return Neuron(unrolled(step, records_of(case)), step, [p for p in layer.parameters() if p.requires_grad])


def records_of(case: Case) -> Any:
    """What a call returns of the states, beside the spikes."""
    fed_back = NEURONS[case.neuron].fed_back
    return lambda states: states[fed_back:]


def compile_(loop: Any) -> Any:
    return torch.compile(loop, dynamic=False)


def make_compiled(case: Case, device: torch.device) -> Neuron:
    eager = make(case, device)
    if case.kind == "layer" and case.T <= WHOLE:
        return Neuron(compile_(eager.unroll), None, eager.parameters)
    step = compile_(eager.step)
    return Neuron(unrolled(step, records_of(case)), step, eager.parameters)


PEERS = [
    Peer(
        LOOP, "snntorch", make, network=network, looped=True,
        kinds=(*KINDS, SEQUENCE, "recurrent", "collection"),
        neurons=SNNTORCH,
    ),
    Peer(HOISTED, "snntorch", make, kinds=NETWORKS),
    Peer(COMPILED, "snntorch", make_compiled, compiled=True, kinds=("layer", "loop"), neurons=SNNTORCH),
    Peer(
        NETWORK, "snntorch", make, network=network_to_compile, looped=True, compile=compile_, compiled=True, slow=True,
        kinds=NETWORKS,
    ),
]  # fmt: skip
