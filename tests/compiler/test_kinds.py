"""Kinds of recorded calls: what they say of the results is what PyTorch returns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from compiler.internals import Kinds
from torch import Tensor, nn

from snnfast.compiler.record.later import Like, like_of
from snnfast.compiler.record.modes import NONE

TENSORS: dict[str, Callable[[], Tensor]] = {
    "usual": lambda: torch.rand(4, 3, 5),
    "parameter": lambda: nn.Parameter(torch.rand(4, 3, 5)),
    "result": lambda: torch.rand(4, 3, 5, requires_grad=True) * 2,
    "images": lambda: torch.rand(4, 3, 5, 6),
    "channels-last": lambda: torch.rand(4, 3, 5, 6).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.rand(5, 3, 4).transpose(0, 2),
    "expanded": lambda: torch.rand(1, 3, 5).expand(4, 3, 5),
    "with-gaps": lambda: torch.rand(8, 3, 10)[::2, :, ::2],
    "result-with-gaps": lambda: (torch.rand(8, 3, 10, requires_grad=True) * 2)[::2, :, ::2],
    "half": lambda: torch.rand(4, 3, 5).bfloat16(),
    "whole-numbers": lambda: torch.arange(12).view(4, 3),
    "one-dimension": lambda: torch.rand(4),
    "one-row": lambda: torch.rand(1, 3, 5),
    "empty-rows": lambda: torch.rand(4, 0, 5),
}

CALLS: dict[str, Callable[[Tensor], tuple[Any, Any, dict[str, Any]]]] = {
    "row": lambda x: (Tensor.__getitem__, (x, 0), {}),
    "last-row": lambda x: (Tensor.__getitem__, (x, -1), {}),
    "column": lambda x: (Tensor.__getitem__, (x, (slice(None), 0)), {}),
    "rows": lambda x: (Tensor.__getitem__, (x, slice(0, 3)), {}),
    "more-dimensions": lambda x: (Tensor.__getitem__, (x, (None, ..., 0)), {}),
    "by-a-list": lambda x: (Tensor.__getitem__, (x, [0, 0]), {}),
    "select": lambda x: (torch.select, (x, 0, 0), {}),
    "unbind": lambda x: (torch.unbind, (x,), {}),
    "method-unbind": lambda x: (Tensor.unbind, (x, -1), {}),
    "stack": lambda x: (torch.stack, ([x] * 9,), {}),
    "stack-behind": lambda x: (torch.stack, ((x, x.clone(), x),), {"dim": -1}),
    "stack-of-two-dtypes": lambda x: (torch.stack, ([x, x.double()],), {}),
    "cat": lambda x: (torch.cat, ([x] * 3,), {"dim": 0}),
    "cat-of-two-dtypes": lambda x: (torch.cat, ([x, x.double()],), {}),
    "cat-of-two-orders": lambda x: (torch.cat, ([x, x.transpose(0, -1).contiguous().transpose(0, -1)], 0), {}),
}


def told(like: Like) -> Any:
    """What is known of a tensor. The stride of a dimension with one element or none says nothing."""
    strides = [None if size < 2 else stride for size, stride in zip(like.shape, like.stride, strict=True)]
    strides = [] if 0 in like.shape else strides
    return like.shape, strides, like.dtype, like.device, like.requires_grad, like.is_leaf, like.kind


def results(call: Any, grad: bool) -> Any:
    func, args, kwargs = call
    with torch.set_grad_enabled(grad):
        try:
            found = func(*args, **kwargs)
        except (RuntimeError, IndexError) as error:
            return type(error)
    return [told(like_of(t)) for t in (found if isinstance(found, tuple | list) else [found])]


class Square(torch.autograd.Function):
    """A function of the program that looks at what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            raise ValueError("too many")
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


