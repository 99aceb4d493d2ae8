"""Whose code a file holds: that of a package, or the user's."""

import functools
import sys
from os import path


@functools.lru_cache(4096)
def is_in(file: str, package: str, folder: str = "") -> bool:
    """Whether a file is in a folder of a package that is loaded, links followed.

    The code of a string or of a cell of a notebook has a name that is no path. It is in no package.
    """
    of_package = getattr(sys.modules.get(package), "__file__", None)  # a folder of this name may be no package
    if of_package is None or not path.isabs(file):
        return False
    return _real(file).startswith(path.join(path.dirname(_real(of_package)), folder, ""))


def _real(file: str) -> str:
    return path.normcase(path.realpath(file))


def is_users(file: str) -> bool:
    """Whether a file is neither PyTorch's nor snnTorch's nor ours."""
    return not any(is_in(file, package) for package in ("torch", "snnfast", "snntorch"))
