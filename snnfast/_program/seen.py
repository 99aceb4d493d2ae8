"""Everything that the function of a step can see beside its arguments, and whether it has changed.

A step may read numbers of its module, of its closure, of options, of surrogates and of classes. A program holds these
numbers as they were when the step was traced, so that a call has to know whether they have changed. ``Sight.now`` walks
over all that the code of the step names, and makes a key of it: values of numbers and texts, identities of anything
else. This costs far less than a new trace.
"""

import builtins
import collections
import dis
import enum
import functools
import inspect
import random
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnfast._program.trace import NotElementwiseError

__all__ = ["Moment", "Sight", "Surroundings", "modes"]

# Code of these packages, and of Python's own, does not change between two calls.
_SETTLED = ("torch", "snnfast", "numpy", "builtins")
# Attributes that their code reads have names that the step does not have.
_WHOLE = ("torch", "snnfast")

_PLAIN = (int, bool, str, bytes, type(None), type(...), type(NotImplemented), torch.dtype, torch.layout, range)
_CONTAINERS = (list, set, frozenset, collections.deque)

# With these, code finds what it does not name.
_BY_TEXT = {"getattr", "vars", "attrgetter", "__dict__"}
_ANYTHING = {"globals", "eval", "exec", "locals", "__import__", "import_module"}

# PyTorch calls these methods of a class that derives from its own.
_CALLED = {"forward", "backward", "jvp", "setup_context", "derivative"}
_OF_MODULES = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "training"}
_UNUSED = {"__init__", "__new__", "__repr__", "__doc__", "__module__", "__dict__", "__weakref__", "__init_subclass__"}

# Modules of types whose objects have no attributes and never change.
_FIXED = ("decimal", "fractions", "re", "datetime", "operator", "typing", "abc")

# Classes of Python's own whose objects show all that they hold.
_OPEN = {object, type, complex, types.SimpleNamespace, slice}
_OPEN |= {int, float, str, bytes, dict, list, set, frozenset, tuple, collections.deque, collections.OrderedDict}

# A step that sees more objects, or an array of more bytes, would be slow to look at.
_MOST = 4000


class Moment(NamedTuple):
    """A record of all that a step sees at one time.

    Attributes:
        key: Equal for two moments between which nothing has changed that could change what the step computes.
        kept: The objects whose identities are in the key. While they live, no other object has these.
    """

    key: tuple[Any, ...]
    kept: list[Any]

    def differs_in(self, other: "Moment") -> str:
        """The name of the first thing that is another one in another moment."""
        pairs = zip(self.key, other.key, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.key) - 1)
        names = [
            k for i, k in enumerate(self.key[: at + 1]) if type(k) is str and (i == 0 or self.key[i - 1] is not str)
        ]
        return names[-1] if names else "a mode of PyTorch"


# Descriptors of attributes do not change. The value of the attribute is seen in its object.
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, type(vars(Moment)["key"]))


class Sight:
    """All that a function can see.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._names: frozenset[str] = frozenset(_CALLED)

    def now(self, options: Mapping[str, Any]) -> Moment:
        """Record all that the function sees now, given the values of its options.

        Raises:
            NotElementwiseError: It sees something whose changes can't be seen. The message names it.
        """
        walk = self._walk(options)
        return Moment(tuple(walk.tokens), walk.kept)

    @contextmanager
    def undisturbed(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Undo what the function changes of all that it sees, and what it draws of random numbers."""
        walk = self._walk(options)
        undo = [_undo(value) for value in walk.kept]
        undo += [functools.partial(_set_items, *space) for space in walk.written]
        drawn = random.getstate()
        of_numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        try:
            yield
        finally:
            random.setstate(drawn)
            if of_numpy is not None:
                sys.modules["numpy"].random.set_state(of_numpy)
            for put_back in undo:
                if put_back is not None:
                    put_back()

    def _walk(self, options: Mapping[str, Any]) -> "_Walk":
        while True:
            walk = _Walk(self._names)
            walk.visit(self._function)
            walk.attributes(options, whole=True)
            if walk.names == self._names:
                return walk
            self._names = frozenset(walk.names)  # more of the objects that came first is seen with these


class Surroundings(NamedTuple):
    """The things that a step sees beside its arguments, and their :class:`Moment`; ``None``: nobody can tell."""

    sight: Sight
    options: dict[str, Any]
    moment: Moment | None

    def are_current(self) -> bool:
        """Whether it still is as it was.

        Raises:
            NotElementwiseError: Nobody can tell.
        """
        now = self.sight.now(self.options)
        return self.moment is not None and now.key == self.moment.key

    def undisturbed(self) -> AbstractContextManager[None]:
        """Undo what the step changes of it."""
        return self.sight.undisturbed(self.options)


