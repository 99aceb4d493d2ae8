"""A function whose calls are recorded."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from snnfast._core import backend as _backend
from snnfast._core.pytorch import current_recorder, saved_tensors_are_hooked, transforms_are_active
from snnfast.compiler.backend import merge
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.recording.form import Form, UnknownFormError
from snnfast.compiler.recording.functions import hook
from snnfast.compiler.recording.kinds import Kinds
from snnfast.compiler.recording.modes import modes
from snnfast.compiler.recording.plans import Plan, write
from snnfast.compiler.recording.recorder import Recorder
from snnfast.compiler.report import Explanation

_PATIENCE = 3
"""So many calls in a row without a plan, and the function is recorded no more."""

_MOST_PLANS = 16
"""So many forms have a plan. Others run call by call."""


def run_recorded(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function that is recorded. Its frame is where the lines of the program begin."""
    return function(*args, **kwargs)


@dataclass
class _Known:
    """Kinds and plans of calls under the same autocast, inference mode, default dtype and default device.

    Attributes:
        plans: By the keys of forms. Where a form has none, the reason.
    """

    kinds: Kinds = field(default_factory=Kinds)
    plans: dict[Any, Plan | str] = field(default_factory=dict)


class Recorded:
    """A function whose calls are recorded, with the plans of what was recorded.

    Args:
        function: It is called at every call.
        name: Its name in messages.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name = function, name
        self._known: dict[Any, _Known] = {}
        self._learns = True  # the next call writes its lines down
        self._in_vain = 0  # so many calls in a row had no plan
        self._explained: Explanation | None = None

    @property
    def plans(self) -> list[Plan | str]:
        """The plans of all forms; where one has none, the reason."""
        return [plan for known in self._known.values() for plan in known.plans.values()]

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Make one call, and tell what was recorded and what becomes of it."""
        self._explained, self._learns = Explanation([]), True
        try:
            self(*args, **kwargs)
            return self._explained
        finally:
            self._explained = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._in_vain >= _PATIENCE or _is_unknown():
            return self._function(*args, **kwargs)
        surroundings = modes(), torch.get_default_dtype(), torch.get_default_device()
        known = self._known.setdefault(surroundings, _Known())
        learns, self._learns = self._learns, False
        recorder = Recorder(known.kinds, lambda recorder, alive: self._run(known, recorder, alive), learns)
        with hook:
            try:
                with recorder:
                    result = run_recorded(self._function, args, kwargs)
            except BaseException:
                recorder.flush()  # buffers and random numbers are as the loop leaves them
                raise
            recorder.flush(as_it_stands=False)
        self._look_back(recorder)
        return result

    def _look_back(self, recorder: Recorder) -> None:
        if self._explained is not None:
            self._explained.notes += dict.fromkeys(recorder.reasons)
        if recorder.has_plan or self._learns:
            self._in_vain = 0
            return
        self._in_vain += 1
        if self._in_vain == _PATIENCE:
            reasons = "; ".join(list(dict.fromkeys(recorder.reasons))[:3])
            _backend.warn_once(f"snnfast: {self._name} runs as it is, without a recorder: {reasons}")

    # ---- plans

    def _run(self, known: _Known, recorder: Recorder, alive: list[int]) -> bool:
        """Run what was recorded by its plan. Returns whether it has one."""
        try:
            form = Form(recorder, alive)
        except UnknownFormError as error:
            recorder.reasons.append(str(error))
            return False
        with torch.set_grad_enabled(any(call.grad for call in form.calls)):  # so that copies of results are recorded
            if self._explained is not None:
                self._tell(form, known, recorder)
            plan = self._plan_of(form, known, recorder)
            if isinstance(plan, str):
                recorder.reasons.append(plan)
                return False
            found = plan(form, recorder.given)
        recorder.deliver(alive, found)
        return True

    def _plan_of(self, form: Form, known: _Known, recorder: Recorder) -> Plan | str:
        """The plan of a form, or why there is none."""
        of_these = form.key, tuple(form.steps)
        plan = known.plans.get(form.key) or known.plans.get(of_these)
        if plan is None and len(known.plans) >= _MOST_PLANS:
            return f"there are {_MOST_PLANS} other forms of it already"
        if plan is None and not recorder.learns:
            self._learns = True
            return "not seen before: the next call asks for its lines"
        if plan is None:
            plan = _plan(form, known.kinds, recorder)
            is_general = isinstance(plan, str) or plan.is_general
            known.plans[form.key if is_general else of_these] = plan
        return plan

    def _tell(self, form: Form, known: _Known, recorder: Recorder) -> None:
        """Enter what becomes of a record, with its own number of steps."""
        assert self._explained is not None
        loops = ", ".join(f"{run.steps} x {run.period}" for run in form.runs)
        self._explained.notes.append(f"recorded {len(form.kinds)} calls; in loops, steps x calls: {loops}")
        try:
            _, report = merge(write(form, form.steps, known.kinds, recorder.lines))
        except UnknownFormError as error:
            self._explained.notes.append(str(error))
            return
        self._explained.graphs.append(report)
        plan = self._plan_of(form, known, recorder)
        if isinstance(plan, Plan):
            self._explained.notes.append(
                "its graph is for any number of steps" if plan.is_general else f"for these steps alone: {plan.limits}"
            )


def _is_unknown() -> bool:
    """Whether a call is made where nothing is recorded.

    It is traced, transformed, recorded, or in a checkpoint; or the reference is chosen, which merges nothing.
    """
    return (
        torch.compiler.is_compiling()
        or _backend.current_backend() == "reference"
        or current_recorder() is not None
        or saved_tensors_are_hooked()
        or transforms_are_active()
        or bool(torch._C._len_torch_dispatch_stack())
    )


def _plan(form: Form, kinds: Kinds, recorder: Recorder) -> Plan | str:
    try:
        return Plan(form, kinds, recorder.lines)
    except (UnknownFormError, RefusedError) as error:
        return str(error)
    except Exception:
        problem = f"a fault of snnfast: {traceback.format_exc()}"
        _backend.warn_once(
            f"snnfast: a recorded loop runs step by step, because of {problem}; please report it with the program"
        )
        return problem
