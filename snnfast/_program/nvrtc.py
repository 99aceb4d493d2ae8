"""Compile the text of a CUDA kernel at run time, keep the machine code on disk, and launch it.

``cuda.bindings`` is NVIDIA's interface to NVRTC and to the driver, and PyTorch's CUDA wheels install it. PyTorch's own
``torch.cuda._compile_kernel`` is not public, passes integers of 32 bits and keeps nothing on disk.
"""

import ctypes
import functools
import hashlib
import importlib
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from snnfast._core.backend import warn_once
from snnfast._program.source import NAME

__all__ = ["Launch", "NoKernelError", "compile_text", "kernel_of", "pack"]

Launch = Callable[[int, int, Sequence[int | float]], None]
"""``(blocks, threads, arguments)``, on the current stream of the kernel's device."""

# Operations round as PyTorch's do, each by itself; division, square roots and small numbers are exact by default.
_OPTIONS = ("--std=c++17", "-fmad=false")


class NoKernelError(RuntimeError):
    """There is no kernel for a program; the message says why."""


def _call(function: Any, *arguments: Any) -> Any:
    """The results of a function of ``cuda.bindings`` without their status: one value, or a tuple."""
    try:
        status, *found = function(*arguments)
    except RuntimeError as error:  # there is no such library
        raise NoKernelError(str(error)) from error
    if int(status) != 0:
        raise NoKernelError(f"{function.__name__} failed with {status.name}")
    return found[0] if len(found) == 1 else tuple(found)


def _bindings(name: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise NoKernelError(f"cuda.bindings, which PyTorch for CUDA installs, can't be imported: {error}") from error


def compile_text(text: str, architecture: int, *options: str) -> tuple[bytes, str]:
    """Code for an architecture such as 90, and what the compiler says.

    It is machine code. For an architecture that this NVRTC does not know, it is PTX of the newest older one, which the
    driver compiles.

    Raises:
        NoKernelError: There is no NVRTC, it knows no architecture that is old enough, or the text is wrong.
    """
    nvrtc = _bindings("nvrtc")
    known = max((a for a in _call(nvrtc.nvrtcGetSupportedArchs) if a <= architecture), default=None)
    if known is None:
        raise NoKernelError(f"this NVRTC does not compile for cards of compute capability {architecture / 10}")
    kind, language = ("sm", "CUBIN") if known == architecture else ("compute", "PTX")
    program = _call(nvrtc.nvrtcCreateProgram, text.encode(), f"{NAME}.cu".encode(), 0, [], [])
    try:
        given = [option.encode() for option in (f"--gpu-architecture={kind}_{known}", *_OPTIONS, *options)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        log = bytearray(_call(nvrtc.nvrtcGetProgramLogSize, program))
        _call(nvrtc.nvrtcGetProgramLog, program, log)
        said = log.rstrip(b"\0 \n").decode(errors="replace")
        if int(status) != 0:
            raise NoKernelError(f"NVRTC can't compile the program: {said or status.name}")
        code = bytearray(_call(getattr(nvrtc, f"nvrtcGet{language}Size"), program))
        _call(getattr(nvrtc, f"nvrtcGet{language}"), program, code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(code), said


def _cache() -> Path:
    folder = os.environ.get("SNNFAST_KERNEL_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snnfast"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _kept(path: Path) -> bytes | None:
    """The code that a file holds behind its digest. The driver reads a damaged one beyond its end."""
    try:
        content = path.read_bytes()
    except OSError:  # there is none; a folder without access is reported when the code is to be kept there
        return None
    digest, code = content[:32], content[32:]
    return code if digest == _digest(code) else None


def machine_code(text: str, architecture: int) -> bytes:
    """The code from the cache, or else compiled and kept there.

    A name is made of all that decides the code, so that a file is never out of date. It appears at once and whole, also
    if several processes compile the same. One that is damaged is made again.
    """
    version = _call(_bindings("nvrtc").nvrtcVersion)
    name = _digest(repr((text, architecture, version, _OPTIONS)).encode()).hex()
    try:
        path = _cache() / name
    except RuntimeError as error:  # the user has no home, as in a container that runs under any number
        warn_once(f"snnfast: compiled kernels can't be kept ({error}); see SNNFAST_KERNEL_CACHE")
        return compile_text(text, architecture)[0]
    kept = _kept(path)
    if kept is not None:
        return kept
    code, _ = compile_text(text, architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(_digest(code) + code)
        os.replace(file.name, path)
    except OSError as error:
        warn_once(f"snnfast: compiled kernels can't be kept in {path.parent} ({error}); see SNNFAST_KERNEL_CACHE")
    return code


def pack(arguments: Sequence[int | float]) -> Any:
    """Arguments of 8 bytes each, and behind them the ``void*`` to each."""
    n = len(arguments)
    memory = (ctypes.c_int64 * (2 * n))()
    struct.pack_into("".join("d" if isinstance(a, float) else "q" for a in arguments), memory, 0, *arguments)
    start = ctypes.addressof(memory)
    memory[n:] = list(range(start, start + 8 * n, 8))
    return memory


def _make_current(driver: Any, context: Any) -> None:
    """Give this thread a context if it has none: PyTorch binds one only when the thread uses the card through it."""
    if int(_call(driver.cuCtxGetCurrent)) == 0:
        _call(driver.cuCtxSetCurrent, context)


@functools.cache
def kernel_of(text: str, device: torch.device) -> Launch:
    """The kernel of a text on a CUDA device.

    Raises:
        NoKernelError: There is none.
    """
    if torch.version.hip is not None:
        raise NoKernelError(f"this PyTorch is a build for ROCm {torch.version.hip}")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("call a neuron of your own once before a CUDA graph captures it: a first call makes kernels")
    driver = _bindings("driver")
    major, minor = torch.cuda.get_device_capability(device)
    code = machine_code(text, 10 * major + minor)
    # The context of PyTorch, which lives as long as the process.
    context = _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, device.index))
    with torch.cuda.device(device):
        _make_current(driver, context)
        module = _call(driver.cuModuleLoadData, code)
        function = _call(driver.cuModuleGetFunction, module, NAME.encode())

    def launch(blocks: int, threads: int, arguments: Sequence[int | float]) -> None:
        memory = pack(arguments)
        pointers = ctypes.addressof(memory) + 8 * len(arguments)
        with torch.cuda.device(device):
            _make_current(driver, context)
            stream = torch.cuda.current_stream(device).cuda_stream
            (status,) = driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers, 0)
        if int(status) != 0:  # with which a loop would not help
            raise RuntimeError(f"snnfast: the CUDA kernel of a program failed with {status.name}")

    return launch
