"""What an implementation must offer to take part."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import NETWORKS, NEURONS, Case, Model

KINDS = ("layer", "loop", *NETWORKS)


class Unsupported(Exception):  # noqa: N818 - a reason, not a mistake
    """Why an implementation can't run a case; printed in its row."""


class Neuron(NamedTuple):
    """One layer of neurons."""

    unroll: Callable[[Tensor, bool], tuple[Tensor, ...]]
    """Spikes ``[T, B, *]`` of a current ``[T, B, *]``, and if asked for the records of the states that it has."""
    step: Callable[[Tensor, Any], tuple[Tensor, Any]] | None = None
    """Spikes of one step and the new state, from a current and the old state (``None`` at first)."""
    parameters: Sequence[Tensor] = ()
    constant: Callable[[Tensor, int, bool], tuple[Tensor, ...]] | None = None
    """As ``unroll``, of one current and a number of steps, where that is more than an expanded current."""
    followed_by: Callable[[nn.Linear], Callable[[Tensor, int], Tensor]] | None = None
    """This layer and a linear one as a function of one current and a number of steps."""


class Peer(NamedTuple):
    """An implementation. docs/benchmarks.md says where its model and its use differ."""

    name: str
    module: str  # that it needs
    make: Callable[[Case, torch.device], Neuron]
    nearest: Callable[[Case], dict[str, Any]] = lambda case: {}
    """Options of snnfast that make the model nearest to this one's: whose spikes are compared."""
    network: Callable[[Case], nn.Module] | None = None
    """The network of a tutorial; without it, the neurons of ``make`` over time between its other layers."""
    looped: bool = False  # that network is a loop over time, and so is its loss
    compile: Callable[[Any], Any] | None = None
    """Compiles a network, or a function that loops over time."""
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    """A loss of its own, of membranes ``[T, B, classes]`` and labels, in place of PyTorch's."""
    around: Callable[[], AbstractContextManager[Any]] | None = None
    """The context in which all its calls run."""
    with_loss: bool = False  # a network is compiled together with its loss
    graph: bool = False  # what a network launches is captured in a CUDA graph and replayed
    compiled: bool = False  # a call with another shape compiles again
    slow: bool = False  # compiles for minutes: only where its suite, its case or it itself is asked for
    devices: tuple[str, ...] = ("cpu", "cuda")
    kinds: tuple[str, ...] = KINDS  # of cases it makes sense for
    neurons: tuple[str, ...] = ("leaky",)

    def fits(self, case: Case) -> bool:
        return case.kind in self.kinds and case.neuron in self.neurons

    def missing(self, device: torch.device) -> str | None:
        """Why it can't run at all."""
        if device.type not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        try:
            import_module(self.module)
        except Exception as error:  # also where a library was built for another torch
            return f"not installed: {error}"
        return None

    def version(self) -> str:
        try:
            return metadata.version(self.module)
        except metadata.PackageNotFoundError:
            return "not installed"


def layer_options(case: Case) -> dict[str, Any]:
    """Arguments of the layer of a case, in snnTorch and in snnfast: its decays, and what is not their default."""
    options, model = case.options, NEURONS[case.neuron]
    given = {name: getattr(options, name) for name in model.decays} | dict(model.fixed)
    if model.connected:
        given["linear_features"] = case.shape[-1]
        torch.manual_seed(0)  # the same weights for all
    names = ("reset_mechanism", "reset_delay", "learn_beta")
    return given | {name: value for name, value in options.changed().items() if name in names}


def only(case: Case, **supported: Any) -> None:
    """Raise for options that are not among those supported."""
    for name, values in supported.items():
        if (value := getattr(case.options, name)) not in values:
            raise Unsupported(f"has no {name}={value}")


def stepping(layer: Callable[..., Sequence[Tensor]], model: Model) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """One step of a layer that takes its states after the current and returns them after the spikes."""

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spk, *state = layer(x, *(state or [torch.zeros_like(x) for _ in model.states]))
        return spk, [spk, *state] if model.fed_back else state

    return step


def node(kind: Callable[..., Any], case: Case, device: torch.device) -> Neuron:
    """A node of SpikingJelly, or ours with its name, over all steps."""
    layer = kind(**NEURONS[case.neuron].fixed).to(device)

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, ...]:
        layer.reset()
        return (layer(x),)

    return Neuron(unroll)


def unrolled(
    step: Callable[[Tensor, Any], tuple[Tensor, Any]], recorded: Callable[[Any], Sequence[Tensor]] = lambda state: ()
) -> Callable[[Tensor, bool], tuple[Tensor, ...]]:
    """A loop over time. ``x.unbind(0)``, because the backward pass of indexing costs O(T) per step."""

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, ...]:
        state = None
        steps = []
        for current in x.unbind(0):
            spike, state = step(current, state)
            steps.append((spike, *recorded(state)) if record_mem else (spike,))
        return tuple(torch.stack(of_all_steps) for of_all_steps in zip(*steps, strict=True))

    return unroll
