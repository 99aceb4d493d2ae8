"""A record without its number of steps.

Two calls that make the same calls for another number of steps have one form. It says of each call where its arguments
come from: which result of which call, counted from the first or from the last step. Sizes that follow from a number of
steps are told by it. So a form can be written as the graph of any number of steps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._unroll.checks import out_of_inference
from snnfast.compiler.emit.emitter import LEAST_NUMBER
from snnfast.compiler.graph.nodes import is_step
from snnfast.compiler.record.functions import Computed
from snnfast.compiler.record.kinds import Hole, Kind
from snnfast.compiler.record.later import AT, LOW, Like
from snnfast.compiler.record.runs import LEAST, MOST, Folded, Run, over_time, runs_of
from snnfast.compiler.record.sparse import memory_of

_NEAR = 3
"""Loops whose numbers of steps differ by so many at most are taken for loops over the same steps."""


class UnknownFormError(Exception):
    """A record has no form."""


class _UnknownRunError(UnknownFormError):
    """A loop of a record can't be told. The record has a form without it, in which its calls are straight code.

    Args:
        run: Its number.
    """

    def __init__(self, message: str, run: int) -> None:
        super().__init__(message)
        self.run = run


class Given(NamedTuple):
    """A tensor from outside, by its number among those of the form."""

    number: int


class EachGiven(NamedTuple):
    """Another tensor from outside at every step, by the number of the list among those of the form."""

    number: int


class Result(NamedTuple):
    """A result of a call outside of any loop: at step ``q`` the one of this number, plus ``stride * q``.

    A negative number counts from the last result. The results of ``unbind`` have a stride in a loop.
    """

    place: int
    number: int
    stride: int = 0


class Row(NamedTuple):
    """A result of a call of a loop. A negative step counts from the last one."""

    run: int
    offset: int
    step: int
    number: int


class Moving(NamedTuple):
    """A result of a call of a loop, of another step at every step.

    At step ``q`` it is that of step ``q + step``, or with ``back``, of step ``steps - 1 - q + step``.
    """

    run: int
    offset: int
    step: int
    back: bool
    number: int


class Rows(NamedTuple):
    """Results of a call of a loop in a list: from a step, which counts from the first one, to one behind the last.

    With ``back`` they are in reverse.
    """

    run: int
    offset: int
    first: int
    last: int
    back: bool
    number: int


class Counted(NamedTuple):
    """The number ``first + stride * q``."""

    first: Any
    stride: int


class Size(NamedTuple):
    """A number that follows from the steps of a loop: ``factor * steps + more``."""

    run: int
    factor: int
    more: int

    def at(self, steps: Sequence[int]) -> int:
        return self.factor * steps[self.run] + self.more


class Constant:
    """An argument that is no tensor. ``1``, ``1.0`` and ``True`` differ."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.key = value, (type(value).__name__, repr(value))

    def __eq__(self, other: object) -> bool:
        return type(other) is Constant and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.key[1]


class Inside(NamedTuple):
    """Arguments in a tuple, list, dict, slice or size."""

    kind: Any
    entries: tuple[Any, ...]


class Call(NamedTuple):
    """A call at a place, with where its arguments come from.

    Attributes:
        run: The number of the loop that it is in.
    """

    func: Any
    grad: bool
    modes: Any
    args: Inside
    kwargs: Inside
    run: int | None


