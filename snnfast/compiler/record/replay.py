"""Calls that are known run without the user's code.

The code of a function computes from its arguments and from what it sees: attributes, globals, closures. Where all of
that is as it was at an earlier call, the code would make the same calls again, and leave the same states behind. So the
plan of that call runs alone, and sets the states.

``Sight`` finds all that the code sees; a function that sees what nobody can watch is not replayed. Tensors are known by
their shapes and the like alone, as they are to a recorder: code that asks for their values is not replayed either.
"""

import contextlib
import functools
import gc
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from snnfast._core import backend as _backend
from snnfast._core import watch
from snnfast._program.places import ABSENT, Places, Slot
from snnfast._program.seen import Moment, Sight
from snnfast._program.settled import is_settled
from snnfast._program.trace import NotElementwiseError
from snnfast._unroll import state_gradients
from snnfast.compiler.record.changes import Changes
from snnfast.compiler.record.form import Form
from snnfast.compiler.record.kinds import NeedsValueError, known_of
from snnfast.compiler.record.later import Later, Like, is_marked
from snnfast.compiler.record.modes import modes
from snnfast.compiler.record.waiting import range_of

_MOST_SHAPES = 64
"""Calls of so many shapes are known. The oldest are forgotten first."""

_MOST_OF_A_SHAPE = 16
"""So many calls of a shape are: the first one, which has no states yet, and those of each value of an attribute.

The least recently used is forgotten first.
"""

_MOST_MISSES = 64
"""A call is forgotten when so many came instead: it keeps the layers that it sees, which may be in use no more."""

_PATIENCE = _MOST_OF_A_SHAPE
"""So many calls that are learned and do not come again, and no more are learned."""

_NUMBERS = (int, float, bool, str, bytes, complex, type(None), type(...), torch.dtype, torch.device, torch.layout)


_NO_METHODS = {"__doc__", "__module__", "__init__", "__new__", "__repr__", "__dict__", "__weakref__", "__hash__"}
_NO_METHODS |= {"__getattr__", "__setattr__", "__delattr__", "__init_subclass__", "__class_getitem__"}


class NotReplayedError(Exception):
    """A call can't run without its code."""


class Now(NamedTuple):
    """The arguments of a call.

    Attributes:
        key: What is known of them, equal for calls that may be alike.
        tensors: The tensors.
        objects: Anything else that the code may read.
        containers: Lists and dictionaries, with what they hold.
    """

    key: list[Any]
    tensors: list[Tensor]
    objects: list[Any]
    containers: list[tuple[Any, list[Any]]]

    @property
    def root(self) -> Any:
        """The network, which nothing here may keep alive."""
        return self.objects[0] if self.objects and isinstance(self.objects[0], nn.Module) else None


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Now:
    """Look at the arguments of a call.

    Raises:
        NotReplayedError: Nothing is known of one.
    """
    now = Now([], [], [], [])
    now.key.append(_spelled(args, now))
    now.key.extend([(name, _spelled(a, now)) for name, a in kwargs.items()])
    return now


def _spelled(a: Any, now: Now) -> Any:
    """Tell an argument, and enter what it consists of."""
    t = type(a)
    if t is Tensor or t is nn.Parameter:
        _check_has_no_attributes(a)
        now.tensors.append(a)
        return _known(a)
    if t in _NUMBERS:
        return t, repr(a) if t in (float, complex) else a
    if t is torch.Size or _is_tuple(t):
        if hasattr(t, "_fields"):
            now.objects.append(t)  # the class of a named tuple may hold numbers
        return t, *[_spelled(b, now) for b in a]
    if t is list or t is dict:
        entries = list(a.items()) if t is dict else list(a)
        now.containers.append((a, entries))
        return t, *[_spelled(b, now) for b in entries]
    now.objects.append(a)
    return t, id(a)


def _check_has_no_attributes(t: Tensor) -> None:
    """Code may read what a program has set on a tensor, or set something."""
    if t.__dict__:
        raise NotReplayedError("a tensor with attributes of the program's own")


