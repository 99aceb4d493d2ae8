"""The lines of the program that make a call."""

import linecache
from types import FrameType
from typing import NamedTuple

from torch import nn

_INSIDE = nn.Module._call_impl.__code__
_OURS = __file__.rpartition("/")[0]


class Lines(NamedTuple):
    """Where a call is made.

    Attributes:
        trace: The lines that lead there, as in a traceback.
        modules: The modules that are called around it, outermost first.
    """

    trace: str
    modules: tuple[str, ...]


def lines_of(frame: FrameType | None) -> Lines:
    """The lines from the recorded function to a frame."""
    trace: list[str] = []
    modules: list[str] = []
    while frame is not None and frame.f_code.co_name != "run_recorded":
        code = frame.f_code
        if code is _INSIDE:
            modules.append(f"module_{id(frame.f_locals['self'])}")
        elif not code.co_filename.startswith(_OURS) and "/torch/" not in code.co_filename:
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            trace.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {text}\n')
        frame = frame.f_back
    return Lines("".join(reversed(trace)), tuple(reversed(modules)))
