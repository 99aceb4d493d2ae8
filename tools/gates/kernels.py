"""The names of the kernels, and what they tell."""

import re
import subprocess
from collections.abc import Iterable

_ARGUMENTS = re.compile(r"<\w+, (\w+), (\d+)\b")
_SIZES = {"double": 8, "float": 4, "Half": 2, "BFloat16": 2}


def names(symbols: Iterable[str]) -> dict[str, str]:
    """Symbols in the words of the source, e.g. ``backward<Leaky, float, 4, true>``; without those of no neuron."""
    symbols = list(symbols)
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    found = dict(zip(symbols, map(_shorten, done.stdout.splitlines()), strict=True))
    return {symbol: name for symbol, name in found.items() if "<" in name}


def _shorten(name: str) -> str:
    """A demangled name without what all kernels have in common."""
    name = re.sub(r"\((?!anonymous)[^()]*\)$", "", name.removeprefix("void "))
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name)
    return re.sub(r"\bKind<([^<>]*)> ?", r"\1", name.replace("_kernel", "", 1))


def width(name: str) -> int:
    """Neurons of a thread: the third template argument of every kernel."""
    return _arguments(name)[1]


def access(name: str) -> int:
    """Bytes that a thread takes at a time: all its elements, the second template argument of every kernel, up to 16."""
    element, neurons = _arguments(name)
    return min(_SIZES[element] * neurons, 16)


def steps(name: str) -> int | None:
    """Steps of one iteration of the loop over time, where every call goes the same way through that loop.

    The plain backward kernels take a chunk of 16 steps. The plain forward kernels take two batches, of 16 steps each
    with one neuron to a thread, and of 4 steps otherwise; on 7.5, those in bfloat16 take one batch. The loops of all
    other kernels have branches.
    """
    if not has_loop(name):
        return None
    if name.startswith("backward_plain<"):
        return 16
    if name.startswith("forward_plain<"):
        return 32 if width(name) == 1 else 8
    return None


def has_loop(name: str) -> bool:
    """Whether there is a loop over time. Plain kernels of a few steps have none, by their last template argument.

    Those behind a batch normalisation have none either.
    """
    return not re.match(r"forward_plain<.*, true>|backward_plain<.*, 4>|\w+_norm<", name)


def _arguments(name: str) -> tuple[str, int]:
    found = _ARGUMENTS.search(name)
    if found is None:
        raise ValueError(f"{name}: the template arguments are not a neuron, an element and a number of neurons")
    return found[1], int(found[2])
