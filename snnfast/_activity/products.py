"""The products of PyTorch and of our kernels: which tensors may be spikes, and how many outputs a spike reaches.

A :class:`snnfast._activity.watching.Watch` sees the calls below autograd. There, all spellings of a product are one of
these ops.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._core.ops import NAMESPACE

__all__ = ["PRODUCTS", "Operand", "Work"]

aten = torch.ops.aten


class Operand(NamedTuple):
    """A tensor that may be spikes, and the tensor that is its weight then.

    Attributes:
        fan_out: The outputs that one of its numbers reaches; int64 ``[*spatial]`` where that depends on its position.
        steps: The number of steps, if ``given`` is bits ``[rows of eight steps, R, N]``.
    """

    given: Tensor
    weight: Tensor
    fan_out: int | Tensor
    steps: int | None = None


class Work(NamedTuple):
    """A product.

    Attributes:
        dense: The products of all numbers.
        operands: Two where either tensor may be the weight; the first is taken where neither is known to be one. None
            where the input is never spikes.
        weight: The weight, if there are no operands.
    """

    dense: int
    operands: tuple[Operand, ...] = ()
    weight: Tensor | None = None


Works = Sequence[Work]
Sizes = tuple[int, ...]


def _mm(a: Tensor, b: Tensor, *_: Any) -> Works:
    """``[*, M, K]`` times ``[*, K, N]``."""
    operands = Operand(a, b, b.shape[-1]), Operand(b, a, a.shape[-2])
    return (Work(a.numel() * b.shape[-1], operands),)


def _mv(a: Tensor, v: Tensor, *_: Any) -> Works:
    return (Work(a.numel(), (Operand(a, v, 1), Operand(v, a, a.shape[0]))),)


def _dot(a: Tensor, b: Tensor, *_: Any) -> Works:
    return (Work(a.numel(), (Operand(a, b, 1), Operand(b, a, 1))),)


def _added(product: Callable[..., Works]) -> Callable[..., Works]:
    """A product that is added to the first argument."""
    return lambda _, *args: product(*args)


def _linear(x: Tensor, weight: Tensor, *_: Any) -> Works:
    return (Work(x.numel() * weight.shape[0], (Operand(x, weight, weight.shape[0]),)),)


@lru_cache(maxsize=64)
def _fan_out(
    inputs: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, outputs: Sizes, transposed: bool
) -> Tensor:
    """The outputs in one channel that an input of a convolution reaches at each position, int64 ``[*inputs]``.

    All are sizes of the spatial dimensions; of ``stride``, ``padding`` and ``dilation``, one may be for all.
    """
    fan = torch.ones((), dtype=torch.int64, device="cpu")
    all_dims = [n * (len(inputs) if len(n) == 1 else 1) for n in (stride, padding, dilation)]
    for size, taps, step, pad, apart, reach in zip(inputs, kernel, *all_dims, outputs, strict=True):
        x, tap = torch.arange(size, device="cpu"), torch.arange(taps, device="cpu").unsqueeze(1)
        if transposed:
            output = x * step - pad + tap * apart
            reaches = (output >= 0) & (output < reach)
        else:
            first = x + pad - tap * apart  # the place of the kernel in the input, where this tap is here
            reaches = (first >= 0) & (first % step == 0) & (first // step < reach)
        fan = fan.unsqueeze(-1) * reaches.sum(0)
    return fan


def _convolution(
    x: Tensor,
    weight: Tensor,
    _bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    out: Tensor,
) -> Works:
    inputs, kernel, outputs = tuple(x.shape[2:]), tuple(weight.shape[2:]), tuple(out.shape[2:])
    channels = weight.shape[1] if transposed else weight.shape[0] * weight.shape[1] // x.shape[1]  # of a group
    fan_out = _fan_out(inputs, kernel, tuple(stride), tuple(padding), tuple(dilation), outputs, transposed) * channels
    dense = x.shape[0] * weight.numel() * (x if transposed else out).shape[2:].numel()
    return (Work(dense, (Operand(x, weight, fan_out),)),)


def _event_conv2d(x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Works:
    *numbers, out = how
    return _convolution(x, weight, bias, numbers[:2], numbers[2:], (1, 1), False, None, 1, out)


def _table_conv2d(x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Works:
    *numbers, (out, equal) = how
    return _event_conv2d(x, weight, bias, *numbers, out) if equal else ()  # or another op computes it


def _winograd_conv2d(x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Works:
    *padding, _, turned, (out, _) = how
    return () if turned else _convolution(x, weight, bias, (1, 1), padding, (1, 1), False, None, 1, out)


def _spikes_linear(bits: Tensor, weight: Tensor, _bias: Any, graded: Tensor, steps: int, _: Any) -> Works:
    if not bool((graded == 1).all()):
        return (Work(steps * bits.shape[1] * weight.numel(), weight=weight),)
    operand = Operand(bits, weight, weight.shape[0], steps=steps)
    return (Work(steps * bits.shape[1] * weight.numel(), (operand,)),)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Works:
    """Scaled dot-product attention: between its two products are exponentials, so that both are taken as analog."""
    scores = query.shape[:-1].numel() * key.shape[-2]
    return (Work(scores * (query.shape[-1] + value.shape[-1])),)


def _rnn_layer(x: Tensor, weight: Tensor, recurrent: Tensor, *_: Any) -> Works:
    """A layer of ``nn.LSTM`` and its kind in one op. Its hidden states are no spikes."""
    steps = x.shape[:-1].numel()
    hidden = Work(steps * recurrent.numel(), weight=recurrent)
    return Work(steps * weight.numel(), (Operand(x, weight, weight.shape[0]),)), hidden


def _cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any) -> Works:
    steps = x.shape[:-1].numel()
    first, *others = [w for w in weights if w.dim() == 2]
    rest = [Work(steps * w.numel(), weight=w) for w in others]
    return Work(steps * first.numel(), (Operand(x, first, first.shape[0]),)), *rest


def _native_attention(
    query: Tensor, key: Tensor, value: Tensor, _dim: int, _heads: int, weight: Tensor, _bias: Any, out: Tensor, *_: Any
) -> Works:
    """``nn.MultiheadAttention`` in one op, with one weight ``[3 * E, E]`` for its three inputs."""
    size = weight.shape[1]
    scores = query.shape[:-1].numel() * key.shape[-2]
    inputs = [Work(x.numel() * size, (Operand(x, weight, size),)) for x in (query, key, value)]
    return *inputs, Work(2 * scores * size + query.shape[:-1].numel() * out.numel(), weight=out)


def _encoder_layer(src: Tensor, size: int, _heads: int, weight: Tensor, _bias: Any, *args: Any) -> Works:
    """``nn.TransformerEncoderLayer`` in one op: its attention, and then the two weights of its perceptron."""
    out, first, second = args[0], args[9], args[11]
    attention = _native_attention(src, src, src, size, _heads, weight, _bias, out)
    rows = src.shape[:-1].numel()
    return *attention, *(Work(rows * w.numel(), weight=w) for w in (first, second))


def _trilinear(x: Tensor, weight: Tensor, y: Tensor, *_: Any) -> Works:
    """``nn.Bilinear``: ``[B, N]``, a weight ``[O, N, M]``, and ``[B, M]``."""
    return (Work(len(x) * (weight.numel() + weight.shape[0] * y.shape[1]), weight=weight),)


PRODUCTS: dict[Any, Callable[..., Works]] = {
    aten.mm: _mm,
    aten.addmm: _added(_mm),
    aten._addmm_activation: _added(_mm),
    aten.bmm: _mm,
    aten.baddbmm: _added(_mm),
    aten.addbmm: _added(_mm),
    aten.mv: _mv,
    aten.addmv: _added(_mv),
    aten.dot: _dot,
    aten.vdot: _dot,
    aten.linear: _linear,
    aten.convolution: _convolution,
    aten.mkldnn_rnn_layer: _rnn_layer,
    aten._cudnn_rnn: _cudnn_rnn,
    aten._native_multi_head_attention: _native_attention,
    aten._transformer_encoder_layer_fwd: _encoder_layer,
    aten._trilinear: _trilinear,
    **{
        getattr(aten, name): _attention
        for name in (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_attention_math_for_mps",
        )
        if hasattr(aten, name)
    },
}
"""By the op, without its overload. Each is given the arguments by position, and then the result."""

_OURS = {
    "spikes_linear": _spikes_linear, "event_conv2d": _event_conv2d, "table_conv2d": _table_conv2d,
    "winograd_conv2d": _winograd_conv2d,
}  # fmt: skip
PRODUCTS |= {getattr(getattr(torch.ops, NAMESPACE), n): f for n, f in _OURS.items() if hasattr(torch.ops.snnfast, n)}
