"""Calls of an ``autograd.Function`` are recorded as one call.

While a recorder is active, ``apply`` of a class is a function that records the call and returns what the call will
return. A program may have looked ``apply`` up before. PyTorch's C++ code, which runs it, then looks ``forward`` up in
the class, and finds such a function there.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from types import CellType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms, vmap
from torch._higher_order_ops import cond, while_loop
from torch.autograd import forward_ad
from torch.autograd.function import Function, FunctionMeta
from torch.nn.parallel import distributed
from torch.overrides import _pop_mode_temporarily
from torch.utils import _pytree as pytree
from torch.utils import checkpoint

from snnfast._core.pytorch import covered_recorder, current_recorder, transforms_are_active
from snnfast._program.seen import Moment


class Applied:
    """The call of an ``autograd.Function``.

    Attributes:
        function: The class.
        objects: Arguments by their places that no graph holds.
        moment: What the class reads beside its arguments, as it was when the call was recorded.
        computes: Whether it changes none of its arguments, draws no random numbers, and returns new tensors.
        changes: Whether it changes what it reads.
    """

    __name__ = __qualname__ = "autograd_function"

    def __init__(self, function: Any, objects: Sequence[tuple[int, Any]] = (), moment: Moment | None = None) -> None:
        self.function, self.objects, self.moment = function, objects, moment
        self.computes, self.changes = True, False

    def is_current(self) -> bool:
        """Whether what the class reads is as it was. ``False`` may be wrong."""
        return self.moment is not None and self.moment.places.are_as_they_were()

    def undo(self) -> None:
        """Undo what it has changed of what it reads."""
        if self.moment is not None:
            self.moment.places.put_back()

    def __call__(self, *args: Any) -> Any:
        given = list(args)
        for place, a in self.objects:
            given.insert(place, a)
        call = _apply.__get__(None, self.function)  # not that of a class with its own, which has called it
        if self.moment is None:
            return call(*given)
        with self.moment.places.again() as is_current:  # it runs later than the program's line
            found = call(*given)
            self.changes |= is_current and not self.is_current()
            return found


def is_object(a: Any) -> bool:
    """Whether an argument is one that no graph holds: a function, or an object that is equal to none that differs."""
    if isinstance(a, Tensor | nn.Module | type) or not hasattr(a, "__dict__"):
        return False
    kind = type(a)
    is_known_by_identity = {kind.__eq__, kind.__hash__} == {object.__eq__, object.__hash__}
    is_frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return kind is FunctionType or is_known_by_identity or is_frozen


class Alike:
    """Classes of a function that are made anew at each step, as one class for all that are alike."""

    def __init__(self) -> None:
        self._first: dict[Any, tuple[Any, list[Any]]] = {}  # by what tells one from another, with objects of identities

    def __len__(self) -> int:
        return len(self._first)

    def clear(self) -> None:
        self._first.clear()

    def first(self, cls: Any) -> Any:
        """The first class like this one; the class itself, if it is made once, or if it may change.

        They have the same code and bases, and what their methods close over is equal or the same object.
        """
        if "<locals>" not in cls.__qualname__:
            return cls
        one = Told(cls)
        if not one.stays:
            return cls
        found = self._first.get(one.key)
        if found is None or Told(found[0]).key != one.key:
            found = self._first[one.key] = cls, one.kept
        return found[0]


class Told:
    """A class, as it is told from others.

    Attributes:
        key: Equal for two that are alike.
        kept: The objects whose identities are in it.
        stays: Whether it has methods alone, and nobody else can assign a variable that they close over.
    """

    def __init__(self, cls: Any) -> None:
        self.kept: list[Any] = []
        self._cls, self._cells = cls, dict[int, list[Any]]()
        attributes = {name: a for name, a in type.__getattribute__(cls, "__dict__").items() if name not in _OWN}
        entries = [(name, self._spelled(a)) for name, a in attributes.items()]
        self.key = type(cls), cls.__qualname__, *map(self._spelled, cls.__bases__), *entries
        self.stays = all(type(a) in (staticmethod, classmethod, FunctionType) for a in attributes.values())
        self.stays &= all(_references(cells) == _IN_A_CLOSURE for cells in self._cells.values())

    def _spelled(self, a: Any) -> Any:
        t = type(a)
        if a is self._cls:
            return "itself"
        if t in (staticmethod, classmethod):
            return t, self._spelled(a.__func__)
        if t is FunctionType:
            for cell in a.__closure__ or ():
                self._cells.setdefault(id(cell), []).append(cell)
            cells = [_EMPTY if cell == _EMPTY else self._spelled(cell.cell_contents) for cell in a.__closure__ or ()]
            parts = (a.__code__, a.__globals__, a.__defaults__, a.__kwdefaults__, vars(a) or None)
            return t, *map(self._spelled, parts), *cells
        if t in (int, float, complex, bool, str, NoneType):
            return t, repr(a)
        self.kept.append(a)
        return t, id(a)


def _references(cells: list[Any]) -> int:
    """References to a variable, but for those of all closures but one, which have put it into a list."""
    cell = cells.pop()
    return sys.getrefcount(cell) - 2 * len(cells)


def _closure(variable: Any) -> Any:
    return lambda: variable


_KEPT = _closure(None)
_IN_A_CLOSURE = _references([_KEPT.__closure__[0]])  # they differ between versions of Python
_EMPTY = CellType()
_OWN = {"_backward_cls", "__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"}
"""Attributes that Python and PyTorch give to each class."""


class Computed:
    """A call that was made while others were recorded: its function needs values. It returns what it has returned."""

    def __init__(self, leaves: list[Any], spec: Any) -> None:
        self._leaves, self._spec = leaves, spec

    def __call__(self) -> Any:
        return pytree.tree_unflatten(self._leaves, self._spec)


_grad = threading.local()
_setup = torch.autograd.function._SingleLevelFunction.setup_context
_apply: Any = inspect.getattr_static(Function, "apply")  # Python in PyTorch 2.11, and C++ in 2.15


def _look_up(cls: Any, name: str) -> Any:
    found = type.__getattribute__(cls, name)
    if name == "_backward_cls":
        _grad.outside = torch.is_grad_enabled()  # forward is looked up in a block without gradients
    elif name == "apply":
        # It asks for the recorder when it is called.
        if torch._C._len_torch_function_stack() and found == _apply.__get__(None, cls):  # not one of its own
            return _Apply(_applied, cls, found)
    elif name in ("forward", "setup_context") and (recorder := current_recorder()) is not None:
        grad = _grad.__dict__.get("outside", True)
        if name == "forward":
            splits = type.__getattribute__(cls, "setup_context") is not _setup
            return _InPlace(found, lambda *args: recorder.function(cls, args if splits else args[1:], grad))
        if found is not _setup:
            return lambda *args: None
    elif name in ("forward", "setup_context") and (covered := covered_recorder()) is not None:
        # A mode of the program sees the calls inside, so they are made now. Autograd must see what they are given.
        if name == "setup_context":  # which PyTorch looks up first
            _uncovered(covered.flush)
        return found if found is _setup else _InPlace(found, functools.partial(_unrecorded, covered, found))
    return found


def _uncovered(flush: Any) -> None:
    """Run what was recorded where the modes of the program do not see it."""
    with contextlib.ExitStack() as stack:
        while current_recorder() is None:
            stack.enter_context(_pop_mode_temporarily())
        flush()


def _unrecorded(recorder: Any, function: Any, *args: Any) -> Any:
    recorder.records = False
    try:
        return function(*args)
    finally:
        recorder.records = True


class _InPlace:
    """A function in place of ``forward`` or ``setup_context``. PyTorch reads the names of arguments from it."""

    def __init__(self, usual: Any, call: Any) -> None:
        self._usual, self._call = usual, call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)


class _Apply(functools.partial[Any]):
    """A function in place of ``apply``, with what else the program may ask of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args[1], name)

    def __eq__(self, other: object) -> bool:
        return bool(self.args[1] == (other.args[1] if isinstance(other, _Apply) else other))

    def __hash__(self) -> int:
        return hash(self.args[1])


