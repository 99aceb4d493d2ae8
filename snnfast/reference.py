"""The functions of :mod:`snnfast.functional` in plain PyTorch, one time step after the other.

They are the definition, the fall-back and the gradient oracle. The arithmetic is snnTorch 1.0.0's, operation for
operation, so spikes and states are bit-identical to it in float32 and float64, and the gradients are what autograd
makes of a Python loop over time: slow and readable. The fused kernels are tested against these functions. The step of a
neuron stands in its file, such as ``snnfast/neurons/leaky.py``.

Example::

    >>> import torch, snnfast
    >>> spk, mem = snnfast.reference.lif(torch.full((3, 1), 0.6), beta=1.0)
    >>> spk.flatten(), mem.flatten()
    (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from snnfast import functional
from snnfast._core.backend import use_backend

if TYPE_CHECKING:
    from snnfast.functional import *  # noqa: F403 - the same signatures

__all__: list[str] = []
__all__ += functional.__all__

P = ParamSpec("P")
R = TypeVar("R")


def _step_by_step(function: Callable[P, R]) -> Callable[P, R]:
    """A function of :mod:`snnfast.functional` on the reference path."""

    @functools.wraps(function)
    def stepped(*args: P.args, **kwargs: P.kwargs) -> R:
        with use_backend("reference"):
            return function(*args, **kwargs)

    stepped.__module__ = __name__
    stepped.__doc__ = f""":func:`snnfast.functional.{function.__name__}`, one time step after the other in PyTorch.

    Arguments, results and errors are the same.
    """
    return stepped


globals().update({name: _step_by_step(getattr(functional, name)) for name in __all__})
