"""This library: all steps in one kernel, one call per step, or snnTorch's loop compiled."""

from typing import Any

import torch
from torch import Tensor, nn

import snnfast

from ..networks import stages, wants_membranes
from ..registry import NETWORKS, NEURONS, NODE, POOLED, SCALING, SEQUENCE, Case
from . import snntorch_loop
from .base import KINDS, Neuron, Peer, layer_options, node, stepping

OURS, RECORDED, WITH_LOSS = "snnfast", "snnfast, recorded loop", "snnfast, recorded loop and loss"
COMPILED_LOOP = "snnfast, compiled loop"
DEFAULT = "snnfast.compile"
CHECKPOINT = "snnfast, checkpoint"
NUMBERS, SWAPPED = "snnfast, spikes as numbers", "snnfast, import changed"
GRAPH = "snnfast, CUDA graph"
BACKEND = "snnfast, torch.compile"
PRODUCTS = "snnfast, products alone"
DENSE = "PyTorch, dense product"
STEPS = "PyTorch, one call a step"
APART = "snnfast, one by one"


def layer_of(case: Case) -> Any:
    surrogate = getattr(snnfast.surrogate, case.options.surrogate)()
    return getattr(snnfast, NEURONS[case.neuron].name)(spike_grad=surrogate, **layer_options(case))


def make(case: Case, device: torch.device) -> Neuron:
    if case.neuron == NODE:
        from snnfast.spikingjelly.neuron import LIFNode

        return node(LIFNode, case, device)
    layer = layer_of(case).to(device)

    def unroll(x: Tensor, record_mem: bool, **steps: int) -> tuple[Tensor, ...]:
        out = layer.unroll(x, record_mem=record_mem, **steps)
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


def in_parts(case: Case) -> OverTime:
    """The same with activation checkpointing."""
    net = OverTime(case)
    net.steps["checkpoint"] = True
    return net


def snntorchs_loop(case: Case) -> nn.Module:
    """snnTorch's network as it is, on the fused kernels."""
    import snnfast.snntorch

    net = snntorch_loop.network(case)
    snnfast.snntorch.convert(net)
    return net


def compile_by_backend(net: Any) -> Any:
    return torch.compile(net, backend="snnfast")


def loss(mem_rec: Tensor, labels: Tensor) -> Tensor:
    return snnfast.losses.ce_membrane_loss()(mem_rec, labels)


LOOPS = (*NETWORKS, "recurrent")
PEERS = [
    Peer(
        OURS, "snnfast", make, network=OverTime, loss=loss,
        kinds=(*KINDS, SEQUENCE, SCALING, "pair", "recurrent", "product", "norm", POOLED),
        neurons=tuple(NEURONS),
    ),
    Peer(CHECKPOINT, "snnfast", make, network=in_parts, loss=loss, kinds=(SEQUENCE, SCALING)),
    Peer(GRAPH, "snnfast", make, network=OverTime, loss=loss, graph=True, devices=("cuda",), kinds=NETWORKS),
    Peer(
        NUMBERS, "snnfast", make, network=OverTime, loss=loss, around=lambda: snnfast.use_events(False),
        kinds=("pair", *NETWORKS),
    ),
    Peer(
        BACKEND, "snnfast", make, network=OverTime, loss=loss, compile=compile_by_backend, compiled=True,
        kinds=("tutorial5",),
    ),
    Peer(SWAPPED, "snntorch", make, network=snntorchs_loop, looped=True, kinds=NETWORKS),
    Peer(DEFAULT, "snntorch", make, compiled=True, kinds=("collection",)),
    Peer(
        RECORDED, "snntorch", make, network=snntorchs_loop, looped=True, compile=snnfast.compile, compiled=True,
        kinds=LOOPS,
    ),
    Peer(
        WITH_LOSS, "snntorch", make, network=snntorchs_loop, looped=True, compile=snnfast.compile, with_loss=True,
        compiled=True, kinds=NETWORKS,
    ),
    Peer(PRODUCTS, "snntorch", make, compiled=True, kinds=("collection",)),
    Peer(DENSE, "torch", make, kinds=("product",)),
    Peer(STEPS, "torch", make, kinds=("norm",)),
    Peer(APART, "snnfast", make, kinds=(POOLED,)),
]  # fmt: skip
