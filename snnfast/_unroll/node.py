"""A call as one node of the graph that ``torch.compile`` makes; :mod:`snnfast._unroll.graph` has what the node does."""

from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend
from snnfast._core.ops import SEQUENCE, STEP
from snnfast._core.sources import digest
from snnfast._unroll import state_gradients
from snnfast._unroll.call import UnrollCall

__all__ = ["node", "takes", "takes_step"]


def takes_step(call: UnrollCall) -> bool:
    """Whether a call of one step, which is not checked yet, becomes a node."""
    return (
        call.request.time == STEP
        and call.options.kernels_do_all
        and backend.current_backend() != "reference"
        and all(isinstance(p, Tensor) for p in call.parameters)
    )


def takes(call: UnrollCall) -> bool:
    """Whether a prepared call becomes a node."""
    return call.options.kernels_do_all and call.lengths is None and not backend.exporting()


def node(call: UnrollCall) -> tuple[Tensor, ...]:
    options, request = call.options, call.request
    tensors, asked = (
        (*call.states, *call.parameters),
        (options.packed, *options.derivative, backend.current_backend()),
    )
    name, x = call.neuron.name, call.current
    if request.time == STEP:
        how: Any = {"state_gradients": state_gradients.setting.value, "sources": digest()}
        return tuple(torch.ops.snnfast.step(name, x, tensors, *asked, **how))
    steps = None if request.time == SEQUENCE else request.steps
    shown, weights = (request.record, request.last, request.reduce), call.linear or ()
    return tuple(torch.ops.snnfast.unroll(name, x, tensors, *asked, steps, *shown, *weights, sources=digest()))
