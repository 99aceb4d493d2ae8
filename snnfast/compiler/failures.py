"""Where ``torch.compile`` fails, the program runs as it is: no call raises an error that the loop does not raise."""

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snnfast._core import backend as _backend
from snnfast.compiler.backend import enter
from snnfast.compiler.calls import user_line
from snnfast.compiler.report import GraphReport


class Attempt:
    """The context of a call during which torch.compile may trace. Code that it can't trace runs as it is.

    Once the call has returned, that holds for later calls, too, where nothing fits that was compiled before. An error
    that the program itself raises decides nothing: the next call is traced anew.

    Args:
        name: The name of the network or function, as its user knows it.
        given_up: Code of it that could not be traced in a call before.
        by_another: Whether another backend is given the graphs.
    """

    def __init__(self, name: str, given_up: set[CodeType], by_another: bool = False) -> None:
        self.name, self.given_up, self.by_another = name, given_up, by_another
        self.failed: dict[CodeType, GraphReport] = {}  # in this call

    def __enter__(self) -> None:
        self._before = _attempt.set(self)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _attempt.reset(self._before)
        if kind is None:
            self.given_up.update(self.failed)
            for report in self.failed.values():
                enter(report)

    def where(self, code: CodeType) -> str:
        """The name by which the user knows a frame."""
        at = user_line([(code.co_filename, code.co_firstlineno, "")])
        if not at:  # a function of ours or of PyTorch, which calls the user's
            return self.name
        function = code.co_name.removeprefix("torch_dynamo_resume_in_").partition("_at_")[0]
        return self.name if function == self.name else f"{self.name}, in {function} ({at}),"


_attempt: ContextVar[Attempt | None] = ContextVar("snnfast_attempt", default=None)
_log = logging.getLogger("snnfast")


def is_run_by_autograd() -> bool:
    """Whether autograd itself runs the graphs of the call that is traced, and no other backend."""
    attempt = _attempt.get()
    return attempt is not None and not attempt.by_another


def keep_running() -> None:
    """Let a frame that torch.compile fails to trace run as it is, during calls in an :class:`Attempt`.

    PyTorch runs a frame as it is where it knows that it can't trace it. All other errors it raises. A frame is traced
    before any of it runs, so that nothing runs twice.
    """
    dynamo: Any = torch._dynamo
    kind, result, types = dynamo.convert_frame.ConvertFrame, dynamo.types.ConvertFrameReturn, dynamo.types
    skipped, only_run = types.FrameAction.SKIP, types.FrameAction.RUN_ONLY
    as_it_is = functools.partial(result, types.FrameExecStrategy(skipped, skipped), apply_to_code=False)
    original, counters = kind.__call__, dynamo.utils.counters

    def convert(self: Any, frame: Any, *given: Any, skip: int = 0) -> Any:
        attempt = _attempt.get()
        if attempt is None:
            return original(self, frame, *given, skip=skip + 1)
        code = frame.f_code
        if code in attempt.given_up:
            return as_it_is()
        # With numbers as nodes of the graph, some versions of PyTorch fail at x[i] where i is a tensor.
        for numbers in ({}, {"capture_scalar_outputs": False}):
            try:
                with dynamo.config.patch(numbers), _told_if_it_takes_long(attempt.where(code), frame):
                    found = original(self, frame, *given, skip=skip + 1)
            except Exception as error:
                if self._inner_convert._box.error_on_graph_break or isinstance(
                    error, dynamo.exc.FailOnRecompileLimitHit
                ):
                    raise  # what the user asked for
                stack = _stack_of(error)
                where, reason = attempt.where(code), _reason(error, stack)
                attempt.failed[code] = GraphReport(
                    where, refused=reason, warnings=[f"snnfast: {where} runs as it is: {reason}"]
                )
            else:
                if attempt.failed.pop(code, None):
                    dynamo.output_graph.GraphCompileReason("", stack)  # which enters it among the places of cuts
                    counters["frames"]["total"] -= 1  # it is not in vain
                if found.frame_exec_strategy.cur_action == only_run:
                    _warn_of_limit(attempt.where(code))
                return found
        return as_it_is()

    kind.__call__ = convert


def _stack_of(error: BaseException | None) -> list[Any]:
    """Where an error is in the user's program. PyTorch wraps some errors without it."""
    while error is not None:
        if found := getattr(error, "real_stack", None):
            return list(found)
        error = error.__context__
    return []


def _reason(error: Exception, stack: list[Any]) -> str:
    """An error of torch.compile in words: where it is in the user's program, and its first line."""
    at = user_line((f.filename, f.lineno, f.line or "") for f in reversed(stack))
    inner = getattr(error, "inner_exception", error)  # of a backend
    text = " ".join(re.split(r"\n\n|\n +Hint:", str(inner).strip())[0].split())
    what = text.rpartition(": got ")[2]  # the error of an operator, behind its arguments
    return f"torch.compile raises an error{at and f' at {at}'} ({type(inner).__name__}: {what})"


def _warn_of_limit(where: str) -> None:
    _backend.warn_once(
        f"snnfast: {where} has been compiled as often as torch._dynamo.config.recompile_limit "
        f"({torch._dynamo.config.recompile_limit}) allows. It runs as it is for what is new from now on, such as "
        "another number of steps; what was compiled stays. Pad to a few numbers of steps, or raise the limit"
    )


LONG = 5.0
"""Seconds after which a user may wonder whether the program hangs."""


@contextlib.contextmanager
def _told_if_it_takes_long(where: str, frame: Any) -> Iterator[None]:
    """Log once what is compiled, while it is: this happens in the first call, and may take minutes."""
    shapes = [list(t.shape) for t in pytree.tree_leaves(dict(frame.f_locals)) if isinstance(t, Tensor)]
    message = (
        "snnfast: compiling %s for tensors of %s. This takes longer for more time steps, and is done once for each "
        "number of steps"
    )
    timer = threading.Timer(LONG, _log.warning, (message, where, ", ".join(map(str, shapes[:3]))))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
