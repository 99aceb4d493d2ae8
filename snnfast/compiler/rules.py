"""Rules by operator: how one call on all time steps ``[T, *]`` is written.

A rule takes a :class:`Site` and returns the node of the merged call, or ``None`` where it does not fit. A call without
a rule goes through ``torch.vmap``, which is right as well but slower to call. Only the shape and dtype of a rule's
result are checked: a rule must be right about the numbers. ``docs/adding-a-rule.md`` tells how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.nodes import aten, is_pointwise, name_of, spelled, value
from snnfast.losses.base import cross_entropy_over_time


@dataclass
class Site:
    """A call that the loop makes once per time step, and its arguments in the new graph.

    Args:
        call: Appends a call to the graph and returns its node.
        step: The ATen call at the first step, in the old graph.
        given: The arguments of the schema by their names, in the new graph: ``[T, *]`` where they vary with time, else
            ``[*]``. Those that the loop leaves out have their defaults.
        varies: The nodes among them that have time in front.
        steps: T.
    """

    call: Callable[..., Node]
    step: Node
    given: dict[str, Any]
    varies: set[Node]
    steps: int

    @property
    def first(self) -> Any:
        """The first argument of the schema: of nearly every operator, the tensor that it works on."""
        return next(iter(self.given.values()), None)

    def again(self, /, **changes: Any) -> Node:
        """The same call with some arguments changed."""
        args, kwargs = spelled(self.step.target, self.given | changes)  # type: ignore[arg-type]
        return self.call(self.step.target, *args, **kwargs)

    def on(self, first: Any, /, **changes: Any) -> Node:
        """The same call on another first argument."""
        return self.again(**{next(iter(self.given)): first}, **changes)

    def only_first_varies(self) -> bool:
        others = list(self.given.values())[1:]
        return self.first in self.varies and not any(a in self.varies for a in _nodes(others))

    def rank(self, of: Any) -> int:
        """Dimensions of one step of an argument."""
        found = value(of)
        return found.dim() - (of in self.varies) if isinstance(found, Tensor) else 0


class UnmergedError(Exception):
    """Raised by a rule where ``torch.vmap`` would not be right either. The message is the reason."""


Rule = Callable[[Site], Node | None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for ATen operators with these names, whatever their overload."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator. Those that PyTorch tags as pointwise share one."""
    return RULES.get(name_of(target)) or (element_wise if is_pointwise(target) else None)


def _nodes(tree: Any) -> list[Node]:
    return [a for a in pytree.tree_leaves(tree) if isinstance(a, Node)]


# ---- element by element: time is one more dimension in front


@rule(
    "to", "detach", "contiguous", "type_as", "hardswish", "log_sigmoid", "dropout", "alpha_dropout", "bernoulli",
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
)  # fmt: skip
def element_wise(site: Site) -> Node | None:
    """An argument with fewer dimensions than the result gets more of them behind the time. A constant needs none."""
    found = value(site.step)
    if not isinstance(found, Tensor) or site.given.get("memory_format") is torch.channels_last:
        return None
    given = _nodes(site.given)
    numbers = [a for a in given if a in site.varies and site.rank(a) == 0]
    if any(value(a).dtype != value(b).dtype for a in numbers for b in given if site.rank(b) > 0):
        # It would count as a tensor with dimensions, which decides on the dtype of the arithmetic.
        raise UnmergedError("a tensor without dimensions has another dtype")

    def aligned(a: Any) -> Any:
        for _ in range(found.dim() - site.rank(a) if a in site.varies else 0):
            a = site.call(aten.unsqueeze.default, a, 1)
        return a

    return site.again(**pytree.tree_map_only(Node, aligned, site.given))


# ---- a large batch: [T, B, *] -> [T * B, *]


def _folded(site: Site) -> Node | None:
    result = site.on(site.call(aten.flatten.using_ints, site.first, 0, 1))
    return site.call(aten.unflatten.int, result, 0, (site.steps, -1))


@rule("linear", "group_norm", "pixel_shuffle", "channel_shuffle", "mm")
def with_batch(site: Site) -> Node | None:
    """Calls that take ``[B, *]`` and do the same for each of B."""
    if not site.only_first_varies():
        return None
    return _folded(site) if site.rank(site.first) > 1 else site.again()


