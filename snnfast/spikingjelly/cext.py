"""The nodes of ``spikingjelly.cext.neuron``, as versions up to 0.0.0.0.4 had them: SEW-ResNet uses these.

Their surrogate function is a name with ``alpha``, by default ``ATan`` with 2, and the time constant of a LIF node is
100 by default.
"""

from typing import TYPE_CHECKING, Any

from snnfast.spikingjelly import neuron, surrogate

__all__ = [name for name in neuron.__all__ if name != "BaseNode"]

_SURROGATES = {"ATan": surrogate.ATan, "Sigmoid": surrogate.Sigmoid}


class _Named(neuron.BaseNode):
    """A node whose surrogate function is a name."""

    def __init__(self, *args: Any, surrogate_function: str = "ATan", alpha: float = 2.0, **kwargs: Any) -> None:
        if surrogate_function not in _SURROGATES:
            raise ValueError(f"surrogate_function: expected 'ATan' or 'Sigmoid', got {surrogate_function!r}")
        if isinstance(self, neuron.LIFNode) and not args:
            kwargs.setdefault("tau", 100.0)
        super().__init__(*args, **{"surrogate_function": _SURROGATES[surrogate_function](alpha), **kwargs})


for _name in __all__:
    _doc = f":class:`snnfast.spikingjelly.neuron.{_name}` with these defaults."
    globals()[_name] = type(_name, (_Named, getattr(neuron, _name)), {"__module__": __name__, "__doc__": _doc})

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[_Named]: ...