def modes() -> tuple[Any, ...]:
    """The modes of PyTorch, but for the grad mode, which is part of the key of a code."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled(), autocast


def _undo(value: Any) -> Callable[[], None] | None:
    """A function that puts back what an object holds now."""
    if isinstance(value, types.CellType):
        return functools.partial(setattr, value, "cell_contents", value.cell_contents) if _is_full(value) else None
    if isinstance(value, list):
        return functools.partial(value.__setitem__, slice(None), value.copy())
    if isinstance(value, dict):
        return functools.partial(_set_all, value, dict(value))
    if isinstance(value, set | collections.deque):
        return functools.partial(_set_all, value, value.copy())
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict) and not isinstance(value, types.ModuleType | torch.Tensor):
        return functools.partial(_set_all, held, dict(held))
    return None


def _set_all(held: Any, before: Any) -> None:
    items = (held.items(), before.items()) if isinstance(held, dict) else (held, before)
    # Nobody knows what the objects' own comparison does.
    if len(held) != len(before) or not all(map(_is_same, *items)):
        held.clear()
        held.extend(before) if isinstance(held, collections.deque) else held.update(before)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is tuple and len(one) == 2 and one[0] is other[0] and one[1] is other[1])


def _set_items(held: dict[str, Any], before: dict[str, Any]) -> None:
    held.update(before)


class _Code(NamedTuple):
    """The names in a code, and in the codes of the functions within it."""

    globals: tuple[str, ...]
    written: tuple[str, ...]
    names: frozenset[str]


@functools.lru_cache(4096)
def _code(code: types.CodeType) -> _Code:
    read, written = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(instruction.argval)
        elif instruction.opname == "STORE_GLOBAL":
            written.add(instruction.argval)
    names = set(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}  # a text may be getattr's
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found = _code(inner)
            read |= set(found.globals)
            written |= set(found.written)
            names |= found.names
    return _Code(tuple(sorted(read | written)), tuple(sorted(written)), frozenset(names))


@functools.lru_cache(4096)
def _is_settled(module: str | None) -> bool:
    package = str(module).partition(".")[0]
    if package in _SETTLED:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    # A module of the user's may have the name of one of Python's own.
    return package in sys.stdlib_module_names and (file is None or file.startswith(sysconfig.get_path("stdlib")))


class _Walk:
    """One look at all objects.

    Attributes:
        names: The names in all codes so far. Of an object with attributes, those with these names are looked at.
        written: Globals that the codes write to, with their values: the module's dictionary, and these of it.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names = set(names)
        self.tokens: list[Any] = []
        self.kept: list[Any] = []
        self.written: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._known: set[int] = set()
        self._whole = not names.isdisjoint(_BY_TEXT)

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.tokens += (kind, value)
        elif kind is float:
            self.tokens += (kind, str, value.hex())  # of NaN, and of both zeros
        elif kind is tuple or kind is torch.Size:
            self.tokens += (kind, len(value))
            for item in value:
                self.visit(item)
        elif id(value) in self._known:
            self.tokens.append(id(value))
        else:
            self._known.add(id(value))
            self.kept.append(value)
            if len(self.kept) > _MOST:
                raise NotElementwiseError("it sees too many objects to know whether one has changed")
            self._object(value, kind)

    def _object(self, value: Any, kind: type) -> None:
        if kind is types.FunctionType:
            self._identity(value)
            self._of_function(value)
        elif isinstance(value, types.ModuleType):
            self._identity(value)
            if value.__name__ == "os" and not self.names.isdisjoint(("environ", "getenv")):
                raise NotElementwiseError("it reads os.environ, whose changes can't be seen")
            if not _is_settled(value.__name__):
                self.attributes(vars(value))
        elif isinstance(value, type):
            self._identity(value)
            self._of_class(value)
        elif kind is types.CellType:
            self.visit(value.cell_contents if _is_full(value) else None)
        elif kind is types.MethodType:  # a new object at each access
            self.visit(value.__func__)
            self.visit(value.__self__)
        elif kind in (types.BuiltinFunctionType, types.MethodWrapperType):
            self.tokens += (str, value.__name__)
            self.visit(value.__self__)
        elif isinstance(value, Tensor):
            self._identity(value)
            self.tokens.append(None if value.is_inference() else value._version)
        elif isinstance(value, functools.partial):
            self.tokens.append(kind)
            for part in (value.func, value.args, value.keywords):
                self.visit(part)
        elif isinstance(value, staticmethod | classmethod):
            self.visit(value.__func__)
        elif isinstance(value, property):
            self.visit(value.fget)
        elif isinstance(value, functools.cached_property):
            self.visit(value.func)
        elif isinstance(value, (enum.Enum, *_DESCRIPTORS)):
            self._identity(value)
        elif kind in (dict, types.MappingProxyType, collections.OrderedDict, collections.defaultdict):
            self._identity(value)
            self._items(value)
        elif kind in _CONTAINERS:
            self._identity(value)
            self.tokens.append(len(value))
            for item in value:
                self.visit(item)
        else:
            self._of_instance(value, kind)

    def _identity(self, value: Any) -> None:
        self.tokens.append(id(value))

    def _items(self, items: Mapping[Any, Any]) -> None:
        self.tokens.append(len(items))
        for key, item in items.items():
            self.visit(key)
            self.visit(item)

    def _of_function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.tokens.append(name)
            self.visit(cell)
        space = function.__globals__
        if _is_settled(space.get("__name__")):  # not its ``__module__``, which a wrapper has from what it wraps
            return
        read = _code(function.__code__)
        self.tokens.append(id(function.__code__))
        self.kept.append(function.__code__)
        self.names |= read.names
        if not _ANYTHING.isdisjoint(read.globals):
            found = next(iter(_ANYTHING.intersection(read.globals)))
            raise NotElementwiseError(f"{found}() may see anything")
        self.visit(function.__defaults__)
        if function.__kwdefaults__:
            self.attributes(function.__kwdefaults__, whole=True)
        self.attributes(function.__dict__)
        if read.written:
            self.written.append((space, {name: space[name] for name in read.written if name in space}))
        for name in read.globals:
            self.tokens.append(name)
            self.visit(space[name] if name in space else getattr(builtins, name, None))

    def _of_class(self, kind: type) -> None:
        if _is_settled(kind.__module__):
            return
        for base in kind.__bases__:
            self.visit(base)
        for name, value in vars(kind).items():
            if name in self.names or self._whole or (_is_called(name) and callable(value)):
                self.tokens.append(name)
                self.visit(value)

    def attributes(self, held: Mapping[str, Any], whole: bool = False) -> None:
        for name in held:
            if whole or self._whole or name in self.names:
                self.tokens.append(name)
                self.visit(held[name])

    def _of_instance(self, value: Any, kind: type) -> None:
        if hasattr(kind, "tobytes"):  # an array or a number of NumPy
            if value.nbytes > _MOST:
                raise NotElementwiseError(f"it sees an array of {value.nbytes} bytes, which may change: {value.shape}")
            self.tokens += (kind, value.tobytes())
            return
        parameters = getattr(kind, "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            self._identity(value)
        self.visit(kind)
        held = getattr(value, "__dict__", None)
        whole = str(kind.__module__).partition(".")[0] in _WHOLE
        if isinstance(held, dict):
            self.attributes(held, whole)
            if isinstance(value, nn.Module) and not whole:
                self._of_module(held)
            if "__wrapped__" in held:
                self.visit(held["__wrapped__"])
        for name in _slots(kind):
            if whole or self._whole or name in self.names:
                self.tokens.append(name)
                self.visit(getattr(value, name, None))
        if isinstance(value, dict):
            self._items(dict(value))
        elif isinstance(value, list | set | frozenset | tuple | collections.deque):
            self.tokens.append(len(value))
            for item in value:
                self.visit(item)
        elif isinstance(value, int | float | str | bytes | complex):
            self.tokens += (str, repr(value))
        elif not inspect.isroutine(value) and any(map(_is_closed, kind.__mro__)):
            raise NotElementwiseError(f"it sees an object of the type {kind.__qualname__}, whose changes can't be seen")

    def _of_module(self, held: Mapping[str, Any]) -> None:
        for name in _OF_MODULES:
            inner = held.get(name)
            self.attributes(inner, whole="hooks" in name) if isinstance(inner, dict) else self.visit(inner)


@functools.lru_cache(4096)
def _slots(kind: type) -> list[str]:
    return [name for c in kind.__mro__ for name, v in vars(c).items() if isinstance(v, types.MemberDescriptorType)]


@functools.lru_cache(4096)
def _is_closed(kind: type) -> bool:
    """Whether a class of Python's own, or of NumPy, keeps what it holds in C."""
    package = kind.__module__.partition(".")[0]
    if kind in _OPEN or kind.__module__ in _FIXED or not _is_settled(package) or issubclass(kind, BaseException):
        return False
    if package in _WHOLE or kind.__name__ == "ufunc":  # what these hold in C is no number
        return False
    return not any(isinstance(value, types.FunctionType) for value in vars(kind).values())


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_called(name: str) -> bool:
    return name in _CALLED or (name.startswith("__") and name.endswith("__") and name not in _UNUSED)
