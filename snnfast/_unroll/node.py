"""A call as one node of the graph that ``torch.compile`` makes; :mod:`snnfast._unroll.graph` has what the node does."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend
from snnfast._core.ops import SEQUENCE, STEP
from snnfast._core.pytorch import constant_while_tracing
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


def node(call: UnrollCall, connected: bool = False) -> tuple[Tensor, ...]:
    """Make the node, and return its results. A step of connected neurons has no ``V`` there, which is 1."""
    options, request = call.options, call.request
    parameters: Any = (None, *call.parameters[1:]) if connected else call.parameters
    given: Any = call.neuron.name, call.current, (*call.states, *parameters)
    given += options.packed, *options.derivative, backend.current_backend()
    if request.time == STEP:
        wanted = state_gradients.setting.value
        return tuple(torch.ops.snnfast.step(*given, state_gradients=wanted, sources=digest()))
    steps = None if request.time == SEQUENCE else request.steps
    given += steps, request.record, request.last, request.reduce, *(call.linear or ())
    return tuple(torch.ops.snnfast.unroll(*given, sources=digest()))


@constant_while_tracing
def digest() -> str:
    """A digest of the package's modules, for caches of ``torch.compile`` on the disk.

    These caches know a composite op by its name and arguments. What the op does may be another thing in another version
    of the package.
    """
    return _digest()


@functools.cache
def _digest() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
