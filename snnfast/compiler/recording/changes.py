"""The things that a graph may have changed when it fails, and how they get back what they held."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast.compiler.recording.kinds import Kind


class Changes:
    """All that a record may change: tensors from outside, and the generator of random numbers.

    Args:
        kinds: The kinds of its calls.
        leaves: Their leaves.

    Attributes:
        written: The numbers of the tensors.
    """

    def __init__(self, kinds: Sequence[Kind], leaves: Sequence[tuple[Any, ...]]) -> None:
        every, written = set(kinds), dict[int, None]()
        if any(kind.changes for kind in every):
            for kind, of_call in zip(kinds, leaves, strict=True):
                if kind.changes:
                    written.update({~a: None for a, w in zip(of_call, kind.writes, strict=True) if w and a < 0})
        self.written = list(written)
        self._raises = not all(kind.waits for kind in every)

    def state_of(self, given: Sequence[Tensor]) -> "State":
        """The state of these things now. Copies are made where an error may come at all."""
        return State([given[n] for n in self.written], self._raises)


class State:
    """The numbers of some tensors, and the state of the generator of random numbers.

    Args:
        tensors: The tensors.
        is_kept: Whether it can be put back.
    """

    def __init__(self, tensors: Sequence[Tensor], is_kept: bool) -> None:
        plain = [t for t in tensors if not t.is_inference()]
        self._held = [(t, t._version, t.detach().clone() if is_kept else None) for t in plain]
        self._drawn = torch.get_rng_state() if is_kept else None

    def put_back(self) -> bool:
        """Undo all changes. Returns whether that could be done."""
        changed = [(t, copy) for t, version, copy in self._held if t._version != version]
        copies = [copy for _, copy in changed if copy is not None]
        if len(copies) < len(changed):
            return False
        with torch.no_grad():
            for (t, _), copy in zip(changed, copies, strict=True):
                t.copy_(copy)
        if self._drawn is not None:
            torch.set_rng_state(self._drawn)
        return True
