"""SpikingJelly's surrogate functions: spikes ``1[x >= 0]`` forward, a smooth derivative backward."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from snnfast import surrogate as snnfast_surrogate
from snnfast._core.pytorch import not_compiled_alone
from snnfast.surrogate import Surrogate
from snnfast.surrogate.base import number
from snnfast.surrogate.examine import SpikeGrad

__all__ = [
    "ATan",
    "Erf",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "SurrogateFunctionBase",
    "heaviside",
]


def heaviside(x: Tensor) -> Tensor:
    """Spikes ``1[x >= 0]`` (``[*]``, dtype of ``x``)."""
    return (x >= 0).to(x.dtype)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: "SurrogateFunctionBase") -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return heaviside(x)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.function.derivative(ctx.saved_tensors[0]), None


class SurrogateFunctionBase(nn.Module):
    """A surrogate function: called with ``x`` (``[*]``), it returns ``1[x >= 0]`` with the gradient ``derivative(x)``.

    Args:
        alpha: The larger ``alpha``, the narrower the peak; a number above 0.
        spiking: True. (With False, SpikingJelly's functions return a smooth function in place of spikes.)

    Raises:
        TypeError: ``alpha`` is no number.
        ValueError: ``alpha`` is not above 0, or ``spiking`` is False.
    """

    default = 1.0

    def __init__(self, alpha: float | None = None, spiking: bool = True) -> None:
        super().__init__()
        self.alpha = number("alpha", self.default if alpha is None else alpha)
        if not self.alpha > 0:
            raise ValueError(f"alpha: expected a number above 0, got {alpha}")
        if not spiking:
            raise ValueError("spiking: expected True; snnfast has no surrogate function without spikes")

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of a spike with respect to ``x`` (``[*]`` -> ``[*]``)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The spikes ``[*]`` of ``x = v - v_threshold``: 1 from 0 on."""
        return cast(Tensor, _Spike.apply(x, self))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class Sigmoid(SurrogateFunctionBase):
    """``alpha * s * (1 - s)`` with ``s = sigmoid(alpha * x)``; ``alpha`` is 4 by default. The default of all nodes."""

    default = 4.0

    def derivative(self, x: Tensor) -> Tensor:
        return snnfast_surrogate.sigmoid(self.alpha).derivative(x)


class ATan(SurrogateFunctionBase):
    """``alpha / 2 / (1 + (pi / 2 * alpha * x)^2)``; ``alpha`` is 2 by default."""

    default = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        return snnfast_surrogate.atan(self.alpha).derivative(x)


class PiecewiseQuadratic(SurrogateFunctionBase):
    """``max(0, alpha - alpha^2 * |x|)``; ``alpha`` is 1 by default."""

    def derivative(self, x: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * x.abs()).clamp(min=0)


class PiecewiseExp(SurrogateFunctionBase):
    """``alpha / 2 * exp(-alpha * |x|)``; ``alpha`` is 1 by default."""

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 * (-self.alpha * x.abs()).exp()


class SoftSign(SurrogateFunctionBase):
    """``1 / (2 * alpha * (1 / alpha + |x|)^2)``; ``alpha`` is 2 by default."""

    default = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (2 * self.alpha * (1 / self.alpha + x.abs()).square())


class SuperSpike(SurrogateFunctionBase):
    """``alpha / (1 + |x|)^2``; ``alpha`` is 1 by default."""

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / (x.abs() + 1).square()


class Erf(SurrogateFunctionBase):
    """``alpha / sqrt(pi) * exp(-(alpha * x)^2)``; ``alpha`` is 2 by default."""

    default = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * (-(self.alpha * x).square()).exp()


class _Derivative(Surrogate):
    """A surrogate of which only the derivative is told."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def derivative(self, z: Tensor) -> Tensor:
        return self.function(z)


def _by_autograd(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(function(z), z, torch.ones_like(z))[0]


def spike_grad_of(function: Any) -> SpikeGrad:
    """The derivative of a surrogate function as the kernels, or PyTorch, compute it.

    SpikingJelly's own functions, and those of :mod:`snnfast.surrogate`, are recognised.

    Raises:
        TypeError: ``function`` is not callable, or a class.
        ValueError: It is not the step ``1[x >= 0]``.
    """
    if isinstance(function, Surrogate):
        return function
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"surrogate_function: expected a callable of (v - v_threshold), got {function!r}")
    kind = type(function)
    if kind.__module__ == "spikingjelly.activation_based.surrogate" and kind.__name__ in __all__:
        function = globals()[kind.__name__](function.alpha, function.spiking)
    of_kernels = {Sigmoid: snnfast_surrogate.sigmoid, ATan: snnfast_surrogate.atan}.get(type(function))
    if of_kernels is not None:
        return of_kernels(function.alpha)
    if isinstance(function, SurrogateFunctionBase):
        return _Derivative(function.derivative)
    samples = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0])
    if function(samples).tolist() != heaviside(samples).tolist():
        raise ValueError("surrogate_function: expected a function whose value is 1 where v - v_threshold >= 0, else 0")
    return _Derivative(partial(_by_autograd, function))
