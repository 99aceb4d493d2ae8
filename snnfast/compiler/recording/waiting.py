"""What may wait: a call may only if all that it reads and writes is seen until it runs.

A recorded call runs later than the loop's. What others may do in between is looked for here, and nowhere else:

- **Memory.** An array of NumPy or another process may write to a tensor's memory, or read it: see :func:`is_shared`. A
  call reads a copy of such memory, and writes to it at once.
- **Random numbers.** A draw that waits keeps the generator's state: see :class:`Draws`.
- **Errors.** A call whose error depends on values does not wait in a ``try``, nor with an index that is known to be out
  of range: see :class:`MayRaise` and :func:`is_in_try`.

The times at which others look, such as a fork or a thread that is woken, are in ``functions.py``: all runs before them.
"""

import dis
import functools
import os
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast._core import ops

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
    """A tensor of indices must be at least ``low`` and less than ``high``, or equal to ``ignored``."""

    indices: Tensor
    low: int
    high: int
    ignored: int | None = None


def _of_dim(args: Sequence[Any]) -> list[Range]:
    t, dim, index = args[:3]
    return [Range(index, 0, t.shape[dim] if t.dim() else 1)]


def _of_list(args: Sequence[Any]) -> list[Range]:
    t, indices = args[:2]
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return [Range(i, 0, 0) for i in indices if i is not None and i.dtype not in (torch.bool, torch.uint8)]
    return [Range(i, -t.shape[dim], t.shape[dim]) for dim, i in enumerate(indices) if i is not None]


def _of_classes(args: Sequence[Any]) -> list[Range]:
    t, target, ignored = args[0], args[1], args[4]
    return [Range(target, 0, t.shape[min(1, t.dim() - 1)], ignored)]


_INDEXED = {
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add", "index_copy",
                     "index_fill"), _of_dim),
    **dict.fromkeys(("index", "index_put"), _of_list),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _of_classes),
    "embedding": lambda args: [Range(args[1], 0, args[0].shape[0])],
    "take": lambda args: [Range(args[1], -args[0].numel(), args[0].numel())],
}  # fmt: skip
"""Operators with an index among their arguments."""

_RAISE = {
    "bernoulli", "binary_cross_entropy", "binomial", "embedding_bag", "multi_margin_loss",
    "multilabel_margin_loss_forward", "multinomial", "normal", "one_hot", "poisson", "put", "repeat_interleave",
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "lu_solve", "lu_unpack", "triangular_solve",
}  # fmt: skip
"""Operators that raise errors for some values, beside those of linear algebra."""

_DIVIDE = {"div", "floor_divide", "remainder", "fmod", "divide"}


class MayRaise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether the operators inside draw random numbers, and of which values they raise errors.

    Attributes:
        draws: Whether random numbers are drawn.
        raises: Whether an error depends on values.
        ranges: Where it depends on an index alone, which index must be in which range.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = self.raises = False
        self.ranges: list[Range] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.draws |= torch.Tag.nondeterministic_seeded in func.tags
        name = func._schema.name.rpartition("::")[2].rstrip("_")
        if name in _INDEXED:
            self.ranges += _INDEXED[name](args)  # type: ignore[no-untyped-call]
        elif name in _RAISE or "linalg" in name or "cholesky" in name:
            self.raises = True
        elif name in _DIVIDE:
            self.raises |= not any(t.is_floating_point() or t.is_complex() for t in args if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


def range_of(index: Tensor, ignored: int | None) -> tuple[int, int]:
    """The least and the largest number of an index. On a GPU, where no error comes at a line, none."""
    if index.device.type != "cpu":
        return 0, -1
    if ignored is not None:
        index = index[index != ignored]
    if not index.numel():
        return 0, -1
    low, high = torch.aminmax(index)
    return int(low), int(high)


_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_NOT_THE_PROGRAMS = tuple(os.path.join(folder, "") for folder in (_PACKAGE, os.path.dirname(torch.__file__)))


def is_in_try(frame: FrameType | None) -> bool:
    """Whether a line of the program that leads to this frame stands in a ``try``, which may catch an error of it."""
    while frame is not None and frame.f_code.co_name != "run_recorded":
        code = frame.f_code
        is_the_programs = code.co_exceptiontable and not code.co_filename.startswith(_NOT_THE_PROGRAMS)
        if is_the_programs and _is_tried(code, frame.f_lasti):
            return True
        frame = frame.f_back
    return False


@functools.lru_cache(4096)
def _is_tried(code: CodeType, at: int) -> bool:
    """Whether an instruction stands in a ``try``. A ``with`` counts as one if it may be that of ``suppress``."""
    blocks = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    instructions = list(dis.get_instructions(code))
    number = {instruction.offset: i for i, instruction in enumerate(instructions)}
    seen: set[int] = set()
    while block := next((b for b in blocks if b.start <= at < b.end and b.target not in seen), None):
        handler = [i.opname for i in instructions[number[block.target] :][:2]]
        is_with = handler[1:] == ["WITH_EXCEPT_START"]
        if handler[0] == "PUSH_EXC_INFO" and (not is_with or not _MAY_CATCH.isdisjoint(code.co_names)):
            return True
        at = block.target  # the error goes on from there, to what is around this block
        seen.add(at)
    return False


_MAY_CATCH = {"suppress", "raises", "ExitStack"}
