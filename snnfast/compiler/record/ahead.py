"""Values that a program reads in the midst of a record, as ``spk.sum().item()`` at each step does.

A value that is read does not end the record. At the first call of a kind, the calls so far are made one by one, and
recording goes on. The whole record is remembered, with the results that were read. When the next call begins like it,
the plan of the whole record runs at the first read, ahead of the program. The program goes on, and what it reads is
there already. Each read checks that its calls are those that were remembered. If they are not, the plan ran in vain:
the calls of the program are made one by one.

So nothing may run ahead that could not be undone: no random number, and no write to a tensor from outside. The idea is
that of co-execution (Kim et al., Terra, NeurIPS 2021).
"""

from typing import Any, NamedTuple

from torch import Tensor

from snnfast.compiler.record.changes import Changes
from snnfast.compiler.record.kinds import Kind
from snnfast.compiler.record.later import AT, Later, Like
from snnfast.compiler.record.lines import Lines
from snnfast.compiler.record.modes import entered
from snnfast.compiler.record.runs import runs_of

READS = {
    Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__, Tensor.__format__,
    Tensor.__repr__,
}  # fmt: skip
"""Functions that read the values of one tensor, and give nobody its memory."""

_MOST = 8
"""So many records of a function are remembered, such as those of the first call, of later ones, and of other sizes."""

_PATIENCE = 3
"""After so many calls in a row whose plan ran in vain, no more are remembered."""


class Whole(NamedTuple):
    """A record over all that was read.

    Attributes:
        alive: The addresses of the results that were read, or that the program held at the end.
        why_not: Why it does not run ahead, if it does not.
    """

    kinds: list[Kind]
    leaves: list[tuple[Any, ...]]
    likes: list[Like]
    lines: list[Lines]
    alive: list[int]
    why_not: str = ""


class Ahead:
    """The records of a function that read values.

    Attributes:
        is_over: No more are remembered. A read ends a record.
    """

    def __init__(self) -> None:
        self._wholes: list[Whole] = []
        self._in_vain = 0
        self.is_over = False

    @property
    def learns(self) -> bool:
        """Whether another record may be remembered."""
        return not self.is_over and len(self._wholes) < _MOST

    def find(self, recorder: Any) -> Whole | None:
        """The record that one begins like."""
        return next((w for w in self._wholes if w.likes == recorder.likes and _begins_like(recorder, w, 0)), None)

    def remember(self, recorder: Any, alive: list[int]) -> None:
        """Remember a record that has ended, and whether it may run ahead."""
        why_not = _why_not(recorder)
        if why_not or recorder.learns:
            record = recorder.kinds, recorder.leaves, recorder.likes, recorder.lines
            self._wholes.append(Whole(*record, alive, why_not))
        recorder.asks_again |= not why_not

    def give_up(self, whole: Whole, why_not: str) -> None:
        """Enter that a record has no plan."""
        self._wholes[self._wholes.index(whole)] = whole._replace(why_not=why_not)

    def ended(self, in_vain: bool) -> None:
        """Enter whether a plan that ran ahead was that of the call."""
        self._in_vain = self._in_vain + 1 if in_vain else 0
        self.is_over |= self._in_vain >= _PATIENCE