@rule("embedding")
def embedding(site: Site) -> Node | None:
    if site.given["scale_grad_by_freq"]:
        raise UnmergedError("scale_grad_by_freq counts the indices of each step")
    if site.first not in site.varies:
        return site.again()
    if site.given["padding_idx"] >= 0:
        raise UnmergedError("torch.vmap gives another gradient at padding_idx")
    return None


@rule("select_scatter")
def select_scatter(site: Site) -> Node | None:
    raise UnmergedError("torch.vmap gives another gradient")


@rule(
    *(f"{name}{n}d" for n in (1, 2, 3) for name in (
        "conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool",
    )),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
)  # fmt: skip
def with_image(site: Site) -> Node | None:
    """Calls that take ``[B, C, *]``, or ``[C, *]`` without a batch. Time then becomes the batch."""
    if not site.only_first_varies() or not isinstance(value(site.step), Tensor):
        return None
    dims = next(int(c) for c in name_of(site.step.target) if c.isdigit())
    return _folded(site) if site.rank(site.first) == dims + 2 else site.again()


@rule(
    "feature_dropout", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
)  # fmt: skip
def batch_of_images(site: Site) -> Node | None:
    """Calls that always take ``[B, C, *]``."""
    return _folded(site) if site.only_first_varies() and site.rank(site.first) > 1 else None


@rule("batch_norm")
def batch_norm(site: Site) -> Node | None:
    """Batch normalisation with fixed statistics. With those of a batch, each step has its own."""
    if site.given["training"] or not site.only_first_varies() or site.rank(site.first) < 2:
        return None
    return _folded(site)


@rule("layer_norm", "rms_norm", "pad")
def last_dimensions(site: Site) -> Node | None:
    """Calls that look at the last dimensions only."""
    return site.again() if site.only_first_varies() else None


@rule("matmul")
def matmul(site: Site) -> Node | None:
    a, b = site.given.values()
    if b not in site.varies and site.rank(b) == 2 and site.rank(a) > 1:
        return _folded(site) if site.rank(a) == 2 else site.again()
    both = a in site.varies and b in site.varies and site.rank(a) == site.rank(b) > 1
    return site.again() if both else None


@rule("scaled_dot_product_attention")
def attention(site: Site) -> Node | None:
    """Attention on ``[B, heads, L, E]``, with one mask for all steps or none."""
    names = ("query", "key", "value")
    given = [site.given[name] for name in names]
    if site.given["attn_mask"] is not None or any(a not in site.varies or site.rank(a) != 4 for a in given):
        return None
    flat = {name: site.call(aten.flatten.using_ints, a, 0, 1) for name, a in zip(names, given, strict=True)}
    return site.call(aten.unflatten.int, site.again(**flat), 0, (site.steps, -1))


# ---- shapes


@rule("view", "reshape", "_unsafe_view")
def reshaped(site: Site) -> Node | None:
    shape = site.given.get("size", site.given.get("shape"))
    if not site.only_first_varies() or shape is None:
        return None
    return site.call(aten.reshape.default, site.first, (site.steps, *shape))


_DIMS = ("dim", "dims", "dim0", "dim1", "axis0", "axis1", "source", "destination", "start_dim", "end_dim")


def _later(dim: Any) -> Any:
    if isinstance(dim, list | tuple):
        return [_later(d) for d in dim]
    return dim + 1 if isinstance(dim, int) and dim >= 0 else dim


@rule(
    "transpose", "unsqueeze", "softmax", "log_softmax", "select", "slice", "squeeze", "movedim", "swapaxes", "flatten",
    "unflatten", "narrow", "flip", "cumsum", "cumprod", "sum", "mean", "amax", "amin", "logsumexp",
)  # fmt: skip
def dimensions(site: Site) -> Node | None:
    """Calls that take numbers of dimensions. A reduction without any is over all of a step."""
    if not site.only_first_varies():
        return None
    rank, given = site.rank(site.first), {n: d for n, d in site.given.items() if n in _DIMS}
    if rank == 0:
        return None
    over_all = name_of(site.step.target) in ("sum", "mean", "amax", "amin") and given.get("dim") in (None, [], ())
    if over_all:
        names = {
            "sum": aten.sum.dim_IntList, "mean": aten.mean.dim, "amax": aten.amax.default, "amin": aten.amin.default,
        }  # fmt: skip
        rest = {n: a for n, a in site.given.items() if n not in ("self", "dim")}
        target = names[name_of(site.step.target)]
        return site.call(target, site.first, list(range(1, rank + 1)), **rest)
    return site.again(**{n: _later(d) for n, d in given.items()}) if given else None


