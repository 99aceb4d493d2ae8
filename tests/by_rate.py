"""Lapicque by the parameters of its kernel, in place of beta, R and C, which :mod:`test_lapicque` is about."""

from typing import Any

import torch
from torch import Tensor

from snnfast import Lapicque, _ops, functional, use_backend


class ByRate(Lapicque):
    """With the parameters of the kernel, in place of those that they are computed from."""

    def __init__(self, *decays: float, **options: Any) -> None:
        super().__init__(0.5, **options)
        self.rate, self.decay = torch.tensor(0.5), torch.tensor(0.5)

    def _values(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.neuron.parameters)


def by_rate(current: Any, mem: Any = None, *, R: Any, rate: Any, time_step: Any, decay: Any, **options: Any) -> Any:
    """``functional.lapicque`` with the parameters of the kernel."""
    given = {
        "threshold": 1.0, "graded_spikes_factor": 1.0, "spike_grad": None, "reset_mechanism": "subtract",
        "reset_delay": True, "num_steps": None, "record_mem": True, "inhibition": False, "state_quant": None,
        "reduce": None, "membrane_dtype": None, "weight": None, "bias": None, **options,
    }  # fmt: skip
    parameters = R, rate, time_step, decay, given.pop("threshold"), given.pop("graded_spikes_factor")
    return functional._unroll(_ops.LAPICQUE, current, (mem,), parameters, **given)


def by_rate_of_reference(*args: Any, **options: Any) -> Any:
    with use_backend("reference"):
        return by_rate(*args, **options)
