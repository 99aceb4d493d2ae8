"""Convolutions of spikes: where few are not zero, a kernel adds up the weights that these reach, and no others.

Where there are many, a kernel looks up the sums of four channels in tables. Other numbers are multiplied by Winograd's
method (``winograd.py``), or by PyTorch's convolution, with a gradient of its bias that is faster.
"""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from snnfast._core import ops, settings
from snnfast._core.pytorch import not_compiled_alone
from snnfast._images import winograd
from snnfast._images.choice import define_node, pair, takes_kernels

__all__ = ["conv2d", "convolved"]

_LEAST_TAPS, _MOST_TAPS, _MOST_COLUMNS = 4, 1 << 10, 1 << 8
"""The fewest and the most taps of a kernel, and its most columns, for the kernels that count places in 16 bits.

An event of one tap takes as long to find as to add.
"""

_MOST_VALUES, _MOST_PIXELS = 1 << 28, 1 << 25
"""The largest image for the kernels, which count in 32 bits: its values; its pixels with padding and kernel around."""


_LEAST_OUTPUTS = 1 << 18
"""The smallest output whose bias gets its gradient from a sum. One more function of autograd takes 10 us."""


_FEW = 16
"""So many outputs are few. An event is listed once, and added to all outputs."""

_LEAST_INPUTS, _LEAST_FOR_FEW = 64, 128
"""The fewest values of an input under the kernel, and with few outputs. With fewer, the lists are too short to pay."""

_MOST, _MOST_BESIDE, _MOST_OF_WEIGHT = 0.3, 0.15, 0.42
"""The largest share of an input that may be other than zero for sums of events, and for the gradient of the weights.

The second one holds where the other ways are faster than elsewhere: with few outputs, and where Winograd's method needs
a quarter of the products.
"""

_LEAST_PIXELS, _WEIGHTS_A_PIXEL = 512, 512
"""The fewest pixels of the output for tables, and the most weights for each. With fewer, it takes as long to make them.
"""

Way = Literal["events", "tables"] | None
"""How an output is computed: by kernels for spikes, or by Winograd's method or PyTorch."""


def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A layer's output for ``[N, C, H, W]``, as :func:`conv2d` computes it."""
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    found = _faster(x, layer.weight, layer.bias, *how) if layer.padding_mode == "zeros" else None
    return cast(Tensor, layer(x)) if found is None else found


