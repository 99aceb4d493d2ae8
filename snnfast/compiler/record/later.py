"""Tensors whose values are not computed yet."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snnfast.compiler.graph.nodes import is_view_made_leaf

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
        layout: That of a sparse matrix has the strides of the dense one that stands for it.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_leaf: bool
    kind: Any
    layout: torch.layout = torch.strided

    @property
    def is_fixed(self) -> bool:
        """Whether its sizes follow from no number of steps: it is a parameter, or a sparse matrix."""
        return self.kind is nn.Parameter or self.layout is not torch.strided

    def but(self, **others: Any) -> "Like":
        """With some of it different."""
        return like(*(others.get(f.name, getattr(self, f.name)) for f in fields(self)))


_likes: dict[Any, Like] = {}
_MOST = 10_000
"""So many are known at a time. What is known by one that was forgotten is found again."""


def like(*known: Any) -> Like:
    """The one :class:`Like` of this shape, and so on."""
    found = _likes.get(known)
    if found is None:
        if len(_likes) >= _MOST:
            _likes.clear()
        found = _likes.setdefault(known, Like(*known))
    return found


class Later(Tensor):
    """The result of a recorded call: a tensor without memory.

    When the call has run, the object becomes a plain tensor with the value, wherever the program keeps it.

    Attributes:
        later_address: The number of the call, and of the result among those of the call: see ``AT``.
        later_like: What is known of it.
        later_recorder: The recorder that runs the call.
    """

    later_address: int
    later_like: Like
    later_recorder: Any

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    # What PyTorch would ask the recorder for.
    shape = property(lambda t: torch.Size(t.later_like.shape))
    dtype = property(lambda t: t.later_like.dtype)
    device = property(lambda t: t.later_like.device)
    is_nested = False

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Code that PyTorch's functions don't reach, such as a C++ extension, was handed a tensor: it gets the value.

        Autograd has let the call pass. It must see the calls that were recorded, and this one again.
        """
        recorder = next(a.later_recorder for a in pytree.tree_leaves((args, kwargs)) if type(a) is Later)
        with torch._C._ForceDispatchKeyGuard(*recorder.keys), torch.set_grad_enabled(recorder.grad):
            recorder.flush()
            if any(type(a) is Later for a in pytree.tree_leaves((args, kwargs))):
                raise RuntimeError(f"{func}: a tensor of a recorded call was read after it, where nobody could see it")
            return func(*args, **(kwargs or {}))


_OWN = "later_address", "later_like", "later_recorder"
"""Attributes of a result. The program may set others, of any common name."""


def is_marked(t: Later) -> bool:
    """Whether the program has set attributes of a result."""
    return len(t.__dict__) > len(_OWN)


OPERATORS: dict[str, Any] = {
    "__add__": Tensor.add,
    "__sub__": Tensor.sub,
    "__mul__": Tensor.mul,
    "__truediv__": Tensor.div,
    "__radd__": Tensor.add,
    "__rsub__": Tensor.__rsub__,
    "__rmul__": Tensor.mul,
    "__rtruediv__": Tensor.__rdiv__,
    "__neg__": Tensor.neg,
    "detach": Tensor.detach,
}
"""Methods that hand their calls to the recorder, and the functions that PyTorch tells a mode for them.

PyTorch does so in C++, which takes a microsecond, and in Python for ``1 - x``, which takes two. A loop of neurons that
are written by hand has ten such calls a step.
"""


def _recorded(t: Later, func: Any, usual: Any, args: tuple[Any, ...]) -> Any:
    modes = torch._C._len_torch_function_stack()
    # The program may have kept the method until the tensor was a plain one.
    if modes and type(t) is Later and torch._C._get_function_stack_at(modes - 1) is t.later_recorder:
        found = t.later_recorder.quickly(func, args, torch.is_grad_enabled())
        if found is not None:
            return found
    return usual(*args)


def _method(name: str) -> Any:
    func, usual = OPERATORS[name], getattr(Tensor, name)
    if not name.startswith("__r"):
        return lambda t, *others: _recorded(t, func, usual, (t, *others))
    straight = name.replace("__r", "__")
    straight_func, straight_usual = OPERATORS[straight], getattr(Tensor, straight)

    def method(t: Later, other: Any) -> Any:
        if isinstance(other, Tensor):  # Python asks a tensor of a derived class first, also on the right
            return _recorded(t, straight_func, straight_usual, (other, t))
        return _recorded(t, func, usual, (t, other))

    return method


Later.__name__ = Later.__qualname__ = "Tensor"  # as errors of Python and of the program name it

for _name in OPERATORS:
    setattr(Later, _name, _method(_name))


def later(like: Like, address: int, recorder: Any) -> Later:
    # Autograd would keep one that requires a gradient, so whether it does is not a property of its own.
    made: Later = _make(Later, like.shape, like.stride, dtype=like.dtype, device=like.device)
    made.later_address, made.later_like, made.later_recorder = address, like, recorder
    return made


def become(t: Later, value: Tensor) -> None:
    """Give a tensor its value. ``value`` must be in nobody else's hands: the two exchange their memory."""
    for name in _OWN:
        del t.__dict__[name]
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
    strides = t.stride() if t.layout is torch.strided else torch.empty(t.shape, device="meta").stride()
    return like(tuple(t.shape), strides, t.dtype, t.device, t.requires_grad, t.is_leaf, kind, t.layout)
