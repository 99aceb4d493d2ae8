"""Kinds of recorded calls: what they return, found once on fake tensors."""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from snnfast._program.seen import Sight
from snnfast._program.trace import NotElementwiseError
from snnfast.compiler.graph.nodes import literal, storage_of, tensors_in
from snnfast.compiler.record.functions import Alike, Applied
from snnfast.compiler.record.later import Later, Like, like_of
from snnfast.compiler.record.modes import NONE, entered
from snnfast.compiler.record.waiting import MayRaise


class NeedsValueError(Exception):
    """A call can't wait: it needs what tensors hold, or nothing is known of it. It is raised to nobody but us."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let PyTorch log nothing of a function that fails on fake tensors: it then runs on real ones."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Hole:
    """The place of a tensor, or of a number that may differ from call to call, among arguments."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"_{self.number}"


class Kind:
    """Calls of one function with equal constants, on tensors of which equal things are known.

    Attributes:
        func: The function.
        grad: Whether autograd records it.
        modes: Autocast and inference mode, if they are not those around the recorded call.
        args: The arguments, with a :class:`Hole` for each leaf.
        kwargs: The named ones.
        tensors: Of each leaf, whether it is a tensor.
        writes: Of each leaf, whether it is changed in place.
        changes: Whether any is.
        counts: Whether each change makes another version of a tensor.
        aliases: Of each leaf, whether a result shares its memory.
        likes: The tensors that it returns.
        only: The tensor that it returns, if to record the call is to return it.
        spec: The structure of what it returns; ``None`` for one tensor, or nothing.
        leaves: What is in the structure: a :class:`Hole` for a tensor, or a constant.
        container: ``tuple`` or ``list``, if it returns tensors in one.
        same: The number of the argument that it returns; ``"out"``.
        grown: What is known of the first argument afterwards, where its changed.
        direct: Whether it only reads what is known of tensors, and is made at once.
        draws: Whether it draws random numbers.
        peeks: Whether it is a view that is made without gradients of a tensor that may require one.
        raises: Whether an error depends on values in another way than by ``takes``.
        waits: Whether nothing of ``draws``, ``raises`` and ``takes`` keeps it from waiting.
        takes: Leaves that must hold numbers of a range: the leaf, the least and the largest number, and another one
            that it may hold.
        gives: Of results that hold numbers of a range, these.
    """

    __slots__ = (
        "aliases", "args", "changes", "container", "counts", "direct", "draws", "func", "gives", "grad", "grown",
        "kwargs", "leaves", "likes", "modes", "only", "peeks", "raises", "same", "spec", "takes", "tensors", "waits",
        "writes",
    )  # fmt: skip

    def __init__(self, func: Any = None, grad: bool = True, modes: Any = None) -> None:
        self.func, self.grad, self.modes = func, grad, modes
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.tensors: tuple[bool, ...] = ()
        self.writes: tuple[bool, ...] = ()
        self.aliases: tuple[bool, ...] = ()
        self.likes: tuple[Like, ...] = ()
        self.spec: Any = None
        self.leaves: list[Any] = []
        self.same: Any = None
        self.container: Any = None
        self.grown: Like | None = None
        self.only: Like | None = None
        self.direct = self.peeks = self.draws = self.raises = self.changes = False
        self.waits = self.counts = True
        self.takes: tuple[tuple[int, float, float, int | None], ...] = ()
        self.gives: dict[int, tuple[float, float]] = {}

    def tells(self, other: "Kind") -> bool:
        """Whether all that is known of it is known of another kind of the same call."""
        return all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__ if name not in ("args", "kwargs")
        )

    def tensors_of(self, found: Any) -> list[Tensor]:
        """The tensors among what a call has returned."""
        if self.spec is None:
            return [found] if self.likes else []
        return [t for t, c in zip(pytree.tree_leaves(found), self.leaves, strict=True) if c is Hole]

    @property
    def places(self) -> list[int]:
        """Where in the structure the tensors are."""
        return [i for i, c in enumerate(self.leaves) if c is Hole]

    def arguments(self, leaves: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with these leaves."""
        given = list(leaves)
        args = tuple([_filled(a, given) for a in self.args])
        return args, {name: _filled(a, given) for name, a in self.kwargs.items()}


def _filled(a: Any, given: list[Any]) -> Any:
    t = type(a)
    if t is Hole:
        return given[a.number]
    if t is tuple or t is list:
        return t([_filled(b, given) for b in a])
    if t is dict:
        return {name: _filled(b, given) for name, b in a.items()}
    if t is slice:
        return slice(*(_filled(b, given) for b in (a.start, a.stop, a.step)))
    return a


_MOST = 4000
"""So many kinds are known, and a little more at the end of a call."""

_MOST_FUNCTIONS = 64
"""So many classes of functions are, each with the numbers that it reads."""

_MOST_CHANGES = 8
"""A function that fills a cache changes what it reads a few times, and a counter each time."""


class Kinds(dict[Any, Kind]):
    """The kinds that are known, by the keys of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()  # of what makes kinds and graphs, which threads share
        self._mode: FakeTensorMode | None = None
        self._functions: dict[Any, Applied] = {}
        self._applied: dict[Any, Applied] = {}  # the last one of each
        self._sights: dict[Any, Sight] = {}  # of their classes
        self._changes: Counter[Any] = Counter()  # how often a class has changed what it reads
        self._options: dict[int, Any] = {}
        # Of functions and sketches of their arguments, a kind of which tensors without values tell what fake tensors
        # tell; ``None`` where there was one call, ``False`` where they tell something else.
        self._sketches: dict[Any, Kind | bool | None] = {}
        self.classes = Alike()
        self.spare: dict[Like, list[Later]] = {}  # results of earlier calls that nobody holds

    def applied(self, cls: Any, objects: tuple[tuple[int, Any], ...]) -> Applied:
        """The call of an ``autograd.Function`` with these objects among its arguments, for what it reads now.

        Raises:
            NeedsValueError: Nobody can tell what it reads.
        """
        last = self._applied.get((cls, objects))
        if last is not None and last.is_current():
            return last
        if self._changes[cls] > _MOST_CHANGES:
            raise NeedsValueError(f"{cls.__name__} changes what it reads")
        try:
            moment = self._sights.setdefault(cls, Sight(cls)).places([a for _, a in objects])
        except NotElementwiseError as error:
            raise NeedsValueError(f"{cls.__name__}: {str(error).removeprefix('step: ')}") from None
        applied = self._functions.setdefault((cls, objects, moment.key), Applied(cls, objects))
        applied.moment = moment  # with the very objects that hold these numbers now
        self._applied[cls, objects] = applied
        return applied

    def trim(self) -> None:
        """Forget all kinds if there are too many: a number or a class of each call is a part of them."""
        if len(self) > _MOST or max(len(self._functions), len(self._sights), len(self.classes)) > _MOST_FUNCTIONS:
            self.clear()
            self._functions.clear()
            self._sights.clear()
            self.classes.clear()
            self._applied.clear()
            self._options.clear()
            self._sketches.clear()

    def keep(self, options: Any) -> None:
        """Keep options that are known by their id."""
        self._options[id(options)] = options

    def fake(self, like: Like) -> Tensor:
        if self._mode is None:
            self._mode = FakeTensorMode()
        with self._mode:
            return _without_values(like, like.device)

    def find(self, func: Any, args: Any, kwargs: Any, grad: bool, modes: Any, ambient: Any, holes: Any) -> Kind:
        """A new kind. ``holes`` says which argument is an index, and which numbers may differ from call to call.

        Raises:
            NeedsValueError: The result depends on values, or the function fails.
        """
        with self.lock:
            return self._find(func, args, kwargs, grad, modes, ambient, holes)

    def _find(self, func: Any, args: Any, kwargs: Any, grad: bool, modes: Any, ambient: Any, holes: Any) -> Kind:
        """PyTorch's own tensors without values know most functions, too, and tell their results in less time.

        They are asked where they have told what fake tensors tell of a call that differs by its sizes alone. If that
        one may wait, and writes to nothing, so may this one, and only its results are asked for.
        """
        call = func, args, kwargs, grad, modes, ambient, holes
        sketch = _sketch(args, kwargs, holes[1] == "all") if modes is None and ambient == NONE else None
        if sketch is None:
            return self._found(*call)
        device, *others = sketch
        key = func, grad, *others
        known = self._sketches.get(key)
        if isinstance(known, Kind):
            is_plain = known.waits and not known.changes and not known.gives
            return self._found(*call, device, known if is_plain else None)
        kind = self._found(*call)
        if key not in self._sketches:
            self._sketches[key] = None
        elif known is None:
            try:
                self._sketches[key] = kind.tells(self._found(*call, device)) and kind
            except NeedsValueError:
                self._sketches[key] = False
        return kind

    def _found(
        self, func: Any, args: Any, kwargs: Any, grad: bool, modes: Any, ambient: Any, holes: Any, device: Any = None,
        known: Kind | None = None,
    ) -> Kind:  # fmt: skip
        """A new kind, found on fake tensors, or on tensors without values that stand for those of a device.

        ``known``: a kind that differs by sizes alone, may wait and writes to nothing. So does this one.
        """
        kind = Kind(func, grad, modes)
        template = _Template(self.fake if device is None else partial(_without_values, device=_META))
        at, numbers = holes
        kind.args = tuple([template.of(a, numbers if at in (None, i) else "") for i, a in enumerate(args)])
        kind.kwargs = {name: template.of(a, "") for name, a in kwargs.items()}
        kind.tensors = tuple(template.tensors)
        fakes = template.leaves
        given, named = kind.arguments(fakes)
        before = [like_of(t) if isinstance(t, Tensor) else None for t in fakes]
        versions = [_version(t) for t in fakes]
        seen = MayRaise()
        try:
            fake = contextlib.nullcontext() if device is not None else self._mode or FakeTensorMode()
            looks = seen if known is None else contextlib.nullcontext()
            with quiet(), entered(grad, modes, ambient), fake, looks:
                found = func(*given, **named)
        except Exception as error:
            raise NeedsValueError(f"{getattr(func, '__name__', func)} raises {type(error).__name__}") from None
        if isinstance(func, Applied) and func.changes:
            self._changes[func.function] += 1
            func.undo()
            raise NeedsValueError(f"{func.function.__name__} changes what it reads")
        for t in tensors_in(found):
            _check_is_plain(t)
        returned = {storage_of(t) for t in tensors_in(found)}
        memory = [storage_of(t) if isinstance(t, Tensor) else None for t in fakes]
        counted = [v != _version(t) for v, t in zip(versions, fakes, strict=True)]
        kind.writes = tuple([c or at in seen.writes for c, at in zip(counted, memory, strict=True)])
        kind.changes, kind.counts = True in kind.writes, kind.writes == tuple(counted)
        kind.aliases = tuple([isinstance(t, Tensor) and storage_of(t) in returned for t in fakes])
        kind.peeks = not grad and any(kind.aliases)
        seen.look_at(func, given, named)
        kind.draws, kind.raises = seen.draws, seen.raises
        for t, *numbers in seen.takes:
            if (at := seen.memory_of(t)) in memory and t.dtype == fakes[memory.index(at)].dtype:
                kind.takes += ((memory.index(at), *numbers),)
            else:
                kind.raises = True  # an index that the function computes
        kind.waits = not (kind.draws or kind.raises or kind.takes)
        memory = [storage_of(t) for t in tensors_in(found)]
        for t, low, high, _ in seen.gives:
            if (at := storage_of(t)) in memory:
                kind.gives[memory.index(at)] = low, high
        if modes is not None and modes[0] and any(kind.aliases):
            # A fake tensor does not know whether it requires a gradient where other views make it, as in ``view_as``.
            raise NeedsValueError("a view that is made in inference mode")
        if isinstance(func, Applied):
            func.computes &= not (any(kind.writes) or any(kind.aliases) or seen.draws)
        self._describe(kind, found, given, named)
        for t, like in zip(fakes, before, strict=True):
            now = None if like is None else known_of(t)
            if like is not None and now is not None and now != like:
                if t is not given[0] or now.but(requires_grad=like.requires_grad, is_leaf=like.is_leaf) != like:
                    raise NeedsValueError(f"{getattr(func, '__name__', func)} changes what is known of a tensor")
                kind.grown = now
        if device is not None:
            kind.likes = tuple([like.but(device=device) for like in kind.likes])
            kind.grown = kind.grown and kind.grown.but(device=device)
        if kind.likes and kind.spec is None and not kind.changes and not kind.peeks and kind.waits:
            kind.only = kind.likes[0]
        return kind

    def _describe(self, kind: Kind, found: Any, args: Any, kwargs: Any) -> None:
        """Tell what was returned."""
        if found is None:
            return
        if isinstance(found, Tensor):
            same = next((i for i, a in enumerate(args) if a is found), None)
            kind.same = "out" if same is None and kwargs.get("out") is found else same
            if kind.same is not None:
                return
        tensors, known = tensors_in(found), {id(t) for t in tensors_in((args, kwargs))}
        if any(id(t) in known for t in tensors) or len({id(t) for t in tensors}) < len(tensors):
            raise NeedsValueError("a call returns a tensor that it was given")
        kind.likes = tuple(map(_result_like, tensors))
        if isinstance(found, Tensor):
            return
        leaves, kind.spec = pytree.tree_flatten(found)
        kind.leaves = [Hole if isinstance(t, Tensor) else t for t in leaves]
        kind.direct = not tensors
        if type(found) in (tuple, list) and len(tensors) == len(found):
            kind.container = type(found)


_META = torch.device("meta")


def _sketch(args: Any, kwargs: Any, any_numbers: bool) -> tuple[Any, ...] | None:
    """The one device of a call's tensors, and what is known of its arguments but for their sizes.

    A whole number may be a size, if it is not 0. Another number may tell what the call does, as that of a dropout tells
    whether it draws; with ``any_numbers``, none does.

    ``None``: there are several devices, or images in an order that PyTorch chooses by their sizes as well.
    """
    devices: set[torch.device] = set()
    found: list[Any] = [len(args), *kwargs]
    for given in (*args, *kwargs.values()):
        alike: dict[Any, None] = {}  # one entry for all that are alike, such as those of all steps
        for a in pytree.tree_leaves(given):
            if not isinstance(a, Tensor):
                is_any = type(a) in (int, float) and (any_numbers or (type(a) is int and a != 0))
                alike[type(a) if is_any else literal(a)] = None
                continue
            like = a.later_like if isinstance(a, Later) else known_of(a)
            sizes, strides = like.shape, like.stride
            order = tuple(sorted(range(len(sizes)), key=lambda d: (-strides[d], d)))
            if len(sizes) > 3 and order != tuple(range(len(sizes))):
                return None
            few = tuple([size if size < 2 else 2 for size in sizes])  # one of size 1 is broadcast
            known = few, order, 0 in strides, like.dtype, like.requires_grad, like.is_leaf, like.kind, like.layout
            alike[known] = None
            devices.add(like.device)
        found.append(tuple(alike))
    return (devices.pop(), *found) if len(devices) == 1 else None


def _without_values(like: Like, device: torch.device) -> Tensor:
    """A tensor of which this is known, on a device or under a mode where it has no memory."""
    with torch.inference_mode(like.kind == "inference"):
        made = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=device)
        if like.kind == "view":
            made = made.as_strided(like.shape, like.stride)
        if like.requires_grad:
            made.requires_grad_()
        if not like.is_leaf:
            made = made.clone()
            if made.stride() != like.stride:  # one with gaps
                made = made.as_strided(like.shape, like.stride)
        return made


