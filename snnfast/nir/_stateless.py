"""Layers without a state as nodes of NIR, and back."""

from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnfast.spikingjelly import layer as layers

__all__ = ["KINDS", "PASSED", "array", "is_known", "layer_of", "node_of"]

KINDS: dict[type[nn.Module], int] = {nn.Linear: 1, nn.Conv1d: 2, nn.Conv2d: 3, nn.AvgPool2d: 3}
"""The layers that are a node, each with the number of dimensions of one sample."""

PASSED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, layers.Dropout)
"""Layers that leave a signal as it is, in inference."""


def is_known(module: nn.Module, kinds: Any) -> bool:
    """Whether a module is one of some layers of PyTorch, itself or with SpikingJelly's step mode."""
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c))
    return isinstance(module, kinds) and owner is not nn.Module and owner.__module__.startswith(_MODULES)


_MODULES = ("torch.nn.modules.", "snnfast.spikingjelly.layer", "spikingjelly.activation_based.layer")
"""Where these layers have their forward."""


def array(value: Tensor) -> NDArray[Any]:
    """The values of a tensor. NumPy has no bfloat16, and files of NIR no need of half precision."""
    value = value.detach().cpu()
    return (value if value.dtype == torch.float64 else value.float()).numpy().copy()


# ---- from a layer to a node


def node_of(layer: Any, shape: tuple[int, ...], out: tuple[int, ...]) -> nir.NIRNode:
    """The node of a layer that maps one sample of ``shape`` to one of ``out``."""
    if isinstance(layer, nn.Linear):
        if len(shape) != 1:
            raise ValueError(f"Linear: NIR has it for samples of one dimension, got {shape}")
        weight = array(layer.weight)
        return nir.Linear(weight) if layer.bias is None else nir.Affine(weight, array(layer.bias))
    if isinstance(layer, nn.AvgPool2d):
        return _pool(layer)
    for name, expected in (("groups", 1), ("padding_mode", "zeros")):
        if getattr(layer, name) != expected:
            raise ValueError(f"{name}: expected {expected!r}, which NIR can say, got {getattr(layer, name)!r}")
    weight = array(layer.weight)
    bias = np.zeros(len(weight), weight.dtype) if layer.bias is None else array(layer.bias)
    one = isinstance(layer, nn.Conv1d)
    options = {
        name: value if not one or isinstance(value, str) else value[0]
        for name in ("stride", "padding", "dilation")
        for value in [getattr(layer, name)]
    }
    kind = nir.Conv1d if one else nir.Conv2d
    node = kind(input_shape=shape[1] if one else shape[1:], weight=weight, groups=1, bias=bias, **options)
    if tuple(node.output_type["output"]) != out:
        raise ValueError(
            f"kernel_size: the library nir takes the output of a kernel of {tuple(layer.kernel_size)} for "
            f"{tuple(map(int, node.output_type['output']))}, and it is {out}; files with it can't be read"
        )
    return node


def _pool(layer: Any) -> nir.NIRNode:
    size, stride, padding = (
        np.array(value if isinstance(value, tuple) else (value, value))
        for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    if layer.ceil_mode:
        raise ValueError("ceil_mode: expected False, which NIR can say")
    if layer.divisor_override not in (None, 1):
        raise ValueError(f"divisor_override: expected None, or 1 for a sum, got {layer.divisor_override}")
    if padding.any() and layer.divisor_override is None and not layer.count_include_pad:
        raise ValueError("count_include_pad: expected True, which NIR can say")
    kind = nir.AvgPool2d if layer.divisor_override is None else nir.SumPool2d
    return kind(kernel_size=size, stride=stride, padding=padding)


# ---- from a node to a layer


def layer_of(node: Any, dtype: torch.dtype) -> nn.Module | None:
    """The layer of a node; ``None``: no layer without a state is like it."""
    made: nn.Module
    if isinstance(node, nir.Linear | nir.Affine):
        if node.weight.ndim != 2:
            raise ValueError(f"weight: expected a matrix, got shape {node.weight.shape}")
        made = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=isinstance(node, nir.Affine), dtype=dtype)
    elif isinstance(node, nir.Conv1d | nir.Conv2d):
        options: Any = {name: _plain(getattr(node, name)) for name in ("stride", "padding", "dilation", "groups")}
        channels = node.weight.shape[1] * options["groups"], node.weight.shape[0]
        kind: Any = nn.Conv1d if isinstance(node, nir.Conv1d) else nn.Conv2d
        made = kind(*channels, tuple(node.weight.shape[2:]), dtype=dtype, **options)
    elif isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        divisor = 1 if isinstance(node, nir.SumPool2d) else None
        size, stride, padding = (_plain(value) for value in (node.kernel_size, node.stride, node.padding))
        return nn.AvgPool2d(size, stride, padding, divisor_override=divisor)
    elif isinstance(node, nir.Flatten):
        start, end = (int(dim) + 1 if dim >= 0 else int(dim) for dim in (node.start_dim, node.end_dim))
        return nn.Flatten(start, end)
    else:
        return None
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.from_numpy(np.asarray(getattr(node, name))))
    return made


def _plain(value: Any) -> Any:
    """A number or tuple of NIR, which are arrays after a file was read."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    value = value.decode() if isinstance(value, bytes) else value
    return tuple(value) if isinstance(value, list) else value
