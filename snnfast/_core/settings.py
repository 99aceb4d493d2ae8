"""Settings that a statement, a ``with`` block or a decorator chooses; spikes as bits; the memory that is kept."""

import functools
import itertools
import numbers
import operator
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from snnfast._core import ops

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Made(Generic[T]):
    """A choice that somebody made.

    Attributes:
        number: The later it was made, the larger.
        entered: It is that of a block, not of a statement.
        ended: The block was left.
        before: The choice that held before it, known once it has ended.
    """

    def __init__(self, value: T, number: int) -> None:
        self.value, self.number = value, number
        self.entered = self.ended = False
        self.before: _Made[T] | None = None


class Setting(Generic[T]):
    """A setting with a value for the whole process, and one for each thread.

    Attributes:
        value: The choice that was made last, in any thread, and holds. ``torch.compile`` guards such an attribute,
            which it does not do with a ContextVar in every supported version. The threads of a backward pass, which
            may compute forward passes again (activation checkpointing), see it; they have no context of their own.
        own: The choice of the present thread; ``None``: it has made none.
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
    """The result of the functions ``use_*``. It takes effect when it is made, like ``torch.set_grad_enabled``.

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


# ---- spikes as bits

_EVENTS = {"": True, "1": True, "0": False}


def _events_of_environment() -> bool:
    given = os.environ.get("SNNFAST_EVENTS", "")
    if given not in _EVENTS:
        raise ValueError(f"SNNFAST_EVENTS: expected 0 or 1, got {given!r}")
    return _EVENTS[given]


events = Setting("events", _events_of_environment())
"""Whether spikes go to the linear layer behind them as bits."""


def use_events(wanted: bool) -> Choice[bool]:
    """Choose, for all threads, whether products and convolutions of spikes have kernels of their own, or are PyTorch's.

    As a statement it holds from now on. As a context or as a decorator it holds inside the block or the function.

    If only a linear layer reads the spikes of a neuron layer, the CPU kernels can pass them on as one bit each. This
    happens in :class:`MultiStep`, in a compiled loop, and with the ``weight`` of :func:`snnfast.functional.lif`. The
    product then visits only the neurons that spiked, and neither the spikes nor their gradient are ever written as
    numbers. Calls of fewer than 256 rows (samples times steps) use numbers. Where a large linear layer is given few
    spikes as numbers, such as rate-coded images, :class:`MultiStep` and a compiled loop pack them. Convolutions of few
    spikes in :class:`MultiStep` also visit only the spikes, and large ones of many are computed by Winograd's method.

    Results are the same as with numbers, up to the order of the sums. There is one exception: a weight or a gradient
    that is not finite has no effect where there is no spike. With numbers, its product with 0 would be NaN.

    Args:
        wanted: ``True``: bits, the default. ``False``: write the spikes as numbers, and use PyTorch's dense product
            and its convolutions. The environment variable ``SNNFAST_EVENTS=0`` makes this the first choice.

    Raises:
        TypeError: ``wanted`` is not a bool.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(snnfast.Leaky(0.9), nn.Linear(100, 10))
        >>> with snnfast.use_events(False):
        ...     out = net(torch.rand(25, 4, 100))
    """
    return Choice(events, check_flag("wanted", wanted))


# ---- the memory that large CPU outputs leave to the next ones


def empty_cache() -> None:
    """Return the memory to the system that is kept for later CPU outputs.

    Fresh memory costs page faults, which take several times as long as the kernel that writes to it. So snnfast keeps
    the memory of freed outputs of 128 KiB or more for later outputs. How much it keeps follows the demand. Together
    with the outputs in use, it is at most twice the recent peak of the memory in use, but up to 64 MiB may always be
    kept. It is never more than 8 GiB, nor more than a quarter of the machine's memory. :func:`set_cache_limit` sets
    another limit, as for a container with little memory or under ``ulimit -v``.

    PyTorch's own CPU tensors come from the C library. With glibc, snnfast lets that keep up to 2 GiB, or an eighth of
    the machine's memory, from the first large output on. ``MALLOC_TRIM_THRESHOLD_`` chooses otherwise.

    Without the compiled extension, this function does nothing. A tensor in such memory can't be resized in place
    (``resize_``, ``untyped_storage().resize_``).

    Example::

        >>> import snnfast
        >>> snnfast.empty_cache()
    """
    if ops.extension is not None:
        ops.extension.pool_clear()


def set_cache_limit(limit: int | None) -> None:
    """Keep at most ``limit`` bytes of freed CPU outputs for later ones, in the whole process.

    The C library, from which PyTorch's own tensors come, keeps at most as much at the end of its heap.

    This replaces the default limit, which :func:`empty_cache` describes: the demand, the memory of the machine and
    limits of address space then play no role. Without the compiled extension, it has no effect.

    Args:
        limit: Number of bytes. 0 keeps nothing. ``None`` is the default limit.

    Raises:
        TypeError: ``limit`` is not an int.
        ValueError: ``limit`` is negative, or 2**64 or more.

    Example::

        >>> import snnfast
        >>> snnfast.set_cache_limit(1 << 30)
        >>> snnfast.set_cache_limit(None)
    """
    if limit is not None:
        if isinstance(limit, bool):
            raise TypeError("limit: expected an int or None, got bool")
        try:
            limit = operator.index(limit)
        except TypeError:
            raise TypeError(f"limit: expected an int or None, got {type(limit).__name__}") from None
        if not 0 <= limit < 2**64:
            raise ValueError(f"limit: expected 0 or more bytes, and less than 2**64, got {limit}")
    if ops.extension is not None:
        ops.extension.pool_set_idle_limit(limit)
