"""How an example starts: one line instead of a traceback while its imports, which take seconds, are under way.

An example imports this module first; nothing here is slow to import.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Around the imports of an example, whose ``__name__`` is ``name``: what goes wrong in them is one line.

    In the script itself, Ctrl-C ends the process at once, until :func:`interruptible`: raised as an exception inside of
    an import, it may end up in code that takes it for an error of its own and goes on.
    """
    if name == "__main__":
        # Else the process was started to ignore Ctrl-C, as in the background of a shell.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _quit)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # of a folder's name that the encoding lacks
    try:
        yield
    except ModuleNotFoundError as missing:
        package = "." if missing.name == "snnfast" else missing.name
        sys.exit(f"error: {missing.name} is not installed: pip install {package}")
    except ValueError as error:
        if not str(error).startswith("SNNFAST_"):  # an environment variable, which snnfast reads when it is imported
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises ``KeyboardInterrupt`` in here, so that what has begun can be ended properly."""
    before = signal.getsignal(signal.SIGINT)
    if before is not _quit:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say_interrupted(text: str = "interrupted") -> None:
    # A terminal shows ^C where the cursor is.
    print(f"\n{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _quit(signum: int, frame: FrameType | None) -> None:
    say_interrupted()
    os._exit(INTERRUPTED)
