"""Neurons by the parameters of their kernels: what a layer computes from others is one of them.

And those whose spikes come back to them without connections. :mod:`test_lapicque`, :mod:`test_alpha` and
:mod:`test_recurrent` are about the layers as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snnfast import Alpha, Lapicque, RLeaky, RSynaptic, use_backend
from snnfast._core import ops
from snnfast._unroll.checks import check_options
from snnfast._unroll.run import run_function


class _ByKernel:
    """With the parameters of the kernel, in place of those that they are computed from."""

    neuron: ops.Neuron

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


def by_kernel(neuron: ops.Neuron) -> Callable[..., Any]:
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


def by_kernel_of_reference(neuron: ops.Neuron) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        with use_backend("reference"):
            return by_kernel(neuron)(*args, **options)

    return function
