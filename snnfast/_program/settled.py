"""Modules and classes whose code does not change between two calls, and which of them hold state that does.

These are Python's own, PyTorch, NumPy and snnfast. Of any other module or class, the names that a step uses are read.
"""

import argparse
import collections
import datetime
import functools
import re
import sys
import sysconfig
import types
from typing import Any

import torch
from torch import nn

# Code of these packages, and of Python's own, does not change between two calls.
_SETTLED = ("torch", "snnfast", "numpy", "builtins")
# Their classes hold numbers under names that the step does not have; what they hold in C is no number.
WHOLE = ("torch", "snnfast")

# The modules of Python's own whose functions compute from their arguments alone.
_STATELESS = {
    "__future__", "_abc", "_bisect", "_collections", "_collections_abc", "_functools", "_heapq", "_operator", "_sre",
    "_warnings", "_weakrefset", "abc", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "copyreg",
    "dataclasses", "enum", "fractions", "functools", "heapq", "itertools", "keyword", "math", "numbers", "operator",
    "re", "reprlib", "statistics", "string", "textwrap", "types", "typing", "warnings",
}  # fmt: skip
# The parts of PyTorch and NumPy that hold settings, or random numbers.
_WITH_STATE = {
    "torch._dynamo", "torch._inductor", "torch.accelerator", "torch.backends", "torch.cpu", "torch.cuda",
    "torch.distributed", "torch.hub", "torch.monitor", "torch.mps", "torch.mtia", "torch.multiprocessing",
    "torch.profiler", "torch.random", "torch.utils.data", "torch.xpu", "numpy.random", "snnfast._core",
    "snnfast.config",
}  # fmt: skip

# PyTorch's functions with such names return settings, but for those that are known not to.
_IS_GETTER = re.compile(
    r"_?(get|is|are|has|current|default|initial)_.*|geterr.*|getbufsize|.*(_enabled|seed|_state)"
).fullmatch
_NO_GETTERS = {
    "get_device", "get_file_path", "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic",
    "is_available", "is_compiling", "is_complex", "is_conj", "is_distributed", "is_dynamo_compiling", "is_exporting",
    "is_floating_point", "is_inference", "is_neg", "is_nonzero", "is_same_size", "is_scripting", "is_signed",
    "is_storage", "is_tensor", "is_tensor_like", "is_tracing", "set_grad_enabled",
}  # fmt: skip
# Each call knows these of itself.
_KNOWN = {
    "get_default_dtype",
    "is_anomaly_enabled",
    "is_autocast_enabled",
    "is_grad_enabled",
    "is_inference_mode_enabled",
}
# These have no arguments.
_SETTINGS = {
    "are_deterministic_algorithms_enabled", "get_default_device", "get_deterministic_debug_mode",
    "get_float32_matmul_precision", "get_num_interop_threads", "get_num_threads",
    "is_deterministic_algorithms_warn_only_enabled", "is_warn_always_enabled",
}  # fmt: skip

# Classes of Python's own whose objects show all that they hold.
_OPEN = {object, type, complex, types.SimpleNamespace, *argparse.Namespace.__mro__, slice}
_OPEN |= {int, float, str, bytes, dict, list, set, frozenset, tuple, collections.deque, collections.OrderedDict}
# Their objects never change.
_FIXED = {datetime.timedelta, *map(type, (re.compile(""), list[int]))}
_FIXED_MODULES = ("fractions", "typing", "abc")
# What derives from these is read by its names.
_BASES = _OPEN | {nn.Module, torch.autograd.Function}

_IN_C = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
_OF_INSTANCES = ("__dict__", "__weakref__")


@functools.lru_cache(4096)
def is_settled(module: str | None) -> bool:
    """Whether the code of a module does not change between two calls."""
    package = str(module).partition(".")[0]
    if package in _SETTLED:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    # A module of the user's may have the name of one of Python's own.
    return package in sys.stdlib_module_names and (file is None or file.startswith(sysconfig.get_path("stdlib")))


@functools.lru_cache(4096)
def holds_state(module: str | None) -> bool:
    """Whether a settled module holds what may change: numbers, settings, files or the time."""
    if module == "torch._C":
        return True
    parts = str(module).split(".")
    if parts[0] in _SETTLED:
        return any(".".join(parts[:i]) in _WITH_STATE for i in range(2, len(parts) + 1))
    return parts[0] not in _STATELESS


def setting(function: Any) -> tuple[Any, ...] | None:
    """The result of a function of PyTorch or NumPy without arguments now; ``()``: it returns no setting.

    Returns ``None`` if it returns a setting that is not known.
    """
    name, package = function.__name__, str(function.__module__).partition(".")[0]
    is_getter = package in ("torch", "numpy") and name not in _NO_GETTERS and _IS_GETTER(name)
    if not is_getter or name in _KNOWN:
        return ()
    return (name, str(function())) if name in _SETTINGS and function is getattr(torch, name) else None


@functools.lru_cache(4096)
def is_whole(kind: type) -> bool:
    """Whether code that the step does not name reads attributes of objects of a class."""
    return any(c not in _BASES and _is_of_python_code(c) for c in kind.__mro__)


def _is_of_python_code(kind: type) -> bool:
    if not is_settled(kind.__module__) or kind.__module__ in _FIXED_MODULES or issubclass(kind, BaseException):
        return False
    of_package = kind.__module__.partition(".")[0] in WHOLE
    return of_package or any(isinstance(value, types.FunctionType) for value in vars(kind).values())


@functools.lru_cache(4096)
def is_closed(kind: type) -> bool:
    """Whether objects of a class hold what can't be seen: in C, or the state of a module."""
    return any(map(_closes, kind.__mro__))


def _closes(kind: type) -> bool:
    if kind in _OPEN or kind in _FIXED or kind.__module__ in _FIXED_MODULES or issubclass(kind, BaseException):
        return False
    if kind.__module__.partition(".")[0] in WHOLE or kind.__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
        return kind in (
            torch.Generator,
            torch.ScriptObject,
            torch.UntypedStorage,
            torch.TypedStorage,
            torch.jit.ScriptModule,
        )
    if is_settled(kind.__module__) and holds_state(kind.__module__):
        return True
    return any(_is_in_c(kind, name, value) for name, value in vars(kind).items())


def _is_in_c(kind: type, name: str, value: Any) -> bool:
    if isinstance(value, types.GetSetDescriptorType):
        return name not in _OF_INSTANCES
    return isinstance(value, _IN_C) and value.__objclass__ is kind