def _known(t: Tensor) -> Like:
    try:
        return known_of(t)
    except NeedsValueError as error:
        raise NotReplayedError(str(error)) from None


class _Codes(NamedTuple):
    """The codes that a function may run.

    Attributes:
        read: Those that were looked at.
        acting: Those that act, such as ``print``; of functions in C, the functions.
        resets: Functions that reset the layers of all networks, by their codes.
        warning: Codes that log warnings that need not come again.
    """

    read: set[types.CodeType]
    acting: set[Any]
    resets: dict[types.CodeType, Callable[[Any], None]]
    warning: set[types.CodeType]


class _Seen(Places):
    """All places that code reads, the tensors that it sees, and the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.containers: set[int] = set()
        self.codes = _Codes(set(), set(), {}, set())

    def tensor(self, value: Tensor) -> None:
        self.tensors.append(value)

    def function(self, value: types.FunctionType) -> None:
        super().function(value)
        self._enter(value.__code__)

    def _enter(self, code: types.CodeType) -> None:
        self.codes.read.add(code)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._enter(inner)

    def acts(self, function: Any) -> None:
        self.codes.acting.add(getattr(function, "__code__", function))

    def warns(self, function: types.FunctionType) -> None:
        self.codes.warning.add(function.__code__)

    def resets_all(self, function: types.FunctionType) -> None:
        self.codes.resets[function.__code__] = function

    def parts(self, value: Any, names: Iterable[str]) -> None:
        kind = type(value)
        if type(kind.__getattribute__) is types.FunctionType:
            raise NotElementwiseError(f"it sees an object of the type {kind.__qualname__}, which finds its attributes")
        super().parts(value, names)

    def contents(self, value: Any) -> None:
        kind: type = type(value)
        if not isinstance(value, tuple) and _has_methods(kind):
            raise NotElementwiseError(f"it sees an object of the type {kind.__qualname__}, with methods of its own")
        super().contents(value)
        self.containers.add(id(value))


@functools.lru_cache(1024)
def _has_methods(kind: Any) -> bool:
    """Whether a class of containers has methods of the program's own in the place of Python's."""
    of_python = {name for base in kind.__mro__ if is_settled(base.__module__) for name in vars(base)} - _NO_METHODS
    return any(not of_python.isdisjoint(vars(c)) for c in kind.__mro__ if not is_settled(c.__module__))


class _Watch:
    """Watches a call for the codes that run, and for functions that act: one that a code names it may not call.

    Args:
        codes: What is known of its codes, if it is learned.

    Attributes:
        ran: The codes of the program that have run.
        acts: What the call did that a replay would not do.
        resets: Functions that reset the layers of all networks, and what they were given.
    """

    def __init__(self, codes: _Codes | None) -> None:
        self._codes = codes or _Codes(set(), set(), {}, set())
        self._inside: Any = None  # a frame whose calls are not looked at
        self._collects = False
        self.ran: set[types.CodeType] = set()
        self.acts = ""
        self.resets: list[tuple[Callable[[Any], None], Any]] = []

    def __enter__(self) -> None:
        self._outputs = [(name, getattr(sys, name)) for name in ("stdout", "stderr") if getattr(sys, name) is not None]
        for name, stream in self._outputs:
            setattr(sys, name, _Output(stream, self))
        gc.callbacks.insert(0, self._look_away)  # before the callbacks of others, whose code would be seen
        gc.callbacks.append(self._look_again)
        sys.setprofile(self._see)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        gc.callbacks.remove(self._look_away)
        gc.callbacks.remove(self._look_again)
        for name, stream in self._outputs:
            if type(getattr(sys, name)) is _Output:  # the call may have put another one there
                setattr(sys, name, stream)

    def _look_away(self, phase: str, _: object) -> None:
        """Look away while garbage is collected: what runs then is no part of the call."""
        self._collects |= phase == "start"

    def _look_again(self, phase: str, _: object) -> None:
        self._collects &= phase == "start"

    def _see(self, frame: Any, event: str, function: Any) -> None:
        codes = self._codes
        if self._collects:
            return
        if self._inside is not None:
            if event == "return" and frame is self._inside:
                self._inside = None
        elif event == "c_call":
            if function in codes.acting:
                self.tell(f"it calls {function.__name__}")
        elif event == "call" and (code := frame.f_code) not in self.ran:
            module = str(frame.f_globals.get("__name__"))
            if code in codes.resets:
                self._inside = frame
                self.resets.append((codes.resets[code], frame.f_locals["net"]))
            elif module.startswith("loguru.") and frame.f_back.f_code in codes.warning:
                self._inside = frame
            elif code in codes.acting or (module == "logging" and frame.f_back.f_code in self.ran):
                self.tell(f"it calls {code.co_name}")
            elif not (is_settled(module) or module.startswith("namedtuple_")):
                self.ran.add(code)

    def tell(self, acts: str) -> None:
        if not self._collects:
            self.acts = self.acts or acts


class _Output:
    """A stream that tells when it is used. C code may call ``print``, which no profile shows."""

    def __init__(self, stream: Any, watch: _Watch) -> None:
        self._stream, self._watch, self._thread = stream, watch, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        if threading.get_ident() == self._thread:
            self._watch.tell("it writes to the terminal")
        return getattr(self._stream, name)


class _Same:
    """An object that is put where the code would put it. Numbers are the same if they are equal."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and _are_same(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]


