"""Rules by operator: how one call on all time steps ``[T, *]`` is written.

A rule takes a :class:`Site` and returns the node of the merged call, or ``None`` where it does not fit. A call without
a rule goes through ``torch.vmap``, which is right as well but slower to call. Only the shape and dtype of a rule's
result are checked: a rule must be right about the numbers. ``docs/adding-a-rule.md`` tells how to add one.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._loop.nodes import argument, value
from snnfast._losses import cross_entropy_over_time


@dataclass
class Site:
    """A call that the loop makes once per time step, and its arguments in the new graph.

    Args:
        call: Appends a call to the graph and returns its node.
        step: The call at the first step, in the old graph.
        args, kwargs: Arguments, in the new graph: ``[T, *]`` where they vary with time, else ``[*]``.
        varies: The nodes among them that have time in front.
        steps: T.
    """

    call: Callable[..., Node]
    step: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    varies: set[Node]
    steps: int

    def again(self, *args: Any) -> Node:
        """The same call with other positional arguments."""
        return self.call(self.step.target, *args, **self.kwargs)

    def only_first_varies(self) -> bool:
        given = [a for a in (*self.args[1:], *self.kwargs.values()) if isinstance(a, Node)]
        return bool(self.args) and self.args[0] in self.varies and not any(a in self.varies for a in given)

    def rank(self, of: Any) -> int:
        """Dimensions of one step of an argument."""
        found = value(of)
        return found.dim() - (of in self.varies) if isinstance(found, Tensor) else 0


class UnmergedError(Exception):
    """Raised by a rule where ``torch.vmap`` would not be right either. The message is the reason."""


Rule = Callable[[Site], Node | None]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return enter


def everywhere(*names: str) -> list[Any]:
    """A name as a method, as a function of torch and of ``torch.nn.functional``, and as an operator."""
    places = (torch, F, operator, torch._C._nn)
    return [*names, *(getattr(place, name) for name in names for place in places if hasattr(place, name))]


# ---- element by element: time is one more dimension in front


@rule(
    *everywhere(
        "abs", "add", "bool", "ceil", "clamp", "clamp_max", "clamp_min", "clone", "cos", "detach", "div", "double",
        "elu", "eq", "exp", "float", "floor", "ge", "gelu", "gt", "half", "bfloat16", "hardsigmoid", "hardswish",
        "hardtanh", "int", "le", "leaky_relu", "lerp", "log", "log1p", "logical_and", "logical_not", "logical_or",
        "logsigmoid", "long", "lt", "masked_fill", "maximum", "minimum", "mish", "mul", "ne", "neg", "pow",
        "reciprocal", "relu", "relu6", "round", "rsqrt", "rsub", "selu", "sigmoid", "sign", "silu", "sin", "softplus",
        "softsign", "sqrt", "square", "sub", "tanh", "to", "true_divide", "truediv", "type", "type_as", "where",
        "dropout", "alpha_dropout", "zeros_like", "ones_like", "contiguous",
    )
)  # fmt: skip
def element_wise(site: Site) -> Node | None:
    """An argument with fewer dimensions than the result gets more of them behind the time. A constant needs none."""
    found = value(site.step)
    if not isinstance(found, Tensor):
        return None

    def aligned(a: Any) -> Any:
        for _ in range(found.dim() - site.rank(a) if a in site.varies else 0):
            a = site.call("unsqueeze", a, 1)
        return a

    args, kwargs = tuple(map(aligned, site.args)), {k: aligned(v) for k, v in site.kwargs.items()}
    return site.call(site.step.target, *args, **kwargs)


# ---- a large batch: [T, B, *] -> [T * B, *]


def _folded(site: Site) -> Node | None:
    batch = site.call("flatten", site.args[0], 0, 1)
    result = site.again(batch, *site.args[1:])
    return site.call("unflatten", result, 0, (site.steps, -1))


@rule(*everywhere("linear"), *everywhere("embedding", "group_norm", "pixel_shuffle", "channel_shuffle"))
def with_batch(site: Site) -> Node | None:
    """Calls that take ``[B, *]`` and do the same for each of B."""
    if not site.only_first_varies():
        return None
    return _folded(site) if site.rank(site.args[0]) > 1 else site.again(*site.args)


@rule(
    *everywhere(
        *(f"{name}{n}d" for n in (1, 2, 3) for name in (
            "conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
        )),
    )
)  # fmt: skip
def with_image(site: Site) -> Node | None:
    """Calls that take ``[B, C, *]``, or ``[C, *]`` without a batch. Time then becomes the batch."""
    if not site.only_first_varies():
        return None
    name = getattr(site.step.target, "__name__", "")
    dims = next((int(c) for c in name if c.isdigit()), 0)
    batched = site.rank(site.args[0]) == dims + 2
    return _folded(site) if batched else site.again(*site.args)


@rule(*everywhere("interpolate", "upsample", "dropout1d", "dropout2d", "dropout3d"))
def batch_of_images(site: Site) -> Node | None:
    """Calls that always take ``[B, C, *]``."""
    return _folded(site) if site.only_first_varies() and site.rank(site.args[0]) > 2 else None


@rule(*everywhere("batch_norm"))
def batch_norm(site: Site) -> Node | None:
    """Batch normalisation with fixed statistics. With those of a batch, each step has its own."""
    if argument(site.step, "training", 5) or not site.only_first_varies() or site.rank(site.args[0]) < 2:
        return None
    return _folded(site)


@rule(*everywhere("layer_norm", "rms_norm", "pad"))
def last_dimensions(site: Site) -> Node | None:
    """Calls that look at the last dimensions only."""
    return site.again(*site.args) if site.only_first_varies() else None


@rule(*everywhere("matmul"))
def matmul(site: Site) -> Node | None:
    a, b = site.args
    if b not in site.varies and site.rank(b) == 2 and site.rank(a) > 1:
        return _folded(site) if site.rank(a) == 2 else site.again(a, b)
    both = a in site.varies and b in site.varies and site.rank(a) == site.rank(b) > 1
    return site.again(a, b) if both else None


@rule(F.scaled_dot_product_attention)
def attention(site: Site) -> Node | None:
    """Attention on ``[B, heads, L, E]``, with one mask for all steps or none."""
    mask = argument(site.step, "attn_mask", 3)
    given = site.args[:3]
    if len(given) < 3 or mask is not None or any(a not in site.varies or site.rank(a) != 4 for a in given):
        return None
    result = site.again(*(site.call("flatten", a, 0, 1) for a in given), *site.args[3:])
    return site.call("unflatten", result, 0, (site.steps, -1))


# ---- shapes


@rule(*everywhere("view", "reshape"))
def reshaped(site: Site) -> Node | None:
    shape = site.args[1:] or (site.kwargs.get("shape"),)
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if not site.only_first_varies() or not all(isinstance(n, int | Node) for n in shape):
        return None
    return site.call("reshape", site.args[0], (site.steps, *shape))


def _later(dim: Any) -> Any:
    return dim + 1 if isinstance(dim, int) and dim >= 0 else dim


@rule(*everywhere("flatten"))
def flattened(site: Site) -> Node | None:
    start, end = argument(site.step, "start_dim", 1), argument(site.step, "end_dim", 2)
    if not site.only_first_varies() or site.rank(site.args[0]) == 0:
        return None
    return site.call("flatten", site.args[0], _later(0 if start is None else start), _later(-1 if end is None else end))


@rule(*everywhere("transpose", "unsqueeze", "softmax", "log_softmax", "select", "squeeze", "movedim", "swapaxes"))
def dimensions(site: Site) -> Node | None:
    """Calls that take the numbers of all dimensions."""
    if not site.only_first_varies() or not _has_dims(site):
        return None
    if site.step.target in ("select", torch.select):
        return site.again(site.args[0], _later(site.args[1]), *site.args[2:])
    kwargs = {k: _later(v) if "dim" in k else v for k, v in site.kwargs.items()}
    rest = site.args[1:] if site.step.target in (F.softmax, F.log_softmax) else ()
    args = (_later(rest[0]), *rest[1:]) if rest else tuple(map(_later, site.args[1:]))
    return site.call(site.step.target, site.args[0], *args, **kwargs)


@rule(*everywhere("sum", "mean", "amax", "amin", "logsumexp"))
def reduced(site: Site) -> Node | None:
    """Calls that reduce over dimensions. Without any, they reduce over all of a step."""
    if not site.only_first_varies():
        return None
    dims = site.args[1] if len(site.args) > 1 else site.kwargs.get("dim")
    if dims is None:
        rank = site.rank(site.args[0])
        dims = list(range(1, rank + 1))
        if not dims:
            return None
    else:
        dims = [_later(d) for d in (dims if isinstance(dims, tuple | list) else (dims,))]
        if not all(isinstance(d, int) for d in dims):
            return None
    kwargs = {k: v for k, v in site.kwargs.items() if k != "dim"}
    return site.call(site.step.target, site.args[0], dims, *site.args[2:], **kwargs)


@rule(*everywhere("max", "min", "median"))
def extreme(site: Site) -> Node | None:
    """The maximum or minimum of a whole step. Equal elements, such as spikes, share its gradient. Not so under vmap."""
    if len(site.args) > 1 or site.kwargs or not site.varies.issuperset(site.args):
        return None
    name = str(getattr(site.step.target, "__name__", site.step.target))
    if name == "median":
        raise UnmergedError("torch.vmap gives another gradient where elements are equal")
    return site.call(f"a{name}", site.args[0], list(range(1, site.rank(site.args[0]) + 1)))


@rule("permute", torch.permute)
def permuted(site: Site) -> Node | None:
    dims = site.args[1:]
    if len(dims) == 1 and isinstance(dims[0], tuple | list):
        dims = tuple(dims[0])
    if not site.only_first_varies() or not all(isinstance(d, int) for d in dims):
        return None
    rank = site.rank(site.args[0])
    return site.call("permute", site.args[0], (0, *(d % rank + 1 for d in dims)))


@rule(operator.getitem)
def indexed(site: Site) -> Node | None:
    base, index = site.args
    if base not in site.varies:
        return None
    if not isinstance(value(base), Tensor):  # one of several results
        return site.call(operator.getitem, base, index)
    index = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in index):
        return None
    return site.call(operator.getitem, base, (slice(None), *index))


@rule(torch.cat, torch.concat, torch.concatenate)
def joined(site: Site) -> Node | None:
    tensors, dim = site.args[0], argument(site.step, "dim", 1) or 0
    if not all(t in site.varies for t in tensors) or not isinstance(dim, int):
        return None
    return site.call(torch.cat, list(tensors), _later(dim))


def _has_dims(site: Site) -> bool:
    given = (*site.args[1:], *(v for k, v in site.kwargs.items() if "dim" in k))
    return any(isinstance(d, int) for d in given) and site.rank(site.args[0]) > 0


# ---- losses


@rule(F.cross_entropy)
def cross_entropy(site: Site) -> Node | None:
    """Cross-entropy with class indices: the mean over ``[B]`` at each step, from ``[T, B, C]`` in one call."""
    logits, targets = site.args[0], site.args[1] if len(site.args) > 1 else site.kwargs.get("target")
    names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    weight, size_average, ignored, reduces, reduction, smoothing = (
        argument(site.step, name, 2 + i) for i, name in enumerate(names)
    )
    ignored, reduction = -100 if ignored is None else ignored, reduction or "mean"
    if (
        not isinstance(targets, Node)
        or targets in site.varies
        or value(targets).dim() != 1
        or logits not in site.varies
        or site.rank(logits) != 2
        or reduction not in ("mean", "sum")
    ):
        return None
    if weight is not None or size_average is not None or reduces is not None or value(targets).is_floating_point():
        return None
    options = {"ignore_index": ignored, "label_smoothing": smoothing or 0.0, "reduction": "none"}
    losses = site.call(cross_entropy_over_time, logits, targets, **options)
    if reduction == "mean":  # divided first: a sum of many could be too large for float16
        losses = site.call(operator.truediv, losses, site.call("sum", site.call(operator.ne, targets, ignored)))
    return site.call("sum", losses, 1)


@rule(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits)
def mean_of_each(site: Site) -> Node | None:
    """Losses that are a mean, or a sum, over all elements of a step."""
    reduction = argument(site.step, "reduction") or "mean"
    found, wanted = site.args[0], site.args[1] if len(site.args) > 1 else site.kwargs.get("target")
    plain = not any(
        argument(site.step, name) is not None for name in ("size_average", "reduce", "weight", "pos_weight")
    )
    if not plain or reduction not in ("mean", "sum") or found not in site.varies or not isinstance(wanted, Node):
        return None
    if value(wanted).shape[wanted in site.varies :] != value(found).shape[1:]:
        return None  # a broadcast, of which PyTorch warns
    if wanted not in site.varies:
        wanted = site.call("expand_as", wanted, found)
    kwargs = {k: v for k, v in site.kwargs.items() if k not in ("reduction", "target")}
    rest = site.args[2:] if site.step.target not in (F.mse_loss, F.l1_loss) else ()
    each = site.call(site.step.target, found, wanted, *rest, **kwargs, reduction="none")
    return site.call(reduction, each, list(range(1, value(each).dim())))


# ---- everything else


def by_vmap(site: Site) -> Node:
    """The call as a function that ``torch.vmap`` maps over time."""
    leaves, spec = pytree.tree_flatten((site.args, site.kwargs))
    places = [i for i, a in enumerate(leaves) if isinstance(a, Node)]
    nodes = [leaves[i] for i in places]
    dims = tuple(0 if n in site.varies else None for n in nodes)
    functorch: Any = torch._C._functorch
    loops = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)  # a loop over time in vmap is no gain, and it warns
    try:
        return site.call(_mapped(site.step.target, leaves, places, spec, dims), *nodes)
    finally:
        functorch._set_vmap_fallback_enabled(loops)


def _mapped(target: Any, leaves: list[Any], places: list[int], spec: Any, dims: tuple[Any, ...]) -> Callable[..., Any]:
    fixed = [None if isinstance(a, Node) else a for a in leaves]

    def step(*tensors: Any) -> Any:
        filled = list(fixed)
        for i, t in zip(places, tensors, strict=True):
            filled[i] = t
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    def over_time(*tensors: Any) -> Any:
        return torch.vmap(step, in_dims=dims, randomness="different")(*tensors)

    return over_time
