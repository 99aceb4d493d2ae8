"""What the tests know of each neuron."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from by_rate import ByRate, ByTau, OwnLeaky, OwnSynaptic, by_kernel, by_kernel_of_reference
from torch import Tensor

from snnfast import Leaky, Synaptic, functional, reference
from snnfast._core import ops as _ops
from snnfast.neurons.base import SpikingLayer

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """What the tests know of a neuron: a new one needs an entry in ``KINDS``, and nothing else."""

    function: Callable[..., Any]
    reference: Callable[..., Any]
    layer: type[SpikingLayer]
    ranges: dict[str, tuple[float, float]]  # of random inputs, by name, in the order of the function's arguments

    @property
    def ops(self) -> _ops.Neuron:
        return self.layer.neuron

    @property
    def names(self) -> tuple[str, ...]:
        return ("current", *self.ops.states, *self.ops.parameters)

    @property
    def results(self) -> tuple[str, ...]:
        """Of a call; a last spike that is a state is none of its own."""
        return ("spk", *self.ops.states[self.ops.has_spike_feedback :])

    @property
    def decays(self) -> tuple[str, ...]:
        return self.ops.parameters[:-2]


_COMMON = {"threshold": (0.6, 1.1), "graded_spikes_factor": (0.5, 2.0)}
KINDS: dict[str, Kind] = {
    "leaky": Kind(
        functional.lif, reference.lif, Leaky,
        {"current": (-0.6, 1.4), "mem": (-0.5, 2.0), "beta": (0.3, 0.98), **_COMMON},
    ),
    "synaptic": Kind(
        functional.synaptic, reference.synaptic, Synaptic,
        {"current": (-0.9, 1.1), "syn": (-0.5, 1.0), "mem": (-0.5, 2.0), "alpha": (0.2, 0.9), "beta": (0.2, 0.9),
         **_COMMON},
    ),
    "lapicque": Kind(
        by_kernel(ByRate.neuron), by_kernel_of_reference(ByRate.neuron), ByRate,
        {"current": (-0.9, 2.4), "mem": (-0.5, 2.0), "R": (0.5, 1.5), "rate": (0.5, 1.2), "time_step": (0.6, 1.2),
         "decay": (0.2, 0.9), **_COMMON},
    ),
    "alpha": Kind(
        by_kernel(ByTau.neuron), by_kernel_of_reference(ByTau.neuron), ByTau,
        {"current": (-0.9, 1.4), "syn_exc": (-0.5, 1.5), "syn_inh": (-0.8, 0.2), "mem": (-0.5, 2.0),
         "alpha": (0.5, 0.95), "beta": (0.2, 0.5), "tau": (1.2, 2.5), **_COMMON},
    ),
    "rleaky": Kind(
        functional.rleaky, reference.rleaky, OwnLeaky,
        {"current": (-0.6, 1.4), "spk": (0.0, 1.0), "mem": (-0.5, 2.0), "V": (-0.6, 0.6), "beta": (0.3, 0.9),
         **_COMMON},
    ),
    "rsynaptic": Kind(
        functional.rsynaptic, reference.rsynaptic, OwnSynaptic,
        {"current": (-0.9, 1.1), "spk": (0.0, 1.0), "syn": (-0.5, 1.0), "mem": (-0.5, 2.0), "V": (-0.6, 0.6),
         "alpha": (0.2, 0.9), "beta": (0.2, 0.9), **_COMMON},
    ),
}  # fmt: skip
# They take different paths through the code: files on special promises are about these. The others differ from them in
# equations, or in what test_recurrent.py is about. test_kernels.py and random calls have all.
NEURONS = ("leaky", "synaptic", "lapicque")
