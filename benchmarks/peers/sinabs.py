"""Sinabs: its step in a loop; EXODUS, its CUDA extension, over all steps."""

import math
from typing import Any

import torch
from torch import Tensor

from ..registry import Case
from .base import Neuron, Peer, Unsupported, only, unrolled


def make(case: Case, device: torch.device) -> Neuron:
    from sinabs.activation import MembraneReset, MembraneSubtract, SingleExponential, SingleSpike
    from sinabs.layers.functional.lif import lif_forward_single

    only(case, learn_beta=(False,), reset_mechanism=("subtract", "zero"))
    reset = MembraneSubtract() if case.options.reset_mechanism == "subtract" else MembraneReset()
    threshold, surrogate = torch.tensor(1.0, device=device), SingleExponential()

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = {"v_mem": torch.zeros_like(x)} if state is None else state
        return lif_forward_single(
            x, case.options.beta, None, state, threshold, SingleSpike, reset, surrogate, None, False
        )

    return Neuron(unrolled(step, lambda state: (state["v_mem"],)), step)


def make_exodus(case: Case, device: torch.device) -> Neuron:
    from sinabs.activation import MembraneSubtract, SingleExponential, SingleSpike
    from sinabs.exodus.layers import LIF

    only(case, learn_beta=(False,), record_mem=(False,), reset_mechanism=("subtract",), dtype=("float32",))
    if case.kind == "loop":
        raise Unsupported("has no one-step call")
    lif = LIF(
        tau_mem=-1 / math.log(case.options.beta),
        spike_threshold=torch.tensor(1.0, device=device),
        spike_fn=SingleSpike,
        reset_fn=MembraneSubtract(),
        surrogate_grad_fn=SingleExponential(),
        norm_input=False,
    ).to(device)

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, ...]:
        lif.reset_states()
        return (lif(x.transpose(0, 1)).transpose(0, 1),)

    return Neuron(unroll)


def nearest(case: Case) -> dict[str, Any]:
    return {"reset_delay": False}


NOTE = (
    "norm_input=False: the reset comes in the step of the spike, before the decay; a spike at >= the threshold; "
    "SingleExponential as surrogate. Compared with snnfast's reset_delay=False, which after a spike "
    "at more than twice the threshold subtracts it once more before it decides on the next. "
)
PEERS = [
    Peer(
        "Sinabs", "sinabs.layers", "sinabs", "pip install sinabs", make,
        NOTE + "Its step in a loop over x.unbind(0): its own layer indexes x[:, t]", nearest,
    ),
    Peer(
        "Sinabs EXODUS", "sinabs.exodus", "sinabs-exodus",
        "pip install --no-build-isolation sinabs-exodus (with the CUDA toolkit that torch was built with)",
        make_exodus, NOTE + "Time is its second dimension: it is transposed and copied", nearest, devices=("cuda",),
    ),
]  # fmt: skip
