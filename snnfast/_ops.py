"""Load the extension ``snnfast._C`` and give its ops their shapes for tracing.

The four functions named as the ops, below, are what the rest of the package calls; nothing else names
``torch.ops.snnfast``. The backward ops return the gradients asked for, in the order of the inputs ``x``, ``mem0``,
``beta``, ``threshold``, ``graded``: bit ``i`` of ``needs`` asks for that of input ``i``.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

extension: ModuleType | None = None
"""The compiled module, or ``None`` where the package was installed without a compiler."""

missing: str | None = None
"""Why ``extension`` is ``None``, in words for the user."""

NAMESPACE = "snnfast"

# What forward keeps for backward beside its outputs: enum Keep in csrc/lif.h.
KEEPS = ("nothing", "checkpoints", "rounded", "bits")
KEEP_NOTHING, KEEP_CHECKPOINTS, KEEP_ROUNDED, KEEP_BITS = range(len(KEEPS))
RESET_MECHANISMS = ("subtract", "zero", "none")


def _load() -> None:
    global extension, missing
    try:
        extension = importlib.import_module("snnfast._C")
    except ModuleNotFoundError as error:
        if error.name != "snnfast._C":
            raise
        missing = (
            "snnfast was installed without its compiled extension (an isolated build that saw no torch, no C++ "
            "compiler, or a failed build); SNNFAST_REQUIRE_EXT=1 pip install --no-build-isolation tells why"
        )
    # Any other ImportError (a torch too old for the binary, a missing symbol) is the user's to see: it is raised.


def check_names(attribute: str, names: Sequence[str]) -> None:
    """Raise ``ImportError`` where the extension counts something else by the numbers that Python uses."""
    if extension is None:
        return
    found = getattr(extension, attribute, None)
    if found != list(names):
        raise ImportError(
            f"snnfast._C was built from other sources than these: its {attribute} are {found}, not {list(names)}; "
            "build it again"
        )


_load()
check_names("keeps", KEEPS)
check_names("resets", RESET_MECHANISMS)


def namespace(name: str) -> Any:
    """The ops of a namespace: the product's, or one that a test library registered beside it."""
    return getattr(torch.ops, name)


def lif_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return namespace(NAMESPACE).lif_forward.default(*args)  # type: ignore[no-any-return]


def lif_backward(*args: Any) -> list[Tensor]:
    return namespace(NAMESPACE).lif_backward.default(*args)  # type: ignore[no-any-return]


def lif_step_forward(*args: Any) -> tuple[Tensor, Tensor]:
    return namespace(NAMESPACE).lif_step_forward.default(*args)  # type: ignore[no-any-return]


def lif_step_backward(*args: Any) -> list[Tensor]:
    return namespace(NAMESPACE).lif_step_backward.default(*args)  # type: ignore[no-any-return]


def clamp_is_closed() -> bool:
    """Whether the gradient of ``clamp(x, 0, 1)`` passes at exactly 0 and 1: up to torch 2.13 it does, later not."""
    with torch.inference_mode(False), torch.enable_grad(), _disable_current_modes():
        one = torch.ones(1, device="cpu", dtype=torch.float32, requires_grad=True)
        clamped: Any = one.clamp(0, 1).grad_fn
        # Not by a backward pass: the first one starts PyTorch's threads, and with them CUDA, before the user may have
        # forked or chosen a device.
        return bool(clamped(torch.ones(1, device="cpu", dtype=torch.float32)).item() == 1)


def set_up(name: str) -> None:
    """Make the ops of namespace ``name`` ready: the rules of this torch, and their shapes for ``torch.compile``."""
    with _disable_current_modes():
        namespace(name).set_clamp_closed.default(clamp_is_closed())
    for op, fake in (
        ("lif_forward", _lif_forward_fake),
        ("lif_backward", _lif_backward_fake),
        ("lif_step_forward", _lif_step_forward_fake),
        ("lif_step_backward", _lif_step_backward_fake),
    ):
        torch.library.register_fake(f"{name}::{op}", fake)


def checkpoint_stride() -> int:
    """Time steps between two membranes that the forward pass keeps for the recompute in the backward pass."""
    assert extension is not None
    return int(extension.checkpoint_stride)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a current of ``dtype`` is computed with where nothing else widens it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lif_forward_fake(
    x: Tensor,  # [T, *], or [*] with num_steps
    mem0: Tensor | None,  # [*] acc
    beta: Tensor,
    threshold: Tensor,
    graded: Tensor,
    num_steps: int | None,
    reset: int,
    reset_delay: bool,
    record_mem: bool,
    count: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, shape = (x.shape[0], x.shape[1:]) if num_steps is None else (num_steps, x.shape)
    rows, dtype = 0, arithmetic_dtype(x.dtype)
    if keep == KEEP_CHECKPOINTS:
        rows = _rows(steps, checkpoint_stride())
    elif keep == KEEP_ROUNDED:
        rows, dtype = steps, torch.bfloat16
    elif keep == KEEP_BITS:
        rows, dtype = _at_least_0((steps + 6) // 8), torch.uint8
    return (
        x.new_empty(shape if count else (steps, *shape)),
        x.new_empty((steps, *shape)) if record_mem else x.new_empty(shape, dtype=arithmetic_dtype(x.dtype)),
        x.new_empty((rows, *shape), dtype=dtype),
    )


def _rows(steps: int, stride: int) -> int:
    """Steps after the first at which a stride begins."""
    return _at_least_0((steps + stride - 1) // stride - 1)


def _at_least_0(rows: int) -> int:
    """Of a number that may be symbolic."""
    return cast(int, torch.sym_max(rows, 0))


def _lif_backward_fake(
    grad_spk: Tensor | None,  # [T, *], or [*] of a count
    grad_mem: Tensor | None,  # [T, *], or [*] acc
    x: Tensor | None,
    mem_rec: Tensor | None,
    kept: Tensor | None,
    mem0: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    graded: Tensor,
    derivative: Tensor | None,  # [T, *] acc
    steps: int,
    constant: bool,
    reset: int,
    reset_delay: bool,
    count: bool,
    keep: int,
    surrogate: int,
    p0: float,
    p1: float,
    needs: int,
) -> list[Tensor]:
    grad = grad_spk if grad_spk is not None else x if x is not None else grad_mem
    known = x if x is not None else mem_rec if mem_rec is not None else kept
    assert grad is not None
    assert known is not None
    step = known.shape if x is not None and constant else known.shape[1:]
    return _gradients_fake(grad, step if constant else torch.Size((steps, *step)), step, needs)


def _lif_step_forward_fake(
    x: Tensor,  # [*], as everything but parameters
    mem0: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    graded: Tensor,
    reset: int,
    reset_delay: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=arithmetic_dtype(x.dtype))


def _lif_step_backward_fake(
    grad_spk: Tensor | None,
    grad_mem: Tensor | None,  # acc
    x: Tensor,
    mem0: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    graded: Tensor,
    reset: int,
    reset_delay: bool,
    surrogate: int,
    p0: float,
    p1: float,
    needs: int,
) -> list[Tensor]:
    return _gradients_fake(x, x.shape, x.shape, needs)


def _gradients_fake(like: Tensor, x_shape: torch.Size, step: torch.Size, needs: int) -> list[Tensor]:
    sizes = [(x_shape, like.dtype)] + [(step, arithmetic_dtype(like.dtype))] * 4
    return [like.new_empty(shape, dtype=dtype) for i, (shape, dtype) in enumerate(sizes) if needs >> i & 1]


if extension is not None:
    set_up(NAMESPACE)
