"""How the calls of a function are made: replayed, recorded, or as they are. This is decided here alone.

A function is recorded, and calls like earlier ones are replayed. What recording merges too little of runs as it is, and
one warning says why: where less than half of the calls had a plan, three times in a row; thirty times in a row, if
other calls of the function had one. So do calls without gradients that are clearly faster as they are.

A call of new sizes may need a graph of its own, which is not made for a single call. Where three calls of new sizes in
a row had none, calls of other new sizes run as they are, and are recorded when their sizes come again.

Graphs take seconds to make. A function whose graphs have cost more than its calls can pay for makes no more until they
can: calls that would need another one, as those of other sizes may, run as they are.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from snnfast._core import backend as _backend
from snnfast._core.pytorch import (
    current_recorder,
    function_modes_see,
    in_reentrant_checkpoint,
    saved_tensors_are_hooked,
)
from snnfast.compiler.history import AS_IT_IS, ONE_BY_ONE, RECORDED, REPLAYED, Status
from snnfast.compiler.record.recorded import Recorded, may_record, runs_without_lock
from snnfast.compiler.record.recorder import Recorder

_PATIENCE = 3
"""So many calls in a row that were recorded in vain, and calls are recorded no more."""

_PATIENCE_WITH_PLANS = 30
"""So many, where other calls had a plan."""

_MOST_SHAPES = 1000
"""So many are known at a time."""

_FIRST = 4
"""So many graphs of a function are made at first: of a first call, later ones, evaluation, another batch."""

_AT_FIRST = 10.0
"""They are made until they have cost so many seconds."""

_FREE = 2.0
"""So many seconds more ones may have cost at first, with those."""

_SHARE = 0.2
"""So much of the time that its calls have taken, the graphs of a function may have cost."""

_TRIALS = 5
"""So many calls without gradients are timed recorded, and then so many as they are."""

_CLEARLY = 0.8
"""Such a part of the time of the one is clearly less."""


class _Trial:
    """Whether calls without gradients are clearly faster as they are: loops of a few small operators are.

    Calls with gradients are not tried. What they gain is in the backward pass, which nobody can time here. Nor are
    calls on a GPU, which works on when they have returned.

    Attributes:
        recorded: Seconds of calls, by the number of elements that they were given: the first sizes may differ.
        as_they_are: Likewise.
        replays: Whether the calls are replayed by now, and timed so.
    """

    def __init__(self) -> None:
        self.recorded: list[float] = []
        self.as_they_are: list[float] = []
        self.replays = False

    def add(self, tried: list[float], seconds: float, shapes: Any) -> None:
        if len(tried) < _TRIALS:
            tried.append(seconds / _elements_of(shapes))

    def replayed(self, seconds: float, shapes: Any) -> None:
        if not self.replays:
            self.replays = True
            self.recorded.clear()
            self.as_they_are.clear()
        self.add(self.recorded, seconds, shapes)

    def as_it_is(self, shapes: Any) -> float | None:
        """Seconds that a call takes as it is, if enough were tried."""
        tried = self.as_they_are
        return statistics.median(tried) * _elements_of(shapes) if len(tried) == _TRIALS else None

    @property
    def runs_as_it_is(self) -> bool:
        if len(self.recorded) < _TRIALS or len(self.as_they_are) < _TRIALS:
            return len(self.recorded) == _TRIALS
        return statistics.median(self.as_they_are) < _CLEARLY * statistics.median(self.recorded)


class _Account:
    """The seconds that graphs have cost, and those that calls have taken."""

    def __init__(self) -> None:
        self.cost = self.taken = 0.0
        self.graphs = 0

    @property
    def allows(self) -> bool:
        """Whether another graph may be made."""
        free = _AT_FIRST if self.graphs < _FIRST else _FREE
        return self.cost <= max(free, _SHARE * self.taken)

    def __str__(self) -> str:
        return f"its graphs took {self.cost:.0f} s to make, and its calls {self.taken:.0f} s"


class Choice:
    """A function whose calls are replayed or recorded, or made as they are.

    Args:
        function: The function.
        name: Its name in messages.
        left: The layers of the network that could not be converted, and why.
        replays: Whether calls that are known run without the function.

    Attributes:
        status: What became of the calls so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        left: dict[str, str],
        replays: bool = False,
    ) -> None:
        self._function, self._name, self._left = function, name, left
        self._recorded = Recorded(function, name, replays)
        self._in_vain: dict[bool, int] = {True: 0, False: 0}  # with gradients, and without
        self._patience = {True: _PATIENCE, False: _PATIENCE}
        self._trials: dict[Any, _Trial] = {}  # of shapes without the first size, which may be the number of steps
        self._as_it_is: set[bool] = set()
        self.status = Status(name)
        self._account = _Account()
        self._graphs: dict[Any, bool] = {}  # whether calls of shapes have a graph
        self._without = {True: 0, False: 0}  # so many new shapes in a row had none, with gradients, and without
        self._reason = ""  # of the last one
        self._told: set[bool] = set()  # whether graphs might be made when new sizes ran as they are, and it was said

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        grad = torch.is_grad_enabled()
        # It may be a part of another function that is compiled or recorded.
        if grad in self._as_it_is or is_dynamo_compiling() or current_recorder() is not None:
            return self._function(*args, **kwargs)
        return self._choose(grad, args, kwargs)

    def _choose(self, grad: bool, args: Any, kwargs: Any) -> Any:
        if not may_record():
            if runs_without_lock():
                self._warn(
                    "runs as it is on a free-threaded Python; PYTHON_GIL=1 turns the lock on that a recorder needs"
                )
            elif function_modes_see():
                self._warn("runs as it is under a TorchFunctionMode, which sees each call")
            elif saved_tensors_are_hooked() or in_reentrant_checkpoint():
                self._warn("runs as it is in a checkpoint, and under other hooks of saved tensors")
            self.status.settle(AS_IT_IS, grad)
            return self._function(*args, **kwargs)
        shapes = (grad, *_shapes_of(args), *_shapes_of(kwargs.values()))
        allowed = self._account.allows
        if self._waits(shapes, allowed):
            self._keep(shapes, False)
            return self._timed(self._function, grad, args, kwargs)
        trial = self._trial_of(shapes) if not grad and _on_cpu(args, kwargs) else None
        start = time.perf_counter()
        if trial is not None and trial.runs_as_it_is:
            result = self._function(*args, **kwargs)
            seconds = time.perf_counter() - start
            trial.add(trial.as_they_are, seconds, shapes)
            self.status.add(AS_IT_IS, grad, seconds)
            return result
        self._recorded.makes = allowed
        result, recorder = self._recorded(*args, **kwargs)
        seconds = time.perf_counter() - start
        as_it_is = None if trial is None else trial.as_it_is(shapes)
        if recorder is None:
            self._account.taken += seconds
            self.status.add(REPLAYED, grad, seconds, as_it_is)
            if trial is not None:
                trial.replayed(seconds, shapes)
            return result
        self._account.graphs += recorder.graphs
        self._account.cost += recorder.making
        self._account.taken += seconds - recorder.making
        way = RECORDED if recorder.pays else ONE_BY_ONE
        self.status.add(way, grad, seconds - recorder.making, as_it_is)
        self.status.graphs, self.status.making = self._account.graphs, self._account.cost
        self._enter(shapes, recorder)
        if recorder.is_denied:
            return result
        if trial is not None and recorder.pays and not recorder.learns and not trial.replays:
            trial.add(trial.recorded, seconds, shapes)
        self._judge(recorder, grad)
        return result

    def _waits(self, shapes: Any, may_make: bool) -> bool:
        """Whether a call runs as it is, because its sizes are new, or because their graph may not be made."""
        is_new = shapes not in self._graphs and self._without[shapes[0]] >= _PATIENCE
        if not is_new and (may_make or self._graphs.get(shapes, True)):
            return False
        why = f"until they come again: {self._reason}" if may_make else f"until graphs of them pay: {self._account}"
        if may_make not in self._told:
            self._told.add(may_make)
            self._warn(f"runs as it is where its sizes are new, {why}. snnfast.explain says why they need other graphs")
        return True

    def _enter(self, shapes: Any, recorder: Recorder) -> None:
        """Enter whether a call that was recorded had a graph."""
        grad = shapes[0]
        if recorder.pays and not self._graphs.get(shapes):
            self._without[grad] = 0
        elif shapes not in self._graphs and not recorder.asks_again:
            self._without[grad] += 1
            self._reason = next(iter(recorder.reasons), "")
        self._keep(shapes, recorder.pays)

    def _keep(self, shapes: Any, has_graph: bool) -> None:
        if len(self._graphs) >= _MOST_SHAPES:
            self._graphs.clear()
        self._graphs[shapes] = has_graph

    def _timed(self, function: Callable[..., Any], grad: bool, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - start
        self._account.taken += seconds
        self.status.add(AS_IT_IS, grad, seconds)
        return result

    def _trial_of(self, shapes: Any) -> _Trial:
        if len(self._trials) >= _MOST_SHAPES:
            self._trials.clear()
        return self._trials.setdefault(tuple(shape and shape[1:] for shape in shapes[1:]), _Trial())

    def _judge(self, recorder: Recorder, grad: bool) -> None:
        if recorder.pays:
            self._in_vain[grad], self._patience[grad] = 0, _PATIENCE_WITH_PLANS
            return
        if recorder.asks_again:  # the next call shows whether there is a plan
            return
        self._in_vain[grad] += 1
        if self._in_vain[grad] >= self._patience[grad]:
            self._run_as_it_is(grad)
            left = [f"{layer or 'it'}: {reason}" for layer, reason in self._left.items()]
            reasons = list(dict.fromkeys([*left, *recorder.reasons]))
            self._warn(f"runs as it is, without a recorder: {'; '.join(reasons[:3])}")

    def _run_as_it_is(self, *grads: bool) -> None:
        """Let calls run as they are from now on: those with gradients, those without, or both."""
        for grad in grads:
            self._as_it_is.add(grad)
            self.status.settle(AS_IT_IS, grad)

    def _warn(self, how: str) -> None:
        if how not in self.status.why:
            self.status.why.append(how)
        _backend.warn_once(f"snnfast: {self._name} {how}")


def _elements_of(shapes: Any) -> int:
    """How many elements a call is given, at least 1."""
    return max(1, sum(int(math.prod(shape)) for shape in shapes[1:] if shape is not None))


def _on_cpu(args: Any, kwargs: Any) -> bool:
    return all(a.device.type == "cpu" for a in (*args, *kwargs.values()) if isinstance(a, Tensor))


def _shapes_of(args: Any) -> list[Any]:
    return [tuple(a.shape) if isinstance(a, Tensor) else None for a in args]
