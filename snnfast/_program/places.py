"""The places that a look at all objects has read: whether they still hold the same, and how they get it back.

:meth:`Places.are_as_they_were` takes far less time than a look, so that it can be asked at each call of a function.
:meth:`Places.changed` tells which of them a call has written to.
"""

import collections
import keyword
import operator
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._program.trace import NotElementwiseError

__all__ = ["ABSENT", "Places", "Slot"]

ABSENT: Any = object()
"""The content of a slot that is not there."""
_bases = type.__dict__["__bases__"].__get__  # a class may have a metaclass with its own look-up
_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")


class Slot(NamedTuple):
    """A name of an object, or an entry of a container, that a call may write to.

    Attributes:
        place: The object or the container.
        key: The name, the number or the key.
    """

    place: Any
    key: Any

    def get(self) -> Any:
        """The object that it holds now; ``ABSENT``: none."""
        return self.place.get(self.key)

    def set(self, value: Any) -> None:
        self.place.set(self.key, value)

    def before(self) -> Any:
        """The object that it held when it was read."""
        return self.place.before(self.key)

    def alone(self) -> "Slot":
        """The slot without the objects that its place has held."""
        return self._replace(place=self.place.alone())


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

    def acts(self, function: Any) -> None:
        """A function was seen that does what no object shows, such as to print."""

    def warns(self, function: types.FunctionType) -> None:
        """A function was seen that logs warnings that need not come again."""

    def resets_all(self, function: types.FunctionType) -> None:
        """A function was seen that resets the layers of all networks.

        Raises:
            NotElementwiseError: They are not watched.
        """
        problem = f"it calls {function.__module__}.{function.__name__}, which goes through the layers of all networks"
        raise NotElementwiseError(f"{problem}; snnfast.reset(net) does not")

    def finish(self) -> None:
        """Nothing more will be read."""
        self._holds = self.test()

    def test(
        self, without: Iterable[Slot] = (), containers: Collection[int] = (), root: Any = None
    ) -> Callable[..., bool]:
        """A function that tells whether all slots but some hold what they held, leaving tensors' numbers aside.

        It takes ``root``, an object that is not held by it.

        Args:
            without: Slots that may hold something else.
            containers: Containers in these slots, by their ids, whatever they hold.
            root: The object.

        Raises:
            ValueError: Another slot holds such a container.
        """
        skipped: dict[int, set[Any]] = {}
        for slot in without:
            skipped.setdefault(id(slot.place), set()).add(slot.key)
        names = list(self._names.values())
        others = [o for o in self._others if not isinstance(o, _Contents) or id(o.value) not in containers]
        sized = [n.held for n in names if n.whole or not n.held]
        sized += [other.value for other in others if isinstance(other, _Contents)]
        tests = _Tests(root, containers)
        for held in sized:
            tests.add(f"len({{}}) == {len(held)}", held)
        for place in (*names, *others):
            place.test(tests, skipped.get(id(place), set()))
        for array in self._arrays:
            tests.add("not {}()", array.has_changed)
        return tests.compiled()

    def changed(self) -> list[Slot]:
        """The slots that hold other objects than before.

        Raises:
            ValueError: A change is more than that: a container has another size, a class other bases.
        """
        places = (*self._names.values(), *self._others)
        if any(array.has_changed() for array in self._arrays):
            raise ValueError("an array of NumPy")
        return [Slot(place, key) for place in places for key in place.changed()]

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
                return not any(t._version != version for t, version in self._tensors)
        return True

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

    def __init__(self, root: Any, refused: Collection[int]) -> None:
        self._refused = refused
        self._constants: dict[str, Any] = {"__name__": __name__, "same": _are_same}
        self._tests: list[str] = []
        self._root, self._attributes = root, getattr(root, "__dict__", None)

    def add(self, test: str, *values: Any) -> None:
        """Add an expression with a place for each value."""
        names = []
        for value in values:
            if id(value) in self._refused:
                raise ValueError("a list or a dictionary that is held twice")
            if value is not None and (value is self._root or value is self._attributes):
                names.append("root" if value is self._root else "root.__dict__")
                continue
            names.append(f"c{len(self._constants)}")
            self._constants[names[-1]] = value
        self._tests.append(test.format(*names))

    def compiled(self) -> Callable[..., bool]:
        if self._attributes is not None:
            self._tests.append(f"id(root.__dict__) == {id(self._attributes)}")
        function: Callable[..., bool] = eval(f"lambda root=None: {' and '.join(self._tests) or True}", self._constants)
        return function


class _Entries(NamedTuple):
    """A list or a dictionary."""

    value: Any

    def get(self, key: Any) -> Any:
        return self.value[key]

    def set(self, key: Any, value: Any) -> None:
        self.value[key] = value


