"""Tensors whose values are not computed yet."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snnfast.compiler.calls import is_view_made_leaf

AT = 20
"""An address is the number of a call, shifted by so many bits, plus the number of the result."""

LOW = (1 << AT) - 1

_make = Tensor._make_wrapper_subclass


@dataclass(frozen=True, slots=True, eq=False)
class Like:
    """A tensor without its values, as far as it is known. There is one object for all that are equal.

    Attributes:
        kind: ``nn.Parameter``; ``"inference"`` for a tensor that was made in inference mode; ``"view"`` for a leaf with
            a gradient that is a view of a tensor without one.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_leaf: bool
    kind: Any

    def but(self, **others: Any) -> "Like":
        """With some of it different."""
        return like(*(others.get(f.name, getattr(self, f.name)) for f in fields(self)))


_likes: dict[Any, Like] = {}


def like(*known: Any) -> Like:
    """The one :class:`Like` of this shape, and so on."""
    return _likes.get(known) or _likes.setdefault(known, Like(*known))


class Later(Tensor):
    """The result of a recorded call: a tensor without memory.

    When the call has run, the object becomes a plain tensor with the value, wherever the program keeps it.

    Attributes:
        address: The number of the call, and of the result among those of the call: see ``AT``.
        like: What is known of it.
        recorder: The recorder that runs the call.
    """

    address: int
    like: Like
    recorder: Any

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Code that PyTorch's functions don't reach, such as a C++ extension, was handed a tensor: it gets the value.

        Autograd has let the call pass. It must see the calls that were recorded, and this one again.
        """
        recorder = next(a.recorder for a in pytree.tree_leaves((args, kwargs)) if type(a) is Later)
        with torch._C._ForceDispatchKeyGuard(*recorder.keys), torch.set_grad_enabled(recorder.grad):
            recorder.flush()
            if any(type(a) is Later for a in pytree.tree_leaves((args, kwargs))):
                raise RuntimeError(f"{func}: a tensor of a recorded call was read after it, where nobody could see it")
            return func(*args, **(kwargs or {}))


def later(like: Like, address: int, recorder: Any) -> Later:
    # Autograd would keep one that requires a gradient, so whether it does is not a property of its own.
    made: Later = _make(Later, like.shape, like.stride, dtype=like.dtype, device=like.device)
    made.address, made.like, made.recorder = address, like, recorder
    return made


def become(t: Later, value: Tensor) -> None:
    """Give a tensor its value. ``value`` must be in nobody else's hands: the two exchange their memory."""
    t.__dict__.clear()
    t.__class__ = type(value)  # type: ignore[assignment]
    try:
        torch._C._swap_tensor_impl(t, value)
    except RuntimeError:  # A profiler that records shapes holds what a call was given. Nobody holds a new view.
        torch._C._swap_tensor_impl(t, value.view_as(value))


def like_of(t: Tensor) -> Like:
    kind: Any = nn.Parameter if isinstance(t, nn.Parameter) else Tensor
    if t.is_inference():
        kind = "inference"
    elif is_view_made_leaf(t):
        kind = "view"
    return like(tuple(t.shape), t.stride(), t.dtype, t.device, t.requires_grad, t.is_leaf, kind)
