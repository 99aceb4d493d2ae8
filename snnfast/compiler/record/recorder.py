"""Write down the calls of PyTorch's functions instead of making them."""

import contextlib
import math
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType, FrameType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from snnfast._core.backend import warn_once
from snnfast._core.pytorch import (
    hooks_of_saved_tensors,
    is_forward_mode,
    is_transformed_tensor,
    saved_tensors_are_hooked,
    transforms_are_active,
    unhooked,
    unrecorded,
)
from snnfast._unroll import node, state_gradients
from snnfast.compiler.graph.nodes import as_leaf
from snnfast.compiler.record.ahead import READS, Ahead, Reading, Whole
from snnfast.compiler.record.form import Form
from snnfast.compiler.record.functions import Applied, Computed, Told, is_object
from snnfast.compiler.record.kinds import Hole, Kind, Kinds, NeedsValueError, known_of
from snnfast.compiler.record.later import AT, LOW, Later, Like, become, is_marked, later, like_of
from snnfast.compiler.record.lines import Lines, lines_of
from snnfast.compiler.record.modes import NONE, any_autocast, entered, infers, modes
from snnfast.compiler.record.replay import Ran
from snnfast.compiler.record.sparse import LAYOUTS, as_op, is_product, memory_of
from snnfast.compiler.record.waiting import Draws, is_shared, let_others_see, range_of


def _accessors(kind: str, *names: str) -> set[Any]:
    return {getattr(getattr(Tensor, name), kind) for name in names if hasattr(Tensor, name)}


_DIRECT = _accessors(
    "__get__", "shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_cpu", "is_sparse",
    "is_quantized", "is_meta", "is_nested", "is_mkldnn", "is_mps", "is_xla", "is_xpu", "names", "itemsize", "nbytes",
) | {
    Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.element_size,
    Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex, Tensor.is_signed, Tensor.is_contiguous,
    Tensor.get_device, Tensor.is_inference, Tensor.__hash__, torch.is_floating_point, torch.is_complex, torch.numel,
    torch.is_tensor, torch.is_storage, torch.result_type, torch.promote_types, torch.can_cast,
    torch._C._set_grad_enabled,
    torch.ops.profiler._record_function_enter_new, torch.ops.profiler._record_function_exit._RecordFunction,
}  # fmt: skip
"""These read what is known of a tensor or a type, switch a mode, or name a part of the program for the profiler."""

_REQUIRES_GRAD, _IS_LEAF = Tensor.requires_grad.__get__, Tensor.is_leaf.__get__  # type: ignore[attr-defined]

_SET_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]
_LETS_REQUIRE = {_SET_REQUIRES_GRAD, Tensor.requires_grad_}

_READS = _accessors("__get__", "T", "mT", "H", "mH", "real", "imag")
"""Properties that are calls like any other."""

_CONSTRUCTORS = set(_device_constructors()) - {torch.as_tensor, torch.tensor, torch.asarray, torch.from_file}

_INDEXES = {Tensor.__getitem__: 1, Tensor.__setitem__: 1, torch.select: 2, Tensor.select: 2}
"""Which argument is an index. Its numbers may differ from step to step."""

_TAKE_NUMBERS = {
    getattr(where, name)
    for where in (torch, Tensor)
    for name in (
        "add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "divide", "__add__", "__radd__", "__sub__",
        "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__rdiv__", "rsub", "add_", "sub_", "mul_",
        "div_", "__iadd__", "__isub__", "__imul__", "__itruediv__", "eq", "ne", "lt", "le", "gt", "ge", "__eq__",
        "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "less", "less_equal", "greater", "greater_equal", "not_equal",
        "where", "masked_fill",
    )
    if hasattr(where, name)
}  # fmt: skip
"""Functions whose numbers may differ from step to step."""

_OF_NUMBERS = {
    torch.tensor, torch.as_tensor, torch.ones, torch.zeros, torch.full, torch.arange, torch.linspace, torch.eye,
}  # fmt: skip
"""Functions that make a tensor of numbers alone."""

_COMPARE = {Tensor.__eq__, Tensor.__ne__}

_AT_ONCE, _INDEX, _ALL = "at once", "index", "all"
_HOW = {**dict.fromkeys(_TAKE_NUMBERS, _ALL), **dict.fromkeys(_INDEXES, _INDEX), **dict.fromkeys(_DIRECT, _AT_ONCE)}
"""Functions that are called at once; and which numbers of others may differ: those of an index, or all."""

_NEED_VALUES = {
    "__repr__", "__str__", "__format__", "item", "tolist", "numpy", "__array__", "__array_wrap__", "__bool__",
    "__float__", "__int__", "__index__", "__complex__", "__contains__", "data_ptr", "const_data_ptr", "backward",
    "grad", "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "__deepcopy__", "__reduce_ex__",
    "__setstate__", "__dlpack__", "__dlpack_device__", "storage", "untyped_storage", "_typed_storage",
    "share_memory_", "is_shared", "is_pinned", "pin_memory", "is_set_to", "is_same_size", "record_stream",
    "requires_grad_", "resize_", "resize_as_", "set_", "equal", "allclose", "save", "compile",
}  # fmt: skip
"""Functions that need what tensors hold, or that change what is known of them."""

_REASONS = dict.fromkeys(
    (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad), "a hook of a tensor"
)
"""Why functions end a record, where they know better than their arguments."""

_VALUES_OF = {
    Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__,
}  # fmt: skip
"""Functions that read the values of one tensor."""

