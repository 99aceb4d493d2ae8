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
import importlib.util
import operator
import random
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnfast._program.places import Places
from snnfast._program.settled import WHOLE, holds_state, is_closed, is_settled, is_whole, setting
from snnfast._program.trace import NotElementwiseError

__all__ = ["Moment", "Sight", "Surroundings", "modes"]

_PLAIN = (int, bool, str, bytes, type(None), type(...), type(NotImplemented), torch.dtype, torch.layout, range)
_CONTAINERS = (list, set, frozenset, collections.deque)

# With these, code finds attributes that it does not name.
_BY_TEXT = {"getattr", "hasattr", "setattr", "delattr", "vars", "dir", "format", "attrgetter", "methodcaller"}
_BY_TEXT |= {"__dict__", "__getstate__", "__reduce_ex__"}
_BY_TEXT |= {"__getattribute__", "__getattr__", "__setattr__", "__delattr__"}
_BY_TEXT |= {"children", "named_children", "modules", "named_modules", "get_submodule"}
_BY_TEXT |= {"buffers", "named_buffers", "get_buffer", "parameters", "named_parameters", "get_parameter", "state_dict"}
# Modules and classes whose functions find them.
_FINDERS = ("dataclasses", operator.attrgetter, operator.methodcaller)
# Nobody knows what these find.
_ANYTHING = {"globals", "eval", "exec", "locals", "__import__", "open", "input", "breakpoint"}
_ANY_OBJECT = {"__globals__", "__builtins__", "__subclasses__", "f_globals", "f_locals", "f_back", "f_builtins"}

# PyTorch and snnfast call these methods of a class that derives from their own.
_CALLED = {"step", "forward", "backward", "jvp", "vmap", "setup_context", "derivative"}
# Instructions behind one that puts an object on the stack.
_READ_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_OF_ATTRIBUTES = {"STORE_ATTR", "DELETE_ATTR", *_READ_ATTRIBUTES}
_BEGINS = {"__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__setattr__"}
_OF_MODULES = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "training"}
_OF_MODULES |= {"_backward_hooks", "_backward_pre_hooks"}
_OF_IMPORTS = {"__loader__", "__spec__", "__builtins__", "_compiled_call_impl"}
_UNUSED = {"__repr__", "__doc__", "__module__", "__dict__", "__weakref__"}
_CHILDREN = ("_parameters", "_buffers", "_modules")
_MAKE = ("__new__", "__init__", "__init_subclass__", "__post_init__")
# These are called where a text is made of an object.
_TEXTS = {"repr", "str", "ascii", "format", "print"}
# These do something that no object shows, or tell objects apart that are alike.
_ACTS = {
    ("builtins", "print"),
    ("builtins", "id"),
    ("builtins", "hash"),
    ("_warnings", "warn"),
    ("warnings", "warn"),
    ("warnings", "warn_explicit"),
}
_ACTS |= {("warnings", name) for name in ("simplefilter", "filterwarnings", "resetwarnings")}
_ACTS_OF_TORCH = re.compile(r"_?(set|use|manual|enable|disable|save|load|register|compile)_?.*|fork|seed").fullmatch
_NO_ACTS = {"set_grad_enabled"}

_RESETS_ONE = ("spikingjelly.activation_based.functional.net_config", "reset_net")

# A step that sees more objects, or an array of more bytes, would be slow to look at.
_MOST = 4000


class Moment(NamedTuple):
    """A record of all that a step sees at one time.

    Attributes:
        key: Equal for two moments between which nothing has changed that could change what the step computes.
        kept: The objects whose identities are in the key. While they live, no other object has these.
        places: Where all this is. Only :meth:`Sight.places` fills them.
    """

    key: tuple[Any, ...]
    kept: list[Any]
    places: Places

    def differs_in(self, other: "Moment") -> str:
        """The name of the first thing that is another one in another moment."""
        pairs = zip(self.key, other.key, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.key) - 1)
        names = [
            k for i, k in enumerate(self.key[: at + 1]) if type(k) is str and (i == 0 or self.key[i - 1] is not str)
        ]
        return names[-1] if names else "a mode of PyTorch"


class _Nowhere:
    """Places that nobody asks for."""

    unseen = ""

    def ignore(self, *_: Any, **__: Any) -> None: ...

    resets_all = Places.resets_all
    names = parts = function = cell = class_ = contents = array = tensor = acts = warns = ignore