def _is_tuple(t: type) -> bool:
    """Whether a type is that of tuples, or of named tuples without methods of their own."""
    return t is tuple or (t.__bases__ == (tuple,) and hasattr(t, "_fields"))


def _are_same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and type(a) in _NUMBERS and repr(a) == repr(b))


class _Made(NamedTuple):
    """A result of the plan, by its number."""

    number: int


class _Taken(NamedTuple):
    """A tensor that the call began with: an argument, or a state, by its number."""

    number: int


class _Container(NamedTuple):
    """A tuple, list or dictionary that the call makes. One that is met again is told by its number."""

    kind: Any
    entries: tuple[Any, ...]
    number: int


class _Left(NamedTuple):
    """The things that a call leaves behind.

    Attributes:
        result: Its result.
        slots: The contents of the slots that it has written to.
        resets: Functions that reset the layers of all networks, and what they were given; ``None``: the root.
    """

    result: Any
    slots: tuple[Any, ...]
    resets: tuple[tuple[Callable[[Any], None], Any], ...]


class Reader:
    """Tells what a call has left behind, in a way that tells how to make it again.

    Args:
        recorder: The recorder of the call.
        alive: The addresses of its results that are held.
        taken: Tensors that the call began with.
        seen: Other tensors that the code sees.
        old: Lists and dictionaries that were there before, by their ids.

    Attributes:
        references: How often each result was found, by its address.
    """

    def __init__(
        self,
        recorder: Any,
        alive: Sequence[int],
        taken: Sequence[Tensor],
        seen: Iterable[Tensor],
        old: Collection[int],
    ) -> None:
        self._recorder, self._old = recorder, old
        self._numbers = {address: i for i, address in enumerate(alive)}
        self._taken = {id(t): i for i, t in reversed(list(enumerate(taken)))}
        self._seen = {id(t) for t in seen}
        self._containers: dict[int, tuple[Any, _Container]] = {}
        self.references: Counter[int] = Counter()

    def read(self, a: Any) -> Any:
        t = type(a)
        if t is Later:
            if a.later_recorder is not self._recorder:
                raise NotReplayedError("another thread writes to what it sees")
            if is_marked(a):
                raise NotReplayedError("a tensor with attributes of the program's own")
            self.references[a.later_address] += 1
            return _Made(self._numbers[a.later_address])
        if id(a) in self._taken:
            return _Taken(self._taken[id(a)])
        if a is ABSENT or t in _NUMBERS or t is torch.Size or id(a) in self._seen:
            return _Same(a)
        if id(a) in self._old:
            raise NotReplayedError("it hands on a list or a dictionary that was there before")
        # Others may have attributes, or a constructor of their own.
        if not _is_tuple(t) and t is not list and t is not dict:
            raise NotReplayedError(f"it makes an object of the type {t.__name__}")
        if id(a) in self._containers:
            return self._containers[id(a)][1]
        number = len(self._containers)
        self._containers[id(a)] = a, _Container((t, ()), (), number)
        keys = tuple(a) if t is dict else ()
        if not all(type(key) in _NUMBERS for key in keys):
            raise NotReplayedError("it makes a dictionary whose keys are objects")
        entries = tuple([self.read(b) for b in (a.values() if t is dict else a)])
        return _Container((t, keys), entries, number)


