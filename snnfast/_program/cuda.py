"""The codes of a program on CUDA, with the results of the ops ``program_forward`` and ``program_backward``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snnfast._core.ops import opmath_dtype
from snnfast._program.code import Code
from snnfast._program.nvrtc import Launch, NoKernelError
from snnfast._program.source import CHECKPOINT, Kinds, Source, backward_source, forward_source

__all__ = ["Engine"]

_BLOCKS = 128  # multiprocessors of a large card; few neurons come in smaller blocks, so that all of them work
_WARP = 32
_LEAST = 98304  # neurons from which on two of each thread keep a large card busy, as in csrc/cuda


class Engine:
    """Runs codes by kernels of their own.

    Args:
        kernel_of: ``(text, device)`` to the kernel, or ``NoKernelError``.
        least: Neurons from which on a thread takes two of them in half precision.
    """

    def __init__(self, kernel_of: Callable[[str, torch.device], Launch], least: int = _LEAST) -> None:
        self._kernel_of, self._least = kernel_of, least

    def parameters(self, code: Code, given: Sequence[Tensor]) -> list[Tensor]:
        """The parameters of the kernels, which compute what follows from them: each operator would be a launch."""
        return code.parameters(given, code.functions)

    def forward(
        self,
        code: Code,
        like: Tensor,
        series: Sequence[Tensor],
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        steps: int,
        neurons: int,
        samples: int,  # whose steps lie together, which only the kernels of the CPU take
        keep: bool,
        bits: int,  # which output is returned as bits: none, which only the kernels of the CPU write
        normed: tuple[Tensor | None, int, int],  # the series that only the kernels of the CPU normalise
    ) -> list[Tensor]:
        assert bits == -1
        assert normed[0] is None
        assert samples == 1
        opmath = opmath_dtype(like.dtype)
        states, parameters = [s.expand(neurons).contiguous() for s in states], _whole(parameters, neurons)
        outputs = [like.new_empty(steps, neurons) for _ in range(code.outputs)]
        last = [like.new_empty(neurons, dtype=opmath) for _ in states]
        kept: list[Any] = [like.new_empty(-(-steps // CHECKPOINT) * len(states), neurons, dtype=opmath)] if keep else []
        given = [*_rows(series), *states, *_values(parameters, like), *outputs, *last]
        self._run(forward_source, code, like, series, parameters, [steps, neurons, *given, *(kept or [0])])
        return [*outputs, *last, *kept]

    def backward(
        self,
        code: Code,
        like: Tensor,
        series: Sequence[Tensor],
        parameters: Sequence[Tensor],
        kept: Tensor,
        grad_outputs: Sequence[Tensor],
        grad_last: Sequence[Tensor],
        weight: Tensor | None,  # of a linear layer, whose gradients the kernels of the CPU alone take
        steps: int,
        neurons: int,
        samples: int,
        normed: tuple[Tensor | None, int, int],
    ) -> list[Tensor]:
        assert weight is None
        assert normed[0] is None
        assert samples == 1
        of_series = [like.new_empty(steps, neurons) for k in range(len(series)) if k in code.gradients]
        grad_last, parameters = [g.expand(neurons).contiguous() for g in grad_last], _whole(parameters, neurons)
        initial = [torch.empty_like(g) for g in grad_last]
        first = len(series) + len(grad_last)
        learned = [p for j, p in enumerate(parameters) if first + j in code.gradients]
        sums = [like.new_empty(neurons, dtype=torch.float64) for _ in learned]
        given = [*_rows(series), *_values(parameters, like), kept, *_rows(grad_outputs), *grad_last]
        given += [*of_series, *initial, *sums]
        self._run(backward_source, code, like, series, parameters, [steps, neurons, *given])
        # PyTorch's sum of float64 numbers has an order that only their number decides.
        sums = [s.sum() if p.dim() == 0 else s for s, p in zip(sums, learned, strict=True)]
        return [*of_series, *initial, *sums]

    def _run(
        self,
        write: Callable[[Code, torch.dtype, Kinds, int], Source],
        code: Code,
        like: Tensor,
        series: Sequence[Tensor],
        parameters: Sequence[Tensor],
        arguments: Sequence[Tensor | int | float],
    ) -> None:
        kinds = tuple("numbers" if x.dim() == 1 else "rows" for x in series), tuple(_kind(p, like) for p in parameters)
        neurons = arguments[1]
        assert isinstance(neurons, int)
        width = self._width(like, neurons, arguments)
        key: Any = like.dtype, like.device, kinds, width, self
        if key not in code.kernels:
            source = write(code, like.dtype, kinds, width)
            try:
                code.kernels[key] = source.threads, self._kernel_of(source.text, like.device)
            except NoKernelError as error:  # and it is not tried again
                code.kernels[key] = error
        if isinstance(code.kernels[key], NoKernelError):
            raise code.kernels[key]
        threads, launch = code.kernels[key]
        taken = neurons // width
        while threads > _WARP and taken < _BLOCKS * threads:
            threads //= 2
        if taken > 0:
            values = [_pointer(a, like) if isinstance(a, Tensor) else a for a in arguments]
            launch(-(-taken // threads), threads, values)

    def _width(self, like: Tensor, neurons: int, arguments: Sequence[Tensor | int | float]) -> int:
        """How many neurons a thread takes: two of two bytes are an access of four, if their rows are aligned."""
        if like.element_size() > 2 or neurons < self._least or neurons % 2 != 0:
            return 1
        rows = (a for a in arguments if isinstance(a, Tensor) and a.dtype == like.dtype)
        return 1 if any(row.data_ptr() % 4 != 0 for row in rows) else 2


def _rows(series: Sequence[Tensor]) -> list[Tensor | int]:
    """Rows with the stride from one to the next, which is 0 where there is one; numbers of each step as they are."""
    found: list[Tensor | int] = []
    for x in series:
        found += [x] if x.dim() == 1 else [x, x.stride(0) if x.shape[0] > 1 else 0]
    return found


def _whole(parameters: Sequence[Tensor], neurons: int) -> list[Tensor]:
    """Parameters of all neurons where they are some of their last dimensions."""
    return [p if p.dim() == 0 or p.numel() == neurons else p.repeat(neurons // p.numel()) for p in parameters]


def _kind(parameter: Tensor, like: Tensor) -> str:
    if parameter.dim() > 0:
        return "neurons"
    return "number" if parameter.device == like.device else "value"


def _values(parameters: Sequence[Tensor], like: Tensor) -> list[Tensor | float]:
    return [float(p) if _kind(p, like) == "value" else p for p in parameters]


def _pointer(t: Tensor, like: Tensor) -> int:
    if t.device != like.device or not t.is_contiguous():
        raise ValueError(f"expected contiguous tensors on {like.device}, got one on {t.device}")
    return t.data_ptr()
