"""What the tests know of each neuron."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnfast import Alpha, Lapicque, Leaky, RLeaky, RSynaptic, Synaptic, functional, reference, use_backend
from snnfast._core import ops as _ops
from snnfast._unroll.checks import check_options
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer

# ---- neurons by the parameters of their kernels: what a layer computes from others is one of them
#
# And those whose spikes come back to them without connections. test_alpha_lapicque.py and test_recurrent.py are
# about the layers as they are.


class _ByKernel:
    """With the parameters of the kernel, in place of those that they are computed from."""

    neuron: _ops.Neuron

    def _values(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.neuron.parameters)


class ByRate(_ByKernel, Lapicque):
    def __init__(self, *decays: float, **options: Any) -> None:
        super().__init__(0.5, **options)
        self.rate, self.decay = torch.tensor(0.5), torch.tensor(0.5)


class ByTau(_ByKernel, Alpha):
    reset_delay: bool = True  # type: ignore[assignment] # the kernel takes either

    def __init__(self, *decays: float, reset_delay: bool = True, **options: Any) -> None:
        super().__init__(0.75, 0.5, **options)
        self.tau, self.reset_delay = torch.tensor(2.0), reset_delay


class OwnLeaky(RLeaky):
    def __init__(self, V: float = 0.5, beta: float = 0.5, **options: Any) -> None:
        super().__init__(beta, V, all_to_all=False, learn_recurrent=False, **options)


class OwnSynaptic(RSynaptic):
    def __init__(self, V: float = 0.5, alpha: float = 0.5, beta: float = 0.5, **options: Any) -> None:
        super().__init__(alpha, beta, V, all_to_all=False, learn_recurrent=False, **options)


def by_kernel(neuron: _ops.Neuron) -> Callable[..., Any]:
    """The neuron's function, with the parameters of the kernel."""

    def function(current: Any, *states: Any, **options: Any) -> Any:
        given = {
            "threshold": 1.0, "graded_spikes_factor": 1.0, "spike_grad": None, "reset_mechanism": "subtract",
            "reset_delay": True, "num_steps": None, "record_mem": True, "inhibition": False, "state_quant": None,
            "reduce": None, "weight": None, "bias": None, "lengths": None, **options,
        }  # fmt: skip
        named = [given.pop(name, None) for name in neuron.states]
        parameters = tuple(given.pop(name) for name in neuron.parameters)
        names = "spike_grad", "reset_mechanism", "reset_delay", "inhibition", "state_quant"
        checked = check_options(*(given.pop(name) for name in names))
        return run_function(neuron, checked, current, (*states, *named)[: len(neuron.states)], parameters, **given)

    return function


def by_kernel_of_reference(neuron: _ops.Neuron) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        with use_backend("reference"):
            return by_kernel(neuron)(*args, **options)

    return function


# ---- all

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
