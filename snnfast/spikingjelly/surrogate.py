"""SpikingJelly's surrogate functions: spikes ``1[x >= 0]`` forward, a smooth derivative backward."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

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


_NO_SPIKES = "spiking: expected True; snnfast has no surrogate function without spikes"


def heaviside(x: Tensor) -> Tensor:
    """Spikes ``1[x >= 0]`` (``[*]``, dtype of ``x``)."""
    return (x >= 0).to(x.dtype)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spike_grad: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.spike_grad = spike_grad
        return heaviside(x)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.spike_grad.derivative(ctx.saved_tensors[0]), None


class SurrogateFunctionBase(nn.Module):
    """A surrogate function: called with ``x`` (``[*]``), it returns ``1[x >= 0]`` with the gradient ``derivative(x)``.

    ``alpha`` may be assigned at any time: the gradient of a spike is that of the ``alpha`` of its forward pass.

    Args:
        alpha: The larger ``alpha``, the narrower the peak; a number above 0.
        spiking: True. (With False, SpikingJelly's functions return a smooth function in place of spikes.)

    Raises:
        TypeError: ``alpha`` is no number.
        ValueError: ``alpha`` is not above 0, or ``spiking`` is False.
    """

    default = 1.0
    spiking = True

    def __init__(self, alpha: float | None = None, spiking: bool = True) -> None:
        super().__init__()
        self.alpha = number("alpha", self.default if alpha is None else alpha)
        if not self.alpha > 0:
            raise ValueError(f"alpha: expected a number above 0, got {alpha}")
        if not spiking:
            raise ValueError(_NO_SPIKES)

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of a spike with respect to ``x`` (``[*]`` -> ``[*]``)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The spikes ``[*]`` of ``x = v - v_threshold``: 1 from 0 on."""
        return cast(Tensor, _Spike.apply(x, spike_grad_of(self)))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class _Known(SurrogateFunctionBase):
    """A function of SpikingJelly. All that defines it is ``alpha``."""

    _of_alpha: ClassVar[Any]  # called with alpha, it returns the surrogate of the kernels, or of PyTorch

    def derivative(self, x: Tensor) -> Tensor:
        return cast(Tensor, type(self)._of_alpha(self.alpha).derivative(x))


@dataclass(frozen=True)
class _OfAlpha(Surrogate):
    """A derivative that the kernels do not have. PyTorch computes it, element by element."""

    is_elementwise = True
    alpha: float


class _PiecewiseQuadratic(_OfAlpha):
    def derivative(self, z: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * z.abs()).clamp(min=0)


class _PiecewiseExp(_OfAlpha):
    def derivative(self, z: Tensor) -> Tensor:
        return self.alpha / 2 * (-self.alpha * z.abs()).exp()


class _SoftSign(_OfAlpha):
    def derivative(self, z: Tensor) -> Tensor:
        return 1 / (2 * self.alpha * (1 / self.alpha + z.abs()).square())


class _SuperSpike(_OfAlpha):
    def derivative(self, z: Tensor) -> Tensor:
        return self.alpha / (z.abs() + 1).square()


class _Erf(_OfAlpha):
    def derivative(self, z: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * (-(self.alpha * z).square()).exp()


class Sigmoid(_Known):
    """``alpha * s * (1 - s)`` with ``s = sigmoid(alpha * x)``; ``alpha`` is 4 by default. The default of all nodes."""

    default = 4.0
    _of_alpha = staticmethod(snnfast_surrogate.sigmoid)


class ATan(_Known):
    """``alpha / 2 / (1 + (pi / 2 * alpha * x)^2)``; ``alpha`` is 2 by default."""

    default = 2.0
    _of_alpha = staticmethod(snnfast_surrogate.atan)


class PiecewiseQuadratic(_Known):
    """``max(0, alpha - alpha^2 * |x|)``; ``alpha`` is 1 by default."""

    _of_alpha = _PiecewiseQuadratic


class PiecewiseExp(_Known):
    """``alpha / 2 * exp(-alpha * |x|)``; ``alpha`` is 1 by default."""

    _of_alpha = _PiecewiseExp


class SoftSign(_Known):
    """``1 / (2 * alpha * (1 / alpha + |x|)^2)``; ``alpha`` is 2 by default."""

    default = 2.0
    _of_alpha = _SoftSign


class SuperSpike(_Known):
    """``alpha / (1 + |x|)^2``; ``alpha`` is 1 by default."""

    _of_alpha = _SuperSpike


class Erf(_Known):
    """``alpha / sqrt(pi) * exp(-(alpha * x)^2)``; ``alpha`` is 2 by default."""

    default = 2.0
    _of_alpha = _Erf


_KINDS: dict[str, type[_Known]] = {kind.__name__: kind for kind in _Known.__subclasses__()}


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


def settings_of(function: Any) -> tuple[float, bool] | None:
    """The settings of SpikingJelly's own functions and of ours of the same name, which users assign; else ``None``."""
    return None if _kind_of(function) is None else (function.alpha, function.spiking)


def _kind_of(function: Any) -> type[_Known] | None:
    kind = type(function)
    found = _KINDS.get(kind.__name__)
    return found if kind is found or kind.__module__ == "spikingjelly.activation_based.surrogate" else None


def spike_grad_of(function: Any) -> SpikeGrad:
    """The derivative of a surrogate function as the kernels, or PyTorch, compute it.

    SpikingJelly's own functions, and those of :mod:`snnfast.surrogate`, are recognised. Of these it is the derivative
    with the present ``alpha``, whatever ``alpha`` is later.

    Raises:
        TypeError: ``function`` is not callable, or a class.
        ValueError: It is not the step ``1[x >= 0]``.
    """
    if isinstance(function, Surrogate):
        return function
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"surrogate_function: expected a callable of (v - v_threshold), got {function!r}")
    kind = _kind_of(function)
    if kind is not None:
        if not function.spiking:
            raise ValueError(_NO_SPIKES)
        return cast(Surrogate, kind._of_alpha(number("alpha", function.alpha)))
    if isinstance(function, SurrogateFunctionBase):
        return _Derivative(function.derivative)
    samples = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0])
    if function(samples).tolist() != heaviside(samples).tolist():
        raise ValueError("surrogate_function: expected a function whose value is 1 where v - v_threshold >= 0, else 0")
    return _Derivative(partial(_by_autograd, function))