_ENDS = {"backward", "grad", "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__bool__"}
"""Functions before which a loop may be merged. Another one may be for the gradients of the very calls, as a hook is."""

_TENSORS = {Tensor, nn.Parameter, nn.Buffer}
_CONSTANTS = {
    str, bool, NoneType, EllipsisType, torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip

_NUMBERS = {int, float, type, torch.Size, *_CONSTANTS}

_SYNCHRONISES = (
    "SyncBatchNorm exchanges statistics with other processes at each step; in a MultiStep, once for all steps"
)


def _references() -> tuple[int, int]:
    """References to a result that only the recorder holds, in its list and in a tuple, as it counts them itself.

    They differ between versions of Python.
    """
    count, kept = sys.getrefcount, [object(), (object(),)]
    found = []
    for number in range(len(kept)):
        made: Any = kept[number]
        found.append(count(made[0]) if type(made) is tuple else count(made))
    return found[0], found[1]


_IN_THE_LIST, _IN_A_TUPLE = _references()

_MOST_SPARE = 64
"""Results of so many shapes are kept for later calls."""

_MOST_OF_A_SHAPE = 2048
"""So many of a shape are."""

_SWEEP = 1024
"""After so many calls, a loop is long enough to look for results that nobody holds before its end."""

_MOST_ENTERED = 16 << 20
"""So many bytes of frames that nobody else holds wait at most, without gradients."""


class Recorder(TorchFunctionMode):
    """The context of a call that is recorded.

    Args:
        kinds: The kinds of calls that are known, by their keys.
        run: Runs what was recorded, and returns the results that are asked for, or ``None`` if it can't.
        learns: Whether it writes down the lines of the calls.
        ahead: The records of calls that read values; ``None``: each of these ends the record.
        lines: Tells the lines of the program that a frame runs.
    """

    def __init__(
        self,
        kinds: Kinds,
        run: Callable[["Recorder", list[int]], list[Tensor] | None],
        learns: bool = True,
        ahead: Ahead | None = None,
        lines: Callable[[FrameType | None], Lines] = lines_of,
    ) -> None:
        super().__init__()
        self._known, self._run, self._ahead, self._lines_of = kinds, run, ahead, lines
        self._spare = kinds.spare
        self.records, self._runs = True, False
        self.is_paused = self.is_forked = False  # calls are made at once: see ``settle``
        self._dtype = torch.get_default_dtype()
        self.reasons: list[str] = []  # why calls were made that could not wait, or had no plan
        self.asks_again = False  # the next call shows whether there is a plan
        self.is_denied = False  # it needs a graph that may not be made
        self.graphs, self.making = 0, 0.0  # so many graphs were made, also in vain, in so many seconds
        self.failed: str | None = None  # the error of a graph
        self.steps: list[int] = []  # of the loops that ran by a plan
        self.seconds = 0.0  # that recording took
        self._since = time.perf_counter()  # recording goes on since then
        self.constants: dict[int, Tensor] = {}  # that the program has made of numbers, by their ids
        self.is_over = False  # the call has returned
        self.is_alone = True  # all that the call has done is in the record
        self.ran: Ran | None = None  # the record, if it is the only one, and ran by a plan
        self._planned = self._others = 0  # so many calls ran by a plan, or one by one
        self.learns = learns
        self.ambient = modes()
        self._is_plain = self.ambient is NONE and not learns
        self.keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        self.grad = torch.is_grad_enabled()  # of the last call
        self._begin()

    def _begin(self) -> None:
        self.kinds: list[Kind] = []
        self.leaves: list[tuple[Any, ...]] = []  # of the arguments of each call: addresses and numbers
        self.made: list[Any] = []  # of each call: a tensor, a tuple of tensors, or None
        self.given: list[Tensor] = []  # tensors from outside
        self.likes: list[Like] = []  # of them
        self.lines: list[Lines] = []  # of each call, if it learns them
        self._numbers: dict[int, int] = {}  # of them, by their ids
        self._functions: dict[Any, Applied] = {}
        self._own: dict[int, Any] = {}  # the classes of calls of which another one like it stands for
        self._reads_change = False  # an autograd.Function has read something else since
        self._any_grown = False  # a tensor requires a gradient since it was written to
        self._peeked: set[int] = set()  # addresses of tensors with views that follow whether they need a gradient
        self._swept = 0  # so many calls were looked through for results that nobody holds
        self._draws = Draws()
        self._shared: dict[int, Tensor] = {}  # tensors that others see, among the arguments of the call of now
        self._copies: dict[int, tuple[Tensor, int]] = {}  # such tensors by their ids, and the numbers of their copies
        self._ranges: dict[tuple[int, int | None], tuple[float, float]] = {}  # of the numbers of tensors from outside
        self._in_range: list[tuple[int, float, float, int | None]] = []  # those that must be: see ``Ran``
        self._written: set[int] = set()  # addresses of tensors that are changed
        self._reading: Reading | None = None  # the values that were read so far
        self._entered = self._drawn = 0  # bytes of tensors from outside, and of random ones in their place

    # ---- calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        grad = torch.is_grad_enabled()
        if not kwargs and (found := self.quickly(func, args, grad)) is not None:
            return found
        if not self.records or _HOW.get(func) is _AT_ONCE or transforms_are_active():
            return func(*args, **kwargs) if kwargs else func(*args)
        return self.call(func, args, kwargs or {}, grad)

    def quickly(self, func: Any, args: Any, grad: bool) -> Later | None:
        """Record a call of tensors and numbers alone that is known to have one result; no other one.

        A loop has thousands of them. All that is done for one is here: the key is that of :meth:`_record`.
        """
        how = _HOW.get(func)
        if how is _AT_ONCE or how is _INDEX or not self._is_plain or not self.records:
            return None
        if any_autocast() or infers() or hooks_of_saved_tensors() is not None or transforms_are_active():
            return None
        key: list[Any] = [func, grad]
        leaves: list[Any] = []
        for a in args:
            t = type(a)
            if t is Later:
                if a.later_recorder is not self:
                    return None
                key.append(a.later_like)
                leaves.append(a.later_address)
            elif t is float or t is int:
                key.append(t)
                if how is _ALL and (a or t is int):
                    leaves.append(a)
                elif how is None and a:
                    key.append(a)
                else:
                    return None
            elif (number := self._numbers.get(id(a))) is not None:
                key.append(self.likes[number])
                leaves.append(~number)
                if t is nn.Parameter:
                    key.append(number)
            else:
                return None
        kind = self._known.get(tuple(key))
        if kind is None or kind.only is None:
            return None
        self.grad = grad
        made = self._later(kind.only, len(self.kinds) << AT)
        self.kinds.append(kind)
        self.leaves.append(tuple(leaves))
        self.made.append(made)
        return made

    def call(self, func: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        """Record a call, or make it now behind all that was recorded."""
        self.grad = grad
        if self._is_constant(func, args, kwargs):
            found = func(*args, **kwargs)
            if isinstance(found, Tensor):
                self.constants[id(found)] = found
            return found
        try:
            self._refuse_hooks()
            if func in READS and type(args[0]) is Later and (value := self._value_of(args[0], grad)) is not None:
                return func(value, *args[1:], **kwargs)
            return self._record(func, args, kwargs, grad)
        except NeedsValueError as error:
            self.reasons.append(_REASONS.get(func, str(error)))
        self.is_alone = False
        self.flush(as_it_stands=getattr(func, "__name__", "") not in _ENDS)
        with torch.set_grad_enabled(grad):
            found = func(*args, **kwargs)
        if func is Tensor.__dlpack__:
            let_others_see(args[0])
        self._since = time.perf_counter()
        return found

    def _value_of(self, t: Later, grad: bool) -> Tensor | None:
        """The value of a result that the program reads; ``None``: the read ends the record.

        A copy is read, which is a call of the record: the program may change the result later.
        """
        if self._ahead is None or self._ahead.is_over or t.later_recorder is not self or self._draws.wait_for_any:
            return None
        self.is_alone = False
        if self._reading is None:
            reading = Reading(self, self._ahead)
            if not reading.begin():
                return None
            self._reading = reading
        copy: Any = self.quickly(torch.clone, (t,), grad)
        if copy is None:
            copy = self._record(torch.clone, (t,), {}, grad)
        value: Tensor | None = self._reading.value_of(copy)
        return value

    def run_ahead(self, whole: Whole) -> list[Tensor] | None:
        """Run a record that this one begins like. Returns its results, or ``None`` if there is no plan."""
        now = self.kinds, self.leaves, self.lines, self.learns
        self.kinds, self.leaves, self.lines, self.learns = whole.kinds, whole.leaves, whole.lines, True
        try:
            return self._run(self, whole.alive)
        finally:
            self.kinds, self.leaves, self.lines, self.learns = now

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let calls run that were recorded."""
        before, self.records, self._runs = self.records, False, True
        self.seconds += time.perf_counter() - self._since
        try:
            with entered(self.grad, self.ambient, modes()):
                yield
        finally:
            self.records, self._runs = before, False
            self._since = time.perf_counter()

    def _is_constant(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call makes a tensor of numbers that no call waits for, or reads or detaches such a tensor."""
        if func is torch.zeros_like:  # the states of all networks would be a part of each record
            return type(args[0]) is Tensor and _is_in_a_reset(sys._getframe(3))
        if func is Tensor.detach_:
            return id(args[0]) in self.constants and id(args[0]) not in self._numbers
        if func in _VALUES_OF:
            return len(args) == 1 and id(args[0]) in self.constants and id(args[0]) not in self._numbers
        if func not in _OF_NUMBERS or (func in _CONSTRUCTORS and type not in map(type, kwargs.values())):
            return False
        return all(type(a) in _NUMBERS for a in pytree.tree_leaves((args, kwargs))) and not kwargs.get("requires_grad")

    def _refuse_hooks(self) -> None:
        """Hooks of saved tensors within the call, as those of a checkpoint, must get what these calls save."""
        if saved_tensors_are_hooked():
            with unhooked():
                self.flush()
            raise NeedsValueError("hooks of saved tensors, such as those of a checkpoint")

    def step(
        self,
        neuron: Any,
        options: Any,
        x: Tensor,
        states: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        backend: str,
    ) -> Any:
        """Record ``node.step`` of a neuron layer, in less time than its call takes."""
        setting = state_gradients.setting.value
        key = [neuron, id(options), backend, setting, torch.is_grad_enabled(), modes()]
        leaves: list[int] = []
        for t in (x, *states, *parameters):
            if type(t) is Later and t.later_recorder is self:
                key.append(t.later_like)
                leaves.append(t.later_address)
            elif t is None:
                key.append(None)
            elif (number := self._numbers.get(id(t))) is not None:
                key.append(self.likes[number])
                key.append(number if type(t) is nn.Parameter else None)
                leaves.append(~number)
            else:  # a tensor that is new here
                return node.step(neuron, options, x, states, parameters, backend)
        spelled = tuple(key)
        kind = self._known.get(spelled)
        if kind is not None and not self.learns and hooks_of_saved_tensors() is None:
            self.kinds.append(kind)
            self.leaves.append(tuple(leaves))
            return (*self._several(kind),)
        before = len(self.kinds)
        found = node.step(neuron, options, x, states, parameters, backend)
        if len(self.kinds) == before + 1 and self.leaves[-1] == tuple(leaves):
            self._known[spelled] = self.kinds[-1]
            self._known.keep(options)  # no other object gets its id
        return found

    def function(self, cls: Any, args: Any, grad: bool) -> Any:
        """Record a call of an ``autograd.Function``."""
        objects = tuple([(i, a) for i, a in enumerate(args) if is_object(a)])
        if objects:
            args = tuple([a for a in args if not is_object(a)])
        own, cls = cls, self._known.classes.first(cls)
        applied = self._functions.get((cls, objects))
        if applied is not None and not applied.is_current():
            applied = None
        if applied is not None and (found := self.quickly(applied, args, grad)) is not None:
            self._enter_own(own, applied)
            return found
        before, self.records = self.records, False
        try:
            self._refuse_hooks()
            if cls is SyncBatchNorm:
                raise NeedsValueError(_SYNCHRONISES)
            if applied is None:
                applied = self._applied(cls, objects)
            found = self._record(applied, args, {}, grad)
            self._enter_own(own, applied)
            return found
        except NeedsValueError as error:
            self.reasons.append(str(error))
            self.is_alone = False
            self.flush()
            with torch.set_grad_enabled(grad):
                found = Applied(own, objects)(*args)
            return self._computed(found, args)
        finally:
            self.records = before

    def _applied(self, cls: Any, objects: Any) -> Applied:
        """The call of a function, for what it reads now."""
        before, applied = self._functions.get((cls, objects)), self._known.applied(cls, objects)
        self._reads_change |= before is not None and before is not applied
        self._functions[cls, objects] = applied
        return applied

    def _reads_as_recorded(self) -> bool:
        """Whether all functions of the record read what they read when they were recorded.

        A graph would read it later, as would its backward pass.
        """
        for (cls, objects), applied in self._functions.items():
            try:
                self._reads_change |= not applied.is_current() and self._known.applied(cls, objects) is not applied
            except NeedsValueError:
                self._reads_change = True
        self._reads_change |= any(self.function_at(number) is not self.kinds[number].func for number in self._own)
        if self._reads_change:
            self.reasons.append("an autograd.Function reads numbers that change within the call")
        return not self._reads_change

    def _enter_own(self, own: Any, applied: Applied) -> None:
        """Keep the class of the last call, if another one stands for it."""
        if own is not applied.function and self.kinds and self.kinds[-1].func is applied:
            self._own[len(self.kinds) - 1] = own

    def function_at(self, number: int) -> Any:
        """The function of a call: the program may have changed its class since."""
        func, own = self.kinds[number].func, self._own.get(number)
        if own is None or type(func) is not Applied or Told(own).key == Told(func.function).key:
            return func
        return Applied(own, func.objects)

    def _computed(self, found: Any, args: Any) -> Any:
        """Record a call that was made. PyTorch must not see its results while it makes the call that they are of."""
        taken = {id(a) for a in args}
        leaves, spec = pytree.tree_flatten(found)
        leaves = [t.view_as(t) if id(t) in taken else t for t in leaves]
        kind = Kind(Computed(leaves, spec))
        kind.likes = tuple([like_of(t) for t in leaves if isinstance(t, Tensor)])
        kind.leaves = [Hole if isinstance(t, Tensor) else t for t in leaves]
        kind.spec = None if isinstance(found, Tensor) else spec
        return self._made(kind, (), (), {})

    def _record(self, func: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        try:
            return self._written_down(func, args, kwargs, grad)
        except _EndsRecordError:
            self.flush()
            return self._written_down(func, args, kwargs, grad)

    def _written_down(self, func: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        if self._entered + self._drawn > _MOST_ENTERED and not grad:
            self._let_go(args)
        key: list[Any] = [func, grad]
        leaves: list[Any] = []
        now = modes()
        if now is not self.ambient and now != self.ambient:
            key.append(now)
        how, at = _HOW.get(func, ""), _INDEXES.get(func)
        if at is None:
            self._spell(args, key, leaves, how is _ALL)
        else:
            dim = args[1] if at == 2 and len(args) > 2 else 0
            self._spell(args[:at], key, leaves, False)
            if len(args) > at:
                self._spell_index(args[0], args[at], dim, key, leaves)
            self._spell(args[at + 1 :], key, leaves, False)
        for name, a in kwargs.items():
            key.append(name)
            self._spell((a,), key, leaves, False)
        if func is Tensor.detach_:
            if type(args[0]) is Later:
                return self._becomes(Tensor.detach, args[0], grad)
            if not args[0].requires_grad:
                return args[0]
            raise NeedsValueError("detach_ of a tensor of the caller")
        if func in _LETS_REQUIRE and self._is_let_require(*args, **kwargs):
            found = self._becomes(as_leaf, args[0], grad)
            return None if func == _SET_REQUIRES_GRAD else found
        spelled = tuple(key)
        kind = self._known.get(spelled)
        if kind is None:
            if func in (_REQUIRES_GRAD, _IS_LEAF):
                return self._known_of(args[0], func)
            kind = self._kind(func, args, kwargs, grad, None if now == self.ambient else now, (at, how))
            self._known[spelled] = kind
        if kind.direct or (self._shared and self._is_view_of_shared(kind, leaves)):
            self.is_alone &= func in _COMPARE and args[1] is None
            return func(*args, **kwargs)
        if not kind.waits:
            self._check(kind, leaves)
        return self._made(kind, tuple(leaves), args, kwargs)

    def _known_of(self, t: Any, func: Any) -> bool:
        """Whether a tensor requires a gradient, or is a leaf."""
        if type(t) is not Later and id(t) not in self._numbers:  # one that others see, to which no call waits to write
            return bool(func(t))
        known = t.later_like if type(t) is Later else self.likes[self._numbers[id(t)]]
        if self._any_grown and not known.requires_grad:
            raise NeedsValueError("requires_grad of a tensor that may share memory with one that was written to")
        return bool(known.requires_grad if func == _REQUIRES_GRAD else known.is_leaf)

    def _is_let_require(self, t: Any, requires_grad: Any = True) -> bool:
        """Whether a result is let require a gradient that did not."""
        return (
            type(t) is Later
            and requires_grad is True
            and not t.later_like.requires_grad
            and t.later_like.dtype.is_floating_point
        )

    def _becomes(self, func: Any, t: Later, grad: bool) -> Later:
        """Record ``t.detach_()`` or ``t.requires_grad_()``: the tensor is what ``func`` returns from now on."""
        if t.later_address in self._peeked:
            raise NeedsValueError(
                f"{func.__name__} of a tensor with a view that was made without gradients, which it changes, too"
            )
        now = modes()
        key = [func, grad, *([] if now == self.ambient else [now])]
        leaves: list[Any] = []
        self._spell((t,), key, leaves, False)
        kind = self._known.get(tuple(key))
        if kind is None:
            kind = self._known[tuple(key)] = self._kind(func, (t,), {}, grad, None, (None, ""))
        before = self.made[t.later_address >> AT]
        made = self._made(kind, tuple(leaves), (t,), {})
        if type(before) is tuple:
            self.made[t.later_address >> AT] = tuple([None if a is t else a for a in before])
        else:
            self.made[t.later_address >> AT] = None
        t.later_address, t.later_like = made.later_address, made.later_like
        self.made[-1] = t
        return t

    def _kind(self, func: Any, args: Any, kwargs: Any, grad: bool, modes: Any, holes: Any) -> Kind:
        if func not in _CONSTRUCTORS and not any(isinstance(a, Tensor) for a in pytree.tree_leaves((args, kwargs))):
            kind = Kind()
            kind.direct = True
            return kind
        name = getattr(func, "__name__", "")
        if kwargs.get("requires_grad"):
            raise NeedsValueError("a tensor that is made to require a gradient")
        if name in _NEED_VALUES:
            raise NeedsValueError(f"{name} needs a value")
        if name in ("__get__", "__set__", "__delete__") and func not in _READS:
            raise NeedsValueError(f"the property {getattr(func.__self__, '__name__', func)}")
        if any(isinstance(a, Tensor) and a.layout in LAYOUTS for a in pytree.tree_leaves((args, kwargs))):
            if modes is not None or self.ambient[1] or not is_product(func, args, kwargs):
                raise NeedsValueError(f"{name} of a sparse tensor")
            func, args = as_op(func, args)
        return self._known.find(func, args, kwargs, grad, modes, self.ambient, holes)

    def _made(self, kind: Kind, leaves: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
        number = len(self.kinds)
        self.kinds.append(kind)
        self.leaves.append(leaves)
        if kind.changes:
            self._written.update(a for a, w in zip(leaves, kind.writes, strict=True) if w)
        if self.learns:
            self.lines.append(self._lines_of(sys._getframe(1)))
        if kind.grown is not None:
            self._grow(args[0], kind.grown)
        if kind.peeks:
            self._peeked.update(leaves)
        if kind.likes and kind.spec is None:
            one = self._later(kind.likes[0], number << AT)
            self.made.append(one)
            return one
        if kind.spec is not None:
            made = self._several(kind)
            if kind.container is not None:
                return (*made,) if kind.container is tuple else [*made]  # not the one that is kept here
            results = iter(made)
            return pytree.tree_unflatten([next(results) if c is Hole else c for c in kind.leaves], kind.spec)
        self.made.append(None)
        return None if kind.same is None else kwargs["out"] if kind.same == "out" else args[kind.same]

    def _several(self, kind: Kind) -> tuple[Later, ...]:
        """The results of the last call. The program must get another tuple."""
        address = len(self.made) << AT
        made = tuple([self._later(like, address + i) for i, like in enumerate(kind.likes)])
        self.made.append(made)
        return made

    def _later(self, like: Like, address: int) -> Later:
        spare = self._spare.get(like)
        if not spare and len(self.made) - self._swept >= _SWEEP:
            self._sweep()
            spare = self._spare.get(like)
        try:
            t = spare.pop()  # type: ignore[union-attr]
        except (AttributeError, IndexError):  # there is none, or another thread has taken it
            return later(like, address, self)
        t.later_address, t.later_recorder = address, self
        return t

    def _grow(self, t: Any, like: Like) -> None:
        """A tensor requires a gradient from now on: it was written to in place. So does all of which it is a view."""
        self._any_grown = True
        address = t.later_address if type(t) is Later else ~self._numbers[id(t)]
        root = self._viewed(address)
        for made in self.made:
            for other in made if type(made) is tuple else (made,):
                if type(other) is Later and self._viewed(other.later_address) == root:
                    other.later_like = other.later_like.but(requires_grad=True, is_leaf=False)
        if root < 0:
            self.likes[~root] = self.likes[~root].but(requires_grad=True, is_leaf=False)
        if type(t) is Later:
            t.later_like = like
        else:
            self.likes[~address] = like

    def _base_of(self, address: int) -> int | None:
        """The tensor that a result is a view of; ``None``: it is none, or that is not known."""
        if address < 0:
            return None
        aliases = zip(self.leaves[address >> AT], self.kinds[address >> AT].aliases, strict=True)
        bases = [a for a, is_base in aliases if is_base]
        return bases[0] if len(bases) == 1 else None

    def _viewed(self, address: int) -> int:
        """The tensor that one is a view of, for autograd: not what it was detached from, nor what it peeks at."""
        while (base := self._base_of(address)) is not None:
            kind = self.kinds[address >> AT]
            if not kind.grad or getattr(kind.func, "__name__", "") in ("detach", "__get__"):
                break
            address = base
        return address

    def root_of(self, address: int) -> int:
        """The tensor that one is a view of, whose memory it has."""
        while (base := self._base_of(address)) is not None:
            address = base
        return address

    # ---- what waits must be seen until it runs

    def settle(self) -> None:
        """Pause where calls can't wait: in forward mode, under another default dtype, and in a process that was forked.

        What changes these runs all calls before it, and then this.
        """
        self.is_alone = False
        self.is_paused = self.is_forked or is_forward_mode() or torch.get_default_dtype() != self._dtype
        self.records = not self.is_paused

    def _is_view_of_shared(self, kind: Kind, leaves: list[Any]) -> bool:
        """Whether a call is a view of memory that others see, which is made now. Other calls get copies of such memory.

        A tensor that is read again and has not changed is not copied again.
        """
        shared, self._shared = self._shared, {}
        places = [i for i, is_tensor in enumerate(kind.tensors) if is_tensor and ~leaves[i] in shared]
        if any(kind.aliases[i] or kind.writes[i] for i in places):
            if any(kind.writes) or any(is_tensor and a >= 0 for a, is_tensor in zip(leaves, kind.tensors, strict=True)):
                raise NeedsValueError("memory that others see is changed, such as that of an array of NumPy")
            return True
        with unrecorded():
            for i in places:
                number = ~leaves[i]
                t = shared[number]
                before = self._copies.get(id(t))
                if before is not None and torch.equal(self.given[before[1]], t):
                    leaves[i] = ~before[1]
                    continue
                with torch.set_grad_enabled(t.requires_grad):
                    self.given[number] = t.clone()
                self._copies[id(t)] = t, number
        return False

    def _check(self, kind: Kind, leaves: list[Any]) -> None:
        """Let a call wait that draws random numbers, or that raises an error for some values.

        Raises:
            NeedsValueError: It can't wait.
        """
        if kind.raises:
            raise NeedsValueError("an error that depends on values")
        for place, low, high, ignored in kind.takes:
            found, number = self._range_of(leaves[place], ignored)
            if found is None or not (low <= found[0] and found[1] <= high):
                raise NeedsValueError("an error that depends on values")
            if number is not None:
                self._in_range.append((number, low, high, ignored))
        if kind.draws:
            if self._reading is not None:
                raise NeedsValueError("random numbers behind a value that was read")
            if not self._draws.are_current():
                raise NeedsValueError("random numbers of another seed")
            known = kind.likes[0] if kind.likes else self._like_at(leaves[kind.tensors.index(True)])
            self._draws.wait(known.device)
            if True not in kind.tensors:
                self._drawn += math.prod(known.shape) * known.dtype.itemsize

    def _range_of(self, address: int, ignored: int | None) -> tuple[tuple[float, float] | None, int | None]:
        """Numbers between which those of a tensor lie; ``None``: nobody knows before it is computed.

        With them comes the number of the tensor from outside that they are of, if they are of one.
        """
        written = {self.root_of(a) for a in self._written}
        dtype = self._like_at(address).dtype
        while address not in written:
            if address < 0:
                return self._range_of_given(~address, ignored, written), ~address
            found = self.kinds[address >> AT].gives.get(address & LOW)
            base = self._base_of(address)
            if found is not None or base is None or self._like_at(base).dtype != dtype:
                return found, None
            address = base
        return None, None

    def _range_of_given(self, number: int, ignored: int | None, written: set[int]) -> tuple[float, float] | None:
        """The range of a tensor from outside, if no call waits to change its memory."""
        t, key = self.given[number], (number, ignored)
        if any(a < 0 and memory_of(self.given[~a]) == memory_of(t) for a in written):
            return None
        if key not in self._ranges:
            with unrecorded():
                self._ranges[key] = range_of(t, ignored)
        return self._ranges[key]

    def _like_at(self, address: int) -> Like:
        return self.likes[~address] if address < 0 else self.kinds[address >> AT].likes[address & LOW]

    def _let_go(self, args: Any) -> None:
        """Run what was recorded before a new frame of a stream is read, if many are held here alone.

        A loop over a stream holds one frame at a time.
        """
        tensors = [a for a in args if isinstance(a, Tensor)]
        if tensors and all(type(a) is Later or id(a) in self._numbers for a in tensors):
            return
        self._entered = 0
        for number in range(len(self.given)):
            t = self.given[number]
            self._entered += _bytes_of(t) if sys.getrefcount(t) == _IN_THE_LIST else 0
        if self._entered + self._drawn > _MOST_ENTERED:
            self.flush(as_it_stands=False)

    # ---- the key of a call

    def _spell(self, found: Any, key: list[Any], leaves: list[Any], numbers: bool) -> None:
        """Append what tells one kind of call from another to ``key``, and to ``leaves`` what differs between calls."""
        for a in found:
            t = type(a)
            if t is Later and a.later_recorder is not self:
                _run_elsewhere(a)
                t = type(a)
            if t is Later:
                key.append(a.later_like)
                leaves.append(a.later_address)
            elif t in _TENSORS:
                number = self._numbers.get(id(a))
                if number is None:
                    number = self._enter(a)
                like = self.likes[number]
                key.append(like)
                leaves.append(~number)
                if like.kind is nn.Parameter:
                    key.append(number)
            elif t is float or t is int:
                key.append(t)
                if numbers:
                    leaves.append(a)
                if not numbers or (a == 0.0 and t is float):  # 0.0 and -0.0 are equal, and differ
                    key.append(a if a else repr(a))
            elif t is complex:
                key.append(t)
                key.append(repr(a))  # 0j and -0j are equal, and differ
            elif t is tuple or t is list:
                inside: list[Any] = [t]
                self._spell(a, inside, leaves, numbers)
                key.append(tuple(inside))
            elif t is slice:
                inside = [t]
                self._spell((a.start, a.stop, a.step), inside, leaves, False)
                key.append(tuple(inside))
            elif t in _CONSTANTS:
                key.append(t)
                key.append(a)
            elif t is dict:
                inside = [t]
                for name, b in a.items():
                    inside.append(name)
                    self._spell((b,), inside, leaves, numbers)
                key.append(tuple(inside))
            elif isinstance(a, torch.Size):
                key.append((torch.Size, *a))
            elif isinstance(a, torch.Generator):
                raise NeedsValueError("a generator of random numbers")
            else:
                raise NeedsValueError(f"an argument of the type {t.__name__}")

    def _spell_index(self, t: Any, index: Any, dim: Any, key: list[Any], leaves: list[Any]) -> None:
        """Spell an index of a tensor, in which each number is a leaf."""
        if type(index) is not int and type(index) is not tuple:
            self._spell((index,), key, leaves, False)
            return
        shape = t.shape
        parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
        inside: list[Any] = [type(index)]
        for i, at in zip(parts, [dim] if type(index) is int else _dims(parts, len(shape)), strict=True):
            if type(i) is not int:
                self._spell((i,), inside, leaves, False)
                continue
            if not at < len(shape) or not -shape[at] <= i < shape[at]:
                raise NeedsValueError("an index out of range")
            inside.append(Hole)
            leaves.append(i)
        key.append(tuple(inside))

    def _enter(self, t: Tensor) -> int:
        """Number a tensor from outside."""
        if is_transformed_tensor(t):
            raise NeedsValueError("a tensor of a transform of torch.func")
        is_dense = t.layout is torch.strided or (t.layout in LAYOUTS and t.dim() == 2)
        if not is_dense or t.is_quantized or t.is_nested:
            raise NeedsValueError("a tensor that is not dense")
        if t.is_conj() or t.is_neg() or (t.is_complex() and t.layout is not torch.strided):
            raise NeedsValueError("a tensor that is conjugated, or complex and sparse")
        if self._reading is not None:  # what runs ahead must know all tensors from outside
            raise _EndsRecordError
        like = known_of(t)
        number = len(self.given)
        if is_shared(t):
            self._shared[number] = t
            if like.requires_grad or like.kind is nn.Parameter:  # a copy is read in its place
                like = like.but(is_leaf=not like.requires_grad, kind=Tensor)
        else:
            self._numbers[id(t)] = number
        self.given.append(t)
        self.likes.append(like)
        self._entered += _bytes_of(t)
        return number

    # ---- running what was recorded

    def flush(self, as_it_stands: bool = True) -> None:
        """Run what was recorded, or make its calls one by one. All tensors that the program holds become real."""
        if self._runs:
            return
        self.is_alone &= self.is_over
        if not self.kinds:
            self._begin()  # the call that is made next may change what is known of its arguments
            return
        alive = self.alive()
        seed_again = self._draws.put_back()
        try:
            with self.running():
                if (found := self._results(alive, as_it_stands)) is None:
                    self._others += len(self.kinds)
                    self.replay(alive)  # after a graph that failed, it raises the loop's error, as the loop does
                    self._tell_failure()
                else:
                    self._planned += len(self.kinds)
                    self.deliver(alive, found)
        except BaseException as error:
            self._give_up(error)
            raise
        finally:
            seed_again()
            if len(self._spare) > _MOST_SPARE:
                self._spare.clear()
            self._keep_spare(self._spare)
            self._begin()

    def _results(self, alive: list[int], as_it_stands: bool) -> list[Tensor] | None:
        """The results of a plan; ``None``: the calls are to be made one by one."""
        if self._reading is not None:
            found = self._reading.end(alive)
            return found if found is None or self._reads_as_recorded() else None
        return None if as_it_stands or not self._reads_as_recorded() else self._run(self, alive)

    @property
    def pays(self) -> bool:
        """Whether at least half of the calls ran by a plan."""
        return self._planned > 0 and self._planned >= self._others

    @property
    def calls(self) -> int:
        """How many calls have run."""
        return self._planned + self._others

    @property
    def is_whole(self) -> bool:
        """Whether all calls that the function has made are in the record."""
        return self.is_over and not self.calls

    def _keep_spare(self, spare: dict[Like, list[Later]]) -> None:
        """Keep results that nobody holds for later calls: to make one takes a microsecond."""
        count, references, most = sys.getrefcount, weakref.getweakrefcount, _MOST_OF_A_SHAPE
        for number in range(self._swept, len(self.made)):
            made = self.made[number]
            if type(made) is tuple:
                for i in range(len(made)):
                    if type(made[i]) is Later and count(made[i]) == _IN_A_TUPLE and not references(made[i]):
                        pool = spare.setdefault(made[i].later_like, [])
                        if len(pool) < most and not is_marked(made[i]):
                            pool.append(made[i])
            elif type(made) is Later and count(made) == _IN_THE_LIST and not references(made):
                pool = spare.setdefault(made.later_like, [])
                if len(pool) < most and not is_marked(made):
                    pool.append(made)

    def _sweep(self) -> None:
        """Let results that nobody holds be used again before the end of a long loop.

        They leave the record before another thread may get them.
        """
        found: dict[Like, list[Later]] = {}
        self._keep_spare(found)
        free = {id(t) for pool in found.values() for t in pool}
        for number in range(self._swept, len(self.made)):
            made = self.made[number]
            if type(made) is tuple:
                self.made[number] = tuple([None if id(t) in free else t for t in made])
            elif id(made) in free:
                self.made[number] = None
        self._swept = len(self.made)
        for like, pool in found.items():
            spare = self._spare.setdefault(like, [])
            spare += pool[: max(0, _MOST_OF_A_SHAPE - len(spare))]

    def _tell_failure(self) -> None:
        """Tell of a graph that has failed where the loop has not."""
        if self.failed is not None:
            problem = f"its graph fails ({self.failed}). This is a fault of snnfast; please report it with the program"
            warn_once(f"snnfast: a recorded loop runs call by call: {problem}")
            self.reasons.append(problem)
            self.failed = None

    def _give_up(self, error: BaseException) -> None:
        """Let each result that was not computed say so where it is read."""
        for made in self.made:
            for t in made if type(made) is tuple else (made,):
                if type(t) is Later:
                    t.later_recorder = Failed(error)

    def has_run(self, form: Form, graph: Callable[..., list[Tensor]], alive: list[int]) -> None:
        """The record has run by a plan."""
        if self.is_alone:
            originals = {number: t for t, number in self._copies.values()}
            self.ran = Ran(form, graph, alive, self.given, originals, self.constants, self._in_range)

    def references(self, alive: Sequence[int]) -> dict[int, int]:
        """How many references the program has to results, by their addresses."""
        count, found = sys.getrefcount, {}
        for address in alive:
            made = self.made[address >> AT]
            if type(made) is tuple:
                found[address] = count(made[address & LOW]) - _IN_A_TUPLE
            else:
                found[address] = count(made) - _IN_THE_LIST
        return found

    def alive(self) -> list[int]:
        """The addresses of results that the program still holds."""
        count, found = sys.getrefcount, []
        for number in range(len(self.made)):
            made = self.made[number]  # not by an iterator, which may hold it, too
            if type(made) is tuple:
                found += [
                    (number << AT) + i for i in range(len(made)) if count(made[i]) > _IN_A_TUPLE and made[i] is not None
                ]
            elif made is not None and count(made) > _IN_THE_LIST:
                found.append(number << AT)
        return found

    def deliver(self, alive: list[int], values: list[Tensor]) -> None:
        """Let tensors become their values."""
        holders = {id(t): t for t in self.given}
        with torch.enable_grad():  # a view that is made without may not be changed in place
            for address, value in zip(alive, values, strict=True):
                made = self.made[address >> AT]
                t = made[address & LOW] if type(made) is tuple else made
                # A call may return what it was given, or one tensor twice.
                holder = holders.setdefault(id(value), t)
                become(t, value if holder is t else holder.view_as(holder))

    def replay(self, alive: list[int]) -> None:
        """Make the calls one after the other. After an error, the results so far are there."""
        made = self._reading or Reading(self, None)
        try:
            made.catch_up(set(alive))
        finally:
            # What is delivered must be in nobody else's hands.
            there = [a for a in alive if a >> AT < made.done]
            self.deliver(there, [made.values.pop(a) for a in there])


class _EndsRecordError(Exception):
    """A call belongs to the next record."""


class Failed:
    """A stand-in for the recorder of a result that was not computed, because a call before it failed.

    Args:
        error: The error.
    """

    grad = False
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def __init__(self, error: BaseException) -> None:
        self._error = f"{type(error).__name__}: {error}"

    def flush(self) -> None:
        raise RuntimeError(
            f"this tensor was not computed, because a call before it in a compiled function failed ({self._error}). If "
            "it is a state, set it anew"
        )


def _run_elsewhere(t: Later) -> None:
    """Let another recorder compute its result, which a thread may have handed to this one."""
    t.later_recorder.flush()
    if type(t) is Later:
        raise RuntimeError("a tensor of a compiled function that another thread runs now was read")


def _is_in_a_reset(frame: FrameType) -> bool:
    """Whether code is that with which snnTorch resets the layers of all networks."""
    return frame.f_code.co_name == "reset_hidden" and str(frame.f_globals.get("__name__")).startswith("snntorch.")


def _bytes_of(t: Tensor) -> int:
    """The bytes of a tensor. A sparse matrix is no frame of a stream."""
    return t.nbytes if t.layout is torch.strided else 0


def _dims(index: tuple[Any, ...], dims: int) -> list[int]:
    """The dimension that each entry of an index begins at."""
    sizes = [
        a.dim() if isinstance(a, Tensor) and a.dtype == torch.bool else 0 if a is None or a is Ellipsis else 1
        for a in index
    ]
    found, at = [], 0
    for a, size in zip(index, sizes, strict=True):
        found.append(at)
        at += dims - sum(sizes) if a is Ellipsis else size
    return found
