"""This library: all steps in one kernel, one call per step, or snnTorch's loop compiled."""

from typing import Any

import torch
from torch import Tensor, nn

import snnfast

from ..networks import stages, wants_membranes
from ..registry import DTYPES, NETWORKS, NEURONS, Case
from . import snntorch_loop
from .base import KINDS, Neuron, Peer, layer_options, stepping

OURS, LOOPED, WITH_LOSS = "snnfast", "snnfast, compiled loop", "snnfast, compiled loop and loss"
NUMBERS, SWAPPED = "snnfast, spikes as numbers", "snnfast, import changed"
GRAPH = "snnfast, CUDA graph"


def layer_of(case: Case) -> Any:
    surrogate = getattr(snnfast.surrogate, case.options.surrogate)()
    return getattr(snnfast, NEURONS[case.neuron].name)(spike_grad=surrogate, **layer_options(case))


def make(case: Case, device: torch.device) -> Neuron:
    layer = layer_of(case).to(device)
    # Only where the case asks for it: an older revision, with --base, does not know the argument.
    kept = case.options.membrane_dtype
    keep = {} if kept is None else {"membrane_dtype": DTYPES[kept]}

    def unroll(x: Tensor, record_mem: bool, **steps: int) -> tuple[Tensor, ...]:
        out = layer.unroll(x, record_mem=record_mem, **steps, **keep)
        return tuple(out) if record_mem else (out[0],)

    def constant(x: Tensor, T: int, record_mem: bool) -> tuple[Tensor, ...]:
        return unroll(x, record_mem, num_steps=T)

    parameters = [p for p in layer.parameters() if p.requires_grad]
    step = stepping(layer, NEURONS[case.neuron])
    return Neuron(unroll, step, parameters, constant, lambda linear: snnfast.MultiStep(layer, linear))


class OverTime(snnfast.MultiStep):
    """The network of a tutorial, the same image at every step."""

    def __init__(self, case: Case) -> None:
        super().__init__(*(layer for stage in stages(case) for layer in (stage, layer_of(case))))
        self.steps = {"num_steps": case.T, "record_mem": wants_membranes(case)}

    def forward(self, x: Tensor) -> Any:
        return super().forward(x, **self.steps)


def snntorchs_loop(case: Case) -> nn.Module:
    """snnTorch's network as it is, on the fused kernels."""
    import snnfast.snntorch

    net = snntorch_loop.network(case)
    snnfast.snntorch.convert(net)
    return net


def compile_(loop: Any) -> Any:
    return snnfast.compile(loop)


def loss(mem_rec: Tensor, labels: Tensor) -> Tensor:
    return snnfast.losses.ce_membrane_loss()(mem_rec, labels)


def lacking(case: Case) -> str:
    """Why this version of snnfast can't run a case; empty where it can."""
    name = NEURONS[case.neuron].name
    return "" if hasattr(snnfast, name) else f"snnfast has no {name} yet"


INSTALL = "pip install --no-build-isolation '.[snntorch]'"
PEERS = [
    Peer(
        OURS, "snnfast", "snnfast", "pip install --no-build-isolation .", make, network=OverTime, loss=loss,
        kinds=(*KINDS, "recurrent"), neurons=tuple(NEURONS),
    ),
    Peer(
        GRAPH, "snnfast", "snnfast", "pip install --no-build-isolation .", make,
        "the same, captured in a CUDA graph and replayed", network=OverTime, loss=loss, graph=True, devices=("cuda",),
        kinds=NETWORKS,
    ),
    Peer(
        NUMBERS, "snnfast", "snnfast", "pip install --no-build-isolation .", make,
        "the same, but the spikes go to the linear layer behind them as numbers: use_events(False)",
        network=OverTime, loss=loss, around=lambda: snnfast.use_events(False), kinds=("pair", *NETWORKS),
    ),
    Peer(
        SWAPPED, "snntorch", "snnfast", INSTALL, make,
        "the network of snnTorch's loop on the kernels, as after a change of the import; the loop stays",
        network=snntorchs_loop, looped=True, kinds=NETWORKS,
    ),
    Peer(
        LOOPED, "snntorch", "snnfast", INSTALL, make,
        "the network of snnTorch's loop and layers, unchanged, compiled by snnfast.compile; its loss is not compiled",
        network=snntorchs_loop, looped=True, compile=compile_, compiled=True, kinds=(*NETWORKS, "recurrent"),
    ),
    Peer(
        WITH_LOSS, "snntorch", "snnfast", INSTALL, make, "the same, compiled together with its loss",
        network=snntorchs_loop, looped=True, compile=compile_, with_loss=True, compiled=True, kinds=NETWORKS,
    ),
]  # fmt: skip
