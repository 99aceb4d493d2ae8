"""A function whose calls are recorded."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from snnfast._core import backend as _backend
from snnfast._core.pytorch import (
    current_graph_task_id,
    current_recorder,
    function_modes_see,
    in_reentrant_checkpoint,
    is_eager_forced,
    saved_tensors_are_hooked,
    transforms_are_active,
)
from snnfast.compiler import stages, verify
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.merge import explained
from snnfast.compiler.record.ahead import Ahead
from snnfast.compiler.record.changes import Changes
from snnfast.compiler.record.form import Form, UnknownFormError
from snnfast.compiler.record.functions import hook
from snnfast.compiler.record.kinds import Kinds
from snnfast.compiler.record.lines import Lines, lines_of
from snnfast.compiler.record.modes import modes
from snnfast.compiler.record.plans import Plan, plan_for_any_steps, plan_for_its_steps, write
from snnfast.compiler.record.recorder import Recorder
from snnfast.compiler.record.replay import Ran, Replays
from snnfast.compiler.record.twins import Told, Twins
from snnfast.compiler.report import ITS_STEPS_ALONE, Explanation

_MOST_FORMS = 16
"""So many forms are kept."""

_MOST_PLANS = 16
"""So many graphs are made. Other forms run call by call."""

_MOST_BETWEEN = 16
"""So many calls at most write their lines down for those that asked for them."""

_MOST_KEYS = 64
"""So many keys of forms are known, with a plan or without one. The oldest is forgotten first."""


def run_recorded(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function that is recorded. Its frame is where the lines of the program begin."""
    return function(*args, **kwargs)


class _NoPlan(NamedTuple):
    """Why a form has no plan.

    Attributes:
        is_refused: Nothing of it is merged, for any number of steps.
    """

    reason: str
    is_refused: bool = False


class _Family:
    """Forms that differ by numbers alone.

    Attributes:
        first: The first one, or a later one that could not be its twin.
        any_steps: Their graphs are for any number of steps.
        limits: Why a graph is not for all of them, or why it is for its number of steps alone.
        twins: The form for any size of a batch, and its plan, if there is one.
        tries: There may be one; it is looked for when another form has come.
    """

    def __init__(self, first: Form) -> None:
        self.first, self.any_steps = first, first.is_general
        self.limits = "" if first.is_general else "few steps"
        self.twins: tuple[Twins, Plan] | None = None
        self.tries = True

    def is_like(self, form: Form) -> bool:
        """Whether another form would have a graph for its steps alone, too."""
        return not self.any_steps and (self.first.is_general or not form.is_general)


class _Known:
    """Kinds and plans of calls under the same autocast, inference mode, default dtype and default device.

    Attributes:
        plans: By the keys of forms. Where a form has none, the reason.
        families: By the structures of forms.
        seen: Keys of forms that have come once, and have no plan.
        asking: Those of which a plan is to be made, when they come with their lines.
        awaits: Whether a call writes its lines down in case it is one of these.
        forms: The last form of calls of these kinds; ``None`` where one has come only once.
        replays: Calls that run without the code of the function.
        ahead: Calls that read values, with gradients and without.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.kinds = Kinds()
        self.replays = Replays(function)
        self.plans: dict[Any, Plan | _NoPlan] = {}
        self.families: dict[Any, _Family] = {}
        self.seen: dict[Any, None] = {}
        self.asking: set[Any] = set()
        self.awaits = False
        self.forms: dict[int, Form | None] = {}
        self.ahead = {True: Ahead(), False: Ahead()}

    def form_of(self, recorder: Recorder, alive: list[int]) -> Form:
        """The form of a record. Most records are those of an earlier call, which is seen sooner than a form is made.

        A form keeps the record, so that of a number of steps that does not come again is not kept.
        """
        key = hash(tuple(recorder.kinds))
        form = self.forms.get(key)
        if form is None or not form.is_of(recorder, alive):
            form = Form(recorder, alive)
            if key not in self.forms and len(self.forms) >= _MOST_FORMS:
                self.forms.clear()
            self.forms[key] = form if key in self.forms else None
        return form


class Observer(Protocol):
    """An object that is told of a call that is recorded, and may make it again."""

    def look(self, is_explained: bool) -> None:
        """The call begins."""

    def watched(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the call."""

    def end(self, result: list[Any], recorder: Recorder) -> None:
        """The function has returned, and what was recorded has not run yet."""

    def keep(self, ran: Ran | None) -> None:
        """The record has run; ``None``: not by one plan alone."""


