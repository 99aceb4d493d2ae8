"""Whether spikes go to the linear layer behind them as bits."""

import os

from snnfast._core.settings import Choice, Setting, check_flag

__all__ = ["use_events"]

_VALUES = {"": True, "1": True, "0": False}


def _of_environment() -> bool:
    given = os.environ.get("SNNFAST_EVENTS", "")
    if given not in _VALUES:
        raise ValueError(f"SNNFAST_EVENTS: expected 0 or 1, got {given!r}")
    return _VALUES[given]


setting = Setting("events", _of_environment())


def use_events(wanted: bool) -> Choice[bool]:
    """Choose, for all threads, whether spikes are passed as bits to the ``Linear`` after them.

    As a statement it holds from now on. As a context or as a decorator it holds inside the block or the function.

    If only a linear layer reads the spikes of a neuron layer, the CPU kernels can pass them on as one bit each. This
    happens in :class:`MultiStep`, in a compiled loop, and with the ``weight`` of :func:`snnfast.functional.lif`. The
    product then visits only the neurons that spiked, and neither the spikes nor their gradient are ever written as
    numbers. Convolutions of few spikes in :class:`MultiStep` also visit only the spikes. Calls of fewer than 256 rows
    (samples times steps) use numbers.

    Results are the same as with numbers, up to the order of the sums. There is one exception: a weight or a gradient
    that is not finite has no effect where there is no spike. With numbers, its product with 0 would be NaN.

    Args:
        wanted: ``True``: bits, the default. ``False``: write the spikes as numbers, and use PyTorch's dense product.
            The environment variable ``SNNFAST_EVENTS=0`` makes this the first choice.

    Raises:
        TypeError: ``wanted`` is not a bool.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(snnfast.Leaky(0.9), nn.Linear(100, 10))
        >>> with snnfast.use_events(False):
        ...     out = net(torch.rand(25, 4, 100))
    """
    return Choice(setting, check_flag("wanted", wanted))
