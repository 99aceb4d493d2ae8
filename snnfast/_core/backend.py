"""Which implementation runs: the fused kernels, or the step-by-step reference."""

import os
import sys
import warnings

import torch
from torch.compiler import is_compiling

from snnfast._core import ops
from snnfast._core.pytorch import constant_while_tracing, current_graph_task_id, is_transformed
from snnfast._core.settings import Choice, Setting

__all__ = ["use_backend"]

_BACKENDS = ("auto", "fused", "reference")
_warned: set[str] = set()


def _check(source: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{source}: expected a string, got {type(name).__name__}")
    if name not in _BACKENDS:
        raise ValueError(f"{source}: expected 'auto', 'fused' or 'reference', got {name!r}")
    return name


_default = _check("SNNFAST_BACKEND", os.environ.get("SNNFAST_BACKEND") or "auto")
_setting = Setting("backend", _default)
_own = _setting.own


def _check_isa() -> None:
    wanted = os.environ.get("SNNFAST_ISA")
    if wanted and ops.extension is not None and wanted not in ops.extension.isa_available():
        available = ", ".join(ops.extension.isa_available())
        raise ValueError(f"SNNFAST_ISA: this processor has kernels for {available}; got {wanted!r}")


_check_isa()


def use_backend(name: str) -> Choice[str]:
    """Choose the implementation, for the thread that runs this.

    As a statement it holds from now on. As a context or as a decorator it holds inside the block or the function.

    Other threads keep their choice. Threads that are started later, and the replicas of ``DataParallel``, begin with
    the choice of ``SNNFAST_BACKEND``. Code under ``torch.compile``, and code that a backward pass recomputes, uses what
    was chosen last in any thread.

    Args:
        name: ``"auto"``: the fused kernels where they exist, otherwise the reference with one warning that says why.
            ``"fused"``: the kernels, or an error that says why not. ``"reference"``: the plain PyTorch loop.
            The environment variable ``SNNFAST_BACKEND`` makes the first choice.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: ``name`` is none of the three.

    Example::

        >>> import torch, snnfast
        >>> with snnfast.use_backend("reference"):
        ...     spk, mem = snnfast.functional.lif(torch.ones(4, 2), beta=0.9)
        >>> chosen = snnfast.use_backend("fused")  # from now on
        >>> chosen = snnfast.use_backend("auto")
    """
    return Choice(_setting, _check("name", name))


def current_backend() -> str:
    """The backend chosen now: ``"auto"``, ``"fused"`` or ``"reference"``."""
    if is_compiling():
        return _for_onnx(_setting.value) if exporting() and _exports_to_onnx() else _setting.value
    chosen = _own.get()
    if chosen is not None:
        return chosen.value
    return _default if current_graph_task_id() == -1 else _setting.value


@constant_while_tracing  # torch.compile has an answer of its own, which is wrong, to what these two ask PyTorch
def exporting() -> bool:
    """Whether ``torch.export`` traces, or ``torch.onnx.export`` by it."""
    return torch.compiler.is_exporting()


@constant_while_tracing
def _exports_to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


def _for_onnx(chosen: str) -> str:
    """The backend of a call that ``torch.onnx.export`` traces."""
    if chosen == "fused":
        raise RuntimeError(
            "backend 'fused' can't be exported to ONNX, which has no operators for its kernels; export under "
            "use_backend('reference')"
        )
    return "reference"


def unavailable(device: torch.device) -> str | None:
    """Why the fused kernels can't run on ``device``; ``None`` where they can."""
    if ops.extension is None:
        return ops.missing
    if device.type == "cpu" or device.type == "meta":
        return None
    if device.type == "cuda":
        return _cuda_unavailable(device)
    return f"snnfast has no kernels for device type {device.type!r}"


_asked: dict[int, str | None] = {}  # what a CUDA device has answered, by its number


@constant_while_tracing
def _cuda_unavailable(device: torch.device) -> str | None:
    """Why the kernels can't run on a CUDA device. Its driver is asked once; a call then costs no more than this."""
    extension = ops.extension
    assert extension is not None
    if not extension.cuda:
        return f"snnfast was built without CUDA: {extension.cuda_missing}"
    if torch.version.hip is not None:
        return f"this PyTorch is a build for ROCm {torch.version.hip}, and the kernels are for CUDA"
    if device.index in _asked:
        return _asked[device.index]
    if not torch.cuda.is_available():
        return None  # no tensor has memory there
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _asked:
        with torch.cuda.device(index):
            reason = extension.cuda_unavailable()
        if reason is not None:
            major, minor = torch.cuda.get_device_capability(index)
            reason += f" (a card of compute capability {major}.{minor}; kernels for {extension.cuda_architectures} by "
            reason += f"{extension.cuda_compiler})"
        _asked[index] = reason
    return _asked[index]


def use_fused(current: torch.Tensor) -> bool:
    """Whether a call goes to the kernels of its current's device; warns or raises where they are missing."""
    chosen = current_backend()
    if chosen == "reference":
        return False
    if current.is_cpu and ops.extension is not None:  # nearly always
        return True
    device = current.device
    reason = unavailable(device)
    if reason is None:
        return True
    if chosen == "fused":
        raise RuntimeError(f"backend 'fused' is not available on {device}: {reason}")
    warn_once(
        f"snnfast: running step by step on the slow reference path on {device}: {reason}. "
        "use_backend('reference') chooses it without this warning."
    )
    return False


def has_numbers(x: torch.Tensor) -> bool:
    """Whether ``x`` is a plain tensor with numbers on the CPU, which neither an exporter nor a transform traces."""
    return (
        not exporting()  # what is exported is PyTorch's alone
        and type(x) is torch.Tensor
        and not is_transformed()  # vmap cannot tell the order in memory
        and x.device.type == "cpu"
        and x.numel() > 0
    )


@constant_while_tracing
def warn_once(message: str) -> None:
    """Warn once per process and message, at the caller's line, whatever the warning filters do with repetitions."""
    if message in _warned:
        return
    _warned.add(message)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("snnfast", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
