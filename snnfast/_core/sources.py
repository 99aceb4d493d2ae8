"""Which sources of the package a compiled graph was made from."""

import functools
import hashlib
from pathlib import Path

from snnfast._core.pytorch import constant_while_tracing


@functools.cache
def _digest() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


@constant_while_tracing
def digest() -> str:
    """A digest of the package's modules, for caches of ``torch.compile`` on the disk.

    These caches know a composite op by its name and arguments. What the op does may be another thing in another version
    of the package. So the ops of :mod:`snnfast._unroll.graph` are given this digest.
    """
    return _digest()
