"""See :class:`Branches`."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add

from torch import Tensor, nn

from snnfast.networks.multistep import _Pass

__all__ = ["INPUT", "OUTPUT", "Branches"]

INPUT, OUTPUT = "input", "output"


class Branches(nn.Module):
    """Layers between which signals branch, as a layer of a :class:`snnfast.MultiStep`.

    Args:
        layers: The layers in an order in which they can be applied, by their names.
        sources: For each layer, the names of those whose outputs are added up to its input. The input of all is one of
            them, ``"input"``. The sum under the name ``"output"`` is the output.
    """

    def __init__(self, layers: Mapping[str, nn.Module], sources: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.sources = dict(sources)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def unroll(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Apply the layers to all time steps ``[T, B, *]``, with ``lengths`` as those of a ``MultiStep``."""

        def run(layer: nn.Module, x: Tensor) -> Tensor:
            steps = _Pass(lengths=lengths)
            return steps.order.usual(steps.sequence([layer], x, None)[0])

        return self.over(x, run)

    def over(self, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Apply the layers by a function that applies one of them."""
        found = {INPUT: x}
        for name, layer in self.named_children():
            found[name] = run(layer, reduce(add, [found[source] for source in self.sources[name]]))
        return reduce(add, [found[source] for source in self.sources[OUTPUT]])
