"""Products of float32 matrices on the CPU: by events, where the input is spikes, or by oneDNN.

A network may be given spikes, as of rate coding or of an event camera, or hand them on in other layers than those that
pass bits, such as dropout. Where all values of an input are 0 or one other number, and few are not 0, the kernels add
up the weights of these.

PyTorch gives products to MKL, which uses AVX-512 on Intel's processors alone. PyTorch's oneDNN, which computes the
convolutions, uses it on AMD's, too, and takes half of the time there. Its sums are longer, and round a little more.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core import ops, settings, watch
from snnfast._core.backend import has_numbers, use_fused
from snnfast._core.pytorch import not_compiled_alone

__all__ = ["has_wider", "is_faster", "linear", "matmul", "mm"]

_LEAST = 1 << 23
"""The fewest multiplications. oneDNN makes code for each new shape, such as another number of steps, in 0.3 ms."""

_LEAST_SIZE = 8
"""The fewest rows and columns of a result. A product with fewer reads its matrices, and does little besides."""

_LEAST_WIDTH = 128
"""The least of the longer side of a result that sums over rows, as a weight's gradient: oneDNN turns them first."""

_WIDE = 256
"""From so many columns on, the turned result would be another large matrix, and take as long."""

_LEAST_ROWS, _LEAST_OUTPUTS = 256, 64
"""The fewest rows of an input that is searched for spikes, and the fewest outputs: the search takes time, too."""

_MOST, _MOST_IN_TRAINING = 0.2, 0.3
"""The largest share of spikes: of a product alone, and where the gradient of the weight follows, which gains more.

Where more are set, a dense product is as fast.
"""


@cache
def has_wider() -> bool:
    """Whether oneDNN uses wider vectors here than MKL."""
    return (
        ops.extension is not None
        and ops.extension.vendor == "AuthenticAMD"
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class Spikes(NamedTuple):
    """An input whose values are 0 or one other number."""

    bits: Tensor  # [(rows + 7) // 8, 1, inputs], eight rows to a byte
    height: Tensor  # [], the other number

    def times(self, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        """``[rows, outputs]``."""
        return ops.spikes_linear(self.bits, weight, bias, self.height, rows).flatten(0, 1)  # type: ignore[no-any-return]

    def weight_gradient(self, grad: Tensor) -> Tensor:
        """``[outputs, inputs]``, from the gradient of the output ``[rows, outputs]``."""
        return ops.spikes_linear_weight(self.bits, grad.unsqueeze(1), self.height)  # type: ignore[no-any-return]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, up to the rounding of its sums.

    A weight that is not finite makes NaN of a zero of the input in PyTorch; so it does here.
    """
    if weight.dim() == 2 and _takes(x, weight, *weight.shape) and (bias is None or _fits(bias, weight.shape[:1])):
        spikes = _found(x, weight)
        if spikes is not None or _by_onednn():
            return _differentiable(x, weight, bias, turned=False, spikes=spikes)
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """``torch.matmul``, up to the rounding of its sums."""
    if y.dim() == 2 and _takes(x, y, y.shape[1], y.shape[0]):
        spikes = _found(x, y.t())
        if spikes is not None or _by_onednn():
            return _differentiable(x, y, None, turned=True, spikes=spikes)
    return torch.matmul(x, y)


def _found(x: Tensor, weight: Tensor) -> Spikes | None:
    """The spikes of an input, if it has nothing else, and so few of them that they are faster than all of it."""
    inputs, outputs = x.shape[-1], weight.shape[0]
    rows = x.numel() // inputs
    if ops.spikes_as_bits is None or not settings.events.value or watch.watchers:
        return None
    if rows < _LEAST_ROWS or outputs < _LEAST_OUTPUTS or not x.is_contiguous():
        return None
    bits, count, height = ops.spikes_as_bits(x.detach().view(rows, 1, inputs))
    most = _MOST_IN_TRAINING if weight.requires_grad and torch.is_grad_enabled() else _MOST
    if count > most * x.numel() or math.isnan(height) or not math.isfinite(weight.detach().sum()):
        return None
    return Spikes(bits, torch.tensor(height, dtype=x.dtype))


def mm(x: Tensor, y: Tensor) -> Tensor:
    """``torch.mm``, up to the rounding of its sums; for a backward pass that is not differentiated."""
    if not is_faster(x, y):
        return torch.mm(x, y)
    # oneDNN turns the second matrix first. Where that is the wide one of the two, they change places.
    if _sums_rows(x) and y.shape[1] < min(x.shape[0], _WIDE):
        return _product(y.t(), x).t().contiguous()
    return _product(x, y.t())


def is_faster(x: Tensor, y: Tensor) -> bool:
    """Whether :func:`mm` gives the product of two matrices to oneDNN."""
    is_wide = not _sums_rows(x) or max(x.shape[0], y.shape[1]) >= _LEAST_WIDTH
    return is_wide and _by_onednn() and _takes(x, y, y.shape[1], y.shape[0])


def _sums_rows(x: Tensor) -> bool:
    """Whether the products with a matrix are of its columns in memory, as for the gradient of a weight."""
    return x.stride(0) == 1 and x.shape[0] > 1


def _by_onednn() -> bool:
    return has_wider() and torch._C._get_mkldnn_enabled()


def _takes(x: Tensor, weight: Tensor, outputs: int, inputs: int) -> bool:
    if type(x) is not Tensor or torch.compiler.is_compiling():  # sizes may be symbols
        return False
    rows = x.numel() // max(inputs, 1)
    return (
        rows * inputs * outputs >= _LEAST
        and min(rows, outputs) >= _LEAST_SIZE
        and has_numbers(x)
        and x.dtype == torch.float32
        and x.dim() >= 2
        and x.shape[-1] == inputs
        and _fits(weight, weight.shape)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()  # modes, such as counters of operations, know PyTorch's products
        and use_fused(x)
    )


def _fits(t: Tensor, shape: torch.Size) -> bool:
    known = type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.device.type == "cpu"
    return known and t.shape == shape and t.layout is torch.strided


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, spikes: Spikes | None) -> Tensor:
    given = [t for t in (x, weight, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return _Product.apply(x, weight, bias, turned, spikes)  # type: ignore[no-any-return]
    return _output(x, weight, bias, turned, spikes)


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, spikes: Spikes | None) -> Tensor:
    weight = weight.t() if turned else weight
    if spikes is None:
        return _product(x, weight, bias)
    return spikes.times(weight, bias, x[..., 0].numel()).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """Rows times a weight ``[outputs, inputs]``, or ``[inputs, outputs]`` if it is turned."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, spikes: Spikes | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.turned, ctx.spikes = turned, spikes
        return _output(x, weight, bias, turned, spikes)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # PyTorch differentiates its own
        multiply = torch.mm if again else mm
        rows, of_x, of_weight = grad.flatten(0, -2), None, None
        if needs_x:
            of_x = multiply(rows, weight.t() if ctx.turned else weight).view(x.shape)
        if needs_weight and ctx.spikes is not None and not again:
            of_weight = ctx.spikes.weight_gradient(rows)
            of_weight = of_weight.t() if ctx.turned else of_weight
        elif needs_weight:
            inputs = x.flatten(0, -2)
            of_weight = multiply(inputs.t(), rows) if ctx.turned else multiply(rows.t(), inputs)
        return of_x, of_weight, rows.sum(0) if needs_bias else None, None, None
