"""This library: all steps in one kernel, or one call per step."""

from typing import Any

import torch
from torch import Tensor

import snnfast

from ..registry import DTYPES, NEURONS, Case
from .base import Neuron, Peer, stepping

OURS = "snnfast"


def layer_options(case: Case) -> dict[str, Any]:
    """Arguments of the layer of a case, in both libraries: its decays, and what is not their default."""
    options = case.options
    decays = {name: getattr(options, name) for name in NEURONS[case.neuron].decays}
    names = ("reset_mechanism", "reset_delay", "learn_beta")
    return decays | {name: value for name, value in options.changed().items() if name in names}


def make(case: Case, device: torch.device) -> Neuron:
    surrogate = getattr(snnfast.surrogate, case.options.surrogate)()
    model = NEURONS[case.neuron]
    layer = getattr(snnfast, model.name)(spike_grad=surrogate, **layer_options(case)).to(device)
    # Only where the case asks for it: an older revision, with --base, does not know the argument.
    kept = case.options.membrane_dtype
    keep = {} if kept is None else {"membrane_dtype": DTYPES[kept]}

    def unroll(x: Tensor, record_mem: bool, **steps: int) -> tuple[Tensor, ...]:
        out = layer.unroll(x, record_mem=record_mem, **steps, **keep)
        return tuple(out) if record_mem else (out[0],)

    def constant(x: Tensor, T: int, record_mem: bool) -> tuple[Tensor, ...]:
        return unroll(x, record_mem, num_steps=T)

    parameters = [p for p in layer.parameters() if p.requires_grad]
    return Neuron(unroll, stepping(layer, len(model.states)), parameters, constant)


def lacking(case: Case) -> str:
    """Why this version of snnfast can't run a case; empty where it can."""
    name = NEURONS[case.neuron].name
    return "" if hasattr(snnfast, name) else f"snnfast has no {name} yet"


PEERS = [Peer(OURS, "snnfast", "snnfast", "pip install --no-build-isolation .", make, neurons=tuple(NEURONS))]
