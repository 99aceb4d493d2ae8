"""Load the extension ``snnfast._C`` and give its ops their shapes for tracing.

``lif_forward`` and ``lif_backward`` below are what the rest of the package calls; nothing else names
``torch.ops.snnfast``.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

extension: ModuleType | None = None
"""The compiled module, or ``None`` where the package was installed without a compiler."""

missing: str | None = None
"""Why ``extension`` is ``None``, in words for the user."""

NAMESPACE = "snnfast"


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


_load()


def namespace(name: str) -> Any:
    """The ops of a namespace: the product's, or one that a test library registered beside it."""
    return getattr(torch.ops, name)


def lif_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return namespace(NAMESPACE).lif_forward.default(*args)  # type: ignore[no-any-return]


def lif_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return namespace(NAMESPACE).lif_backward.default(*args)  # type: ignore[no-any-return]


def register_fakes(name: str) -> None:
    """Tell ``torch.compile`` and FakeTensor the shapes that the ops of namespace ``name`` return."""
    torch.library.register_fake(f"{name}::lif_forward", _lif_forward_fake)
    torch.library.register_fake(f"{name}::lif_backward", _lif_backward_fake)


def checkpoint_stride() -> int:
    """Time steps between two membranes that the forward pass keeps for the recompute in the backward pass."""
    assert extension is not None
    return int(extension.checkpoint_stride)


def _acc(dtype: torch.dtype) -> torch.dtype:
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
    checkpoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, shape = (x.shape[0], x.shape[1:]) if num_steps is None else (num_steps, x.shape)
    rows = 0
    if checkpoint:
        stride = checkpoint_stride()
        rows = torch.sym_max((steps + stride - 1) // stride - 1, 0)  # type: ignore[no-untyped-call]
    return (
        x.new_empty((steps, *shape)),
        x.new_empty((steps, *shape) if record_mem else shape),
        x.new_empty((rows, *shape), dtype=_acc(x.dtype)),
    )


def _lif_backward_fake(
    grad_spk: Tensor | None,  # [T, *]
    grad_mem: Tensor | None,  # [T, *] or [*]
    x: Tensor | None,
    mem_rec: Tensor | None,
    checkpoints: Tensor | None,
    mem0: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    graded: Tensor,
    num_steps: int | None,
    reset: int,
    reset_delay: bool,
    surrogate: int,
    p0: float,
    p1: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = x if x is not None else mem_rec
    assert like is not None
    shape = like.shape if x is not None and num_steps is not None else like.shape[1:]
    sizes = [like.shape if x is not None or num_steps is None else shape] + [shape] * 4
    dtypes = [like.dtype] + [_acc(like.dtype)] * 4
    grads = [
        like.new_empty(size if need else (0,), dtype=dtype)
        for size, dtype, need in zip(sizes, dtypes, needs, strict=True)
    ]
    return tuple(grads)  # type: ignore[return-value]


if extension is not None:
    register_fakes(NAMESPACE)
