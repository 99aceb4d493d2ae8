"""What connects the neurons of a layer to one another: a linear layer, a convolution, or any module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core.hooks import is_only_called
from snnfast._unroll.checks import check_weight, out_of_inference

__all__ = ["Connections", "Convolution", "check_connections"]


class Convolution(NamedTuple):
    """How a convolution goes over the spikes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Connections(NamedTuple):
    """What makes of the last spikes of all neurons a current to each; in place of ``V`` among the parameters.

    Where the weights are not known, ``call`` may be any module: each step then has a graph of its own.
    """

    call: Callable[[Tensor], Tensor]
    weight: Tensor | None = None  # [N, N], or [C, C, kH, kW]
    bias: Tensor | None = None
    convolution: Convolution | None = None  # a linear layer, where there is none

    @classmethod
    def of_module(cls, module: nn.Module) -> "Connections":
        if not is_only_called(module):
            return cls(module)
        if type(module) is nn.Linear:
            return cls(module, module.weight, module.bias)
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            how = Convolution(module.stride, module.padding, module.dilation, module.groups)
            return cls(module, module.weight, module.bias, how)
        return cls(module)

    @classmethod
    def of_weight(cls, weight: Tensor, bias: Tensor | None) -> "Connections":
        if weight.dim() == 2:
            return cls(lambda spk: F.linear(spk, weight, bias), weight, bias)
        how = Convolution((1, 1), tuple(n // 2 for n in weight.shape[2:]), (1, 1), 1)
        return cls(lambda spk: F.conv2d(spk, weight, bias, *how), weight, bias, how)


def check_connections(V: Any, weight: object, bias: object, current: Tensor) -> Any:
    """``V``, or the connections in its place; ``current`` has been checked."""
    if weight is None:
        if bias is not None:
            raise ValueError("recurrent_bias: needs a recurrent_weight")
        return V
    if isinstance(V, Tensor) or V != 1:
        raise ValueError("V: must not be given beside a recurrent_weight, which takes its place")
    weight = check_weight("recurrent_weight", weight, current)
    bias = None if bias is None else check_weight("recurrent_bias", bias, current)
    dims = weight.dim()
    odd = dims == 2 or all(n % 2 for n in weight.shape[2:])
    place = -1 if dims == 2 else -3
    if dims not in (2, 4) or weight.shape[0] != weight.shape[1] or not odd or current.dim() < -place:
        raise ValueError(
            f"recurrent_weight: expected [N, N], or [C, C, kH, kW] with kernels of odd sizes, got {tuple(weight.shape)}"
        )
    if current.shape[place] != weight.shape[0]:
        raise ValueError(f"recurrent_weight: expected {current.shape[place]} inputs, got {weight.shape[0]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"recurrent_bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
    return Connections.of_weight(out_of_inference(weight), None if bias is None else out_of_inference(bias))
