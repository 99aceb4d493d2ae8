"""A linear layer that alone reads spikes, and takes them as bits."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from snnfast._core import ops, settings, watch
from snnfast._core.backend import exporting
from snnfast._core.ops import opmath_dtype
from snnfast._core.products import linear
from snnfast._core.pytorch import is_transformed

LEAST_ROWS = 256
"""Samples times steps from which on bits are faster. Below, their packing and one more op cost more than they save."""


FEW_OUTPUTS = 32
"""The kernels make the gradient of spikes from that of so many outputs; of more, PyTorch's product is faster."""


class Linear(NamedTuple):
    """The weights of a linear layer that alone reads the spikes of a neuron layer."""

    weight: Tensor  # [O, N]
    bias: Tensor | None  # [O]
    dims: int = 1  # of a step, from the last: N is their product

    def of_spikes(self, spk: Tensor) -> Tensor:
        """``[*rows, O]`` of spikes as numbers, ``[*rows, N]``."""
        for watcher in watch.watchers:
            watcher.handed_on(spk, None)
        return linear(spk if self.dims == 1 else spk.flatten(-self.dims), self.weight, self.bias)


def bits_pay(x: Tensor, shape: torch.Size, steps: int, linear: Linear) -> bool:
    """Whether a linear layer can take spikes of steps of a ``shape`` as bits, and is faster with them.

    ``x`` is the input of the neurons.
    """
    weight, bias, dims = linear
    if not settings.events.value or ops.spikes_linear is None or not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return False
    if is_transformed():
        return False
    if not _is_fit(weight, x) or weight.dim() != 2 or (bias is not None and not _is_fit(bias, x)):
        return False
    outputs, inputs = weight.shape
    if inputs != math.prod(shape[-dims:]) or (bias is not None and bias.shape != (outputs,)):
        return False  # an error, which PyTorch words
    neurons = math.prod(shape)  # Size.numel makes an int of a symbol
    return neurons > 0 and outputs > 0 and _are_enough(steps, neurons // inputs)


def _are_enough(steps: int, samples: int) -> bool:
    if not exporting():
        return steps * samples >= LEAST_ROWS
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known  # takes long to import

    # A program for any number of steps must not depend on it: not by this choice, nor by the shape of the bits.
    return known(steps * samples >= LEAST_ROWS) and (known(steps <= 8) or known(steps > 8))


def _is_fit(t: Tensor, x: Tensor) -> bool:
    known = type(t) in (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)  # the last two while PyTorch traces
    return known and t.dtype == x.dtype and t.device == x.device and t.layout is torch.strided


# ---- products of spikes as bits; ``shape``: the dimensions of a step whose neurons are the inputs of the layer


def product(bits: Tensor, weight: Tensor, bias: Tensor | None, graded: Tensor, shape: torch.Size, steps: int) -> Tensor:
    """The outputs of the layer, ``[T, R, O]``."""
    for watcher in watch.watchers:
        watcher.handed_on(bits, steps)
    heights = heights_of(graded, shape, weight.dtype)
    return ops.spikes_linear(flat_bits(bits, shape), weight, bias, heights, steps)  # type: ignore[no-any-return]


def weight_gradient(bits: Tensor, grad: Tensor, heights: Tensor, again: bool) -> Tensor:
    """The gradient of the weight, from that of the outputs ``[T, R, O]``; ``again``: it may be differentiated."""
    if not again:
        return ops.spikes_linear_weight(bits, grad, heights)  # type: ignore[no-any-return]
    return grad.flatten(0, 1).t() @ (numbers_of(bits, grad.shape[0]).flatten(0, 1) * heights).to(grad.dtype)


def flat_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """``[rows of eight steps, R, N]``."""
    return bits.reshape(bits.shape[0], -1, shape.numel())


def numbers_of(bits: Tensor, steps: int) -> Tensor:
    """``[T, *]`` uint8 of bits ``[rows of eight steps, *]``."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device).view(8, *(1,) * (bits.dim() - 1))
    return bits.unsqueeze(1).bitwise_right_shift(places).bitwise_and(1).flatten(0, 1)[:steps]


def heights_of(graded: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The heights of the spikes ``[N]``, or the height of all spikes ``[]``, for a call in ``dtype``."""
    graded = graded if graded.is_floating_point() else graded.to(opmath_dtype(dtype))
    if graded.numel() == 1:
        return graded.reshape(())
    return graded.reshape(graded.shape[-len(shape) :]).expand(shape).reshape(-1)
