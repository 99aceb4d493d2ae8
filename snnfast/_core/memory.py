"""The memory that large CPU outputs leave to the next ones."""

import operator

from snnfast._core import ops

__all__ = ["empty_cache", "set_cache_limit"]


def empty_cache() -> None:
    """Return the memory to the system that is kept for later CPU outputs.

    Fresh memory costs page faults, which take several times as long as the kernel that writes to it. So snnfast keeps
    the memory of freed outputs of 128 KiB or more for later outputs. How much it keeps follows the demand. Together
    with the outputs in use, it is at most twice the recent peak of the memory in use, but up to 64 MiB may always be
    kept. It is never more than 8 GiB, nor more than a quarter of the memory of the machine or of the control group
    (container). Under a limit of address space (``ulimit -v``, ``ulimit -d``) it is at most an eighth of the room that
    is left. :func:`set_cache_limit` sets another limit.

    Without the compiled extension, this function does nothing. A tensor in such memory can't be resized in place
    (``resize_``, ``untyped_storage().resize_``).

    Example::

        >>> import snnfast
        >>> snnfast.empty_cache()
    """
    if ops.extension is not None:
        ops.extension.pool_clear()


def set_cache_limit(limit: int | None) -> None:
    """Keep at most ``limit`` bytes of freed CPU outputs for later ones, in the whole process.

    This replaces the default limit, which :func:`empty_cache` describes: the demand, the memory of the machine and
    limits of address space then play no role. Without the compiled extension, it has no effect.

    Args:
        limit: Number of bytes. 0 keeps nothing. ``None`` is the default limit.

    Raises:
        TypeError: ``limit`` is not an int.
        ValueError: ``limit`` is negative, or 2**64 or more.

    Example::

        >>> import snnfast
        >>> snnfast.set_cache_limit(1 << 30)
        >>> snnfast.set_cache_limit(None)
    """
    if limit is not None:
        if isinstance(limit, bool):
            raise TypeError("limit: expected an int or None, got bool")
        try:
            limit = operator.index(limit)
        except TypeError:
            raise TypeError(f"limit: expected an int or None, got {type(limit).__name__}") from None
        if not 0 <= limit < 2**64:
            raise ValueError(f"limit: expected 0 or more bytes, and less than 2**64, got {limit}")
    if ops.extension is not None:
        ops.extension.pool_set_idle_limit(limit)