def written(told: Any, made: Sequence[Tensor], taken: Sequence[Tensor], containers: dict[int, Any]) -> Any:
    """An object that is told, made anew."""
    kind = type(told)
    if kind is _Made:
        return made[told.number]
    if kind is _Taken:
        return taken[told.number]
    if kind is _Same:
        return told.value
    if told.number in containers:
        return containers[told.number]
    t, keys = told.kind
    entries = [written(a, made, taken, containers) for a in told.entries]
    found = dict(zip(keys, entries, strict=True)) if t is dict else t(*entries) if hasattr(t, "_fields") else t(entries)
    return containers.setdefault(told.number, found)


class Ran(NamedTuple):
    """A record that has run by a plan, all of it at once.

    Attributes:
        graph: It runs the record on the inputs of the form.
        given: Tensors from outside.
        originals: Of those that are copies, what they are copies of, by their numbers.
        constants: Those that the program has made of numbers, by their ids.
        ranges: Numbers of such tensors that must hold values of a range: the number, the least value, the largest, and
            another one that it may hold.
    """

    form: Form
    graph: Callable[..., list[Tensor]]
    alive: list[int]
    given: list[Tensor]
    originals: dict[int, Tensor]
    constants: dict[int, Tensor]
    ranges: list[tuple[int, float, float, int | None]]


class Again:
    """A record that has run by a plan, and may run on other tensors.

    Args:
        ran: The record.
        taken: The tensors that the call began with.
        seen: Other tensors that the code sees.
        falls_back: An error of the graph says that the record can't run. Else it is raised.

    Raises:
        NotReplayedError: It has read a tensor that it has made by itself.
    """

    def __init__(self, ran: Ran, taken: Sequence[Tensor], seen: Sequence[Tensor], falls_back: bool = True) -> None:
        self._sources = _sources(ran, taken, seen)
        self._ran, self._falls_back = ran._replace(given=[], originals={}), falls_back
        self._changes = Changes(ran.form.kinds, ran.form.leaves)
        self._grad = any(kind.grad for kind in set(ran.form.kinds))

    def is_like(self, other: "Again") -> bool:
        """Whether another record of the same code would do the same."""
        return (
            len(self._sources) == len(other._sources)
            and all(_are_alike(a, b, self._ran.constants) for a, b in zip(self._sources, other._sources, strict=True))
            and other._ran.form.is_like(self._ran.form)
        )

    def run(self, taken: Sequence[Tensor]) -> list[Tensor] | None:
        """Run it. Returns its results; ``None``: nothing was done, for that can't be done here."""
        ran = self._ran
        given = [a if isinstance(a, Tensor) else taken[a] for a in self._sources]
        for number, low, high, ignored in ran.ranges:
            least, most = range_of(given[number], ignored)
            if not (low <= least and most <= high):
                return None
        if not ran.form.shares_as(given):
            return None
        with torch.set_grad_enabled(self._grad):
            state = self._changes.state_of(given)
            try:
                found = ran.graph(*ran.form.inputs_of(given))
            except Exception:
                if not (self._falls_back and state.put_back()):
                    raise
                return None  # the loop may fail, too: then it tells where
        return _apart(found, given)


