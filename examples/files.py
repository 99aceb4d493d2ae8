"""Files that are written as a whole or not at all."""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; at any moment its name leads to the earlier one, untouched, or to the new one, complete.

    The new one grows beside it under a name of its own. That is removed where writing fails or is interrupted; only a
    process that is killed leaves it behind.

    Raises:
        OSError: it can't be written; names ``path``.
    """
    target = path.resolve()  # a link stays one, and what it points to is replaced
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            # Some file systems tell of a full disk only now. And the content must be on the disk before the name leads
            # to it: after a power cut the file would be empty.
            os.fsync(file.fileno())
        if target.exists():
            partial.chmod(stat.S_IMODE(target.stat().st_mode))  # a private file stays private
        partial.replace(target)
    except OSError as error:
        _remove(partial)
        raise _naming(path, error.errno) from None
    except BaseException:
        _remove(partial)
        raise


def try_folder(folder: Path, names: Sequence[str], content: bytes) -> None:
    """Make ``folder``, and find out whether files with these names can be written there, by a trial with ``content``.

    Raises:
        OSError: they can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / name).is_dir():
            raise _naming(folder / name, errno.EISDIR)
    for place in {(folder / name).resolve().parent for name in names}:  # a link leads to another folder
        trial = place / f".trial.{os.getpid()}"
        try:
            write_whole(trial, content)
        except OSError as error:
            raise _naming(folder / trial.name if place == folder.resolve() else trial, error.errno) from None
        finally:
            _remove(trial)


def _naming(path: Path, code: int | None) -> OSError:
    code = code or errno.EIO
    return OSError(code, os.strerror(code), str(path))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it may not exist; the error that matters is another
        path.unlink()