class Form:
    """The form of a record.

    Attributes:
        key: Equal for two records of one form.
        has_loop: Whether calls of it repeat.
        runs: Its loops, but for those that are straight code in the form.
        apart: The numbers of the calls of those.
        steps: The steps of each of them in this record.
        inputs: The numbers of the tensors from outside; a list where each step has its own.
        is_general: Whether it holds for other numbers of steps. Few steps are not told from other numbers.
    """

    def __init__(self, recorder: Any, alive: list[int]) -> None:
        self.kinds: list[Kind] = recorder.kinds
        self.leaves: list[tuple[Any, ...]] = recorder.leaves
        self.likes: list[Like] = recorder.likes
        self._alive = alive
        self._writes = any(any(kind.writes) for kind in set(self.kinds))
        runs = runs_of(self.kinds, self.leaves)
        if len(runs) > MOST:
            raise UnknownFormError(f"it has more than {MOST} loops, such as the parts of a loop whose steps differ")
        self.has_loop = bool(runs)
        found, runs = runs, over_time(runs, self.kinds, self.leaves)
        largest = max(runs, key=lambda run: run.period * run.steps, default=None)
        while True:
            try:
                self._fold(runs)
                break
            except _UnknownRunError as error:
                if runs[error.run] is largest:
                    raise
                runs = runs[: error.run] + runs[error.run + 1 :]
        left = [run for run in found if run.steps >= LEAST_NUMBER and run not in runs]
        self.apart = {number for run in left for number in range(run.start, run.end)}
        likes = [self._like(self.like_of_input(i)) for i in range(len(self.inputs))]
        steps = tuple(self.like) if self.is_general else tuple(self.steps)
        self._sharing = self._shared_by(recorder.given)
        shared = [numbers for numbers in self._sharing if len(numbers) > 1]
        if shared and self._writes:
            raise UnknownFormError("a tensor is changed, and tensors from outside share memory")
        self.key = self.is_general, steps, tuple(self.calls), self.outputs, tuple(likes), tuple(shared)

    def _fold(self, runs: list[Run]) -> None:
        """Tell where all arguments come from, with one period for each loop."""
        self.folded = folded = Folded(runs, len(self.kinds))
        self.runs = runs
        self.steps = [run.steps for run in runs]
        # Of each loop, the first one of about as many steps, and how many more it has. The steps of calls that have
        # nothing to do with one another are a constant.
        self.like: list[tuple[int | None, int]] = []
        varies = [any(map(any, run.strides)) for run in runs]
        for n, may_vary in zip(self.steps, varies, strict=True):
            first = next((i for i, m in enumerate(self.steps) if varies[i] and abs(n - m) <= _NEAR), None)
            self.like.append((first, n - self.steps[first]) if may_vary and first is not None else (None, n))
        self.inputs: list[Any] = []
        self.each: dict[int, int] = {}  # the loops of those where each step has its own
        self._given: dict[Any, int] = {}
        self._sizes: dict[int, Size] = {}
        self.is_general = any(like is not None for like, _ in self.like)
        self._find_sizes()
        self.calls: list[Call] = []  # by their places
        self.at: list[int] = []  # the number of the first call at each place
        number = 0
        for i, run in enumerate([*runs, None]):
            for n in range(number, len(self.kinds) if run is None else run.start):
                self._add(n, None, self._of_single(n))
            if run is not None:
                for j in range(run.period):
                    self._add(run.start + j, i, self._of_run(i, j))
                number = run.end
        assert len(self.calls) == folded.places
        self._check_views()
        self.outputs = tuple(self._list(self._alive))

    def is_of(self, recorder: Any, alive: list[int]) -> bool:
        """Whether it is the form of another record, call by call."""
        return (
            self.kinds == recorder.kinds
            and self.leaves == recorder.leaves
            and self.likes == recorder.likes
            and self._alive == alive
            and self.shares_as(recorder.given)
        )

    def is_like(self, other: "Form") -> bool:
        """Whether another form is of the same record."""
        return self is other or (
            self._sharing == other._sharing
            and self.kinds == other.kinds
            and all(getattr(self, name) == getattr(other, name) for name in ("leaves", "likes", "_alive"))
        )

    def shares_as(self, given: Sequence[Tensor]) -> bool:
        """Whether tensors from outside share memory as those of this record do."""
        return self._sharing == self._shared_by(given)

    def _add(self, number: int, run: int | None, leaf: Callable[[int], Any]) -> None:
        kind = self.kinds[number]
        if type(kind.func) is Computed:
            raise UnknownFormError("a function needs values")
        if kind.grad and "out" in kind.kwargs:
            raise UnknownFormError("out=, which autograd does not allow of every argument")
        args, kwargs = (self._spelled(a, number, run, leaf) for a in (kind.args, kind.kwargs))
        self.calls.append(Call(kind.func, kind.grad, kind.modes, args, kwargs, run))
        self.at.append(number)

    def _spelled(self, a: Any, number: int, run: int | None, leaf: Callable[[int], Any]) -> Any:
        """Arguments, with where each tensor comes from."""
        t = type(a)
        if t is Hole:
            return leaf(a.number)
        if t is int and a in self._sizes and not is_step(self.kinds[number].func):  # whose numbers are no sizes
            return self._sizes[a]
        if t is tuple or t is list or t is torch.Size:
            tensors = self.kinds[number].tensors
            if run is None and len(a) >= LEAST and all(type(b) is Hole and tensors[b.number] for b in a):
                addresses = [self.leaves[number][b.number] for b in a]
                return Inside(t, tuple(self._list(addresses)))
            return Inside(t, tuple([self._spelled(b, number, run, leaf) for b in a]))
        if t is dict:
            return Inside(tuple(a), tuple([self._spelled(b, number, run, leaf) for b in a.values()]))
        if t is slice:
            return self._slice(*(self._spelled(b, number, run, leaf) for b in (a.start, a.stop, a.step)))
        return Constant(a)

    def _slice(self, start: Any, stop: Any, step: Any) -> Inside:
        """Its start is told from the nearer end, as an index is: a slice of one row has one at any number of steps."""
        if type(stop) is Size and type(start) is Constant and type(start.value) is int:
            end = stop.at(self.steps)
            if 2 * start.value >= end:
                start = stop._replace(more=stop.more + start.value - end)
        return Inside(slice, (start, stop, step))

    def _check_views(self) -> None:
        """Tensors from outside, one for each step, are stacked. A view of one would be a view of the copy."""
        stacked = {~n: i for i, given in enumerate(self.inputs) if isinstance(given, list) for n in given}
        bases = list(self._alive) if stacked else []
        known = set(bases)
        for a in bases:
            if a in stacked:
                problem = "a view of a tensor of the caller, which is another one at each step"
                raise _UnknownRunError(problem, self.each[stacked[a]])
            if a >= 0:
                leaves = zip(self.leaves[a >> AT], self.kinds[a >> AT].aliases, strict=True)
                found = {b for b, is_base in leaves if is_base} - known
                known |= found
                bases += found

    # ---- where arguments come from

    def _of_single(self, number: int) -> Callable[[int], Any]:
        leaves, tensors = self.leaves[number], self.kinds[number].tensors

        def leaf(i: int) -> Any:
            if tensors[i]:
                return self._tensor(leaves[i])
            dim = self._dim(number, i)
            return (self._behind(number, i) if dim is None else None) or self._number(leaves[i], dim)

        return leaf

    def _behind(self, number: int, i: int) -> Size | None:
        """A number of the step behind a loop, if it goes on as in the loop: that of ``t < lengths``, for example."""
        a = self.leaves[number][i]
        for at, run in enumerate(self.runs):
            offset = number - run.end
            if type(a) is not int or not 0 <= offset < run.period or self.like[at][0] is None:
                continue
            if self.kinds[number] is self.kinds[run.start + offset]:
                stride = run.strides[offset][i]
                if stride and self.leaves[run.start + offset][i] + stride * run.steps == a:
                    return Size(at, stride, a - stride * run.steps)
        return None

    def _list(self, addresses: list[int]) -> Iterator[Any]:
        """Tensors, of which rows of one call that follow one another are one entry."""
        i = 0
        while i < len(addresses):
            rows, count = self._rows(addresses[i:])
            yield self._tensor(addresses[i]) if rows is None else rows
            i += count

    def _rows(self, addresses: list[int]) -> tuple[Rows | None, int]:
        """The rows of one call that a list begins with, and how many there are."""
        if len(addresses) < LEAST:
            return None, 1
        stride = addresses[1] - addresses[0]
        if all(abs(stride) != run.period << AT for run in self.runs):
            return None, 1
        count = 2
        while count < len(addresses) and addresses[count] - addresses[count - 1] == stride:
            count += 1
        i, first, offset = self._position(addresses[0], addresses[count // 2])
        if i is None or count < LEAST or abs(stride) != self.runs[i].period << AT:
            return None, 1
        last = first + (count - 1) * (1 if stride > 0 else -1)
        steps, low = self.runs[i].steps, addresses[0] & LOW
        found = Rows(i, offset, first, last - steps, False, low)
        return (found if stride > 0 else Rows(i, offset, last, first - steps, True, low)), count

    def _position(self, address: int, inside: int) -> tuple[int | None, int, int]:
        """The loop that a call is in, or near, if another one is inside; the step, and the number in a step."""
        i = self.folded.run_at(inside >> AT)
        if i is None:
            return None, 0, 0
        run = self.runs[i]
        step, offset = divmod((address >> AT) - run.start, run.period)
        return i, step, offset

    def _tensor(self, a: int) -> Any:
        if a < 0:
            return Given(self._input(~a))
        number, low = a >> AT, a & LOW
        i = self.folded.run_at(number)
        if i is None:
            results = len(self.kinds[number].likes)
            return Result(self.folded.place(number), low if 2 * low < results else low - results)
        step, offset = divmod(number - self.runs[i].start, self.runs[i].period)
        steps = self.runs[i].steps
        return Row(i, offset, step if 2 * step < steps else step - steps, low)

    def _input(self, given: Any) -> int:
        key = tuple(given) if isinstance(given, list) else given
        if key not in self._given:
            self._given[key] = len(self.inputs)
            self.inputs.append(given)
        return self._given[key]

    def _number(self, a: Any, dim: int | None = None) -> Any:
        """A number; if it is an index of a dimension whose size follows from the steps, told from the nearer end."""
        size = self._sizes.get(dim or a) if type(a) is int else None
        if size is None or (dim is not None and 2 * a < dim):
            return Constant(a)
        return size if dim is None else size._replace(more=size.more + a - dim)

    def _dim(self, number: int, leaf: int) -> int | None:
        """The size of the dimension that a number is an index of."""
        return (
            _size_of_dim(self._like_of(self.leaves[number][0]), self.kinds[number], leaf)
            if self.kinds[number].tensors[0]
            else None
        )

    def _of_run(self, i: int, j: int) -> Callable[[int], Any]:
        run = self.runs[i]
        number = run.start + j
        tensors = self.kinds[number].tensors

        def leaf(k: int) -> Any:
            a, stride = self.leaves[number][k], run.strides[j][k]
            if not tensors[k]:
                return self._counted(a, stride, self._dim(number, k))
            if stride == 0:
                return self._tensor(a)
            if a < 0:
                kind = self.kinds[number]
                if kind.writes[k] or (kind.aliases[k] and self._writes):
                    raise _UnknownRunError("a tensor of the caller is changed, which is another one at each step", i)
                return self._each(i, a, stride)
            return self._moving(i, a, stride)

        return leaf

    def _counted(self, a: Any, stride: Any, dim: int | None) -> Any:
        if stride == 0:
            return self._number(a, dim)
        size = self._sizes.get(dim) if dim is not None and stride < 0 <= a else None
        return Counted(a if size is None else size._replace(more=size.more + a - dim), stride)

    def _each(self, i: int, a: int, stride: int) -> EachGiven:
        if stride > 0:
            raise _UnknownRunError("tensors of the caller, in reverse", i)
        if self.likes[~a].layout is not torch.strided:
            raise _UnknownRunError("another sparse matrix at each step", i)
        number = self._input([~(a + stride * q) for q in range(self.runs[i].steps)])
        self.each[number] = i
        return EachGiven(number)

    def _moving(self, i: int, a: int, stride: int) -> Any:
        run = self.runs[i]
        if abs(stride) < 1 << (AT - 1):
            place, results = self.folded.run_at(a >> AT), len(self.kinds[a >> AT].likes)
            if place is not None:
                raise _UnknownRunError("other results of one call at every step, in a loop", i)
            first = a & LOW
            return Result(self.folded.place(a >> AT), first if stride > 0 else first - results, stride)
        middle = a + stride * (run.steps // 2)
        other, step, offset = self._position(a, middle)
        if other is None or abs(stride) != self.runs[other].period << AT:
            raise _UnknownRunError("results of calls that are in no loop of this period", i)
        if stride > 0:
            return Moving(other, offset, step, False, a & LOW)
        return Moving(other, offset, step - self.runs[other].steps + 1, True, a & LOW)

    # ---- sizes that follow from the number of steps

    def _left(self, end: tuple[int, int, int, int]) -> int:
        """How many entries of a dimension are behind those that a loop reads, which begins at one."""
        size, i, stride, first = end
        return size - max(first % size, (first + stride * (self.runs[i].steps - 1)) % size)

    def _find_sizes(self) -> None:
        ends: list[tuple[int, int, int, int]] = []
        for i, run in enumerate(self.runs):
            for j in range(run.period):
                number = run.start + j
                kind = self.kinds[number]
                for k, (a, stride) in enumerate(zip(self.leaves[number], run.strides[j], strict=True)):
                    if not stride:
                        continue
                    if not kind.tensors[k]:
                        size = self._dim(number, k)
                        if size is not None:
                            ends.append((size, i, stride, a))
                    elif a >= 0 and abs(stride) < 1 << (AT - 1):
                        ends.append((len(self.kinds[a >> AT].likes), i, stride, a & LOW))
        # Of loops over parts of one dimension, it grows with the one that comes nearest to its end.
        for size, i, stride, _ in sorted(ends, key=self._left):
            self._enter_size(size, i, abs(stride))
        for number, kind in enumerate(self.kinds):
            if len(kind.tensors) >= LEAST_NUMBER and self.folded.run_at(number) is None:
                self._enter_lists(kind, number)

    def _enter_lists(self, kind: Kind, number: int) -> None:
        leaves, at = self.leaves[number], 0
        while at < len(leaves):
            count = 1
            if kind.tensors[at] and leaves[at] >= 0:
                rows, count = self._rows([a for a, t in zip(leaves[at:], kind.tensors[at:], strict=True) if t])
                if rows is not None:
                    self._enter_size(count, rows.run, 1)
            at += count

    def _enter_size(self, size: int, run: int, factor: int) -> None:
        if self.like[run][0] is not None:
            self._sizes.setdefault(size, Size(run, factor, size - factor * self.runs[run].steps))

    def _like_of(self, a: int) -> Like:
        if a < 0:
            return self.likes[~a]
        likes = self.kinds[a >> AT].likes
        return likes[a & LOW]

    @property
    def sizes(self) -> list[Size]:
        """The sizes that follow from the numbers of steps."""
        return list(self._sizes.values())

    # ---- the key

    def _like(self, like: Like) -> Any:
        shape: tuple[Any, ...] = like.shape
        if not like.is_fixed:
            shape = tuple([self._sizes.get(size, size) for size in shape])
        order = tuple(sorted(range(len(shape)), key=lambda d: (-like.stride[d], d)))
        expanded = tuple([stride == 0 for stride in like.stride])
        strides: Any = (order, expanded) if _is_dense(like) else like.stride
        return shape, strides, like.dtype, like.device, like.requires_grad, like.is_leaf, like.kind, like.layout

    def _shared_by(self, given: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """The inputs that lie in each memory."""
        found: dict[int, dict[int, None]] = {}
        for i, n in enumerate(self.inputs):
            for m in n if isinstance(n, list) else [n]:
                found.setdefault(memory_of(given[m]), {})[i] = None
        return list(map(tuple, found.values()))

    # ---- at a number of steps

    def inputs_of(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of its graph, of the tensors from outside."""
        found = [torch.stack([given[m] for m in n]) if isinstance(n, list) else given[n] for n in self.inputs]
        if torch.is_grad_enabled():  # autograd can save no tensor that was made in inference mode
            found = [out_of_inference(t) for t in found]
        return found

    def input_at(self, number: int, steps: Sequence[int]) -> Like:
        """An input at other numbers of steps."""
        like = self.like_of_input(number)
        return like if like.is_fixed else self._at(like, steps)

    def results_at(self, place: int, steps: Sequence[int], grows: bool) -> list[Like]:
        """The results of a call. With ``grows``, sizes that may follow from the numbers of steps do."""
        likes = self.kinds[self.at[place]].likes
        return [self._at(like, steps) for like in likes] if grows else list(likes)

    def like_of_input(self, number: int) -> Like:
        """An input as it is known; of tensors at each step, the first one."""
        given = self.inputs[number]
        return self.likes[given[0] if isinstance(given, list) else given]

    def _at(self, like: Like, steps: Sequence[int]) -> Like:
        shape = tuple([self._sizes[size].at(steps) if size in self._sizes else size for size in like.shape])
        return resized(like, shape)

    def numbers(self) -> set[int]:
        """All numbers that are told literally, which a number of steps must not be."""
        found: set[int] = set()

        def enter(a: Any, is_size: bool = True) -> None:
            t = type(a)
            if t is int:
                found.update({a} - self._sizes.keys() if is_size else {a})
            elif t in (tuple, list, torch.Size):
                for b in a:
                    enter(b, is_size)
            elif t is dict:
                enter(tuple(a.values()), is_size)
            elif t is slice:
                enter((a.start, a.stop, a.step), is_size)

        for n in self.at:
            kind = self.kinds[n]
            enter([a for a, is_tensor in zip(self.leaves[n], kind.tensors, strict=True) if not is_tensor])
            enter(kind.args, not is_step(kind.func))
            enter(kind.kwargs)
            for like in kind.likes[:8]:
                enter(like.shape)
        for like in self.likes[:64]:
            enter(like.shape)
        return found


def resized(like: Like, shape: tuple[int, ...]) -> Like:
    """A tensor with other sizes, in the same order in memory.

    Raises:
        UnknownFormError: It has gaps.
    """
    if shape == like.shape:
        return like
    if not _is_dense(like):
        raise UnknownFormError("a tensor with gaps in memory has another size")
    stride, size = [0] * len(shape), 1
    for d in sorted(range(len(shape)), key=lambda d: (like.stride[d], -d)):
        if like.stride[d]:
            stride[d], size = size, size * max(shape[d], 1)
    return like.but(shape=shape, stride=tuple(stride))


def _is_dense(like: Like) -> bool:
    """Whether there are no gaps in memory between its elements. Dimensions may be expanded."""
    size = 1
    for d in sorted(range(len(like.shape)), key=lambda d: (like.stride[d], -d)):
        if like.shape[d] == 1 or like.stride[d] == 0:
            continue
        if like.stride[d] != size:
            return False
        size *= like.shape[d]
    return True


def _size_of_dim(like: Like, kind: Kind, leaf: int) -> int | None:
    """The size of the dimension that a number in an index is for."""
    name = getattr(kind.func, "__name__", "")
    if name not in ("__getitem__", "__setitem__", "select"):
        return None
    if name == "select" and len(kind.args) > 2:
        dim = kind.args[1]
        return like.shape[dim] if type(dim) is int else None
    index = kind.args[1]
    parts = index if type(index) is tuple else (index,)
    taken = sum(0 if p is None or p is Ellipsis else 1 for p in parts)
    dim = 0
    for p in parts:
        if type(p) is Hole and p.number == leaf:
            return like.shape[dim] if dim < len(like.shape) else None
        dim += len(like.shape) - taken if p is Ellipsis else 0 if p is None else 1
    return None
