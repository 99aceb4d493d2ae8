"""Which implementation runs: the fused kernels, or the step-by-step reference."""

import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from snnfast import _ops

__all__ = ["use_backend"]

_BACKENDS = ("auto", "fused", "reference")
_warned: set[str] = set()


def _check(source: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{source}: expected a string, got {type(name).__name__}")
    if name not in _BACKENDS:
        raise ValueError(f"{source}: expected 'auto', 'fused' or 'reference', got {name!r}")
    return name


_current = _check("SNNFAST_BACKEND", os.environ.get("SNNFAST_BACKEND", "auto"))


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the implementation inside a ``with`` block, for all threads of the process.

    Args:
        name: ``"auto"``: the fused kernels where they exist, else the reference with one warning that says why.
            ``"fused"``: the kernels, or an error that says why not. ``"reference"``: the plain PyTorch loop.
            The environment variable ``SNNFAST_BACKEND`` sets the choice outside such blocks.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: ``name`` is none of the three.

    Example::

        >>> import torch, snnfast
        >>> with snnfast.use_backend("reference"):
        ...     spk, mem = snnfast.functional.lif(torch.ones(4, 2), beta=0.9)
    """
    global _current
    previous, _current = _current, _check("name", name)
    try:
        yield
    finally:
        _current = previous


def current_backend() -> str:
    """The backend chosen now: ``"auto"``, ``"fused"`` or ``"reference"``."""
    return _current


def unavailable(device: torch.device) -> str | None:
    """Why the fused kernels can't run on ``device``; ``None`` where they can."""
    if _ops.extension is None:
        return _ops.missing
    if device.type == "cpu" or device.type == "meta":
        return None
    if device.type == "cuda":
        if not _ops.extension.cuda:
            return f"snnfast was built without CUDA: {_ops.extension.cuda_missing}"
        return _unsupported(device) if torch.cuda.is_available() else None
    return f"snnfast has no kernels for device type {device.type!r}"


@functools.cache
def _unsupported(device: torch.device) -> str | None:
    """Why the kernels in the binary can't run on this CUDA device: it is older than all of them."""
    assert _ops.extension is not None
    oldest = min(float(name.removesuffix("+PTX").rstrip("af")) for name in _ops.extension.cuda_architectures.split(";"))
    major, minor = torch.cuda.get_device_capability(device)
    if major + minor / 10 >= oldest:
        return None
    return f"its compute capability {major}.{minor} is below {oldest}, the lowest that snnfast was built for"


def use_fused(device: torch.device) -> bool:
    """Whether a call with tensors on ``device`` goes to the kernels; warns or raises where they are missing."""
    if _current == "reference":
        return False
    reason = unavailable(device)
    if reason is None:
        return True
    if _current == "fused":
        raise RuntimeError(f"backend 'fused' is not available on {device}: {reason}")
    warn_once(
        f"snnfast: running step by step on the slow reference path on {device}: {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return False


def warn_once(message: str) -> None:
    """Warn once per process and message, at the caller's line, whatever the warning filters do with repetitions."""
    if message in _warned:
        return
    _warned.add(message)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("snnfast", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


# What torch.compiler.assume_constant_result sets, without the import of the compiler: it warns while tracing.
warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]
