"""SpikingJelly 2: ``LIFNode`` over all steps. On a GPU its dispatcher chooses an implementation."""

from typing import Any

import torch
from torch import Tensor

from ..registry import NODE, Case
from .base import Neuron, Peer, Unsupported, node, only

PREFIX = "SpikingJelly"
# The gradient of SoftSign is slope / 2 times that of fast_sigmoid.
SURROGATES = {"atan": ("ATan", 2.0), "sigmoid": ("Sigmoid", 25.0), "fast_sigmoid": ("SoftSign", 25.0)}


def make(case: Case, device: torch.device) -> Neuron:
    from spikingjelly.activation_based import functional, neuron, surrogate

    if case.neuron == NODE:
        return node(neuron.LIFNode, case, device)
    only(case, learn_beta=(False,), reset_mechanism=("subtract", "zero"), surrogate=tuple(SURROGATES))
    kind, alpha = SURROGATES[case.options.surrogate]

    def leaky(mode: str) -> Any:
        return neuron.LIFNode(
            tau=1 / (1 - case.options.beta),
            decay_input=False,
            v_reset=None if case.options.reset_mechanism == "subtract" else 0.0,
            surrogate_function=getattr(surrogate, kind)(alpha=alpha),
            detach_reset=True,
            step_mode=mode,
        ).to(device)

    multi, single = leaky("m"), leaky("s")

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, ...]:
        functional.reset_net(multi)
        multi.store_v_seq = record_mem
        spk_rec = multi(x)
        return (spk_rec, multi.v_seq) if record_mem else (spk_rec,)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            functional.reset_net(single)
        return single(x), True  # the layer keeps its state

    return Neuron(unroll, step)


def make_compiled(case: Case, device: torch.device) -> Neuron:
    if case.T > 32 and device.type == "cpu":
        raise Unsupported("compiles all steps, for minutes beyond 32 of them")
    return Neuron(torch.compile(make(case, device).unroll, dynamic=False))


def nearest(case: Case) -> dict[str, Any]:
    return {"reset_delay": False}


PEERS = [
    Peer(PREFIX, "spikingjelly", make, nearest, neurons=("leaky", NODE)),
    Peer(
        f"{PREFIX}, compiled", "spikingjelly", make_compiled, nearest, compiled=True, devices=("cpu",), kinds=("layer",)
    ),
]
