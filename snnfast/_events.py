"""Whether spikes go to the linear layer behind them as bits."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from snnfast._arguments import check_flag

__all__ = ["use_events"]

_VALUES = {"": True, "1": True, "0": False}


def _of_environment() -> bool:
    given = os.environ.get("SNNFAST_EVENTS", "")
    if given not in _VALUES:
        raise ValueError(f"SNNFAST_EVENTS: expected 0 or 1, got {given!r}")
    return _VALUES[given]


# The choice of the block that was entered last in any thread. It is a global, because torch.compile guards globals, and
# because the threads of a backward pass, which may compute forward passes again, see it.
enabled = _default = _of_environment()
_entered: dict[object, bool] = {}  # by the blocks that are open, in whatever thread
_lock = threading.Lock()


@contextmanager
def use_events(wanted: bool) -> Iterator[None]:
    """Choose inside a ``with`` block, for all threads, whether spikes are passed as bits to the ``Linear`` after them.

    If only a linear layer reads the spikes of a neuron layer, the CPU kernels can pass them on as one bit each. This
    happens in :class:`MultiStep`, in a compiled loop, and with the ``weight`` of :func:`snnfast.functional.lif`. The
    product then visits only the neurons that spiked, and neither the spikes nor their gradient are ever written as
    numbers. Convolutions of few spikes in :class:`MultiStep` also visit only the spikes. Calls of fewer than 256 rows
    (samples times steps) use numbers.

    Results are the same as with numbers, up to the order of the sums. There is one exception: a weight or a gradient
    that is not finite has no effect where there is no spike. With numbers, its product with 0 would be NaN.

    Args:
        wanted: ``True``: bits, the default. ``False``: write the spikes as numbers, and use PyTorch's dense product.
            The environment variable ``SNNFAST_EVENTS=0`` does so outside of such blocks.

    Raises:
        TypeError: ``wanted`` is not a bool.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(snnfast.Leaky(0.9), nn.Linear(100, 10))
        >>> with snnfast.use_events(False):
        ...     out = net(torch.rand(25, 4, 100))
    """
    global enabled
    wanted = check_flag("wanted", wanted)
    if torch.compiler.is_compiling():  # the block itself is being traced
        outside, enabled = enabled, wanted
        try:
            yield
        finally:
            enabled = outside
        return
    block = object()
    with _lock:
        _entered[block] = enabled = wanted
    try:
        yield
    finally:
        with _lock:
            del _entered[block]
            enabled = next(reversed(_entered.values()), _default)
