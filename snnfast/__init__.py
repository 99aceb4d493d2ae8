"""Fused leaky integrate-and-fire neurons for PyTorch, with snnTorch's numbers.

Where to start:

- :class:`Leaky`, :class:`Synaptic`, :class:`Lapicque`, :class:`Alpha`, :class:`RLeaky` and :class:`RSynaptic` are
  layers of neurons.
- :func:`neuron` makes a layer of a function that computes one step.
- :func:`compile` runs a loop over time as layers over time. :func:`status` says what became of it.
- :class:`MultiStep` is layers in sequence over time, and :class:`Residual` a skip connection in it.
- :func:`graphed` runs a training step as one CUDA graph.
- :func:`activity` counts the spikes, synaptic operations and silent neurons of a network.
- :mod:`snnfast.snntorch` is for code that goes on using snnTorch (``import snnfast.snntorch as snn``).
- :mod:`snnfast.nir` exchanges networks with other simulators and chips.
- :mod:`snnfast.functional` has the stateless functions, and :mod:`snnfast.reference` the definition that all equal.
- :func:`reset` sets the states that layers hold to zeros.
"""

import importlib
from typing import TYPE_CHECKING, Any

from snnfast import functional, losses, neurons, reference, surrogate
from snnfast._activity import Activity, Bits, LayerActivity, activity
from snnfast._core import flops
from snnfast._core.backend import use_backend
from snnfast._core.config import config, show_config
from snnfast._core.settings import empty_cache, set_cache_limit, use_events
from snnfast._unroll import graph  # noqa: F401 - the import registers the op
from snnfast._unroll.state_gradients import use_state_gradients
from snnfast._version import __version__
from snnfast.compiler import Explanation, GraphReport, Status, compile, explain, status, uncompile
from snnfast.networks.graphed import graphed
from snnfast.networks.multistep import MultiStep, Residual
from snnfast.neurons import *  # noqa: F403 - the layers
from snnfast.neurons.network import reset
from snnfast.neurons.own import neuron, spike

__all__ = [
    "Activity",
    "Bits",
    "Explanation",
    "GraphReport",
    "LayerActivity",
    "MultiStep",
    "Residual",
    "Status",
    "__version__",
    "activity",
    "compile",
    "config",
    "empty_cache",
    "explain",
    "functional",
    "graphed",
    "losses",
    "neuron",
    "reference",
    "reset",
    "set_cache_limit",
    "show_config",
    "spike",
    "status",
    "surrogate",
    "uncompile",
    "use_backend",
    "use_events",
    "use_state_gradients",
]
__all__ += neurons.__all__

flops.register_when_imported()


def __dir__() -> list[str]:
    """The names that users call, without those that this file imports."""
    return sorted({*__all__, "snntorch", *(name for name in globals() if name.startswith("__"))})


if TYPE_CHECKING:
    from snnfast import nir as nir
    from snnfast import snntorch as snntorch
else:

    def __getattr__(name: str) -> Any:
        """Modules that are imported when they are first asked for: the rest needs neither snnTorch nor NIR."""
        if name in ("nir", "snntorch"):
            return importlib.import_module(f"snnfast.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
