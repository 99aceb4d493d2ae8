"""The native library: it registers the ops, and has a C API for what is no tensor op (``csrc/op/c_api.cpp``)."""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).parent.parent / f"_kernels{'.dll' if sys.platform == 'win32' else '.so'}"
REBUILD = "build it again: SNNFAST_REQUIRE_EXT=1 pip install --no-build-isolation -e . beside its setup.py"

_text, _count, _count_pointer = ctypes.c_char_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)
# The functions: what they return, what they take.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "facts": (_text, ()),
    "isa": (_text, (ctypes.POINTER(_text),)),
    "set_isa": (_text, (_text,)),
    "set_stream_bytes": (ctypes.c_int64, (ctypes.c_int64,)),
    "pool_clear": (None, ()),
    "pool_owns": (ctypes.c_bool, (ctypes.c_void_p,)),
    "pool_idle_bytes": (_count, ()),
    "pool_idle_limit": (ctypes.c_bool, (_count_pointer,)),
    "pool_set_idle_limit": (None, (_count_pointer,)),
    "cuda_unavailable": (_text, (ctypes.POINTER(_text),)),
}


class Library:
    """The loaded library: facts of its build, and switches for the whole process.

    Args:
        path: The file of the library.

    Raises:
        ImportError: The file can't be loaded with this torch, or was built from other sources than these.
    """

    path: Path
    compiler: str
    torch_target: str  # the versions of torch that it is built for
    cuda: bool  # whether there are kernels for CUDA
    cuda_compiler: str
    cuda_architectures: str
    cuda_missing: str  # why there are none
    surrogates: list[str]
    resets: list[str]
    times: list[str]
    saved_modes: list[tuple[str, int, int, int]]
    option_fields: list[tuple[str, int, int]]
    vendor: str  # of the processor, such as "AuthenticAMD"; empty where it does not say

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise ImportError(
                f"the kernels of snnfast can't be loaded with torch {torch.__version__}: {error.__cause__ or error}; "
                "they need torch 2.11 or newer, and a system that is not older than the one they were built for"
            ) from error
        self._library = ctypes.CDLL(str(path))
        try:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._library, f"snnfast_{name}")
                function.restype, function.argtypes = result, arguments
            facts = json.loads(self._library.snnfast_facts())
            self.compiler = facts["compiler"]
            self.torch_target = facts["torch_target"]
            self.cuda_compiler = facts["cuda_compiler"]
            self.cuda_architectures = facts["cuda_architectures"]
            self.cuda_missing = facts["cuda_missing"]
            self.surrogates = facts["surrogates"]
            self.resets = facts["resets"]
            self.times = facts["times"]
            self.saved_modes = [(name, plus, per, size) for name, plus, per, size in facts["saved_modes"]]
            self.option_fields = [(name, at, bits) for name, at, bits in facts["option_fields"]]
            self._isa_available: list[str] = facts["isa_available"]
            self.vendor = facts["vendor"]
        except (AttributeError, KeyError, ValueError) as error:
            raise ImportError(
                f"{path} was built from other sources than the Python files of snnfast, most likely older ones: "
                f"{error}; {REBUILD}"
            ) from error
        if not self._isa_available:
            raise ImportError(f"the kernels of snnfast were built for another processor than this one; {REBUILD}")
        self.cuda = bool(self.cuda_compiler)

    def isa(self) -> str:
        """The CPU instruction set that the kernels use. Raises ``RuntimeError`` where ``SNNFAST_ISA`` names none."""
        name = _text()
        _check(self._library.snnfast_isa(ctypes.byref(name)))
        assert name.value is not None
        return name.value.decode()

    def isa_available(self) -> list[str]:
        """The instruction sets that this processor has kernels for, best first."""
        return list(self._isa_available)

    def set_isa(self, name: str) -> None:
        """Use the kernels of another instruction set. Raises ``RuntimeError`` where this processor has not got it."""
        _check(self._library.snnfast_set_isa(name.encode()))

    def set_stream_bytes(self, size: int) -> int:
        """Write the outputs of calls that touch ``size`` bytes or more by non-temporal stores; for tests.

        -1 is the default, which depends on the caches. Returns the size before.
        """
        before: int = self._library.snnfast_set_stream_bytes(size)
        return before

    def pool_clear(self) -> None:
        """Return the idle memory of past outputs to the system."""
        self._library.snnfast_pool_clear()

    def pool_owns(self, address: int) -> bool:
        """Whether the memory at an address is that of an output of ours."""
        owned: bool = self._library.snnfast_pool_owns(address)
        return owned

    def pool_idle_bytes(self) -> int:
        """Bytes of past outputs that are kept for the next ones."""
        size: int = self._library.snnfast_pool_idle_bytes()
        return size

    def pool_idle_limit(self) -> int | None:
        """The most bytes that are kept; ``None``: the demand decides."""
        limit = _count()
        return limit.value if self._library.snnfast_pool_idle_limit(ctypes.byref(limit)) else None

    def pool_set_idle_limit(self, limit: int | None) -> None:
        """Keep at most so many bytes; ``None``: the demand decides."""
        self._library.snnfast_pool_set_idle_limit(None if limit is None else ctypes.byref(_count(limit)))

    def cuda_unavailable(self) -> str | None:
        """Why the kernels can't run on the current CUDA device; ``None`` where they can. It starts CUDA there.

        Raises ``RuntimeError`` where CUDA fails for another reason.
        """
        reason = _text()
        _check(self._library.snnfast_cuda_unavailable(ctypes.byref(reason)))
        return reason.value.decode() if reason.value else None


def _check(message: bytes | None) -> None:
    """Raise what a function of the C API says."""
    if message is not None:
        raise RuntimeError(message.decode())
