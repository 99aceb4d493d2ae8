"""Formulas for ``torch.utils.flop_counter``: the products inside of our ops count as PyTorch's own.

Importing ``torch.utils.flop_counter`` takes as long as the rest of snnfast. So formulas are registered when somebody
else imports it: a finder of modules, which is asked about each import that is not known yet, looks for its name.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

import torch

from snnfast._core.ops import NAMESPACE, NEURONS, extension

__all__ = ["register_when_imported"]

_COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def _spikes_linear(bits: Shape, weight: Shape, bias: Any, graded: Any, steps: int, **_: Any) -> int:
    """Bits ``[rows of eight steps, R, N]`` and a weight ``[O, N]``."""
    return int(2 * steps * bits[1] * prod(weight))


def _spikes_linear_weight(bits: Shape, grad: Shape, *_: Any, **__: Any) -> int:
    """The gradient ``[T, R, O]`` with bits ``[rows of eight steps, R, N]``."""
    return 2 * prod(grad) * bits[2]


def _backward(grad: Shape | None, weight: Shape | None, *_: Any, **__: Any) -> int:
    """The gradient of spikes, block by block, from that of a linear layer's outputs ``[T, R, O]``."""
    return 0 if grad is None or weight is None else 2 * prod(grad) * weight[1]


def _program_backward(*args: Any, **_: Any) -> int:
    """The gradient of a program's output likewise; the arguments are in the order of the schema."""
    weight, steps, neurons = args[6], args[9], args[10]
    return 0 if weight is None else int(2 * steps * neurons * weight[0])


def _between_forward(*args: Any, **_: Any) -> int:
    weights, steps, rows = args[7], args[10], args[11]
    return int(2 * steps * rows * sum(map(prod, weights)))


def _between_backward(*args: Any, **_: Any) -> int:
    weights, steps, rows = args[10], args[12], args[13]
    return int(2 * steps * rows * sum(map(prod, weights)))


def _convolution(x: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * x[0] * prod(weight) * prod(out_shape[2:]))


def _by_tables(x: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    return _convolution(x, weight, out_shape=out_shape[0])


def _winograd(x: Shape, weight: Shape, *how: Any, out_shape: Any, **_: Any) -> int:
    """As the convolution tap by tap. The gradient of an input is given that of the output."""
    output = x if how[-1] else out_shape[0]
    return int(2 * x[0] * prod(weight) * prod(output[2:]))


def _convolution_weight(x: Shape, grad: Shape, kernel_y: int, kernel_x: int, *_: Any, **__: Any) -> int:
    return 2 * prod(grad) * x[1] * kernel_y * kernel_x


def _convolution_backward(grad: Shape, x: Shape, weight: Shape, *how: Any, **_: Any) -> int:
    of_input, of_weight, _ = how[-1]
    return int(2 * grad[0] * prod(weight) * prod(grad[2:]) * (of_input + of_weight))


_FORMULAS: dict[str, Callable[..., int]] = {
    "spikes_linear": _spikes_linear,
    "spikes_linear_weight": _spikes_linear_weight,
    "program_backward": _program_backward,
    "program_between_forward": _between_forward,
    "program_between_backward": _between_backward,
    "event_conv2d": _convolution,
    "event_conv2d_weight": _convolution_weight,
    "table_conv2d": _by_tables,
    "winograd_conv2d": _winograd,
    "conv2d_forward": _convolution,
    "conv2d_backward": _convolution_backward,
}


def _register(counter: ModuleType) -> None:
    ops = getattr(torch.ops, NAMESPACE)
    formulas = {**_FORMULAS, **{f"{name}_backward": _backward for name in NEURONS}}
    for name, formula in formulas.items():
        op = getattr(ops, name)
        if op not in counter.flop_registry:  # which outlives a reload of this package
            counter.register_flop_formula(op)(formula)


class _AtImport(MetaPathFinder):
    """Registers the formulas behind the import of PyTorch's counter, and is no finder from then on."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register the formulas now if PyTorch's counter is imported already, else when it is. Without kernels, never."""
    if extension is None:
        return
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AtImport())
