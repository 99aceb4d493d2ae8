"""The nodes of ``spikingjelly.cext.neuron``, as versions up to 0.0.0.0.4 had them: SEW-ResNet uses these.

Their surrogate function is a name with ``alpha``, by default ``ATan`` with 2, and the time constant of a LIF node is
100 by default.
"""

from typing import Any

from snnfast.spikingjelly import neuron, surrogate

__all__ = [
    "IFNode", "LIFNode", "MultiStepIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode", "ParametricLIFNode",
]  # fmt: skip

_SURROGATES = {"ATan": surrogate.ATan, "Sigmoid": surrogate.Sigmoid}


class _Named(neuron.BaseNode):
    """A node whose surrogate function is a name."""

    def __init__(self, *args: Any, surrogate_function: str = "ATan", alpha: float = 2.0, **kwargs: Any) -> None:
        if surrogate_function not in _SURROGATES:
            raise ValueError(f"surrogate_function: expected 'ATan' or 'Sigmoid', got {surrogate_function!r}")
        if isinstance(self, neuron.LIFNode) and not args:
            kwargs.setdefault("tau", 100.0)
        super().__init__(*args, **{"surrogate_function": _SURROGATES[surrogate_function](alpha), **kwargs})


class IFNode(_Named, neuron.IFNode):
    """:class:`snnfast.spikingjelly.neuron.IFNode` with these defaults."""


class LIFNode(_Named, neuron.LIFNode):
    """:class:`snnfast.spikingjelly.neuron.LIFNode` with these defaults."""


class ParametricLIFNode(_Named, neuron.ParametricLIFNode):
    """:class:`snnfast.spikingjelly.neuron.ParametricLIFNode` with these defaults."""


class MultiStepIFNode(_Named, neuron.MultiStepIFNode):
    """:class:`snnfast.spikingjelly.neuron.MultiStepIFNode` with these defaults."""


class MultiStepLIFNode(_Named, neuron.MultiStepLIFNode):
    """:class:`snnfast.spikingjelly.neuron.MultiStepLIFNode` with these defaults."""


class MultiStepParametricLIFNode(_Named, neuron.MultiStepParametricLIFNode):
    """:class:`snnfast.spikingjelly.neuron.MultiStepParametricLIFNode` with these defaults."""