# Descriptors of attributes do not change. The value of the attribute is seen in its object.
_DESCRIPTORS: tuple[type, ...] = (types.GetSetDescriptorType, types.MemberDescriptorType, type(vars(Moment)["key"]))
_DESCRIPTORS += (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)


class Sight:
    """All that a function can see, or the methods of a class.

    Args:
        function: The function, or the class.
        whole: Whether modules are looked at with all that is in them, whatever the code names.
    """

    def __init__(self, function: Callable[..., Any], whole: bool = False) -> None:
        self._function, self._whole = function, whole
        self._names: frozenset[str] = frozenset(_CALLED)

    def now(self, options: Mapping[str, Any]) -> Moment:
        """Record all that the function sees now, given the values of its options.

        Raises:
            NotElementwiseError: It sees something whose changes can't be seen. The message names it.
        """
        walk = self._walk(options)
        return Moment(tuple(walk.tokens), walk.kept, walk.places)

    def places(self, objects: Collection[Any] = ()) -> Moment:
        """Record all that it sees now and where, also by objects that it is given, to find or to put back later.

        Raises:
            NotElementwiseError: It sees something whose changes can't be seen, or not be put back.
        """
        walk = self._walk({}, Places, objects)
        if walk.places.unseen:
            raise NotElementwiseError(f"it sees {walk.places.unseen}, which can't be put back")
        walk.places.finish()
        return Moment(tuple(walk.tokens), walk.kept, walk.places)

    @contextmanager
    def undisturbed(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Undo what the function changes of all that it sees, and what it draws of random numbers."""
        places = self._walk(options, Places).places
        drawn = random.getstate()
        of_numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        try:
            yield
        finally:
            random.setstate(drawn)
            if of_numpy is not None:
                sys.modules["numpy"].random.set_state(of_numpy)
            places.put_back()

    def look(self, objects: Collection[Any], places: Callable[[], Places], ran: Collection[types.CodeType]) -> Moment:
        """Look at all that it sees now, also by objects that it is given.

        Args:
            objects: They.
            places: Makes what notes them.
            ran: The codes that may run. What others would see is left out.

        Raises:
            NotElementwiseError: It sees something whose changes can't be seen.
        """
        walk = self._walk({}, places, objects, ran)
        if walk.places.unseen:
            raise NotElementwiseError(f"it sees {walk.places.unseen}")
        return Moment(tuple(walk.tokens), walk.kept, walk.places)

    def _walk(
        self,
        options: Mapping[str, Any],
        kind: Callable[[], Any] = _Nowhere,
        objects: Collection[Any] = (),
        ran: Collection[types.CodeType] | None = None,
    ) -> "_Walk":
        while True:
            walk = _Walk(self._names, kind(), self._whole, ran)
            walk.visit(self._function)
            for found in objects:
                walk.visit(found)
            walk.attributes(options, whole=True)
            if ran is not None:  # any tensor may be given
                walk.places.names(vars(Tensor), Tensor, walk.names)
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


class _Code(NamedTuple):
    """The names in a code, and in the codes of the functions within it.

    Attributes:
        globals: Names of globals, each with the paths of attributes that follow it; ``()``: it is read by itself.
        imported: Modules that are imported inside, their levels, and the names that are imported from them.
        names: All names.
    """

    globals: dict[str, frozenset[tuple[str, ...]]]
    imported: tuple[tuple[str, int, tuple[str, ...]], ...]
    names: frozenset[str]


@functools.lru_cache(4096)
def _code(code: types.CodeType) -> _Code:
    read: dict[str, set[tuple[str, ...]]] = {}
    imported = set()
    names = set(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}  # a text may be getattr's
    instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    for number, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            path = []
            for after in instructions[number + 1 :]:
                if after.opname not in _OF_ATTRIBUTES:
                    break
                path.append(after.argval)
                if after.opname not in _READ_ATTRIBUTES:
                    break
            read.setdefault(instruction.argval, set()).add(tuple(path))
        elif instruction.opname == "IMPORT_NAME":
            level, found = (before.argval for before in instructions[number - 2 : number])
            imported.add((instruction.argval, level, found or ()))
        elif instruction.opname == "MATCH_CLASS":
            names.add("getattr")
        elif instruction.opname.startswith("FORMAT_"):
            names.add("str")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            inside = _code(inner)
            for name, paths in inside.globals.items():
                read.setdefault(name, set()).update(paths)
            imported |= set(inside.imported)
            names |= inside.names
    return _Code(
        {name: frozenset(paths) for name, paths in sorted(read.items())}, tuple(sorted(imported)), frozenset(names)
    )


class _Walk:
    """One look at all objects.

    Attributes:
        names: The names in all codes so far. Of an object with attributes, those with these names are looked at.
        places: Where it has looked.
    """

    def __init__(
        self, names: frozenset[str], places: Any, whole: bool = False, ran: Collection[types.CodeType] | None = None
    ) -> None:
        self._whole_modules, self._ran = whole, ran
        self.names = set(names)
        self.tokens: list[Any] = []
        self.kept: list[Any] = []
        self.places = places
        self._known: set[int] = set()
        self._made: set[int] = set()  # classes that the code may make objects of
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
        elif isinstance(value, type):
            self._class(value, is_made=True)
        elif self._is_new(value):
            self._object(value, kind)

    def _is_new(self, value: Any) -> bool:
        """Whether an object was not looked at yet. From now on it was."""
        if id(value) in self._known:
            self.tokens.append(id(value))
            return False
        self._known.add(id(value))
        self.kept.append(value)
        if len(self.kept) > _MOST:
            raise NotElementwiseError("it sees too many objects to know whether one has changed")
        return True

    def _object(self, value: Any, kind: type) -> None:
        if kind is types.FunctionType:
            self._identity(value)
            self._of_function(value)
        elif isinstance(value, types.ModuleType):
            self._module(value)
            self._of_module(value)
        elif kind is types.CellType:
            self.places.cell(value)
            self.visit(value.cell_contents if _is_full(value) else None)
        elif kind is types.MethodType:  # a new object at each access
            self.visit(value.__func__)
            self.visit(value.__self__)
        elif kind in (types.BuiltinFunctionType, types.MethodWrapperType):
            self.tokens += (str, value.__name__)
            if getattr(value, "__module__", None) is None:  # a method
                self.visit(value.__self__)
            else:
                self._identity(value)
                self._of_settled(value, value.__module__)
        elif isinstance(value, Tensor):
            self._identity(value)
            self.places.tensor(value)
            self.tokens.append(None if value.is_inference() else value._version)
            self.attributes(value.__dict__)
        elif isinstance(value, functools.partial):
            self.tokens.append(kind)
            for part in (value.func, value.args, value.keywords):
                self.visit(part)
        elif kind in (operator.attrgetter, operator.itemgetter, operator.methodcaller):
            self._identity(value)
            for part in value.__reduce__()[1:]:
                self._name_of(part)
        elif isinstance(value, staticmethod | classmethod):
            self.visit(value.__func__)
        elif isinstance(value, property):
            self.visit((value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.cached_property):
            self.visit(value.func)
        elif isinstance(value, _DESCRIPTORS):
            self._identity(value)
        elif isinstance(value, enum.Enum):
            self._identity(value)
            self._class(kind)
            self.attributes(vars(value))
            self.visit(value._value_)
        elif kind in (dict, types.MappingProxyType, collections.OrderedDict, collections.defaultdict):
            self._identity(value)
            if kind is types.MappingProxyType:
                self.places.unseen = self.places.unseen or "a mapping that can't be written to"
            if kind is collections.defaultdict:
                self.visit(value.default_factory)
            self._items(value)
        elif kind in _CONTAINERS:
            self._identity(value)
            self._of_container(value)
        else:
            self._of_instance(value, kind)

    def _identity(self, value: Any) -> None:
        self.tokens.append(id(value))

    def _name_of(self, part: Any) -> None:
        """Enter the texts of a getter, which are names of attributes."""
        if isinstance(part, str):
            self.names.update(part.split("."))
        elif isinstance(part, tuple):
            for inner in part:
                self._name_of(inner)
        self.visit(part)

    def _items(self, items: Any) -> None:
        self.places.contents(items)
        self.tokens.append(len(items))
        for key, item in items.items():
            self.visit(key)
            self.visit(item)

    def _of_container(self, value: Any) -> None:
        self.places.contents(value)
        self.tokens.append(len(value))
        for item in value:
            self.visit(item)

    def _of_function(self, function: types.FunctionType) -> None:
        space = function.__globals__
        if (space.get("__name__"), function.__name__) == ("snntorch.utils", "reset"):
            self._identity(function)
            self.places.resets_all(function)
            return
        if (space.get("__name__"), function.__name__) == _RESETS_ONE:
            self._of_reset(function)
            return
        if is_settled(space.get("__name__")):  # not its ``__module__``, which a wrapper has from what it wraps
            self._cells(function)
            self._of_settled(function, space["__name__"])
            return
        if self._ran is not None and function.__code__ not in self._ran:
            self._known.discard(id(function))  # it may be met again where all codes count
            return
        self._cells(function)
        read = _code(function.__code__)
        self.tokens.append(id(function.__code__))
        self.kept.append(function.__code__)
        self.names |= read.names
        if not _ANY_OBJECT.isdisjoint(read.names):
            raise NotElementwiseError(f"{min(_ANY_OBJECT & read.names)} may find anything")
        self.places.function(function)
        self.visit(function.__defaults__)
        if function.__kwdefaults__:
            self.attributes(function.__kwdefaults__, whole=True)
        self.attributes(function.__dict__)
        self.places.names(space, None, read.globals)
        for name, paths in read.globals.items():
            self.tokens.append(name)
            if name in space:
                self._global(space[name], paths)
            else:
                self.places.names(vars(builtins), None, (name,))
                self.visit(getattr(builtins, name, None))
        for name, level, members in read.imported:
            self._of_import(name, level, members, space)

    @contextmanager
    def _all_codes(self, count: bool) -> Iterator[None]:
        """Look at codes inside that have not run, if they ``count``: they run in a graph, as those of a surrogate."""
        before, self._ran = self._ran, None if count else self._ran
        yield
        self._ran = before

    def _cells(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.tokens.append(name)
            self.visit(cell)

    def _of_reset(self, function: types.FunctionType) -> None:
        """Look at SpikingJelly's ``reset_net``, which remembers the modules of networks by weak references.

        It calls the ``reset`` of each module of a network, which is all that it reads of them, and logs a warning for
        those that are not SpikingJelly's own.
        """
        self._identity(function)
        self.names |= {"reset", "modules"}
        for other in vars(sys.modules[function.__module__]).values():
            if isinstance(other, types.FunctionType) and other.__globals__ is function.__globals__:
                self.places.function(other)
                self.places.warns(other)

    def _of_import(self, name: str, level: int, members: tuple[str, ...], space: Mapping[str, Any]) -> None:
        """Look at what an import inside of a function reads, if it was imported before."""
        if level:
            package = space.get("__package__") or str(space.get("__name__")).rpartition(".")[0]
            name = importlib.util.resolve_name("." * level + name, package)
        parts = name.split(".")
        for found in (".".join(parts[: i + 1]) for i in range(len(parts))):
            self.tokens.append(found)
            if found in sys.modules:
                self.places.names(sys.modules, None, (found,))
            else:  # to undo an import would make a second module
                self.places.unseen = self.places.unseen or f"the module {found}, which is not imported yet"
            if not members:
                self.visit(sys.modules.get(found))
        if members:
            self._global(sys.modules.get(name), [(member,) for member in members])

    def _of_settled(self, function: Any, module: str) -> None:
        """Refuse a function of Python's own, of PyTorch or of NumPy that does not compute from its arguments alone."""
        name, package = function.__name__, module.partition(".")[0]
        if (module, name) in _ACTS:
            self.places.acts(function)
        if (package == "builtins" and name in _BY_TEXT) or module in _FINDERS:
            self.names.add("getattr")
        elif package == "builtins" and name in _ANYTHING:
            raise NotElementwiseError(f"{name}() may see anything")
        elif not is_settled(module) and isinstance(function, types.BuiltinFunctionType):
            raise NotElementwiseError(f"it calls {module}.{name}, which is written in C and may read anything")
        elif package in WHOLE or package == "numpy":
            self._of_torch(function, module)
        elif holds_state(module):
            raise NotElementwiseError(f"it calls {module}.{name}, which may return something else each time")

    def _of_torch(self, function: Any, module: str) -> None:
        is_safe = module.startswith("snnfast") or not holds_state(module) or function.__name__ == "is_available"
        if _name_acts(function.__name__):
            self.places.acts(function)
        found = setting(function) if is_safe or not is_settled(function.__module__) else None  # or of a wrapper
        if found is None:
            raise NotElementwiseError(f"it calls {function.__module__}.{function.__name__}, which may change")
        if found:
            self.tokens += found
            self.places.unseen = self.places.unseen or f"what {found[0]} returns"

    def _class(self, kind: type, is_made: bool = False) -> None:
        """Look at a class, and at what makes an object of it, if the code has the class by itself."""
        is_new = self._is_new(kind)
        if is_new:
            self._identity(kind)
        if kind in _FINDERS:
            self.names.add("getattr")
        if is_settled(kind.__module__):
            if is_new:
                self._patches_of(kind)
            self._of_settled_class(kind, is_made)
            return
        if is_new:
            with self._all_codes(issubclass(kind, torch.autograd.Function)):
                self._of_class(kind)
        if is_made and id(kind) not in self._made:
            self._made.add(id(kind))
            self._some_of_class(kind, [name for name in vars(kind) if name in _MAKE])
        for base in kind.__bases__:
            self._class(base, is_made and not is_settled(base.__module__))

    def _patches_of(self, kind: type) -> None:
        """Programs put functions of their own into classes of PyTorch and snnfast. Those that a call begins with."""
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in WHOLE:
                held = vars(base)
                read = [name for name in held if name in self.names or name in _CALLED or name in _BEGINS]
                self.places.names(held, base, read)

    def _of_settled_class(self, kind: type, is_made: bool) -> None:
        if not is_made or issubclass(kind, BaseException) or kind.__module__.partition(".")[0] in WHOLE:
            return
        if holds_state(kind.__module__):
            raise NotElementwiseError(f"it sees the class {kind.__module__}.{kind.__qualname__}, which may change")

    def _of_class(self, kind: type) -> None:
        meta = type(kind)
        if not is_settled(meta.__module__):
            self._class(meta)
        self.places.class_(kind)
        shows = not _TEXTS.isdisjoint(self.names)
        held = vars(kind)
        read = [
            name
            for name, value in held.items()
            if name in self.names
            or self._whole
            or (_is_called(name) and callable(value))
            or (shows and name == "__repr__")
        ]
        self._some_of_class(kind, read)
        self.places.names(held, kind, self.names, whole=True)  # a new method may be called without its name
        if isinstance(kind, enum.EnumMeta):
            self.visit(tuple(held["_member_map_"].values()))

    def _some_of_class(self, kind: type, names: list[str]) -> None:
        held = vars(kind)
        self.places.names(held, kind, names)
        for name in names:
            self.tokens.append(name)
            self.visit(held[name])

    def attributes(self, held: Mapping[str, Any], whole: bool = False) -> None:
        """Look at the attributes that a mapping holds, which the code may read."""
        read = (
            [name for name in held if name not in _OF_IMPORTS]
            if whole or self._whole
            else [name for name in held if name in self.names]
        )
        self.places.names(held, None, read, whole or self._whole)
        self.places.names(held, None, self.names)
        for name in read:
            self.tokens.append(name)
            self.visit(held[name])

    def _global(self, value: Any, paths: Collection[tuple[str, ...]]) -> None:
        """Look at a global; of a module, only at the attributes that the code names behind it."""
        held = vars(value) if type(value) is types.ModuleType else {}
        if not all(path and path[0] in held for path in paths):
            self.visit(value)
            return
        self.kept.append(value)
        self._module(value)
        for name in sorted({path[0] for path in paths}):
            self.places.names(held, None, (name,))
            self.tokens.append(name)
            if isinstance(held.get(name), types.ModuleType):
                self._global(held[name], {path[1:] for path in paths if path[0] == name})
            else:
                self._member(value, name, held[name])

    def _module(self, module: types.ModuleType) -> None:
        self._identity(module)
        self.tokens.append(id(type(module)))
        self.places.parts(module, ("__class__",))

    def _of_module(self, module: types.ModuleType) -> None:
        held = vars(module)
        if not is_settled(module.__name__):
            self.attributes(held)
            if "__getattr__" in held:
                self.visit(held["__getattr__"])
            if type(module) is not types.ModuleType:
                self._class(type(module))
            return
        for found in sorted([name for name in self.names if name in held]):  # the modules have thousands
            self.places.names(held, None, (found,))
            self.tokens.append(found)
            self._member(module, found, held[found])
        if type(module) is not types.ModuleType:  # such as those of PyTorch's backends
            for found in sorted(self.names.intersection(vars(type(module)))):
                self.tokens.append(found)
                self._member(module, found, vars(type(module))[found])

    def _member(self, module: types.ModuleType, name: str, value: Any) -> None:
        """Look at a name of a module; refuse one of Python's own, PyTorch or NumPy whose changes can't be seen."""
        settled = module.__name__
        if not is_settled(settled):
            self.visit(value)
            return
        if settled in _FINDERS:
            self.names.add("getattr")
        is_plain = settled not in ("builtins", "warnings") and settled.partition(".")[0] not in (*WHOLE, "numpy")
        if is_plain and not holds_state(settled):
            return
        if type(value) in (*_PLAIN, float, tuple) or isinstance(value, types.ModuleType):
            self.visit(value)
        elif isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            self._of_settled(value, module.__name__)
        elif holds_state(module.__name__) or isinstance(value, torch.Generator):
            raise NotElementwiseError(f"it reads {module.__name__}.{name}, whose changes can't be seen")

    def _of_instance(self, value: Any, kind: type) -> None:
        if "numpy" in sys.modules and isinstance(value, (sys.modules["numpy"].ndarray, sys.modules["numpy"].generic)):
            self._of_array(value, kind)
            return
        parameters = next((found for c in kind.__mro__ if (found := vars(c).get("__dataclass_params__"))), None)
        if parameters is None or not parameters.frozen:
            self._identity(value)
        self._class(kind)
        held, whole = _dict_of(value), is_whole(kind)
        if isinstance(held, dict):
            self.places.parts(value, ("__class__", "__dict__"))
            with self._all_codes(kind.__module__.partition(".")[0] == "snnfast"):
                self.attributes(held, whole)
            if isinstance(value, nn.Module) and not whole:
                self._of_layer(held)
            if "__wrapped__" in held:
                self.visit(held["__wrapped__"])
        slots = [name for name in _slots(kind) if whole or self._whole or name in self.names]
        if slots:
            self.places.parts(value, slots)
        for name in slots:
            self.tokens.append(name)
            self.visit(getattr(value, name, None))
        if is_closed(kind) and not isinstance(value, tuple):
            raise NotElementwiseError(f"it sees an object of the type {kind.__qualname__}, whose changes can't be seen")
        if isinstance(value, dict):
            self._items(value)
        elif isinstance(value, list | set | frozenset | tuple | collections.deque):
            self._of_container(value)
        elif isinstance(value, int | float | str | bytes | complex):
            self.tokens += (str, repr(value))

    def _of_array(self, value: Any, kind: type) -> None:
        """An array or a number of NumPy."""
        if value.nbytes > _MOST:
            raise NotElementwiseError(f"it sees an array of {value.nbytes} bytes, which may change: {value.shape}")
        if value.dtype.hasobject:
            raise NotElementwiseError("it sees an array of objects, which may change")
        self.tokens += (kind, value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, sys.modules["numpy"].ndarray):
            self.places.array(value)
            if isinstance(held := getattr(value, "__dict__", None), dict):
                self._class(kind)
                self.attributes(held)

    def _of_layer(self, held: Mapping[str, Any]) -> None:
        self.places.names(held, None, _OF_MODULES)
        for name in _OF_MODULES:
            inner = held.get(name)
            whole = "hooks" in name or (name in _CHILDREN and self._whole_modules)
            self.attributes(inner, whole) if isinstance(inner, dict) else self.visit(inner)


def _name_acts(name: str) -> bool:
    """Whether a function of PyTorch with this name may change a setting, a generator or a file."""
    return name not in _NO_ACTS and _ACTS_OF_TORCH(name) is not None


def _dict_of(value: Any) -> Any:
    try:
        return object.__getattribute__(value, "__dict__")  # past methods of the object's own
    except AttributeError:
        return None


@functools.lru_cache(4096)
def _slots(kind: type) -> list[str]:
    return [name for c in kind.__mro__ for name, v in vars(c).items() if isinstance(v, types.MemberDescriptorType)]


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_called(name: str) -> bool:
    return name in _CALLED or (name.startswith("__") and name.endswith("__") and name not in (*_UNUSED, *_MAKE))