@rule("max", "min", "median", "nanmedian")
def extreme(site: Site) -> Node | None:
    """The maximum or minimum of a whole step. Equal elements, such as spikes, share its gradient. Not so under vmap."""
    if len(site.given) > 1:
        return element_wise(site) if is_pointwise(site.step.target) else None
    name = name_of(site.step.target)
    if name.endswith("median"):
        raise UnmergedError("torch.vmap gives another gradient where elements are equal")
    dims = list(range(1, site.rank(site.first) + 1))
    return site.call(aten.amax.default if name == "max" else aten.amin.default, site.first, dims)


@rule("permute")
def permuted(site: Site) -> Node | None:
    rank = site.rank(site.first)
    dims = [0, *(d % rank + 1 for d in site.given["dims"])]
    return site.again(dims=dims) if site.only_first_varies() else None


@rule("cat", "concat", "concatenate", "stack")
def joined(site: Site) -> Node | None:
    every = all(t in site.varies for t in site.first)
    return site.again(dim=_later(site.given["dim"])) if every else None


# ---- losses

_NONE, _MEAN, _SUM = 0, 1, 2  # of the argument "reduction"


@rule("cross_entropy_loss")
def cross_entropy(site: Site) -> Node | None:
    """Cross-entropy with class indices: the mean over ``[B]`` at each step, from ``[T, B, C]`` in one call."""
    logits, targets, weight, reduction, ignored, smoothing = site.given.values()
    if (
        not isinstance(targets, Node)
        or targets in site.varies
        or value(targets).dim() != 1
        or logits not in site.varies
        or site.rank(logits) != 2
        or reduction == _NONE
        or weight is not None
        or value(targets).is_floating_point()
    ):
        return None
    options = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": "none"}
    losses = site.call(cross_entropy_over_time, logits, targets, **options)
    if reduction == _MEAN:  # divided first: a sum of many could be too large for float16
        counted = site.call(aten.sum.default, site.call(aten.ne.Scalar, targets, ignored))
        losses = site.call(aten.div.Tensor, losses, counted)
    return site.call(aten.sum.dim_IntList, losses, [1])


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
def mean_of_each(site: Site) -> Node | None:
    """Losses that are a mean, or a sum, over all elements of a step."""
    found, wanted, reduction = site.first, site.given["target"], site.given["reduction"]
    if (
        any(site.given.get(name) is not None for name in ("weight", "pos_weight"))
        or reduction == _NONE
        or found not in site.varies
        or value(wanted).shape[wanted in site.varies :] != value(found).shape[1:]  # a broadcast, of which PyTorch warns
    ):
        return None
    if wanted not in site.varies:
        wanted = site.call(aten.expand_as.default, wanted, found)
    each = site.again(target=wanted, reduction=_NONE)
    over = aten.mean.dim if reduction == _MEAN else aten.sum.dim_IntList
    return site.call(over, each, list(range(1, value(each).dim())))


# ---- everything else


def by_vmap(call: Callable[..., Node], target: Any, args: Any, kwargs: Any, varies: set[Node]) -> Node:
    """The call as a function that ``torch.vmap`` maps over time."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, a in enumerate(leaves) if isinstance(a, Node)]
    nodes = [leaves[i] for i in places]
    dims = tuple(0 if n in varies else None for n in nodes)
    functorch: Any = torch._C._functorch
    loops = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)  # a loop over time in vmap is no gain, and it warns
    try:
        return call(_mapped(target, leaves, places, spec, dims), *nodes)
    finally:
        functorch._set_vmap_fallback_enabled(loops)


def _mapped(target: Any, leaves: list[Any], places: list[int], spec: Any, dims: tuple[Any, ...]) -> Callable[..., Any]:
    fixed = [None if isinstance(a, Node) else a for a in leaves]

    def step(*tensors: Any) -> Any:
        filled = list(fixed)
        for i, t in zip(places, tensors, strict=True):
            filled[i] = t
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    def over_time(*tensors: Any) -> Any:
        return torch.vmap(step, in_dims=dims, randomness="different")(*tensors)

    return over_time
