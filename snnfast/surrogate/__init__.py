"""Surrogate gradients: a Heaviside step forward, a smooth derivative backward.

Every function has the name, the defaults and the formula of its namesake in `snntorch.surrogate
<https://snntorch.readthedocs.io/en/latest/snntorch.surrogate.html>`_ (1.0.0). It returns a :class:`Surrogate`, which
can be pickled. The fused kernels recognise it by its :attr:`Surrogate.kernel_id`. Called on a tensor, it is an ordinary
differentiable function.

With ``z = mem - threshold``, its value is always ``1`` if ``z > 0``, else ``0``, in the dtype of ``z``. The derivative
with respect to ``z`` is given for each function below.

Example::

    >>> import torch
    >>> from snnfast import surrogate
    >>> z = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    >>> spk = surrogate.fast_sigmoid(slope=2.0)(z)
    >>> spk
    tensor([0., 0., 1.], grad_fn=<_SpikeBackward>)
    >>> spk.sum().backward()
    >>> z.grad
    tensor([0.2500, 1.0000, 0.2500])
    >>> made = [surrogate.atan(), surrogate.sigmoid(4), surrogate.LSO(), surrogate.heaviside()]
    >>> torch.stack([m.derivative(z.detach()) for m in made])
    tensor([[0.2884, 1.0000, 0.2884],
            [0.4200, 1.0000, 0.4200],
            [0.1000, 0.1000, 1.0000],
            [0.0000, 0.0000, 1.0000]])
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeGuard, cast

import torch
from torch import Tensor

from snnfast._core import ops
from snnfast.surrogate.base import KERNELS, CustomSpike, Surrogate, factory, in_kernels, number

__all__ = [
    "LSO",
    "SFS",
    "SSO",
    "Surrogate",
    "atan",
    "custom_surrogate",
    "fast_sigmoid",
    "heaviside",
    "sigmoid",
    "spike_rate_escape",
    "straight_through_estimator",
    "triangular",
]


class _InKernels(Surrogate):
    """A derivative that the kernels have. Its fields are its parameters, in their order."""

    def parameters(self) -> tuple[float, float]:
        names = self.__match_args__  # type: ignore[attr-defined]
        first, second, *_ = *[getattr(self, name) for name in names], 0.0, 0.0
        return first, second


@in_kernels("atan")
class _ATan(_InKernels):
    alpha: float

    def derivative(self, z: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * z).square())


@in_kernels("fast_sigmoid")
class _FastSigmoid(_InKernels):
    slope: float

    def derivative(self, z: Tensor) -> Tensor:
        return 1 / (self.slope * z.abs() + 1).square()


@in_kernels("sigmoid")
class _Sigmoid(_InKernels):
    slope: float

    def derivative(self, z: Tensor) -> Tensor:
        # The derivative is even in z: exp of the negative magnitude can't overflow where exp(-slope * z) does.
        e = torch.exp(-(self.slope * z).abs())
        return self.slope * e / (1 + e).square()


@in_kernels("straight_through_estimator")
class _StraightThrough(_InKernels):
    def derivative(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)


@in_kernels("heaviside")
class _Heaviside(_InKernels):
    def derivative(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)


@in_kernels("triangular")
class _Triangular(_InKernels):
    threshold: float

    def derivative(self, z: Tensor) -> Tensor:
        height = torch.full_like(z, self.threshold)
        return torch.where(z >= 0, -height, height)


@in_kernels("spike_rate_escape")
class _SpikeRateEscape(_InKernels):
    beta: float
    slope: float

    def derivative(self, z: Tensor) -> Tensor:
        return self.slope * torch.exp(-self.beta * (z - 1).abs())


@in_kernels("SFS")
class _SFS(_InKernels):
    slope: float
    B: float

    def derivative(self, z: Tensor) -> Tensor:
        return (z > self.B).to(z.dtype) / (self.slope * z.abs() + 1).square()


@in_kernels("LSO")
class _LSO(_InKernels):
    slope: float

    def derivative(self, z: Tensor) -> Tensor:
        one = torch.ones_like(z)
        return torch.where(z > 0, one, self.slope * one)


@in_kernels("none")
class _Disabled(_InKernels):
    """No surrogate: no gradient passes through a spike (snnTorch's ``surrogate_disable``)."""

    def derivative(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def __call__(self, z: Tensor) -> Tensor:
        return (z.detach() > 0).to(z.dtype)


DISABLED = _Disabled()


@dataclass(frozen=True)
class _SSO(Surrogate):
    mean: float
    variance: float

    def derivative(self, z: Tensor) -> Tensor:
        noise = (torch.rand_like(z) - 0.5 + self.mean) * self.variance
        return torch.where(z > 0, torch.ones_like(z), noise)


@dataclass(frozen=True)
class _Custom(Surrogate):
    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def derivative(self, z: Tensor) -> Tensor:
        return self.function(z, torch.ones_like(z), (z > 0).to(z.dtype))

    def __call__(self, z: Tensor) -> Tensor:
        return cast(Tensor, CustomSpike.apply(z, self.function))


def known_to_kernels(spike_grad: object) -> TypeGuard[Surrogate]:
    """Whether the kernels have this derivative. A subclass may have another, and is called like any callable."""
    return type(spike_grad) in _KNOWN


def of_kernel(kernel_id: int, *parameters: float) -> Surrogate:
    """The surrogate with this ``kernel_id`` and these ``parameters()``."""
    kind = list(KERNELS.values())[kernel_id]
    if kind is _Disabled:
        return DISABLED  # known by its identity
    return kind(*parameters[: len(fields(kind))])  # type: ignore[arg-type]


def has_derivative(spike_grad: object) -> TypeGuard[Surrogate]:
    """Whether ``derivative`` is all that defines it. A subclass may have a ``__call__`` of its own."""
    return isinstance(spike_grad, Surrogate) and type(spike_grad).__call__ is Surrogate.__call__


def is_elementwise(spike_grad: object) -> bool:
    """Whether all that the kernels assume of a derivative is known to hold, so that nobody needs to try it out."""
    return known_to_kernels(spike_grad) or (isinstance(spike_grad, Surrogate) and spike_grad.is_elementwise)


ops.check_names("surrogates", list(KERNELS))
_KNOWN = frozenset(KERNELS.values())


@factory
def atan(alpha: float = 2.0) -> Surrogate:
    """Arc tangent, the default of every neuron: ``(alpha / 2) / (1 + (pi / 2 * alpha * z)^2)``.

    Args:
        alpha: The height at the threshold is ``alpha / 2``. The larger ``alpha``, the narrower the peak.

    Source: W. Fang et al., *Incorporating learnable membrane time constants to enhance learning of spiking neural
    networks*, ICCV 2021.
    """
    return _ATan(number("alpha", alpha))


@factory
def fast_sigmoid(slope: float = 25) -> Surrogate:
    """Fast sigmoid: ``1 / (slope * |z| + 1)^2``.

    Args:
        slope: The larger ``slope``, the narrower the peak.

    Source: F. Zenke, S. Ganguli, *SuperSpike*, Neural Computation 30 (2018) 1514-1541.
    """
    return _FastSigmoid(number("slope", slope))


@factory
def sigmoid(slope: float = 25) -> Surrogate:
    """Logistic sigmoid: ``slope * e / (1 + e)^2`` with ``e = exp(-slope * |z|)``.

    It is the same function as snnTorch's ``slope * exp(-slope * z) / (exp(-slope * z) + 1)^2``. snnTorch's form
    overflows to NaN where ``slope * z < -88`` in float32; this one stays finite.

    Args:
        slope: The height at the threshold is ``slope / 4``. The larger ``slope``, the narrower the peak.

    Source: F. Zenke, S. Ganguli, *SuperSpike*, Neural Computation 30 (2018) 1514-1541.
    """
    return _Sigmoid(number("slope", slope))


@factory
def straight_through_estimator() -> Surrogate:
    """Straight-through estimator: ``1`` everywhere.

    Source: Y. Bengio et al., *Estimating or propagating gradients through stochastic neurons*, arXiv:1308.3432.
    """
    return _StraightThrough()


@factory
def heaviside() -> Surrogate:
    """The spike itself: ``1`` if ``z > 0`` else ``0``.

    Source: J. K. Eshraghian et al., *Training spiking neural networks using lessons from deep learning*, Proc. IEEE
    111 (2023); the surrogate of snnTorch's tutorial 5.
    """
    return _Heaviside()


@factory
def triangular(threshold: float = 1) -> Surrogate:
    """Sign of the distance: ``threshold`` if ``z < 0`` else ``-threshold`` (snnTorch's definition).

    Args:
        threshold: Size of the derivative.

    Source: ``snntorch.surrogate.triangular``.
    """
    return _Triangular(number("threshold", threshold))


@factory
def spike_rate_escape(beta: float = 1, slope: float = 25) -> Surrogate:
    """Boltzmann escape rate: ``slope * exp(-beta * |z - 1|)``; its peak is at ``z = 1``.

    Args:
        beta: The larger ``beta``, the narrower the peak.
        slope: Height of the peak.

    Source: W. Gerstner, W. M. Kistler, *Spiking neuron models*, Cambridge University Press, 2002.
    """
    return _SpikeRateEscape(number("beta", beta), number("slope", slope))


@factory
def SFS(slope: float = 25, B: float = 1) -> Surrogate:  # noqa: N802 - snnTorch's name
    """Sparse fast sigmoid: ``1 / (slope * |z| + 1)^2`` if ``z > B`` else ``0``.

    Args:
        slope: The larger ``slope``, the narrower the peak.
        B: Distance from the threshold above which a gradient passes.

    Source: N. Perez-Nieves, D. F. M. Goodman, *Sparse spiking gradient descent*, NeurIPS 2021.
    """
    return _SFS(number("slope", slope), number("B", B))


@factory
def LSO(slope: float = 0.1) -> Surrogate:  # noqa: N802 - snnTorch's name
    """Leaky spike operator: ``1`` if ``z > 0`` else ``slope``, the derivative of a leaky ReLU.

    snnTorch 1.0.0 documents this function, but its ``LSO`` raises an error.

    Args:
        slope: Derivative below the threshold.

    Source: ``snntorch.surrogate.LeakySpikeOperator``.
    """
    return _LSO(number("slope", slope))


@factory
def SSO(mean: float = 0, variance: float = 0.2) -> Surrogate:  # noqa: N802 - snnTorch's name
    """Stochastic spike operator: ``1`` if ``z > 0`` else ``(U - 0.5 + mean) * variance``, ``U`` uniform on [0, 1).

    Every backward pass draws new noise from PyTorch's generator of the tensor's device. The kernels unroll the
    membrane, and PyTorch computes the derivative.

    Args:
        mean: Mean of the noise, in units of ``variance``.
        variance: Width of the noise.

    Source: ``snntorch.surrogate.StochasticSpikeOperator``.
    """
    return _SSO(number("mean", mean), number("variance", variance))


def custom_surrogate(custom_surrogate_function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Surrogate:
    """A surrogate gradient of your own, as a function of three tensors of one shape.

    Args:
        custom_surrogate_function: ``f(z, grad, spk) -> grad_z``. ``z`` is ``mem - threshold``, ``grad`` the gradient
            with respect to the spikes, and ``spk`` the spikes. It may be called on all time steps at once, ``[T, *]``.

    Raises:
        TypeError: ``custom_surrogate_function`` is not callable.

    Example::

        >>> import torch, snnfast
        >>> spike_grad = snnfast.surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs()))
        >>> spk, mem = snnfast.functional.lif(torch.ones(4, 2), beta=0.9, spike_grad=spike_grad)

    Source: ``snntorch.surrogate.custom_surrogate``.
    """
    if not callable(custom_surrogate_function):
        raise TypeError(
            f"custom_surrogate_function: expected a callable, got {type(custom_surrogate_function).__name__}"
        )
    return _Custom(custom_surrogate_function)
