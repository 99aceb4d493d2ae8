"""Norse: ``LIFBoxCell``, the neuron with one state, in a loop; and its step under ``torch.compile``."""

from typing import Any

import torch
from torch import Tensor

from ..registry import Case
from .base import Neuron, Peer, only, unrolled


def make(case: Case, device: torch.device) -> Neuron:
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters

    only(case, learn_beta=(False,), record_mem=(False,), reset_mechanism=("subtract", "zero"))
    dt, rate = 0.001, 1 - case.options.beta
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.tensor(rate / dt, device=device),
        v_leak=torch.tensor(0.0, device=device),
        v_th=torch.tensor(1.0, device=device),
        v_reset=torch.tensor(0.0, device=device),
        alpha=torch.tensor(100.0, device=device),
    )
    cell = LIFBoxCell(parameters, dt=dt)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return cell(x, LIFBoxFeedForwardState(torch.zeros_like(x)) if state is None else state)

    scale = 1 / rate

    def scaled(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return step(x * scale, state)

    return Neuron(unrolled(scaled), scaled)


def make_compiled(case: Case, device: torch.device) -> Neuron:
    step = torch.compile(make(case, device).step, dynamic=False)
    return Neuron(unrolled(step), step)


def nearest(case: Case) -> dict[str, Any]:
    return {"reset_delay": False, "reset_mechanism": "zero"}


PEERS = [
    Peer("Norse", "norse", make, nearest),
    Peer("Norse, compiled step", "norse", make_compiled, nearest, compiled=True, kinds=("layer", "loop")),
]
