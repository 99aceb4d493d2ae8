"""The kernels as the compiler reports them: name, registers, spills, stack, shared memory, threads of a block."""

import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_\w+'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_BOUNDS = re.compile(r"\.entry (\w+)\(.*?\)\s*(?:\.maxntid (\d+))?", re.DOTALL)
_ARGUMENTS = re.compile(r"<\w+, (\w+), (\d+)\b")
_SIZES = {"double": 8, "float": 4, "Half": 2, "BFloat16": 2}


class Resources(NamedTuple):
    registers: int  # per thread
    spill: int  # bytes per thread, stores and loads
    stack: int  # bytes per thread
    shared: int  # bytes per block


def resources(report: str) -> dict[str, Resources]:
    """By symbol, from what ``ptxas -v`` printed for one architecture."""
    parts = _ENTRY.split(report)[1:]
    found = {}
    for symbol, text in zip(parts[::2], parts[1::2], strict=True):
        stack, registers, shared = _STACK.search(text), _REGISTERS.search(text), _SHARED.search(text)
        if stack is None or registers is None:
            raise ValueError(f"ptxas said nothing of the registers or the stack of {symbol}")
        bytes_of_stack, stores, loads = map(int, stack.groups())
        found[symbol] = Resources(int(registers[1]), stores + loads, bytes_of_stack, int(shared[1]) if shared else 0)
    return found


def threads(ptx: str) -> dict[str, int]:
    """Largest block of each kernel, by symbol: its launch bound, which is the size that it is launched with."""
    found = {}
    for symbol, bound in _BOUNDS.findall(ptx):
        if not bound:
            raise ValueError(f"{symbol} has no __launch_bounds__")
        found[symbol] = int(bound)
    return found


def names(symbols: Iterable[str]) -> dict[str, str]:
    """Symbols in the words of the source, e.g. ``backward<Leaky, float, 4, true>``."""
    symbols = list(symbols)
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return dict(zip(symbols, map(shorten, done.stdout.splitlines()), strict=True))


def shorten(name: str) -> str:
    """A demangled name without what all kernels have in common."""
    name = re.sub(r"\((?!anonymous)[^()]*\)$", "", name.removeprefix("void "))
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name)
    return name.replace("_kernel", "", 1)


def width(name: str) -> int:
    """Neurons of a thread: the third template argument of every kernel."""
    return _arguments(name)[1]


def access(name: str) -> int:
    """Bytes that a thread takes at a time: all its elements, the second template argument of every kernel, up to 16."""
    element, neurons = _arguments(name)
    return min(_SIZES[element] * neurons, 16)


def time_loop(name: str) -> int:
    """In how many loops the loop over time lies, with itself: a general kernel goes from group to group of neurons."""
    return 1 if "_plain" in name else 2


def _arguments(name: str) -> tuple[str, int]:
    found = _ARGUMENTS.search(name)
    if found is None:
        raise ValueError(f"{name}: the template arguments are not a neuron, an element and a number of neurons")
    return found[1], int(found[2])
