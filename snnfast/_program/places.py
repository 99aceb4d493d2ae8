"""The places that a look at all objects has read: whether they still hold the same, and how they get it back.

:meth:`Places.are_as_they_were` takes far less time than a look, so that it can be asked at each call of a function.
"""

import collections
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Places"]

_ABSENT: Any = object()
_bases = type.__dict__["__bases__"].__get__  # a class may have a metaclass with its own look-up
_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")


class Places:
    """All places that were read, each with the objects that it held."""

    def __init__(self) -> None:
        self._names: dict[int, _Names] = {}
        self._others: list[_Parts | _Contents | _Bases] = []
        self._tensors: list[tuple[Tensor, int]] = []
        self._arrays: list[_Array] = []
        self.unseen = ""  # the first thing that was read, and that can't be put back

    # ---- while it is read

    def names(self, held: Mapping[str, Any], owner: Any, read: Iterable[str], whole: bool = False) -> None:
        """Names of a module, a class or an object were read, whether they are there or not; ``whole``: any other."""
        key = id(held) if owner is None else id(owner)  # the mapping of a class is a new one at each access
        names = self._names.get(key)
        if names is None:
            names = self._names[key] = _Names(held, owner, {}, set())
        names.whole |= whole
        for name in read:
            names.add(name)

    def parts(self, value: Any, names: Iterable[str]) -> None:
        """Attributes of a function, a cell or an object were read."""
        self._others.append(_Parts(value, {name: _part(value, name) for name in names}))

    def function(self, value: types.FunctionType) -> None:
        self.parts(value, _OF_FUNCTIONS)

    def cell(self, value: types.CellType) -> None:
        self.parts(value, ("cell_contents",))

    def class_(self, value: type) -> None:
        self._others.append(_Bases(value))

    def contents(self, value: Any) -> None:
        """All that a container holds was read."""
        self._others.append(_Contents(value))

    def array(self, value: Any) -> None:
        self._arrays.append(_Array(value))

    def tensor(self, value: Tensor) -> None:
        if value.is_inference():
            self.unseen = self.unseen or "a tensor of inference mode"
        else:
            self._tensors.append((value, value._version))

    def finish(self) -> None:
        """Nothing more will be read."""
        names = list(self._names.values())
        contents = [other.value for other in self._others if isinstance(other, _Contents)]
        sized = [n.held for n in names if n.whole or not n.held] + contents
        tests = _Tests()
        for held in sized:
            tests.add(f"len({{}}) == {len(held)}", held)
        for place in (*names, *self._others):
            place.test(tests)
        self._holds = tests.compiled()

    # ---- afterwards

    def are_as_they_were(self) -> bool:
        """Whether each place holds the very same objects as before; ``False`` may be wrong."""
        try:
            if not self._holds():
                return False
        except (KeyError, AttributeError, ValueError):
            return False
        if self._tensors:
            with torch._C.DisableTorchFunction():  # a recorder would record that they are asked
                if any(t._version != version for t, version in self._tensors):
                    return False
        return not self._arrays or not any(array.has_changed() for array in self._arrays)

    def put_back(self) -> None:
        """Let all places but tensors hold what they held."""
        for place in (*self._names.values(), *self._others, *self._arrays):
            place.put()

    @contextmanager
    def again(self) -> Iterator[bool]:
        """Let all places but tensors hold inside what they held. Gives whether they do anyway."""
        if self.are_as_they_were():
            yield True
            return
        now = [place.now() for place in (*self._names.values(), *self._others, *self._arrays)]
        self.put_back()
        try:
            yield False
        finally:
            for place in now:
                place.put()


class _Tests:
    """Comparisons in one function, which has all that it compares as constants: a few are made at each call."""

    def __init__(self) -> None:
        self._constants: dict[str, Any] = {"same": _are_same}
        self._tests: list[str] = []

    def add(self, test: str, *values: Any) -> None:
        """Add an expression with a place for each value."""
        names = []
        for value in values:
            names.append(f"c{len(self._constants)}")
            self._constants[names[-1]] = value
        self._tests.append(test.format(*names))

    def compiled(self) -> Callable[[], bool]:
        function: Callable[[], bool] = eval(f"lambda: {' and '.join(self._tests) or True}", self._constants)
        return function