CALLS |= {
    "linear": lambda x: (nn.functional.linear, (x, torch.rand(7, x.shape[-1]), torch.rand(7)), {}),
    "transposed-weight": lambda x: (torch.matmul, (x, torch.rand(7, x.shape[-1]).t()), {}),
    "convolution": lambda x: (nn.functional.conv2d, (x, torch.rand(2, x.shape[1], 3, 3)), {"padding": 1}),
    "normed": lambda x: (
        nn.functional.batch_norm,
        (x, torch.zeros(x.shape[1]), torch.ones(x.shape[1]), None, None),
        {},
    ),
    "pooled": lambda x: (nn.functional.max_pool2d, (x, 2), {}),
    "sum": lambda x: (torch.sum, (x, 0), {}),
    "of-a-scalar": lambda x: (Tensor.add, (x, 1), {}),
    "broadcast": lambda x: (Tensor.mul, (x, x[:1]), {}),
    "compared": lambda x: (torch.gt, (x, 0.5), {}),
    "flattened": lambda x: (torch.flatten, (x, 1), {}),
    "viewed": lambda x: (Tensor.view, (x, x.shape[0], -1), {}),
    "another-dtype": lambda x: (Tensor.to, (x, torch.float64), {}),
    "zeros": lambda x: (torch.zeros_like, (x,), {}),
    "new-zeros": lambda x: (Tensor.new_zeros, (x, x.shape), {}),
    "chosen": lambda x: (torch.where, (x > 0, x, torch.zeros_like(x)), {}),
    "sorted": lambda x: (torch.topk, (x, 1), {}),
    "detached": lambda x: (Tensor.detach, (x,), {}),
    "in-place": lambda x: (Tensor.mul_, (x.clone(), 2), {}),
    "own-function": lambda x: (Kinds().applied(Square, ()), (x,), {}),
}


@pytest.mark.parametrize("of", TENSORS)
@pytest.mark.parametrize("name", CALLS)
def test_calls_return_what_their_kinds_say(name: str, of: str) -> None:
    """The first kind is found on fake tensors, and the third, of the same sketch, on tensors without values."""
    for grad in (True, False):
        try:
            call = CALLS[name](TENSORS[of]())
        except (RuntimeError, IndexError, TypeError):
            continue  # it is no call of such a tensor
        wanted = results(call, grad)
        if isinstance(wanted, type) or (name, of) == ("normed", "transposed"):  # PyTorch's fake tensors are wrong there
            continue
        kinds = Kinds()
        for _ in range(3):
            kind = kinds.find(call[0], *CALLS[name](TENSORS[of]())[1:], grad, None, NONE, (None, ""))
            if kind.same is None:
                assert [told(like) for like in kind.likes] == wanted
            else:
                assert kind.same == 0
                assert kind.writes[0] == (name == "in-place")
        assert kind.tells(Kinds().find(*call, grad, None, NONE, (None, "")))


@pytest.mark.parametrize(
    ("func", "dtype", "first", "then"),
    [
        (F.dropout, torch.float32, {"p": 0.0}, {"p": 0.5}),
        (F.dropout, torch.float32, {"p": 1.0}, {"p": 0.5}),
        (F.dropout, torch.float32, {"training": False}, {"inplace": False}),
        (torch.floor_divide, torch.int64, {"other": 2}, {"other": 0}),
    ],
)
def test_arguments_that_are_no_sizes_tell_what_a_call_of_other_sizes_does(
    func: Any, dtype: torch.dtype, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """A dropout of 0 draws nothing, and a division by 2 raises no error."""
    kinds = Kinds()
    for samples, given in ((3, first), (4, first), (5, first), (6, then)):
        x = torch.ones(samples, 3, dtype=dtype)
        kind = kinds.find(func, (x,), given, True, None, NONE, (None, ""))
        assert kind.tells(Kinds().find(func, (x,), given, True, None, NONE, (None, "")))
        assert kind.waits == (given is first)


def test_calls_that_move_elements_of_two_devices_need_their_values() -> None:
    rows = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(Exception, match="stack raises"):
        Kinds().find(torch.stack, (rows,), {}, True, None, NONE, (None, ""))
