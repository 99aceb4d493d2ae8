"""A layer that delays its input as ``snntorch.SynapticDelay`` does, which snnTorch 1.0.0 has not: for tests.

It is copied into the package that ``snntorch_next`` builds, and so imports nothing but torch.
"""

import torch
from torch import Tensor, nn


class SynapticDelay(nn.Module):
    """Step mode: ``[B, C]`` and a buffer of the last inputs. Otherwise ``[T, B, C]``, and nothing is held."""

    def __init__(
        self, max_delay: int, delay: float | Tensor = 0.0, learn_delay: bool = False, step_mode: bool = True
    ) -> None:
        super().__init__()
        self.max_delay, self.step_mode = max_delay, step_mode
        value = torch.as_tensor(delay, dtype=torch.float32)
        if learn_delay:
            self.delay = nn.Parameter(value)
        else:
            self.register_buffer("delay", value)
        self.register_buffer("_buffer", torch.zeros(0), persistent=False)

    def reset_delay(self) -> Tensor:
        self._buffer = torch.zeros_like(self._buffer)
        return self._buffer

    def _weights(self, x: Tensor) -> Tensor:
        """``[max_delay + 1, C]``: how much of the input of so many steps ago comes out."""
        lags = torch.arange(self.max_delay + 1, dtype=x.dtype, device=x.device).unsqueeze(1)
        return (1 - (lags - self.delay.clamp(0, self.max_delay).expand(x.shape[-1])).abs()).clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != (2 if self.step_mode else 3):
            raise ValueError(f"step_mode={self.step_mode}: got {tuple(x.shape)}")
        weights = self._weights(x)
        if not self.step_mode:
            padded = torch.cat([x.new_zeros(self.max_delay, *x.shape[1:]), x])
            return sum(padded[self.max_delay - k :][: len(x)] * w for k, w in enumerate(weights))  # type: ignore[return-value]
        shape = (self.max_delay + 1, *x.shape)
        before = self._buffer if self._buffer.shape == shape else x.new_zeros(shape)
        self._buffer = torch.cat([x.unsqueeze(0), before[:-1]])
        return (self._buffer * weights.unsqueeze(1)).sum(0)


SynapticDelay.__module__ = "snntorch._neurons.synapticdelay"  # where it is, by which it is known
