"""A network in parts of some steps: between them states are kept, and the backward pass computes each part again.

Source of the idea: T. Chen et al., *Training deep nets with sublinear memory cost*, arXiv:1604.06174, by PyTorch's
``torch.utils.checkpoint``.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snnfast._core.pytorch import unrecorded, untraced
from snnfast._images.batch_norm import has_batch_statistics
from snnfast.networks.over_time import has_unroll
from snnfast.neurons.base import SpikingLayer

__all__ = ["State", "check_part", "in_parts"]

LEAST = 3 << 20
"""Bytes that the layers return in a part of ``checkpoint=True`` at least: less memory is not worth the time that the
Python of a part takes."""

T = TypeVar("T")

State = Tensor | tuple[Tensor | None, ...] | None
"""State of one neuron layer, or a tuple of states where its neurons have several."""

Run = Callable[[Tensor, int | None, Sequence[State], Tensor | None], tuple[T, list[State], int]]
"""A network on ``x``, ``num_steps``, states and lengths. It returns its results, the states after the last step, and
the number of bytes that its layers have returned."""


def check_part(given: object, steps: int, layers: Sequence[nn.Module], batch_norm_over_time: bool) -> int | None:
    """The number of steps of a part, with ``True`` the least; ``None``: all steps at once."""
    if given is False:
        return None
    size = math.isqrt(max(steps - 1, 0)) + 1  # the square root, rounded up
    if given is not True:
        try:
            size = operator.index(given)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"checkpoint: expected a bool or an int, got {type(given).__name__}") from None
        if size < 1:
            raise ValueError(f"checkpoint: expected at least 1 step, got {size}")
    for layer in layers:
        if has_unroll(layer) and not isinstance(layer, SpikingLayer):
            kind = type(layer).__name__
            raise ValueError(f"checkpoint: {kind} has an unroll of its own, which takes all steps at once")
        if batch_norm_over_time and any(map(has_batch_statistics, layer.modules())):
            raise ValueError("checkpoint: batch_norm_over_time takes the statistics of all steps at once")
    return size if size < steps else None


def in_parts(
    net: nn.Module,
    run: Run[T],
    layers: Sequence[nn.Module],  # of the network, in order of application
    x: Tensor,  # [T, B, *], or [B, *]
    num_steps: int | None,
    states: Sequence[State],
    lengths: Tensor | None,
    size: int,
    grows: bool,
) -> tuple[list[T], list[State]]:
    """The results of ``run`` for each part of ``size`` steps, and the states after the last one.

    With ``grows``, the first step is a part that tells how many bytes a step returns. All others are as long as the
    layers need to return ``LEAST`` bytes, or longer. Autograd keeps this step, and the last part, with which the
    backward pass begins.
    """
    holding = [layer for layer in layers if isinstance(layer, SpikingLayer) and layer.init_hidden]
    again = _Again(net, holding)
    steps = x.shape[0] if num_steps is None else num_steps
    start, results = 0, []

    def part(rows: Tensor, n: int, kept: bool) -> int:
        nonlocal start, states
        given = [*map(_held, holding), *(entry if isinstance(entry, tuple | list) else (entry,) for entry in states)]
        function = partial(_part, run, None if num_steps is None else n, holding, list(map(len, given)))
        arguments: tuple[Any, ...] = (
            rows,
            None if lengths is None else (lengths - start).clamp(0, n),
            *chain.from_iterable(given),
        )
        if kept:
            result, states, returned = function(*arguments)
        else:
            found = checkpoint(function, *arguments, use_reentrant=False, context_fn=again.contexts)
            result, states, returned = found
        start += n
        results.append(result)
        return returned

    with unrecorded(flushed=True):  # a part runs again where nobody records, and must make the same calls
        rest = x
        if grows:
            # By ``split``, here and below: the backward pass of each slice would make a gradient of all steps.
            first, rest = (x, x) if num_steps is not None else torch.split(x, [1, steps - 1])
            size = max(size, LEAST // max(part(first, 1, kept=True), 1))
            size = math.ceil((steps - 1) / max((steps - 1) // size, 1))  # of equal parts
        for rows in torch.split(rest, size) if num_steps is None else [x] * math.ceil((steps - start) / size):
            n = min(size, steps - start)
            part(rows, n, kept=start + n == steps)
    return results, list(states)


untraced(in_parts)  # the backward pass runs code of the forward pass, and hooks of its graph


def _part(
    run: Run[T],
    num_steps: int | None,
    holding: Sequence[SpikingLayer],
    widths: Sequence[int],
    x: Tensor,
    lengths: Tensor | None,
    *given: Tensor | None,  # the states that layers hold, then an entry for each layer
) -> tuple[T, list[State], int]:
    rest = iter(given)
    states = [tuple(next(rest) for _ in range(width)) for width in widths]
    for layer, held in zip(holding, states, strict=False):
        layer._hold(held)  # type: ignore[arg-type]
    entries = [entry if len(entry) > 1 else entry[0] for entry in states[len(holding) :]]
    return run(x, num_steps, entries, lengths)


def _held(layer: SpikingLayer) -> tuple[Tensor, ...]:
    return tuple([getattr(layer, name) for name in layer.neuron.states])


_Module = tuple[nn.Module, dict[str, Tensor | None], dict[str, Tensor | None], bool]
"""A module with its parameters, its buffers and whether it is in training."""


class _Again:
    """Parameters, buffers, held states and modes: a part finds them as they were when it runs again, and changes none.

    Parameters of a ``torch.func.functional_call`` are no longer there in the backward pass. Layers may read buffers
    that they change, such as the vectors of a spectral normalisation. A second run that updated the running averages
    of a batch normalisation would count its batch twice.
    """

    def __init__(self, net: nn.Module, holding: Sequence[SpikingLayer]) -> None:
        self._net, self._holding = net, holding
        self._versions = [(name, p, p._version) for name, p in net.named_parameters() if not p.is_inference()]
        self._copies: dict[int, tuple[Tensor, int, Tensor]] = {}  # of a buffer, at the version that it had

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the context of the first run of a part, which is about to begin, and that of all further ones."""
        before = [_of_module(module, self._copy) for module in self._net.modules()]
        return nullcontext(), _Reentered(lambda: self._as_it_was(before))

    def _copy(self, buffer: Tensor) -> Tensor:
        version = 0 if buffer.is_inference() else buffer._version
        known = self._copies.get(id(buffer))
        if known is None or known[1] != version:  # the parts share the copy of a buffer that nobody changes
            known = self._copies[id(buffer)] = buffer, version, buffer.clone()
        return known[2]

    @contextmanager
    def _as_it_was(self, before: Sequence[_Module]) -> Iterator[None]:
        for name, parameter, version in self._versions:
            if parameter._version != version:
                raise RuntimeError(
                    f"checkpoint: the parameter {name} was changed in place between the forward pass and the backward "
                    "pass, which computes the former again"
                )
        now = [_of_module(module) for module, *_ in before]
        held = [(layer, _held(layer)) for layer in self._holding]
        for (module, parameters, buffers, training), (_, present, _, _) in zip(before, now, strict=True):
            # FSDP puts its own kinds of tensors in the place of a parameter, and knows when.
            plain = {name: p for name, p in parameters.items() if _is_plain(p) and _is_plain(present.get(name))}
            copies = {name: None if b is None else b.clone() for name, b in buffers.items()}
            _put((module, plain, copies, training))
        try:
            yield
        finally:
            for each in now:
                _put(each)
            for layer, states in held:
                for name, state in zip(layer.neuron.states, states, strict=True):
                    setattr(layer, name, state)


class _Reentered(AbstractContextManager[None]):
    """A context that is made anew each time that it is entered: each backward pass through a part runs it again."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


def _of_module(module: nn.Module, copy: Callable[[Tensor], Tensor] = lambda buffer: buffer) -> _Module:
    buffers = {name: None if b is None else copy(b) for name, b in module._buffers.items()}
    return module, dict(module._parameters), buffers, module.training


def _put(kept: _Module) -> None:
    module, parameters, buffers, training = kept
    module.training = training
    module._parameters.update(parameters)  # type: ignore[arg-type]
    module._buffers.update(buffers)


def _is_plain(p: Tensor | None) -> bool:
    return type(p) in (Tensor, nn.Parameter)
