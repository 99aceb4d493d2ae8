"""The base class of the surrogates of :mod:`snnfast.surrogate`, and the lists that they enter."""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar, cast, dataclass_transform

import torch
from torch import Tensor

from snnfast._core.pytorch import not_compiled_alone

P = ParamSpec("P")
Kind = TypeVar("Kind", bound="type[Surrogate]")


class Surrogate(ABC):
    """A step function with a surrogate derivative.

    A call with ``z`` (``[*]``, any floating dtype) returns the spikes ``1[z > 0]`` (``[*]``, dtype of ``z``). Their
    gradient with respect to ``z`` is ``grad * derivative(z)``. A class of your own with a ``derivative`` works as well:
    the kernels then unroll the membrane, and PyTorch computes the derivative.
    """

    kernel_id: ClassVar[int]
    """Number of the derivative in the kernels, if they have it."""

    is_elementwise: ClassVar[bool] = False
    """Whether each element of the derivative is known to depend on one of ``z`` alone. Any other class is examined."""

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """The surrogate derivative of the spike with respect to ``z`` (``[*]`` -> ``[*]``, same dtype)."""

    def parameters(self) -> tuple[float, float]:
        """The up to two numbers that shape the derivative, as the kernels take them (unused ones are 0)."""
        return (0.0, 0.0)

    def __call__(self, z: Tensor) -> Tensor:
        return spike_of(z, self)


def spike_of(z: Tensor, surrogate: Any) -> Tensor:
    """Spikes of any object with a ``derivative``."""
    return cast(Tensor, _Spike.apply(z, surrogate))


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True  # with setup_context: what torch.func's transforms ask for

    @staticmethod
    def forward(z: Tensor, surrogate: Surrogate) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        z, ctx.surrogate = inputs
        ctx.save_for_backward(z)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(z), None


KERNELS: dict[str, type[Surrogate]] = {}
"""Surrogates by name, in the order of ``csrc/math/surrogate.h``."""


@dataclass_transform(frozen_default=True)
def in_kernels(name: str) -> Callable[[Kind], Kind]:
    """Make a frozen dataclass of a class, and give it the next number of the kernels' list."""

    def enter(kind: Kind) -> Kind:
        dataclass(frozen=True)(kind)  # which it changes in place
        kind.kernel_id = len(KERNELS)
        KERNELS[name] = kind
        return kind

    return enter


class CustomSpike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        z, ctx.function = inputs
        ctx.save_for_backward(z, output)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        z, spk = ctx.saved_tensors
        return ctx.function(z, grads[0].clone(), spk), None


FACTORIES: dict[str, Callable[..., Surrogate]] = {}
"""The factories by name. Names and parameters are snnTorch's."""


def factory(function: Callable[P, Surrogate]) -> Callable[P, Surrogate]:
    FACTORIES[function.__name__] = function
    return function


def number(name: str, value: object, expected: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that a float can hold, got a larger one") from None
    if found != found:  # not math.isnan, which torch.compile doesn't trace for a number that varies
        raise ValueError(f"{name}: expected a number, got NaN")
    return found
