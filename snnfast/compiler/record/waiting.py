"""The rule of waiting: a call may only if all that it reads and writes is seen until it runs.

A recorded call runs later than the loop's. What others may do in between is looked for here, and nowhere else:

- **Memory.** An array of NumPy or another process may write to a tensor's memory, or read it: see :func:`is_shared`. A
  call reads a copy of such memory, and writes to it at once.
- **Random numbers.** A draw that waits keeps the generator's state: see :class:`Draws`.
- **Errors.** A call that raises an error for some values waits only if it is known to raise none, as one with an index
  of the caller that is in range: see :class:`MayRaise`.

The times at which others look, such as a fork or a thread that is woken, are in ``functions.py``: all runs before them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast._core import ops
from snnfast.compiler.graph.nodes import storage_of, tensors_in, written_by

# ---- memory


def is_shared(t: Tensor) -> bool:
    """Whether others may see the memory of a tensor: NumPy, the file that it was loaded from, or another process.

    PyTorch allows nobody to resize memory that it does not own. That of large outputs of our kernels is not its own,
    either. Another process that shares memory tells when it has written, and all calls run before such a message is
    read. So a large tensor in shared memory, such as a batch from the worker of a ``DataLoader``, is left out here.
    """
    if t.device.type != "cpu" or t.layout is not torch.strided:
        return False
    memory = t.untyped_storage()
    if memory.resizable():
        return False
    if ops.extension is not None and ops.extension.pool_owns(memory.data_ptr()):
        return False
    return t.nbytes <= _SMALL or not t.is_shared()  # type: ignore[no-untyped-call]


_SMALL = 1 << 16


def let_others_see(t: Tensor) -> None:
    """Mark the memory of a tensor as ``t.numpy()`` does. PyTorch does not for DLPack, which shares it likewise."""
    if t.device.type == "cpu" and t.layout is torch.strided:
        torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).numpy()


# ---- random numbers

_marks = iter(range(0x5EED_0000_0000_0000, 0x7000_0000_0000_0000))


class Draws:
    """The states of the generators of random numbers, while draws wait.

    A generator that the program must not have changed has a seed that nobody else gives. The state before it comes back
    when the draws run.
    """

    def __init__(self) -> None:
        self._before: dict[torch.device, tuple[Tensor, int]] = {}

    def wait(self, device: torch.device) -> None:
        """Keep the state of a generator, if it is not kept yet."""
        if device not in self._before:
            generator, mark = _generator_of(device), next(_marks)
            self._before[device] = generator.get_state(), mark
            generator.manual_seed(mark)

    @property
    def wait_for_any(self) -> bool:
        """Whether a draw waits."""
        return bool(self._before)

    def are_current(self) -> bool:
        """Whether the program has left the generators alone."""
        return all(_generator_of(device).initial_seed() == mark for device, (_, mark) in self._before.items())

    def put_back(self) -> Callable[[], None]:
        """Put the states back. Returns what sets, behind the draws, the states that the program has set in between."""
        now = []
        for device, (before, mark) in self._before.items():
            generator = _generator_of(device)
            if generator.initial_seed() != mark:
                now.append((generator, generator.get_state()))
            generator.set_state(before)
        self._before = {}

        def set_again() -> None:
            for generator, state in now:
                generator.set_state(state)

        return set_again


def _generator_of(device: torch.device) -> Any:
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch._C.default_generator


# ---- errors that depend on values


class Range(NamedTuple):
    """The numbers that a tensor must hold, or does hold: from ``low`` to ``high``, and ``ignored``."""

    of: Tensor
    low: float
    high: float
    ignored: int | None = None


def _of_dim(args: Sequence[Any]) -> list[Range]:
    t, dim, index = args[:3]
    return [Range(index, 0, (t.shape[dim] if t.dim() else 1) - 1)]


def _of_list(args: Sequence[Any]) -> list[Range]:
    t, indices = args[:2]
    masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)  # of several dimensions each
    return [
        Range(i, 0, -1) if masks else Range(i, -t.shape[dim], t.shape[dim] - 1)
        for dim, i in enumerate(indices)
        if i is not None and i.dtype not in (torch.bool, torch.uint8)
    ]


def _of_classes(args: Sequence[Any]) -> list[Range]:
    t, target = args[:2]
    if target.is_floating_point():
        return []
    return [Range(target, 0, t.shape[min(1, t.dim() - 1)] - 1, args[4] if len(args) > 4 else -100)]


def _of_probabilities(args: Sequence[Any]) -> list[Range]:
    return [Range(args[0], 0.0, 1.0)]


_TAKE = {
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add", "index_copy",
                     "index_fill"), _of_dim),
    **dict.fromkeys(("index", "index_put"), _of_list),
    # Autograd spells a loss by another operator, but for tensors of inference mode.
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward", "nll_loss_nd", "cross_entropy_loss"), _of_classes),
    "embedding": lambda args: [Range(args[1], 0, args[0].shape[0] - 1)],
    "take": lambda args: [Range(args[1], -args[0].numel(), args[0].numel() - 1)],
    "bernoulli": _of_probabilities,
    "binary_cross_entropy": _of_probabilities,
}  # fmt: skip
"""Operators that raise an error where an argument holds numbers out of a range."""

_RAISE = {
    "binomial", "embedding_bag", "multi_margin_loss", "multilabel_margin_loss_forward", "multinomial", "normal",
    "poisson", "put", "repeat_interleave", "take_along_dim", "_assert_async", "_assert_scalar", "lu_solve", "lu_unpack",
    "triangular_solve",
}  # fmt: skip
"""Operators that raise errors for other reasons, beside those of linear algebra."""

_BY_NUMBERS = {("bernoulli", "float"), ("bernoulli", "p"), ("normal", ""), ("normal", "float_float")}
"""Operators whose parameters are numbers here, which are checked at once."""

_COPY = {"clone", "contiguous", "_reshape_copy"}
"""Operators whose results hold the numbers of their argument."""

_DIVIDE = {"div", "floor_divide", "remainder", "fmod"}
"""Operators that raise an error for a whole number that is divided by zero."""


def _place_in_dim(args: Sequence[Any], found: Any) -> list[Range]:
    """The results are places in a dimension, or in all of a tensor."""
    t = found[1] if isinstance(found, tuple | list) else found
    return [Range(t, 0, args[0].numel() - 1 if len(args) < 2 or args[1] is None else args[0].shape[args[1]] - 1)]


def _place_in_last(args: Sequence[Any], found: Any, at: int = 1) -> list[Range]:
    dim = args[at] if len(args) > at else -1
    return [Range(found[1], 0, args[0].shape[dim] - 1)]


def _clamped(args: Sequence[Any], found: Any) -> list[Range]:
    low, high = (*args[1:3], None, None)[:2]
    return [] if low is None or high is None else [Range(found, low, high)]


def _probability(args: Sequence[Any], found: Any) -> list[Range]:
    return [Range(found, 0.0, 1.0)]


_GIVE = {
    **dict.fromkeys(("argmax", "argmin"), _place_in_dim),
    **dict.fromkeys(("max.dim", "min.dim"), _place_in_dim),
    "sort": _place_in_last,
    "topk": lambda args, found: _place_in_last(args, found, 2),
    "clamp": _clamped,
    **dict.fromkeys(("sigmoid", "_softmax", "rand", "bernoulli"), _probability),
}
"""Operators whose results are numbers of a range."""


class MayRaise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether the operators inside draw random numbers, of which values they raise errors, and what they change.

    A version of a tensor does not tell of all changes: one of inference mode has none, and a batch normalisation does
    not count that of its running statistics.

    Attributes:
        writes: The memory that is changed.
        draws: Whether random numbers are drawn.
        raises: Whether an error depends on values in another way than by ranges.
        takes: Which numbers arguments must hold.
        gives: Which numbers results hold.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes: set[int] = set()
        self.draws = self.raises = False
        self.takes: list[Range] = []
        self.gives: list[Range] = []
        self._copies: dict[int, tuple[int, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.draws |= torch.Tag.nondeterministic_seeded in func.tags
        name, variant = func._schema.name.rpartition("::")[2].rstrip("_"), func._overloadname
        variant = "" if variant == "default" else variant
        self.writes.update(map(storage_of, tensors_in(written_by(func, args, kwargs or {}))))
        found = func(*args, **(kwargs or {}))
        if name in _COPY and found.dtype == args[0].dtype:
            self._copies[storage_of(found)] = storage_of(args[0]), found  # whose memory nobody else gets meanwhile
        if (name, variant) in _BY_NUMBERS:
            pass
        elif name in _TAKE:
            self.takes += _TAKE[name](args)
        elif name in _RAISE or "linalg" in name or "cholesky" in name:
            self.raises = True
        elif name in _DIVIDE:
            floats = any(t.is_floating_point() or t.is_complex() for t in args if isinstance(t, Tensor))
            self.raises |= not floats and (isinstance(args[1], Tensor) or not args[1])
        give = _GIVE.get(f"{name}.{variant}" if variant == "dim" else name)
        if give is not None and not kwargs:
            self.gives += give(args, found)
        return found

    def memory_of(self, t: Tensor) -> int:
        """The memory that holds the numbers of a tensor: of a copy, that of the original."""
        memory = storage_of(t)
        while memory in self._copies:
            memory = self._copies[memory][0]
        return memory

    def look_at(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Look at a function that PyTorch spells in another way without values."""
        if func is F.one_hot:
            classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
            self.takes.append(Range(args[0] if args else kwargs["input"], 0, classes - 1))


def range_of(t: Tensor, ignored: int | None) -> tuple[float, float]:
    """The least and the largest number of a tensor; on a GPU, where no error comes at a line, those of an empty one."""
    if t.device.type != "cpu":
        return 0, -1
    if ignored is not None:
        t = t[t != ignored]
    if not t.numel():
        return 0, -1
    low, high = torch.aminmax(t)
    return low.item(), high.item()