def known_of(t: Tensor) -> Like:
    try:
        return like_of(t)
    except RuntimeError as error:  # a view that autograd does not allow to be used any more
        raise NeedsValueError(str(error)) from None


def _version(t: Any) -> int:
    return t._version if isinstance(t, Tensor) and not t.is_inference() else 0


def _check_is_plain(t: Tensor) -> None:
    if t.layout is not torch.strided:
        raise NeedsValueError("a tensor that is not dense")
    if t.is_conj() or t.is_neg():
        raise NeedsValueError("a tensor that is conjugated")  # PyTorch resolves it when it is read


def _result_like(t: Tensor) -> Like:
    like = like_of(t)
    if not all(isinstance(size, int) for size in (*like.shape, *like.stride)):
        raise NeedsValueError("a size that depends on values")
    return like


_MANY = 8


class _Template:
    """Arguments with holes, and what is in the holes: fake tensors and numbers."""

    def __init__(self, fake: Any) -> None:
        self.leaves: list[Any] = []
        self.tensors: list[bool] = []
        self._fake = fake
        self._fakes: dict[Any, Tensor] = {}

    def of(self, a: Any, numbers: str, many: bool = False) -> Any:
        """An argument with holes: ``numbers`` are holes, too, if it is "all", or those of an "index"."""
        t = type(a)
        if isinstance(a, Tensor):
            like = a.later_like if isinstance(a, Later) else known_of(a)
            # One tensor in two places is one fake tensor. So are results of one call at all steps.
            key = like if many else id(a)
            if key not in self._fakes:
                self._fakes[key] = self._fake(like)
            return self._hole(self._fakes[key], True)
        if (numbers and t is int) or (numbers == "all" and t is float):
            return self._hole(a, False)
        if numbers == "index" and t is tuple:
            return tuple([self.of(b, numbers if type(b) is int else "") for b in a])
        numbers = "all" if numbers == "all" else ""
        if t is tuple or t is list:
            return t([self.of(b, numbers, many or len(a) > _MANY) for b in a])
        if t is dict:
            return {name: self.of(b, numbers) for name, b in a.items()}
        if t is slice:
            return slice(*(self.of(b, "") for b in (a.start, a.stop, a.step)))
        return a

    def _hole(self, value: Any, is_tensor: bool) -> Hole:
        self.leaves.append(value)
        self.tensors.append(is_tensor)
        return Hole(len(self.leaves) - 1)