def _applied(cls: Any, usual: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = current_recorder()  # that of another call, or none, where the program has kept ``apply``
    if recorder is None or kwargs or transforms_are_active():
        return usual(*args, **kwargs)
    return recorder.function(cls, args, torch.is_grad_enabled())


class _Stance:
    """Dynamo's stance, but what the user gave to ``torch.compile`` runs as it is where it is recorded.

    ``torch.compile`` would trace the recorder.
    """

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    stance: Any = property(lambda self: self.usual.stance if current_recorder() is None else "force_eager")
    skip_guard_eval_unsafe: Any = property(lambda self: self.usual.skip_guard_eval_unsafe)
    backend: Any = property(lambda self: self.usual.backend)


class _Hook:
    """The hooks, while any recorder is inside: in the metaclass of functions, where transforms and graphs begin."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._patched: list[tuple[Any, str, Any, Any, Any]] = []
        self._others: set[str] = set()
        self._dynamo: Any = None
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                FunctionMeta.__getattribute__ = _look_up  # type: ignore[method-assign]
                # Nothing was given to torch.compile if dynamo is not there.
                self._dynamo = sys.modules.get("torch._dynamo.eval_frame")
                if self._dynamo is not None:
                    self._stance = self._dynamo._stance = _Stance(self._dynamo._stance)
                if (
                    not self._patched
                    or len(self._others) != len(sys.modules.keys() & _PROCESSES)
                    or any(getattr(place, name) is not function for place, name, function, *_ in self._patched)
                ):
                    self._look_up()
                for place, name, _, _, flushed in self._patched:
                    setattr(place, name, flushed)
                vars(torch.random)["default_generator"] = _generator

    def _look_up(self) -> None:
        """Find the functions that run what was recorded first, as they are now: the program may replace them."""
        self._others = sys.modules.keys() & _PROCESSES
        self._patched.clear()
        for place, name, as_it_stands in _run_first():
            function = getattr(place, name)
            held = vars(place).get(name, function)
            flushed: Any = _flushed(getattr(function, "__func__", function), as_it_stands)
            flushed = staticmethod(flushed) if isinstance(held, staticmethod) else flushed
            self._patched.append((place, name, function, held, flushed))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                del FunctionMeta.__getattribute__
                if self._dynamo is not None and self._dynamo._stance is self._stance:  # or the program has set another
                    self._dynamo._stance = self._stance.usual
                for place, name, _, held, _ in self._patched:
                    setattr(place, name, held)
                vars(torch.random)["default_generator"] = torch._C.default_generator


_RUN_FIRST = (
    (Tensor, "set_", True),  # which PyTorch calls without asking anybody
    (torch._C._autograd, "_unsafe_set_version_counter", True),
    *((torch.cuda.random, name, True) for name in ("manual_seed", "manual_seed_all", "set_rng_state", "get_rng_state")),
    (torch._C, "_set_default_dtype", True),
    (torch._C, "_set_default_tensor_type", True),
    (forward_ad, "enter_dual_level", True),
    (forward_ad, "exit_dual_level", True),
    (nn.Parameter, "__new__", True),
    (nn.Buffer, "__new__", True),
    (vmap, "_vmap_increment_nesting", True),
    (eager_transforms, "_grad_increment_nesting", True),
    (eager_transforms, "_jvp_increment_nesting", True),
    (eager_transforms, "_func_increment_nesting", True),
    *(
        (module, name, True)
        for module in (torch, cond, while_loop)
        for name in ("cond", "while_loop")
        if hasattr(module, name)
    ),
    *((checkpoint, name, True) for name in ("_make_saved_tensor",) if hasattr(checkpoint, name)),
    (distributed, "_find_tensors", False),
    *((kind, "__call__", False) for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod)),
    (threading.Condition, "notify", False),
    (threading.Condition, "wait", False),
    (threading.Thread, "start", False),
    (futures.ThreadPoolExecutor, "submit", False),
)
"""Functions that need all calls before them to have run, and whether these run one by one, or by a plan as at the end.

They are those of the random numbers, where transforms and forward mode begin, what changes how constructors work, what
compiles a part of the program, what changes or saves a tensor unseen, what asks for the type of a tensor, what reads
the graph of autograd, where ``DistributedDataParallel`` looks for parameters without use, TorchScript, whose
interpreter reads a tensor several times, and its memory, and where another thread begins, is woken or waited for.
"""

_BETWEEN_PROCESSES = (
    ("multiprocessing.synchronize", "Condition", "notify"),
    ("multiprocessing.synchronize", "Condition", "wait"),
    ("multiprocessing.connection", "Connection", "_send_bytes"),
    ("multiprocessing.connection", "Connection", "_recv_bytes"),
)
"""Where another process is told something, or tells something."""

_PROCESSES = {module for module, _, _ in _BETWEEN_PROCESSES}


def _run_first() -> Iterator[tuple[Any, str, bool]]:
    yield from _RUN_FIRST
    for module, kind, name in _BETWEEN_PROCESSES:
        if module in sys.modules:  # else there is no other process
            yield getattr(sys.modules[module], kind), name, False


class _Generator:
    """The generator, as PyTorch's functions see it: what was recorded draws before it is asked or seeded."""

    def __getattr__(self, name: str) -> Any:
        recorder = current_recorder()
        if recorder is not None:
            recorder.flush()
        return getattr(torch._C.default_generator, name)


_generator = _Generator()


def _before_fork() -> None:
    recorder = current_recorder()
    if recorder is not None:
        recorder.flush(as_it_stands=False)


def _in_child() -> None:
    """A process that was forked inside of a call records nothing of it: what it computes is read by its parent."""
    for number in range(torch._C._len_torch_function_stack()):
        mode: Any = torch._C._get_function_stack_at(number)
        if hasattr(mode, "settle"):
            mode.is_forked = True
            mode.settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def _recorder_on_top() -> Any:
    """The recorder that takes calls now, or would if it was not paused; ``None``: there is none."""
    count = torch._C._len_torch_function_stack()
    mode: Any = torch._C._get_function_stack_at(count - 1) if count else None
    return mode if hasattr(mode, "settle") else None


@functools.cache
def _flushed(function: Any, as_it_stands: bool) -> Any:
    @functools.wraps(function)
    def flushed(*args: Any, **kwargs: Any) -> Any:
        recorder = _recorder_on_top()
        if recorder is None or not (recorder.records or recorder.is_paused):
            return function(*args, **kwargs)
        recorder.flush(as_it_stands)
        with _pop_mode_temporarily():
            try:
                return function(*args, **kwargs)
            finally:
                recorder.settle()

    return flushed


hook = _Hook()
"""A context for each call that is recorded."""
