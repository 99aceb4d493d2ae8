"""The lines of the program that make a call."""

import linecache
import os
from types import FrameType
from typing import NamedTuple

import torch
from torch import nn

_INSIDE = nn.Module._call_impl.__code__
_NOT_THE_PROGRAMS = tuple(os.path.join(os.path.dirname(file), "") for file in (__file__, torch.__file__))  # folders


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
        elif not code.co_filename.startswith(_NOT_THE_PROGRAMS):
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            trace.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {text}\n')
        frame = frame.f_back
    return Lines("".join(reversed(trace)), tuple(reversed(modules)))