class Known:
    """A call that may be replayed.

    Args:
        guard: Tells whether all that the code sees is as it was, but for the slots.
        slots: Those that the call writes to.
        states: What they held, as ``_state`` tells it.
        tensors: Tensors that the code sees, which are not in slots.
        taken: Those that the call began with.
        places: All that the code sees. It is not kept.
        objects: Arguments of the call that are no tensors, but for the network.

    Attributes:
        misses: So many calls in a row did not begin as this one.
        is_sure: It has come twice, and both times it did the same.
        codes: Those that it may run.
        old: Lists and dictionaries that it sees, by their ids.
    """

    def __init__(
        self,
        guard: Callable[..., bool],
        slots: list[Slot],
        states: list[Any],
        tensors: Iterable[Tensor],
        taken: Sequence[Tensor],
        places: _Seen,
        objects: list[Any],
    ) -> None:
        self.codes: _Codes = places.codes
        self.old: set[int] = places.containers  # the guard holds them
        self._guard, self.slots, self._states = guard, slots, states
        self._tensors = [(t, _known(t)) for t in tensors]
        self._objects = objects  # their identities are parts of the key
        self._pattern = _pattern((*self.tensors, *taken))
        self.misses = 0  # so many calls in a row did not begin as this one
        self._again: Again | None = None
        self._left: _Left | None = None
        self.is_sure = False

    def sees(self, root: Any) -> bool:
        """Whether all that the code sees is as it was, but for the slots."""
        try:
            return self._guard(root)
        except (KeyError, AttributeError, ValueError, IndexError):
            return False

    def begins(self, now: Now) -> list[Tensor] | None:
        """The tensors that a call begins with; ``None``: it does not begin as this one."""
        if not self.sees(now.root):
            return None
        taken = list(now.tensors)
        try:
            if any(_state(slot.get(), taken) != before for slot, before in zip(self.slots, self._states, strict=True)):
                return None
            if any(_known(t) is not like for t, like in self._tensors):
                return None
        except NotReplayedError:
            return None
        return taken if _pattern((*self.tensors, *taken)) == self._pattern else None

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the code sees, which are not in slots."""
        return [t for t, _ in self._tensors]

    def learn(self, ran: Ran, left: _Left, taken: Sequence[Tensor]) -> None:
        """Remember what the call did; it is sure if that was the same as the last time.

        Raises:
            NotReplayedError: It has read a tensor that it has made by itself.
        """
        again = Again(ran, taken, self.tensors)
        if self._again is not None:
            self.is_sure = left == self._left and again.is_like(self._again)
        self._again, self._left = again, left

    def replay(self, root: Any, taken: Sequence[Tensor]) -> tuple[Any] | None:
        """Do what the call did. Returns its result; ``None``: nothing was done, for that can't be done here."""
        again, left = self._again, self._left
        assert again is not None
        assert left is not None
        made = again.run(taken)
        if made is None:
            return None
        containers: dict[int, Any] = {}
        result = written(left.result, made, taken, containers)
        for reset, of in left.resets:  # of other networks; the states of this one follow
            reset(root if of is None else of)
        for slot, told in zip(self.slots, left.slots, strict=True):
            slot.set(written(told, made, taken, containers))
        return (result,)


def _state(a: Any, tensors: list[Tensor]) -> Any:
    """Tell what a slot holds, and append the tensors in it to a list."""
    t = type(a)
    if t is list or _is_tuple(t):
        return t, *[_state(b, tensors) for b in a]
    if t is dict:
        return t, *[(_Same(key), _state(b, tensors)) for key, b in a.items()]
    if isinstance(a, Tensor) and t is not Later:
        _check_has_no_attributes(a)
        tensors.append(a)
        return _known(a)
    return _Same(a)


