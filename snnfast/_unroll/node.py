"""A call as one node of the graph that ``torch.compile`` makes; :mod:`snnfast._unroll.graph` has what the node does."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend as _backend
from snnfast._core.ops import SEQUENCE, STEP, Neuron
from snnfast._core.pytorch import constant_while_tracing
from snnfast._unroll import state_gradients
from snnfast._unroll.call import Options, UnrollCall

__all__ = ["backend_of_step", "node", "step", "takes"]


def backend_of_step(options: Options, parameters: Sequence[Any]) -> str | None:
    """The backend of a step that becomes a node; ``None`` where it becomes none, as with connections for ``V``."""
    if not options.kernels_do_all:
        return None
    for p in parameters:  # in less time than a generator takes
        if not isinstance(p, Tensor):
            return None
    chosen = _backend.current_backend()
    return None if chosen == "reference" else chosen


def step(
    neuron: Neuron,
    options: Options,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    backend: str,
) -> tuple[Tensor, ...]:
    """Make the node of one step, and return its results.

    The node checks its tensors, and takes zeros for a state of another shape than ``x``: all lines here are traced at
    every step of a loop. Connected neurons have ``None`` for ``V``, which is 1.
    """
    made = torch.ops.snnfast.step(
        neuron.name,
        x,
        [*states, *parameters],
        options.packed,
        *options.derivative,
        backend,
        state_gradients=state_gradients.setting.value,
        sources=digest(),
    )
    return tuple(made)


def takes(call: UnrollCall) -> bool:
    """Whether a prepared call becomes a node."""
    return call.options.kernels_do_all and call.lengths is None and not _backend.exporting()


def node(call: UnrollCall) -> tuple[Tensor, ...]:
    """Make the node of a prepared call, and return its results."""
    options, request = call.options, call.request
    if request.time == STEP:
        return step(call.neuron, options, call.current, call.states, call.parameters, _backend.current_backend())
    given: Any = call.neuron.name, call.current, (*call.states, *call.parameters)
    given += options.packed, *options.derivative, _backend.current_backend()
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