class Recorded:
    """A function whose calls are recorded, with the plans of what was recorded.

    Args:
        function: It is called at every call that is not known.
        name: Its name in messages.
        replays: Whether calls that are known run without it.
        lines: Tells the lines of the program that a frame runs.

    Attributes:
        makes: Whether graphs may be made.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        replays: bool = False,
        lines: Callable[[FrameType | None], Lines] = lines_of,
    ) -> None:
        self._function, self._name, self._replays, self._lines = function, name, replays, lines
        self.makes = True
        self._known: dict[Any, _Known] = {}
        # So many calls to come, with gradients or without, write their lines down. The first of them may be any call.
        self._learns = {True: _MOST_BETWEEN, False: _MOST_BETWEEN}
        self._explained: Explanation | None = None

    @property
    def plans(self) -> list[Plan | str]:
        """The plans of all forms; where one has none, the reason."""
        plans = [plan for known in self._known.values() for plan in known.plans.values()]
        return [plan.reason if isinstance(plan, _NoPlan) else plan for plan in plans]

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Make one call. Returns what was recorded and what becomes of it."""
        self._explained = Explanation([])
        try:
            with stages.kept():
                _, recorder = self(*args, **kwargs)
                if recorder is not None and recorder.asks_again:  # it reads values, and the second call runs ahead
                    self._explained = Explanation([])
                    _, recorder = self(*args, **kwargs)
            assert recorder is not None
            told = {report.refused for report in self._explained.graphs}
            self._explained.notes += [reason for reason in dict.fromkeys(recorder.reasons) if reason not in told]
            if recorder.pays:
                (known,) = self._known.values()
                why = known.replays.why_not(args, kwargs, recorder)
                self._explained.notes.append(
                    f"your code runs at each call: {why}" if why else "a call like it runs without your code"
                )
            return self._explained
        finally:
            self._explained = None

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Recorder | None]:
        """Call the function. Returns its result, and what recorded it; ``None``: it is a call that is known."""
        known = self._known_here()
        attempt = None
        if (self._replays or self._explained is not None) and not verify.is_wanted():
            attempt = known.replays.begin(args, kwargs)
        if attempt is not None and (found := known.replays.replay(attempt)) is not None:
            return found[0], None
        return self._record(known, attempt, args, kwargs)

    def record(self, observer: "Observer", args: Any) -> tuple[Any, Recorder]:
        """Call the function, though the call may be known. Returns its result, and what recorded it."""
        return self._record(self._known_here(), observer, args, {})

    def _known_here(self) -> _Known:
        surroundings = modes(), torch.get_default_dtype(), torch.get_default_device()
        known = self._known.get(surroundings)
        if known is None:
            known = self._known[surroundings] = _Known(self._function)
        return known

    def _record(self, known: _Known, observer: "Observer | None", args: Any, kwargs: Any) -> tuple[Any, Recorder]:
        known.kinds.trim()
        grad = torch.is_grad_enabled()
        left, self._learns[grad] = self._learns[grad], 0
        learns = left > 0 or self._explained is not None or verify.is_wanted()
        known.awaits = 0 < left < _MOST_BETWEEN
        ahead = known.ahead[grad]
        run = lambda recorder, alive: self._run(known, recorder, alive)  # noqa: E731
        recorder = Recorder(known.kinds, run, learns, ahead, self._lines)
        if observer is not None:
            observer.look(self._explained is not None)
        with hook:
            try:
                with recorder, contextlib.nullcontext() if observer is None else observer.watched():
                    result = [run_recorded(self._function, args, kwargs)]
            except BaseException:
                recorder.flush()  # buffers and random numbers are as the loop leaves them
                raise
            if observer is not None:
                observer.end(result, recorder)
            recorder.is_over = True
            recorder.flush(as_it_stands=False)
        ran, recorder.ran, recorder.constants = recorder.ran, None, {}  # spare results hold the recorder
        if observer is not None:
            observer.keep(ran)
        # Between a call that asks for its lines and the next one like it may be others: values of an attribute in turn.
        if recorder.asks_again:
            self._learns[grad] = _MOST_BETWEEN
        elif known.asking:
            self._learns[grad] = max(left - 1, 0)
        if not self._learns[grad]:
            known.asking.clear()
        return result[0], recorder

    # ---- plans

    def _run(self, known: _Known, recorder: Recorder, alive: list[int]) -> list[Tensor] | None:
        """Run what was recorded by its plan. Returns the results, or ``None`` if it has none."""
        start = time.perf_counter()
        grad = any(kind.grad for kind in recorder.kinds)  # so that copies of results are recorded
        with torch.set_grad_enabled(grad):
            with known.kinds.lock:
                found_plan = self._found(known, recorder, alive)
            if found_plan is None:
                return None
            form, graph = found_plan
            recorder.seconds += time.perf_counter() - start
            state = Changes(recorder.kinds, recorder.leaves).state_of(recorder.given)
            try:
                found = graph(*form.inputs_of(recorder.given))
            except Exception as error:
                if verify.is_wanted() or not state.put_back():
                    raise
                recorder.failed = f"{type(error).__name__}: {error}"
                return None
        recorder.steps += form.steps
        recorder.has_run(form, graph, alive)
        return found

    def _found(
        self, known: _Known, recorder: Recorder, alive: list[int]
    ) -> tuple[Form, Callable[..., list[Tensor]]] | None:
        """The form of a record and the graph that runs it; ``None``: there is none."""
        try:
            form = known.form_of(recorder, alive)
            if not form.has_loop and not recorder.is_whole:
                raise UnknownFormError("no loop")
        except UnknownFormError as error:
            recorder.reasons.append(str(error))
            return None
        if self._explained is not None:
            self._tell(form, known, recorder)
        start = time.perf_counter()
        plan = self._plan_of(form, known, recorder)
        recorder.making += time.perf_counter() - start
        if isinstance(plan, _NoPlan):
            recorder.reasons.append(plan.reason)
            return None
        graph: Callable[..., list[Tensor]] = plan.graph_of(form)
        if verify.is_wanted():
            loop = write(form, form.steps, known.kinds, recorder.lines)
            graph = verify.verified(loop, graph, plan.report)
        return form, graph

    def _plan_of(self, form: Form, known: _Known, recorder: Recorder) -> Plan | _NoPlan:
        """The plan of a form, or why there is none."""
        keys = form.key, (form.key, tuple(form.steps))
        plan = known.plans.get(keys[0]) or known.plans.get(keys[1])
        if plan is not None:
            return plan
        told = Told(form)
        family = known.families.get(told.structure)
        if family is not None and family.twins is not None and (batch := family.twins[0].fits(told, form)) is not None:
            plan = family.twins[1]._replace(batch=(batch,))
            _enter(known.plans, keys[not plan.is_general], plan)
            return plan
        if not self.makes:
            recorder.is_denied = True
            return _NoPlan("its graphs have cost more than its calls can pay for")
        # A graph that may be for this call alone is made when it comes again.
        alone = family or next((other for other in known.families.values() if other.is_like(form)), None)
        if len({id(plan.graph) for plan in known.plans.values() if isinstance(plan, Plan)}) >= _MOST_PLANS:
            return _NoPlan(f"there are {_MOST_PLANS} graphs of it already")
        twins = None if family is None else self._twins(form, family)
        if alone is not None and twins is None and (key := keys[not alone.any_steps]) not in known.seen:
            _enter(known.seen, key, None)
            return _NoPlan(f"another call like it needs a graph of its own: {alone.limits}")
        if not recorder.learns or (known.awaits and keys[1] not in known.asking):
            recorder.asks_again = True
            known.asking.add(keys[1])
            return _NoPlan("not seen before: the next call asks for its lines")
        recorder.graphs += 1
        known.asking.discard(keys[1])
        if family is None:
            family = _Family(form)
            _enter(known.families, told.structure, family)
        if twins is not None:
            family.tries = False
            plan = _made(plan_for_any_steps, twins, known.kinds, recorder)
            if isinstance(plan, _NoPlan):
                family.limits = family.limits or plan.reason
                return self._plan_of(form, known, recorder)
            plan = plan._replace(batch=(twins.steps[-1],))
            family.twins = twins, plan
        else:
            plan = self._plan_of_its_own(form, family, known, recorder)
        _enter(known.plans, keys[not (isinstance(plan, _NoPlan) or plan.is_general)], plan)
        return plan

    def _twins(self, form: Form, family: _Family) -> Twins | None:
        """The form for any size of a batch, if it may have a plan."""
        if not family.tries:
            return None
        try:
            return Twins(form, family.first, family.any_steps)
        except UnknownFormError as error:
            family.limits, family.first = family.limits or str(error), form  # a batch of one sample tells nothing
            return None

    def _plan_of_its_own(self, form: Form, family: _Family, known: _Known, recorder: Recorder) -> Plan | _NoPlan:
        if family.any_steps:
            plan = _made(plan_for_any_steps, form, known.kinds, recorder)
            if isinstance(plan, Plan) or plan.is_refused:
                return plan
            family.any_steps, family.limits = False, plan.reason
        return _made(plan_for_its_steps, form, known.kinds, recorder)

    def _tell(self, form: Form, known: _Known, recorder: Recorder) -> None:
        """Enter what becomes of a record, with its own number of steps."""
        assert self._explained is not None
        loops = ", ".join(f"{run.steps} x {run.period}" for run in form.runs) or "none"
        self._explained.notes.append(f"recorded {len(form.kinds)} calls; in loops, steps x calls: {loops}")
        try:
            report = explained(write(form, form.steps, known.kinds, recorder.lines))
        except UnknownFormError as error:
            self._explained.notes.append(str(error))
            return
        self._explained.graphs.append(report)
        plan = self._plan_of(form, known, recorder)
        if isinstance(plan, Plan):
            family = known.families[Told(form).structure]
            self._explained.notes.append(
                "its graph is for any number of steps" if plan.is_general else f"{ITS_STEPS_ALONE}{family.limits}"
            )


