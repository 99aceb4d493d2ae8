"""The membranes after the last step of a call, in parts of the threshold."""

from typing import Any

import torch
from torch import Tensor, nn

from snnfast.neurons.own import StepLayer

__all__ = ["Membranes", "states_of"]

_MOST = 4096
"""So many are kept, to ask a surrogate about."""


class Membranes:
    """Running means of the membranes of a layer.

    Attributes:
        mean: The mean membrane after the last step, in parts of the threshold; ``None``: not known.
        distances: Membranes less the threshold after the last step of the last call, of some neurons.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._calls = 0  # that have ended
        self._now: Tensor | None = None  # of this call
        self.distances: Tensor | None = None

    @property
    def mean(self) -> float | None:
        total, calls = self._with_this_call()
        return float(total) / calls if calls else None

    def end_call(self) -> None:
        """Enter the membranes of this call."""
        (self._sum, self._calls), self._now = self._with_this_call(), None

    def _with_this_call(self) -> tuple[Tensor | float, int]:
        return (self._sum, self._calls) if self._now is None else (self._sum + self._now, self._calls + 1)

    def add(self, mem: Tensor, threshold: Any) -> None:
        """Take the membranes ``[B, *]`` after the last step of a call, or of a part of it: the last part counts."""
        mem = mem.detach()
        if not mem.is_floating_point() or mem.numel() == 0 or mem.is_meta:
            return
        bound = torch.as_tensor(threshold, dtype=torch.float32).detach().to(mem.device)
        sizes = zip(reversed(bound.shape), reversed(mem.shape), strict=False)
        fits = bound.dim() <= mem.dim() and all(n in (1, size) for n, size in sizes)
        if not fits or bool((bound == 0).any()):  # a module by hand may turn it to fit
            return
        whole = bound.numel() == 1
        self._now = (
            mem.mean(dtype=torch.float32) / bound.reshape(()) if whole else (mem / bound).mean(dtype=torch.float32)
        )
        samples = mem[: -(-len(mem) * _MOST // mem.numel())] if mem.dim() > 1 else mem
        distances = (samples - bound).reshape(-1)
        self.distances = distances[:: -(-distances.numel() // _MOST)].clone()

    def add_held(self, module: nn.Module) -> None:
        """Add the membranes that a layer holds."""
        name, threshold = states_of(module)
        mem = getattr(module, name, None) if name else None
        if isinstance(mem, Tensor):
            self.add(mem, threshold)


def states_of(module: Any) -> tuple[str, Any]:
    """The name of the membrane of a layer, and its threshold; an empty name where it is not known which these are."""
    for name, bound in (("mem", "threshold"), ("v", "v_threshold"), ("v", "threshold")):
        threshold = getattr(module, bound, None)
        if isinstance(threshold, Tensor | float | int):
            if isinstance(module, StepLayer) and name not in module.neuron.states:
                continue
            if hasattr(module, name):
                return name, threshold
    return "", None
