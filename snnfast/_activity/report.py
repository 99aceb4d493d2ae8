"""The counts of a network as users read them: :class:`Activity`, :class:`LayerActivity`."""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from snnfast._activity.health import problems_of
from snnfast._activity.tally import Bits

if TYPE_CHECKING:
    from snnfast._activity.watching import Seen

__all__ = ["Activity", "LayerActivity"]


class LayerActivity:
    """The counts of one layer, over all calls.

    Attributes of a layer of neurons are ``None`` for any other layer.
    """

    def __init__(self, name: str, seen: "Seen") -> None:
        self.name, self._seen = name, seen

    @property
    def kind(self) -> str:
        """The class of the layer."""
        return type(self._seen.module).__name__

    @property
    def spikes(self) -> int | None:
        """The number of spikes, which are the outputs that are not 0."""
        return self._sum(lambda counts, seen: counts.sum())

    @property
    def neuron_steps(self) -> int | None:
        """The number of outputs, which is that of neurons times samples times steps."""
        return self._sum(lambda counts, seen: counts.numel() * seen)

    @property
    def neurons(self) -> int | None:
        """The number of neurons, which is that of the outputs of one step of one sample."""
        return self._sum(lambda counts, seen: counts.numel())

    @property
    def rate(self) -> float | None:
        """Spikes a neuron and step."""
        return _share(self.spikes, self.neuron_steps)

    @property
    def silent(self) -> float | None:
        """The share of the neurons that never spiked."""
        return _share(self._sum(lambda counts, seen: (counts == 0).sum()), self.neurons)

    @property
    def saturated(self) -> float | None:
        """The share of the neurons that spiked at every step of every sample."""
        return _share(self._sum(lambda counts, seen: (counts == seen).sum()), self.neurons)

    @property
    def rate_by_step(self) -> list[float] | None:
        """The rate at each step of a call of the network; empty where only a spike count was computed."""
        neurons = self._seen.neurons
        if neurons is None:
            return None
        spikes, sizes = neurons.steps.tolist()
        return [s / n if n else 0.0 for s, n in zip(spikes, sizes, strict=True)]

    @property
    def membrane(self) -> float | None:
        """The mean membrane after the last step, in parts of the threshold, if the layer shows both."""
        return None if self._seen.membranes is None else self._seen.membranes.mean

    @property
    def synops(self) -> int:
        """The synaptic operations of its weights, spikes times fan-out."""
        return sum(product.synops for product in self._seen.products.values())

    @property
    def macs(self) -> int:
        """Multiplications of its weights with inputs that are not spikes."""
        return sum(product.macs for product in self._seen.products.values())

    @property
    def bits(self) -> Bits | None:
        """The spikes of the last call as :class:`Bits`, if they were asked for and not only counted by the layer."""
        return None if self._seen.record is None else self._seen.record.bits

    def _sum(self, of: Callable[[Tensor, int], Tensor | int]) -> int | None:
        """Sum a function of the counts ``[*]`` and of how often each neuron was asked, over the shapes of a step."""
        neurons = self._seen.neurons
        return None if neurons is None else sum(int(of(counts, seen)) for counts, seen in neurons.counts)

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the layer, by the names of the attributes."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def __repr__(self) -> str:
        shown = {n: v for n, v in self.to_dict().items() if v is not None and n != "rate_by_step"}
        return f"LayerActivity({self.name}: {', '.join(f'{n}={_short(v)}' for n, v in shown.items())})"


_COLUMNS = (
    "kind", "spikes", "neuron_steps", "neurons", "rate", "silent", "saturated", "membrane", "synops", "macs",
    "rate_by_step",
)  # fmt: skip