class Reading:
    """The values of a record that the program reads before its end.

    Args:
        recorder: The recorder of the program.
        ahead: The records that are remembered.

    Attributes:
        values: The values so far, by their addresses.
        done: So many calls were made.
    """

    def __init__(self, recorder: Any, ahead: Ahead | None) -> None:
        self._recorder, self._ahead = recorder, ahead
        self.values: dict[int, Any] = {}
        self.done = 0
        self._kept = 0
        self._reads: list[int] = []
        self._whole: Whole | None = None  # that ran ahead
        self._checked = 0

    def begin(self) -> bool:
        """Run ahead, if a record that begins like this one has a plan. Returns whether values can be read."""
        assert self._ahead is not None
        whole = self._ahead.find(self._recorder)
        if whole is not None and whole.why_not:
            self._recorder.reasons.append(whole.why_not)
        elif whole is not None:
            with self._recorder.running():
                found = self._recorder.run_ahead(whole)
            if found is not None:
                self._whole, self._checked = whole, len(self._recorder.kinds)
                self.values = dict(zip(whole.alive, found, strict=True))
            elif not self._recorder.is_denied:
                self._ahead.give_up(whole, "it has no plan")
        return self._whole is not None or (whole is None and self._ahead.learns)

    def value_of(self, t: Later) -> Tensor | None:
        """The value of a result; ``None``: a call before it fails, as it does again where its error is told."""
        self._reads.append(t.later_address)
        if self._whole is not None and not (self._goes_on(self._whole) and t.later_address in self.values):
            self._turn_back()
        if self._whole is None:
            try:
                with self._recorder.running():
                    self.catch_up()
            except Exception:
                self._ahead = None
                return None
        found: Tensor = self.values[t.later_address]
        return found

    def end(self, alive: list[int]) -> list[Tensor] | None:
        """The results that the program holds at the end; ``None``: the rest of the calls is to be made one by one."""
        if self._whole is None:
            if self._ahead is not None and self._ahead.learns:
                self._ahead.remember(self._recorder, sorted({*alive, *self._reads}))
            return None
        is_whole = len(self._recorder.kinds) == len(self._whole.kinds) and self._goes_on(self._whole)
        if not is_whole or not self.values.keys() >= set(alive):
            self._turn_back()
            return None
        self._ahead.ended(in_vain=False)  # type: ignore[union-attr]
        values, self.values = self.values, {}
        return [values.pop(a) for a in alive]

    def _goes_on(self, whole: Whole) -> bool:
        """Whether the calls since the last look are those that were remembered."""
        checked, self._checked = self._checked, len(self._recorder.kinds)
        return _begins_like(self._recorder, whole, checked)

    def _turn_back(self) -> None:
        """The program does something else than remembered. What ran ahead has changed nothing."""
        self._ahead.ended(in_vain=True)  # type: ignore[union-attr]
        self._whole, self.values = None, {}

    # ---- calls one by one

    def catch_up(self, needed: set[int] | None = None) -> None:
        """Make the calls that were not made yet. ``needed``: the results that are, if no other call follows."""
        recorder = self._recorder
        args: Any = ()
        kwargs: Any = {}
        found: Any = None
        t: Any = None
        lasts = {} if needed is None else _last_readers(recorder, self.done)
        try:
            for number in range(self.done, len(recorder.kinds)):
                kind, leaves = recorder.kinds[number], recorder.leaves[number]
                args, kwargs = kind.arguments(
                    a if not is_tensor else recorder.given[~a] if a < 0 else self.values[a]
                    for a, is_tensor in zip(leaves, kind.tensors, strict=True)
                )
                with entered(kind.grad, kind.modes, recorder.ambient):
                    found = recorder.function_at(number)(*args, **kwargs)
                for i, t in enumerate(kind.tensors_of(found)):
                    self.values[(number << AT) + i] = t
                self.done = number + 1
                for address in lasts.get(number, ()):
                    if needed is not None and address not in needed:
                        self.values.pop(address, None)
        finally:
            args = kwargs = found = t = (
                None  # an error would keep them, and what is delivered must be in no other hands
            )
        if needed is None and self.done > 2 * self._kept:  # later calls can only be given what the program holds
            held, self._kept = set(recorder.alive()), self.done
            self.values = {address: t for address, t in self.values.items() if address in held}


def _begins_like(recorder: Any, whole: Whole, first: int) -> bool:
    """Whether the calls of a record from ``first`` on are those of another one."""
    kinds, leaves, last = recorder.kinds, recorder.leaves, len(recorder.kinds)
    if not first:
        return bool(kinds == whole.kinds[:last] and leaves == whole.leaves[:last])
    return bool(kinds[first:] == whole.kinds[first:last] and leaves[first:] == whole.leaves[first:last])


def _why_not(recorder: Any) -> str:
    """Why a record that reads values may not run ahead, in words; empty: it may."""
    if Changes(recorder.kinds, recorder.leaves).written or any(k.draws or k.raises for k in set(recorder.kinds)):
        return "it reads values, and draws random numbers or changes tensors from outside"
    return "" if runs_of(recorder.kinds, recorder.leaves) else "it reads values outside of a loop"


def _last_readers(recorder: Any, first: int) -> dict[int, list[int]]:
    """The addresses that are read last by each call, from ``first`` on."""
    last: dict[int, int] = {}
    for number in range(first, len(recorder.kinds)):
        leaves = zip(recorder.leaves[number], recorder.kinds[number].tensors, strict=True)
        last.update((a, number) for a, is_tensor in leaves if is_tensor and a >= 0)
    found: dict[int, list[int]] = {}
    for address, number in last.items():
        found.setdefault(number, []).append(address)
    return found
