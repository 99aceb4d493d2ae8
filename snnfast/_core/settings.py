"""Settings that a statement, a ``with`` block or a decorator chooses."""

import functools
import itertools
import numbers
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Made(Generic[T]):
    """A choice that somebody made.

    Attributes:
        number: The later it was made, the larger.
        entered: It is that of a block, not of a statement.
        ended: The block was left.
        before: What held before it, known once it has ended.
    """

    def __init__(self, value: T, number: int) -> None:
        self.value, self.number = value, number
        self.entered = self.ended = False
        self.before: _Made[T] | None = None


class Setting(Generic[T]):
    """A setting with a value for the whole process, and one for each thread.

    Attributes:
        value: What was chosen last, in whatever thread, and still holds. ``torch.compile`` guards such an attribute,
            which it does not do with a ContextVar in every supported version. The threads of a backward pass, which
            may compute forward passes again (activation checkpointing), see it; they have no context of their own.
        own: What the present thread has chosen; ``None``: nothing.
    """

    def __init__(self, name: str, default: T) -> None:
        self.default = self.value = default
        self.own: ContextVar[_Made[T] | None] = ContextVar(f"snnfast_{name}", default=None)
        self._hold: set[_Made[T]] = set()  # the innermost choice of each thread
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # a finalizer may choose, too

    def choose(self, value: T) -> tuple[_Made[T], _Made[T] | None]:
        """Make a choice. Returns what :meth:`undo` takes."""
        with self._lock:
            before, made = self.own.get(), _Made(value, next(self._numbers))
            self._hold.discard(before)
            self._hold.add(made)
            self.own.set(made)
            self.value = value
        return made, before

    def undo(self, made: _Made[T], before: _Made[T] | None) -> None:
        """Return to the choice before."""
        with self._lock:
            now = self.own.get()
            self._end(made, before)
            if now is not None and not now.entered and now.number > made.number:  # a statement inside of the block
                self._end(now, before)
            if now is None or now.ended:  # else a block inside of this one is left after it
                while before is not None and before.ended:
                    before = before.before
                if before is not None:
                    self._hold.add(before)
                self.own.set(before)
            self.value = max(self._hold, key=lambda m: m.number).value if self._hold else self.default

    def _end(self, made: _Made[T], before: _Made[T] | None) -> None:
        made.ended, made.before = True, before
        self._hold.discard(made)


class Choice(Generic[T]):
    """What the functions ``use_*`` return. It takes effect when it is made, like ``torch.set_grad_enabled``.

    As a context it holds inside the block, and as a decorator inside the function.
    """

    _made: tuple[_Made[T], _Made[T] | None] | None
    _outside: T

    def __init__(self, setting: Setting[T], value: T) -> None:
        self._setting, self._value = setting, value
        self._choose()

    def _choose(self) -> None:
        self._holds = True
        if torch.compiler.is_compiling():  # what is traced changes that attribute alone
            self._made = None
            self._outside, self._setting.value = self._setting.value, self._value
        else:
            self._made = self._setting.choose(self._value)

    def __enter__(self) -> None:
        if not self._holds:  # a block before has ended it
            self._choose()
        if self._made is not None:
            self._made[0].entered = True

    def __exit__(self, *exception: object) -> None:
        self._holds = False
        if self._made is None:
            self._setting.value = self._outside
        else:
            self._setting.undo(*self._made)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        self.__exit__()

        @functools.wraps(function)
        def chosen(*args: Any, **kwargs: Any) -> R:
            with Choice(self._setting, self._value):
                return function(*args, **kwargs)

        return chosen


def check_flag(name: str, value: object, *, optional: bool = False) -> bool:
    """A flag as a bool. It may be numpy's bool, or 1 or 0. If it is ``optional``, ``None`` is False."""
    if isinstance(value, bool):
        return value
    if optional and value is None:
        return False
    if isinstance(value, numbers.Integral):  # of Python or of numpy
        if value not in (0, 1):
            raise ValueError(f"{name}: expected True or False, got {value}")
        return bool(value)
    # numpy's bool, recognised without importing numpy.
    if getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "shape", None) == ():
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