def runs_without_lock() -> bool:
    """Whether Python is free-threaded: other threads may then change the counts of references that a recorder reads."""
    return hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()


def may_record() -> bool:
    """Whether calls can be recorded here.

    They are not where they are traced, transformed, recorded, in a checkpoint or in a backward pass; where a mode of
    the caller sees them, which would see the calls of the graph, too; where PyTorch is told to compile nothing; where
    the reference is chosen, which merges nothing; or where Python runs without its lock.
    """
    return not (
        is_dynamo_compiling()
        or runs_without_lock()
        or function_modes_see()
        or _backend.current_backend() == "reference"
        or current_recorder() is not None
        or saved_tensors_are_hooked()
        or transforms_are_active()
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._get_tracing_state() is not None
        or current_graph_task_id() != -1
        or is_eager_forced()
        or in_reentrant_checkpoint()
    )


def _enter(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Enter a key, and forget the oldest one if there are too many."""
    if len(known) >= _MOST_KEYS and key not in known:
        known.pop(next(iter(known)), None)
    known[key] = value


def _made(
    make: Callable[[Form, Kinds, Sequence[Lines]], Plan], form: Form, kinds: Kinds, recorder: Recorder
) -> Plan | _NoPlan:
    try:
        plan = make(form, kinds, recorder.lines)
    except UnknownFormError as error:
        return _NoPlan(str(error))
    except RefusedError as error:
        return _NoPlan(str(error), is_refused=True)
    except Exception:
        problem = traceback.format_exc()
        _backend.warn_once(
            f"snnfast: a recorded loop runs step by step, because of a fault of snnfast: {problem}; please report it "
            "with the program"
        )
        return _NoPlan(f"a fault of snnfast: {problem}")
    for message in plan.report.warnings:
        _backend.warn_once(message)
    return plan