def _are_same(some: Collection[Any], others: Collection[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


class _Names:
    """Names of a module, a class or an object."""

    def __init__(self, held: Mapping[str, Any], owner: Any, values: dict[str, Any], absent: set[str]) -> None:
        self.held, self.values, self.absent = held, values, absent
        self._owner = owner
        self.whole, self.size = False, len(held)

    def add(self, name: str) -> None:
        value = self.held.get(name, ABSENT)
        if value is ABSENT:
            self.absent.add(name)
        else:
            self.values[name] = value

    def test(self, tests: _Tests, without: set[str]) -> None:
        for name, value in self.values.items():
            if name not in without:
                tests.add("{}[{}] is {}", self.held, name, value)
        if self.held and (absent := frozenset(self.absent - without)):
            tests.add("{}.keys().isdisjoint({})", self.held, absent)

    def changed(self) -> Iterator[str]:
        for name in (*self.values, *self.absent):
            if self.get(name) is not self.values.get(name, ABSENT):
                yield name
        more = sum(name in self.held for name in self.absent) - sum(name not in self.held for name in self.values)
        if self.whole and len(self.held) != self.size + more:
            raise ValueError("an object with a new attribute")

    def before(self, name: str) -> Any:
        return self.values.get(name, ABSENT)

    def alone(self) -> "_Names":
        return _Names(self.held, self._owner, {}, set())

    def get(self, name: str) -> Any:
        return self.held.get(name, ABSENT)

    def set(self, name: str, value: Any) -> None:
        if value is not ABSENT:
            self._set(name, value)
        elif name in self.held:
            self._delete(name)

    def now(self) -> "_Names":
        now = _Names(self.held, self._owner, {}, set())
        for name in (*self.values, *self.absent):
            now.add(name)
        return now

    def put(self) -> None:
        for name, value in self.values.items():
            if self.held.get(name, ABSENT) is not value:
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

    def test(self, tests: _Tests, without: set[str]) -> None:
        for name, part in self._parts.items():
            if name in without:
                continue
            if part is ABSENT or not name.isidentifier() or keyword.iskeyword(name):
                tests.add("{}({}, {}) is {}", _part, self._value, name, part)
            else:
                tests.add("{}." + name + " is {}", self._value, part)

    def changed(self) -> Iterator[str]:
        return (name for name, part in self._parts.items() if _part(self._value, name) is not part)

    def before(self, name: str) -> Any:
        return self._parts[name]

    def alone(self) -> "_Parts":
        return _Parts(self._value, {})

    def get(self, name: str) -> Any:
        return _part(self._value, name)

    def set(self, name: str, value: Any) -> None:
        if value is ABSENT:  # past methods of the object's own
            object.__delattr__(self._value, name)
        else:
            object.__setattr__(self._value, name, value)

    def now(self) -> "_Parts":
        return _Parts(self._value, {name: _part(self._value, name) for name in self._parts})

    def put(self) -> None:
        for name, part in self._parts.items():
            if part is _part(self._value, name):
                continue
            self.set(name, part)


def _part(value: Any, name: str) -> Any:
    try:
        return object.__getattribute__(value, name)
    except (AttributeError, ValueError):  # there is none, or a cell is empty
        return ABSENT


class _Bases:
    """The bases of a class."""

    def __init__(self, value: type) -> None:
        self._value, self._held = value, _bases(value)

    def test(self, tests: _Tests, without: set[Any]) -> None:
        tests.add("{}({}) == {}", _bases, self._value, self._held)

    def changed(self) -> Iterator[Any]:
        if _bases(self._value) != self._held:
            raise ValueError("the bases of a class")
        return iter(())

    def now(self) -> "_Bases":
        return _Bases(self._value)

    def put(self) -> None:
        if _bases(self._value) != self._held:
            self._value.__bases__ = self._held


class _Contents:
    """All that a list, a dictionary, a set or a deque holds.

    Attributes:
        keys: Those of a dictionary; ``None`` of anything else.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.keys = [*value] if isinstance(value, dict) else None
        self.items = list(value.values()) if isinstance(value, dict) else list(value)

    def test(self, tests: _Tests, without: set[Any]) -> None:
        if not self.items:  # its length is compared anyway
            return
        if self.keys is not None:
            tests.add("same({}, {})", self.value, self.keys)
        if not without:
            tests.add("same({}, {})", self.value if self.keys is None else self.value.values(), self.items)
            return
        for key, item in zip(self.keys or range(len(self.items)), self.items, strict=True):
            if key not in without:
                tests.add("{}[{}] is {}", self.value, key, item)

    def is_like(self, other: "_Contents") -> bool:
        """Whether another look at it has found the same."""
        return _are_same(self.items, other.items) and _are_same(self.keys or (), other.keys or ())

    def changed(self) -> Iterator[Any]:
        now = self.now()
        if self.is_like(now):
            return
        entries = isinstance(self.value, list | dict) and len(now.items) == len(self.items)
        if not entries or not _are_same(self.keys or (), now.keys or ()):
            raise ValueError(f"a {type(self.value).__name__} with more, fewer or other entries")
        for key, before, after in zip(self.keys or range(len(self.items)), self.items, now.items, strict=True):
            if before is not after:
                yield key

    def before(self, key: Any) -> Any:
        return self.items[key if self.keys is None else self.keys.index(key)]

    def alone(self) -> "_Entries":
        return _Entries(self.value)

    def now(self) -> "_Contents":
        return _Contents(self.value)

    def put(self) -> None:
        if isinstance(self.value, frozenset | tuple) or self.is_like(self.now()):
            return
        self.value.clear()
        if self.keys is not None:
            self.value.update(zip(self.keys, self.items, strict=True))
        elif isinstance(self.value, list | collections.deque):
            self.value.extend(self.items)
        else:
            self.value.update(self.items)


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
