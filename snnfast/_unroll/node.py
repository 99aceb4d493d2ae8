"""A call as one node of the graph that ``torch.compile`` makes; :mod:`snnfast._unroll.graph` has what the node does."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnfast._core import backend
from snnfast._core.ops import SEQUENCE, STEP, Neuron
from snnfast._core.pytorch import constant_while_tracing
from snnfast._unroll import state_gradients
from snnfast._unroll.call import Options, UnrollCall

__all__ = ["node", "step", "takes"]


def step(
    neuron: Neuron, options: Options, x: Tensor, states: Sequence[Tensor | None], parameters: Sequence[Any]
) -> Sequence[Tensor] | None:
    """Make the node of one step, and return its results; ``None`` where it becomes none.

    The node checks its tensors, and takes zeros for a state of another shape than ``x``: all lines here are traced at
    every step of a loop. Connected neurons have ``None`` for ``V``, which is 1.
    """
    chosen = backend.current_backend()
    if chosen == "reference" or not options.kernels_do_all:
        return None
    for p in parameters:
        if p is not None and not isinstance(p, Tensor):
            return None
    return torch.ops.snnfast.step(  # type: ignore[no-any-return]
        neuron.name,
        x,
        [*states, *parameters],
        options.packed,
        *options.derivative,
        chosen,
        state_gradients=state_gradients.setting.value,
        sources=digest(),
    )


def takes(call: UnrollCall) -> bool:
    """Whether a prepared call becomes a node."""
    return call.options.kernels_do_all and call.lengths is None and not backend.exporting()


def node(call: UnrollCall) -> tuple[Tensor, ...]:
    """Make the node of a prepared call, and return its results."""
    options, request = call.options, call.request
    if request.time == STEP:
        made = step(call.neuron, options, call.current, call.states, call.parameters)
        assert made is not None, "a prepared call goes to the kernels"
        return tuple(made)
    given: Any = call.neuron.name, call.current, (*call.states, *call.parameters)
    given += options.packed, *options.derivative, backend.current_backend()
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