def _are_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


class _Names:
    """Names of a module, a class or an object."""

    def __init__(self, held: Mapping[str, Any], owner: Any, values: dict[str, Any], absent: set[str]) -> None:
        self.held, self.values, self.absent = held, values, absent
        self._owner = owner
        self.whole = False

    def add(self, name: str) -> None:
        value = self.held.get(name, _ABSENT)
        if value is _ABSENT:
            self.absent.add(name)
        else:
            self.values[name] = value

    def test(self, tests: _Tests) -> None:
        for name, value in self.values.items():
            tests.add(f"{{}}[{name!r}] is {{}}", self.held, value)
        if self.absent and self.held:
            tests.add("{}().isdisjoint({})", self.held.keys, frozenset(self.absent))

    def now(self) -> "_Names":
        now = _Names(self.held, self._owner, {}, set())
        for name in (*self.values, *self.absent):
            now.add(name)
        return now

    def put(self) -> None:
        for name, value in self.values.items():
            if self.held.get(name, _ABSENT) is not value:
                self._set(name, value)
        for name in self.absent:
            if name in self.held:
                self._delete(name)

    def _set(self, name: str, value: Any) -> None:
        if isinstance(self.held, dict):
            self.held[name] = value
        else:
            type.__setattr__(self._owner, name, value)

    def _delete(self, name: str) -> None:
        if isinstance(self.held, dict):
            del self.held[name]
        else:
            type.__delattr__(self._owner, name)


class _Parts:
    """Attributes of a function, a cell, or an object with slots."""

    def __init__(self, value: Any, parts: dict[str, Any]) -> None:
        self._value, self._parts = value, parts

    def test(self, tests: _Tests) -> None:
        for name, part in self._parts.items():
            if part is _ABSENT:
                tests.add("same([{}({}, {})], [{}])", _part, self._value, name, part)
            else:
                tests.add("{}." + name + " is {}", self._value, part)

    def now(self) -> "_Parts":
        return _Parts(self._value, {name: _part(self._value, name) for name in self._parts})

    def put(self) -> None:
        for name, part in self._parts.items():
            if part is _part(self._value, name):
                continue
            if part is _ABSENT:
                delattr(self._value, name)
            else:
                setattr(self._value, name, part)


def _part(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, _ABSENT)
    except ValueError:  # an empty cell
        return _ABSENT


class _Bases:
    """The bases of a class."""

    def __init__(self, value: type) -> None:
        self._value, self._held = value, _bases(value)

    def test(self, tests: _Tests) -> None:
        tests.add("{}({}) == {}", _bases, self._value, self._held)

    def now(self) -> "_Bases":
        return _Bases(self._value)

    def put(self) -> None:
        if _bases(self._value) != self._held:
            self._value.__bases__ = self._held


class _Contents:
    """All that a list, a dictionary, a set or a deque holds."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._held: list[Any] = _items(value) if isinstance(value, dict) else list(value)

    def test(self, tests: _Tests) -> None:
        tests.add("same({}({}), {})", _items if isinstance(self.value, dict) else list, self.value, self._held)

    def now(self) -> "_Contents":
        return _Contents(self.value)

    def put(self) -> None:
        now = self._held if isinstance(self.value, frozenset | tuple) else self.now()._held
        if len(now) == len(self._held) and all(map(operator.is_, now, self._held)):
            return
        self.value.clear()
        if isinstance(self.value, dict):
            half = len(self._held) // 2
            self.value.update(zip(self._held[:half], self._held[half:], strict=True))
        elif isinstance(self.value, list | collections.deque):
            self.value.extend(self._held)
        else:
            self.value.update(self._held)


def _items(value: dict[Any, Any]) -> list[Any]:
    return [*value, *value.values()]


class _Array:
    """An array of NumPy."""

    def __init__(self, value: Any) -> None:
        self._value, self._held, self._bytes = value, value.copy(), value.tobytes()

    def has_changed(self) -> bool:
        return bool(self._value.tobytes() != self._bytes)

    def now(self) -> "_Array":
        return _Array(self._value)

    def put(self) -> None:
        if self.has_changed():
            self._value[...] = self._held