def conv2d(
    input: Tensor,  # [N, C, H, W]; the names of torch.conv2d
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.conv2d``, by its events where the input has few of them, or by Winograd's method where that is faster.

    Its numbers, up to the rounding of the sums. Where Winograd's are not finite, PyTorch computes them.
    A weight that is not finite makes NaN of a zero of the input in PyTorch; so it does here. A gradient of the output
    that is not finite may reach the weights through events only, and an event that is not finite makes NaN of taps by
    which it reaches no output.
    """
    found = _faster(input, weight, bias, stride, padding, dilation, groups)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups) if found is None else found


def _faster(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, *how: Any) -> Tensor | None:
    """The convolution, or None where PyTorch's is to compute it with all of its gradients."""
    found = _by_kernels(x, weight, bias, stride, *how)
    if found is None and bias is not None and _is_sum(x, weight, bias, stride):
        return _Biased.apply(torch.conv2d(x, weight, bias.detach(), stride, *how), bias)  # type: ignore[no-any-return]
    return found


def _by_kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """The convolution by a kernel, or None where none takes it, or PyTorch's is as fast with all of its gradients."""
    if not _possible(x, weight, stride, padding, dilation, groups):
        return None
    how = pair(stride), pair(padding)
    if torch.compiler.is_compiling():  # what is traced must not depend on the numbers
        return cast(Tensor, torch.ops.snnfast.conv2d(x, weight, bias, *how))
    share, equal = _events_of(x)
    way = _way(share, equal, x, weight, *how)
    of_weight = weight.requires_grad and torch.is_grad_enabled() and share <= _MOST_OF_WEIGHT
    pays = way is not None or of_weight or winograd.pays(x, weight, *how)
    return _Convolution.apply(x, weight, bias, *how, way, share) if pays else None


def _possible(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    return (
        takes_kernels(x)
        and settings.events.value
        and groups == 1
        and not isinstance(padding, str)
        and pair(dilation) == [1, 1]
        and weight.shape[1] == x.shape[1]
        and len(pair(stride)) == len(pair(padding)) == 2  # else PyTorch says what is wrong, as of the channels
        and min(pair(stride)) >= 1
        and all(p >= 0 and n + 2 * p >= k for n, p, k in zip(x.shape[2:], pair(padding), weight.shape[2:], strict=True))
        and _rows(x, weight, padding, 0) * _rows(x, weight, padding, 1) <= _MOST_PIXELS
        and weight.shape[2:].numel() >= _LEAST_TAPS
        and _is_small(weight)
        and _are_long(weight.shape[1:].numel(), weight.shape[0])
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _rows(x: Tensor, weight: Tensor, padding: Any, dim: int) -> int:
    return x.shape[2 + dim] + 2 * pair(padding)[dim] + weight.shape[2 + dim]


def _is_small(weight: Tensor) -> bool:
    """Whether the kernels can count the places under it."""
    return weight.shape[2:].numel() <= _MOST_TAPS and weight.shape[3] <= _MOST_COLUMNS


def _are_long(inputs: int, outputs: int) -> bool:
    """Whether the lists of events are long enough."""
    return inputs >= (_LEAST_INPUTS if outputs > _FEW else _LEAST_FOR_FEW)


def _events_of(x: Tensor) -> tuple[float, bool]:
    """The share of an input that is other than zero, and whether that is one value, about.

    The share is 1 where the kernels can't list as much.
    """
    if x.shape[1:].numel() > _MOST_VALUES:
        return 1.0, False
    return cast(tuple[float, bool], torch.ops.snnfast.share_of_events(x))


def _way(share: float, equal: bool, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Way:
    """How the sums of an input's events are faster than the products of all of it."""
    large_tiles = winograd.takes_large_tiles(x, weight, stride, padding)
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    pixels = len(x) * math.prod((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    if share <= (_MOST_BESIDE if large_tiles or weight.shape[0] <= _FEW else _MOST):
        found: Way = "events"
    elif equal and not large_tiles and pixels >= max(_LEAST_PIXELS, weight.numel() / _WEIGHTS_A_PIXEL):
        found = "tables"
    else:
        return None
    return found if math.isfinite(weight.detach().sum()) else None  # a weight that is not finite makes the sum so


def _is_sum(x: Tensor, weight: Tensor, bias: Tensor, stride: Any) -> bool:
    """Whether the gradient of the bias is a sum of its own. Padding hardly matters for how large the output is."""
    return (
        bias.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and takes_kernels(x)
        and x[:, 0].numel() * weight.shape[0] >= _LEAST_OUTPUTS * math.prod(pair(stride))
        and not torch.is_autocast_enabled("cpu")
    )


class _Biased(torch.autograd.Function):
    """The output of a convolution that has its bias already, whose gradient is a sum.

    With that of the weights, oneDNN adds it up channel by channel over images in channels_last order, which takes up to
    two thirds of the two.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, _of_bias(grad)


def _of_bias(grad: Tensor) -> Tensor:
    # The sum of each image first: threads share the images, and not the channels, of which there may be few.
    return grad.sum((2, 3)).sum(0)


class _Convolution(torch.autograd.Function):
    """A convolution by events, if they are few, by tables, if they have one value, or by Winograd's method.

    The gradients of its weights and of its input are by events where these are fewer; that of the input by Winograd's
    method elsewhere. While a compiler traces, there are no numbers to choose by, and its ops choose at each call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        way: Way = None,  # not known while a compiler traces, nor is the share
        share: float = 1.0,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.share = share
        ctx.how = stride, padding, None if bias is None else list(bias.shape)
        if type(x) is Tensor:
            return _output(x, weight, bias, stride, padding, way)
        return torch.ops.snnfast.conv2d_forward(x, weight, bias, stride, padding)  # type: ignore[no-any-return]

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        how = *ctx.how, list(ctx.needs_input_grad[:3])
        again = torch.is_grad_enabled()  # a second derivative is PyTorch's
        if again or type(x) is Tensor:
            return *_gradients(grad, x, weight, *how, share=ctx.share, ours=not again), None, None, None, None
        found = iter(torch.ops.snnfast.conv2d_backward(grad, x, weight, *how))
        return *(next(found) if need else None for need in how[-1]), None, None, None, None


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], way: Way) -> Tensor:
    if way == "events":
        return torch.ops.snnfast.event_conv2d(x, weight, bias, *stride, *padding)  # type: ignore[no-any-return]
    if way == "tables":
        y, equal = torch.ops.snnfast.table_conv2d(x, weight, bias, *stride, *padding)
        if equal:
            return cast(Tensor, y)
    found = winograd.output(x, weight, bias, stride, padding)
    return torch.conv2d(x, weight, bias, stride, padding) if found is None else found


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    biases: list[int] | None,  # the shape of the bias
    needs: list[bool],
    *,
    share: float,  # of the input that is other than zero
    ours: bool,  # else PyTorch's, which it can differentiate
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With respect to the input, the weight and the bias."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    found = _of_input(grad, weight, stride, padding) if ours and needs[0] else None
    weight_by_events = ours and needs[1] and share <= _MOST_OF_WEIGHT
    # PyTorch would compute the gradient of the weights for that of the bias alone.
    rest = [needs[0] and found is None, needs[1] and not weight_by_events, False]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, biases, stride, padding, [1, 1], False, [0, 0], 1, rest
    )
    of_x = of_x if found is None else found
    if weight_by_events:
        of_weight = torch.ops.snnfast.event_conv2d_weight(x, grad, *weight.shape[2:], *stride, *padding)
    return of_x, of_weight, _of_bias(grad) if needs[2] else None


def _of_input(grad: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor | None:
    """The gradient of the input by kernels of ours, or None where PyTorch is to compute it.

    Behind max pooling three of four values of it are zero; behind a surrogate that is zero far from the threshold,
    often more. Then it is the convolution of these events with the kernel turned round.
    """
    turned = [n - 1 - p for n, p in zip(weight.shape[2:], padding, strict=True)]
    possible = stride == [1, 1] and min(turned) >= 0 and _are_long(weight[:, 0].numel(), weight.shape[1])
    if possible and (share := _events_of(grad)[0]) <= _MOST:
        kernel = weight.flip(2, 3).transpose(0, 1)
        if _way(share, False, grad, kernel, stride, turned) == "events":
            return torch.ops.snnfast.event_conv2d(grad, kernel, None, *stride, *turned)  # type: ignore[no-any-return]
    return winograd.gradient(grad, weight, stride, padding)


# ---- in a graph of torch.compile: ops that choose at each call


def _conv2d_forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    way = _way(*_events_of(x), x, weight, stride, padding) if takes_kernels(x) else None
    return _output(x, weight, bias, stride, padding, way)


def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    biases: list[int] | None,
    needs: list[bool],
) -> list[Tensor]:
    # PyTorch's own op would take what is wrong unseen, and end the process on it.
    if len(needs) != 3 or len(stride) != 2 or len(padding) != 2 or min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            "stride, padding, needs: expected two numbers from 1, two from 0, and three flags, "
            f"got {stride}, {padding} and {needs}"
        )
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x, weight: expected [N, C, H, W] and [O, C, kH, kW], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    for name, t in (("grad", grad), ("weight", weight)):
        if t.dtype != x.dtype or t.device != x.device:
            raise ValueError(f"{name}: expected {x.dtype} on {x.device}, as x, got {t.dtype} on {t.device}")
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = x.shape[0], weight.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    if grad.shape != shape or min(shape[2:]) < 1:
        raise ValueError(f"grad: expected the shape of the output, {shape}, got {tuple(grad.shape)}")
    if biases != [weight.shape[0]] and (needs[2] or biases is not None):
        raise ValueError(f"biases: expected [{weight.shape[0]}], the shape of the bias, got {biases}")
    ours = takes_kernels(x) and _is_small(weight)
    found = _gradients(
        grad, x, weight, stride, padding, biases, needs, share=_events_of(x)[0] if ours else 1.0, ours=ours
    )
    in_order = zip(found, (x, weight, found[2]), needs, strict=True)
    return [_in_order(t, like) for t, like, need in in_order if need and t is not None and like is not None]


def _in_order(t: Tensor, like: Tensor) -> Tensor:
    """In that of another tensor in memory: it must not depend on the numbers."""
    return t if t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def _like_gradients(grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> list[Tensor]:
    made = torch.empty_like(x), torch.empty_like(weight), grad.new_empty(weight.shape[0])
    return [t for t, need in zip(made, how[-1], strict=True) if need]


def _like_output(x: Tensor, weight: Tensor, bias: Tensor | None, *how: int) -> Tensor:
    return torch.conv2d(x, weight, bias, how[:2], how[2:])


def _like_weight(x: Tensor, grad: Tensor, kernel_y: int, kernel_x: int, *how: int) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], kernel_y, kernel_x)


if ops.extension is not None:
    torch.library.register_fake("snnfast::event_conv2d", _like_output)
    torch.library.register_fake("snnfast::event_conv2d_weight", _like_weight)
    for _name, _function, _fake in (
        ("conv2d_forward", _conv2d_forward, torch.conv2d),
        ("conv2d_backward", _conv2d_backward, _like_gradients),
    ):
        torch.library.custom_op(f"snnfast::{_name}", _function, mutates_args=()).register_fake(_fake)
_ARGUMENTS = "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding)"
define_node("conv2d", _ARGUMENTS, conv2d, _Convolution.apply)