def _containers(a: Any) -> list[Any]:
    """The lists, tuples and dictionaries in what a slot holds, and that itself."""
    if type(a) is not list and type(a) is not dict and not _is_tuple(type(a)):
        return []
    return [a, *(c for b in (a.values() if type(a) is dict else a) for c in _containers(b))]


def _sources(ran: Ran, taken: Sequence[Tensor], seen: Sequence[Tensor]) -> list[int | Tensor]:
    """Where each tensor from outside comes from: the number of one that the call began with, or one that is seen."""
    numbers = {id(t): i for i, t in reversed(list(enumerate(taken)))}
    known = {id(t) for t in seen}
    written = Changes(ran.form.kinds, ran.form.leaves).written
    found: list[int | Tensor] = []
    for number, copy in enumerate(ran.given):
        t = ran.originals.get(number, copy)
        if id(t) in numbers:
            found.append(numbers[id(t)])
        elif id(t) in known or (id(t) in ran.constants and number not in written):
            found.append(t)
        else:
            raise NotReplayedError("it reads a tensor that it makes without a recorder, or finds where nobody can see")
    return found


def _apart(found: Sequence[Tensor], given: Iterable[Tensor]) -> list[Tensor]:
    """Results of a plan as objects of their own, as ``Recorder.deliver`` has them."""
    holders = {id(t): t for t in given}
    made = []
    with torch.enable_grad():  # a view that is made without may not be changed in place
        for value in found:
            holder = holders.get(id(value))
            made.append(value if holder is None else holder.view_as(holder))
            holders.setdefault(id(value), value)
    return made


def _are_alike(a: int | Tensor, b: int | Tensor, constants: dict[int, Tensor]) -> bool:
    """Whether two sources are the same. A tensor that the program makes of numbers is another object each time."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and id(a) in constants:
        return _known(a) is _known(b) and torch.equal(a, b)
    return _are_same(a, b)


def _pattern(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Which tensors are the same object."""
    first: dict[int, int] = {}
    return tuple([first.setdefault(id(t), i) for i, t in enumerate(tensors)])


def _tensors_in(a: Any) -> list[Tensor]:
    """The tensors in what a slot holds."""
    if isinstance(a, Tensor):
        return [a]
    return [t for c in _containers(a) for t in (c.values() if type(c) is dict else c) if isinstance(t, Tensor)]


def _modes() -> Any:
    """Modes of PyTorch that code may leave as they were not."""
    return torch.is_grad_enabled(), torch.is_anomaly_enabled(), torch.get_default_dtype(), modes()


class _Shape:
    """Calls whose arguments are alike.

    Attributes:
        known: Those that may be replayed, the one that came last first.
        is_planned: The last call ran by a plan alone.
        root: The network that they are of. If it is not there any more, nobody keeps what they know.
    """

    def __init__(self, root: Any, forget: Callable[[Any], None]) -> None:
        self.known: list[Known] = []
        self.is_planned = False
        self.root = weakref.ref(root, forget) if isinstance(root, nn.Module) else None


