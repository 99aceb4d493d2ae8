"""The things that a graph may have changed when it fails, and how they get back what they held."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast.compiler.record.kinds import Kind
from snnfast.compiler.record.later import AT


class Changes:
    """All that a record may change: tensors from outside, and the generator of random numbers.

    Args:
        kinds: The kinds of its calls.
        leaves: Their leaves.

    Attributes:
        written: The numbers of the tensors, also of those that are written to through a view. Of each, whether its
            version tells.
    """

    def __init__(self, kinds: Sequence[Kind], leaves: Sequence[tuple[Any, ...]]) -> None:
        every, self.written = set(kinds), dict[int, bool]()
        left: list[tuple[int, bool]] = []
        if any(kind.changes for kind in every):
            for kind, of_call in zip(kinds, leaves, strict=True):
                if kind.changes:
                    left += [(a, kind.counts) for a, w in zip(of_call, kind.writes, strict=True) if w]
        seen = set(left)
        while left:
            address, counts = left.pop()
            if address < 0:
                self.written[~address] = counts and self.written.get(~address, True)
                continue
            of_call, aliases = leaves[address >> AT], kinds[address >> AT].aliases
            bases = {(a, counts) for a, is_base in zip(of_call, aliases, strict=True) if is_base} - seen
            seen |= bases
            left += bases
        self._raises = not all(kind.waits for kind in every)

    def state_of(self, given: Sequence[Tensor]) -> "State":
        """The state of these things now. Copies are made where an error may come, or where no version tells."""
        return State([(given[n], self._raises or not tells) for n, tells in self.written.items()], self._raises)


class State:
    """The numbers of some tensors, and the state of the generator of random numbers.

    Args:
        tensors: The tensors; of each, whether it can be put back.
        draws: Whether the generator can.
    """

    def __init__(self, tensors: Sequence[tuple[Tensor, bool]], draws: bool) -> None:
        self._kept = [(t, t.detach().clone()) for t, is_kept in tensors if is_kept]
        self._versions = [(t, t._version) for t, is_kept in tensors if not is_kept]
        self._drawn = torch.get_rng_state() if draws else None

    def put_back(self) -> bool:
        """Undo all changes. Returns whether that could be done."""
        if any(t._version != version for t, version in self._versions):
            return False
        with torch.inference_mode():  # a tensor of it may be changed nowhere else
            for t, copy in self._kept:
                t.copy_(copy)
        if self._drawn is not None:
            torch.set_rng_state(self._drawn)
        return True