class Activity:
    """The counts of a network: see :func:`snnfast.activity`, which makes it.

    Attributes:
        net: The network.
    """

    def __init__(self, net: nn.Module, record: Sequence[str] = ()) -> None:
        from snnfast._activity.watching import Watch  # its tables of ops are for those who count

        self.net = net
        self._watch = Watch(net, record)

    def __enter__(self) -> "Activity":
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)

    @property
    def layers(self) -> dict[str, LayerActivity]:
        """The layers that spiked or computed a product, by their names in ``net.named_modules()``.

        A network that is such a layer itself has the name of its class.
        """
        return {
            name: LayerActivity(name, seen) for name, seen in self._watch.seen.items() if seen.neurons or seen.products
        }

    @property
    def calls(self) -> int:
        """How often the network was called."""
        return self._watch.calls

    @property
    def spikes(self) -> int:
        """The spikes of all layers of neurons."""
        return sum(layer.spikes or 0 for layer in self.layers.values())

    @property
    def rate(self) -> float:
        """Spikes a neuron and step, over all layers of neurons."""
        return _share(self.spikes, sum(layer.neuron_steps or 0 for layer in self.layers.values())) or 0.0

    @property
    def synops(self) -> int:
        """The synaptic operations of all layers."""
        return sum(layer.synops for layer in self.layers.values())

    @property
    def macs(self) -> int:
        """The multiplications of all layers whose inputs are not spikes."""
        return sum(layer.macs for layer in self.layers.values())

    def energy(self, *, mac: float = 4.6e-12, ac: float = 0.9e-12) -> float:
        """The energy of the products, in joules, of all samples and steps.

        Args:
            mac: That of a multiplication with its addition, in joules.
            ac: That of an addition alone, as a synaptic operation is, in joules.

        Source: M. Horowitz, *Computing's energy problem (and what we can do about it)*, ISSCC 2014: 3.7 + 0.9 pJ and
        0.9 pJ for float32 at 45 nm. They do not count memory and neurons.
        """
        return self.macs * mac + self.synops * ac

    def health(self) -> list[str]:
        """Say in words what may keep the network from learning: one sentence a problem, none if there is none.

        Gradients are those that the parameters hold now: ask after ``loss.backward()``, and before the optimizer sets
        them to ``None``.
        """
        return problems_of(self.net, self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for example for ``json.dump``."""
        return {
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "calls": self.calls,
            "spikes": self.spikes,
            "rate": self.rate,
            "synops": self.synops,
            "macs": self.macs,
            "energy": self.energy(),
        }

    def figure(self, raster: str | None = None, sample: int = 0) -> Any:
        """Draw the rate of each layer by step, and the spikes of one layer and sample.

        Args:
            raster: The name of a layer whose spikes were recorded. ``None``: the first one; without any, only rates
                are drawn.
            sample: The number of the sample.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError: ``raster`` is no layer whose spikes were recorded.
        """
        figures: Any = _matplotlib()
        layers = self.layers
        recorded = {name: layer.bits for name, layer in layers.items() if layer.bits is not None}
        if raster is not None and raster not in recorded:
            raise KeyError(
                f"raster: expected a layer that was recorded, {', '.join(recorded) or 'none'}, got {raster!r}"
            )
        name = raster if raster is not None else next(iter(recorded), None)
        figure = figures.Figure(figsize=(6.4, 3.2 if name is None else 6.4), layout="constrained")
        axes = figure.subplots(1 if name is None else 2, 1, squeeze=False)[:, 0]
        for layer in layers.values():
            if layer.rate_by_step:
                axes[0].plot(layer.rate_by_step, label=layer.name)
        axes[0].set(xlabel="step", ylabel="spikes a neuron", title="firing rate")
        if axes[0].lines:
            axes[0].legend()
        if name is not None:
            spk = recorded[name].unpack()[:, sample].flatten(1).cpu()
            step, neuron = spk.nonzero().unbind(1)
            axes[1].scatter(step, neuron, s=2, marker="|")
            axes[1].set(xlabel="step", ylabel="neuron", title=f"{name}, sample {sample}")
        return figure

    def __str__(self) -> str:
        head = ["layer", "", "spikes", "rate", "silent", "saturated", "synops", "MACs"]
        rows = [
            [
                *(layer.name, layer.kind, _short(layer.spikes), _short(layer.rate)),
                *(_percent(layer.silent), _percent(layer.saturated), _short(layer.synops), _short(layer.macs)),
            ]
            for layer in self.layers.values()
        ]
        last = ["in all", "", _short(self.spikes), _short(self.rate), "", "", _short(self.synops), _short(self.macs)]
        table = [head, *rows, last]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), f"energy of the products: {self.energy():.3g} J"])

    __repr__ = __str__


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("figure: needs matplotlib; pip install matplotlib") from error


def _share(part: int | None, whole: int | None) -> float | None:
    if part is None or whole is None:
        return None
    return part / whole if whole else 0.0


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _short(value: Any) -> str:
    if value is None or (isinstance(value, int) and value == 0):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