class Replays:
    """The calls of a function that run without its code, where all that the code sees is as it was.

    Args:
        function: The function.

    Attributes:
        reason: Why no more calls are learned.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._sight = Sight(function, whole=True)
        self._shapes: dict[Any, _Shape] = {}
        self._in_vain = 0  # so many were learned, and another call came instead
        # The codes of the program that have run, once a call was watched.
        self._ran: frozenset[types.CodeType] | None = None
        self.reason = ""

    def why_not(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], recorder: Any) -> str:
        """Why a call like one that was recorded is not replayed, as far as that call tells; ``""``: it may be."""
        if not recorder.is_alone:
            return "it reads values, or calls what is not recorded"
        try:
            objects = arguments(args, kwargs).objects
            if self._ran is None:
                return "a profiler is active"
            self._sight.look(objects, _Seen, self._ran)
        except NotReplayedError as error:
            return str(error)
        except NotElementwiseError as error:
            return error.problem
        return ""

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Attempt | None":
        """Look at a call that begins; ``None``: it is not one to replay."""
        if (self.reason and not self._shapes) or watch.watchers or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        try:
            now = arguments(args, kwargs)
        except (NotReplayedError, RecursionError):  # a list may hold itself
            return None
        key = (
            torch.is_grad_enabled(),
            torch.is_anomaly_enabled(),
            _backend.current_backend(),
            state_gradients.setting.value,
            *now.key,
        )
        shape = self._shapes.get(key)
        if shape is None:
            if self.reason:
                return None
            if len(self._shapes) >= _MOST_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            shape = self._shapes[key] = _Shape(now.root, functools.partial(_forget, weakref.ref(self), key))
        found, taken = None, [*now.tensors]
        for known in shape.known:
            known.misses += 1
            if found is None and (tensors := known.begins(now)) is not None:
                found, taken, known.misses = known, tensors, 0
        kept = [known for known in shape.known if known.misses < _MOST_MISSES and known is not found]
        shape.known = kept if found is None else [found, *kept]
        return Attempt(self, now, shape, found, taken)

    def replay(self, attempt: "Attempt") -> tuple[Any] | None:
        known = attempt.known
        if known is None or not known.is_sure:
            return None
        found = known.replay(attempt.now.root, attempt.taken)
        if found is not None:
            self._in_vain = 0
        return found

    def enter(self, ran: frozenset[types.CodeType]) -> bool:
        """Enter the codes that a call has run. Returns whether there are new ones."""
        before, self._ran = self._ran, ran | (self._ran or frozenset())
        self._in_vain += (is_new := self._ran != before)
        return is_new

    def look(self, attempt: "Attempt") -> None:
        """Look at all that the code sees, before a call that may be learned."""
        if not attempt.shape.is_planned or self.reason:
            return
        attempt.is_watched = attempt.known is None or not attempt.known.is_sure
        if attempt.known is not None or self._ran is None:
            return
        self._in_vain += any(not known.is_sure for known in attempt.shape.known)
        if self._in_vain > _PATIENCE:
            self.reason = "what it sees is another each time"
            return
        try:
            attempt.moment = self._sight.look(attempt.now.objects, _Seen, self._ran)
        except NotElementwiseError as error:
            self.reason = error.problem
        except Exception as error:  # such as one of a metaclass of the program's
            self.reason = _can_not_look(error)


def _can_not_look(error: Exception) -> str:
    return f"it sees what can't be looked at ({type(error).__name__}: {error})"


def _forget(replays: Any, key: Any, _: Any) -> None:
    found = replays()
    if found is not None:
        found._shapes.pop(key, None)


class Attempt:
    """A call that is replayed, or may be learned.

    Attributes:
        known: The call that it begins as, if there is one.
        taken: The tensors that it begins with.
        moment: All that the code sees, if the call is learned.
        is_watched: Whether the codes that it runs are noted.
    """

    def __init__(self, replays: Replays, now: Now, shape: _Shape, known: Known | None, taken: list[Tensor]) -> None:
        self._replays = replays
        self.now, self.shape, self.known, self.taken = now, shape, known, taken
        self.moment: Moment | None = None
        self._left: _Left | None = None
        self.is_watched = False
        self._watch: _Watch | None = None
        self._modes = _modes()
        slots = [] if known is None or known.is_sure else known.slots
        self._replaced = [a for slot in slots for a in _containers(slot.get())]  # lists that the call may replace

    def look(self, is_explained: bool) -> None:
        """Look at all that the code sees, if the call may be learned."""
        self._replays.look(self)
        self.is_watched |= is_explained

    def watched(self) -> Any:
        """A context for the call."""
        if not self.is_watched:
            return contextlib.nullcontext()
        if sys.getprofile() is not None:  # a profiler of the user's: this call is not learned
            self.known = self.moment = None
            return contextlib.nullcontext()
        self._watch = _Watch(self._codes)
        return self._watch

    @property
    def _codes(self) -> _Codes | None:
        if self.known is not None:
            return self.known.codes
        return None if self.moment is None else cast(_Seen, self.moment.places).codes

    def end(self, result: list[Any], recorder: Any) -> None:
        """See what the call has left behind, before what was recorded runs.

        Args:
            result: What it returned, in a list.
            recorder: The recorder, whose record is all that the call has done.
        """
        codes, watch = self._codes, self._watch
        if watch is None or self._replays.enter(frozenset(watch.ran)) or codes is None or not recorder.is_alone:
            return
        try:
            if unread := watch.ran - codes.read:
                raise NotReplayedError(f"it runs {unread.pop().co_qualname}, which it does not name")
            self._left = self._read(result, recorder)
        except (NotReplayedError, ValueError) as error:
            self._replays.reason = self._replays.reason or str(error)
        except Exception as error:
            self._replays.reason = self._replays.reason or _can_not_look(error)

    def _read(self, result: list[Any], recorder: Any) -> _Left:
        if _modes() != self._modes:
            raise NotReplayedError("it leaves another mode of PyTorch")
        assert self._watch is not None
        if self._watch.acts:
            raise NotReplayedError(self._watch.acts)
        for held, entries in self.now.containers:
            if not _hold_the_same(held, entries):
                raise NotReplayedError("it changes a list or a dictionary among its arguments")
        for t in self.taken:
            _check_has_no_attributes(t)
        if self.known is None:
            assert self.moment is not None
            self.known = self._new(self.moment)
        elif not self.known.sees(self.now.root):
            raise NotReplayedError("it changes what it sees")
        alive = recorder.alive()
        old = {id(held) for held in (*self._replaced, *(held for held, _ in self.now.containers))} | self.known.old
        reader = Reader(recorder, alive, self.taken, self.known.tensors, old)
        root = self.now.root
        resets = tuple([(reset, None if of is root else of) for reset, of in self._watch.resets])
        left = _Left(reader.read(result[0]), tuple([reader.read(slot.get()) for slot in self.known.slots]), resets)
        if recorder.references(alive) != reader.references:
            raise NotReplayedError("it keeps a result where nobody can see it")
        return left

    def _new(self, moment: Moment) -> Known:
        places = cast(_Seen, moment.places)
        slots: list[Slot] = places.changed()
        before = [slot.before() for slot in slots]
        states = [_state(a, self.taken) for a in before]
        self._replaced = [a for held in before for a in _containers(held)]
        containers = {id(a) for a in self._replaced}
        held = {id(t) for a in before for t in _tensors_in(a)}
        tensors = [t for t in places.tensors if id(t) not in held]  # one may be an argument as well
        objects = [a for a in self.now.objects if a is not self.now.root]
        guard = places.test(slots, containers, self.now.root)
        return Known(guard, [slot.alone() for slot in slots], states, tensors, self.taken, places, objects)

    def keep(self, ran: Ran | None) -> None:
        """Learn from the call, if it ran by a plan alone."""
        self.shape.is_planned = ran is not None
        if ran is None or self._left is None or self.known is None:
            return
        try:
            self.known.learn(ran, self._left, self.taken)
        except NotReplayedError as error:
            self._replays.reason = self._replays.reason or str(error)
            return
        if self.known not in self.shape.known:
            self.shape.known.insert(0, self.known)
            del self.shape.known[_MOST_OF_A_SHAPE:]


def _hold_the_same(held: Any, entries: list[Any]) -> bool:
    now = list(held.items()) if isinstance(held, dict) else held
    if isinstance(held, dict):
        return len(now) == len(entries) and all(a is c and b is d for (a, b), (c, d) in zip(now, entries, strict=True))
    return len(now) == len(entries) and all(a is b for a, b in zip(now, entries, strict=True))
