"""The memory that large CPU outputs leave to the next ones."""

from snnfast import _ops

__all__ = ["empty_cache", "set_cache_limit"]


def empty_cache() -> None:
    """Return to the system what freed CPU outputs of 128 KiB or more left behind for later ones.

    Fresh memory costs page faults, several times the time of the kernel that writes to it; so the kernels keep it, up
    to half of the physical memory, of which all but an eighth is marked as free to take: the system takes it back as
    soon as it is short of memory (``MADV_FREE``), though until then tools count it as used, and so does a limit of
    address space. Where the system has no such mark, an eighth is kept. Without the compiled extension, this function
    does nothing.

    A tensor in such memory can't be resized in place (``resize_``, ``untyped_storage().resize_``).

    Example::

        >>> import snnfast
        >>> snnfast.empty_cache()
    """
    if _ops.extension is not None:
        _ops.extension.pool_clear()


def set_cache_limit(limit: int) -> None:
    """Keep at most ``limit`` bytes of freed CPU outputs for later ones, process-wide; 0 keeps nothing.

    By default half of the physical memory, most of it free to take for the system: see :func:`empty_cache`.

    Raises:
        TypeError: ``limit`` is not an int.
        ValueError: ``limit`` is negative.

    Example::

        >>> import snnfast
        >>> snnfast.set_cache_limit(1 << 30)
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit: expected an int, got {type(limit).__name__}")
    if limit < 0:
        raise ValueError(f"limit: expected 0 or more bytes, got {limit}")
    if _ops.extension is not None:
        _ops.extension.pool_set_idle_limit(limit)
