"""Rules by operator: how one call on all time steps ``[T, *]`` is written.

A rule takes a :class:`StepCall` and returns the node of the merged call, or ``None`` where it does not fit. A call
without a rule is traced through ``torch.vmap``: rules are for what vmap gets wrong or makes slow. Only the shape and
dtype of a rule's result are checked: a rule must be right about the numbers. ``docs/compiler.md`` tells how to add
one.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node, map_arg
from torch.utils import _pytree as pytree

from snnfast._images.batch_norm import batch_norm as batch_norm_over_time
from snnfast._images.batch_norm import batch_norm_of_constant
from snnfast.compiler.emit.writer import Writer
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.nodes import (
    aten,
    has_effect,
    is_pointwise,
    literal,
    name_of,
    spelled,
    step_of_constant,
    value,
)
from snnfast.compiler.record.sparse import sparse_mm_over_time
from snnfast.losses.base import cross_entropy_over_time


@dataclass
class StepCall:
    """A call that the loop makes once per time step, and its arguments in the new graph.

    Args:
        emit: Appends a call to the graph and returns its node.
        node: The ATen call at the first step, in the old graph.
        given: The arguments of the schema by their names, in the new graph: ``[T, *]`` where they vary with time, else
            ``[*]``. Those that the loop leaves out have their defaults.
        varies: The nodes among them that have time in front.
        steps: T.
    """

    emit: Callable[..., Node]
    node: Node
    given: dict[str, Any]
    varies: set[Node]
    steps: int

    @property
    def first(self) -> Any:
        """The first argument of the schema: of nearly every operator, the tensor that it works on."""
        return next(iter(self.given.values()), None)

    def again(self, /, **changes: Any) -> Node:
        """Repeat the call with some arguments changed."""
        args, kwargs = spelled(self.node.target, self.given | changes)  # type: ignore[arg-type]
        return self.emit(self.node.target, *args, **kwargs)

    def only_first_varies(self) -> bool:
        others = list(self.given.values())[1:]
        return self.first in self.varies and not any(a in self.varies for a in _nodes(others))

    def rank(self, of: Any) -> int:
        """Dimensions of one step of an argument."""
        found = value(of)
        return found.dim() - (of in self.varies) if isinstance(found, Tensor) else 0


Rule = Callable[[StepCall], Node | None]
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
    if not isinstance(target, OpOverload):
        return None
    return RULES.get(name_of(target)) or (element_wise if is_pointwise(target) else None)


def _nodes(tree: Any) -> list[Node]:
    return [a for a in pytree.tree_leaves(tree) if isinstance(a, Node)]


# ---- element by element: time is one more dimension in front


@rule(
    "to", "detach", "contiguous", "type_as", "hardswish", "log_sigmoid", "dropout", "alpha_dropout", "bernoulli",
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "complex", "polar",
)  # fmt: skip
def element_wise(step: StepCall) -> Node | None:
    """An argument with fewer dimensions than the result gets more of them behind the time. A constant needs none."""
    found = value(step.node)
    if not isinstance(found, Tensor) or step.given.get("memory_format") is torch.channels_last:
        return None
    given = _nodes(step.given)
    numbers = [a for a in given if a in step.varies and step.rank(a) == 0]
    if any(value(a).dtype != value(b).dtype for a in numbers for b in given if step.rank(b) > 0):
        # With time it has a dimension, and would take part in the promotion of dtypes.
        raise UnmergedError("a tensor without dimensions has another dtype")

    def aligned(a: Any) -> Any:
        for _ in range(found.dim() - step.rank(a) if a in step.varies else 0):
            a = step.emit(aten.unsqueeze.default, a, 1)
        return a

    return step.again(**pytree.tree_map_only(Node, aligned, step.given))


# ---- a large batch: [T, B, *] -> [T * B, *]


def _folded(step: StepCall, *names: str) -> Node:
    """The call on arguments whose time is a part of the batch: on those of these names, or on the first one."""
    names = names or (next(iter(step.given)),)
    flat = {name: step.emit(aten.flatten.using_ints, step.given[name], 0, 1) for name in names}
    return step.emit(aten.unflatten.int, step.again(**flat), 0, (step.steps, -1))


@rule("linear")
def linear(step: StepCall) -> Node | None:
    """With a bias, PyTorch folds a contiguous ``[T, B, *]`` itself: one call does what else takes three."""
    folds = step.given["bias"] is not None and step.first in step.varies and value(step.first).is_contiguous()
    return step.again() if folds and step.only_first_varies() else with_batch(step)


@rule("group_norm", "pixel_shuffle", "channel_shuffle", "mm")
def with_batch(step: StepCall) -> Node | None:
    """Calls that take ``[B, *]`` and do the same for each of B."""
    if not step.only_first_varies():
        return None
    return _folded(step) if step.rank(step.first) > 1 else step.again()


@rule("embedding")
def embedding(step: StepCall) -> Node | None:
    if step.given["scale_grad_by_freq"]:
        raise UnmergedError("scale_grad_by_freq counts the indices of each step")
    if step.first not in step.varies:
        return step.again()
    if step.given["padding_idx"] >= 0:
        raise UnmergedError("torch.vmap gives another gradient at padding_idx")
    return None


@rule("select_scatter")
def select_scatter(step: StepCall) -> Node | None:
    raise UnmergedError("torch.vmap gives another gradient")


@rule(
    *(f"{name}{n}d" for n in (1, 2, 3) for name in (
        "conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool",
    )),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
)  # fmt: skip
def with_image(step: StepCall) -> Node | None:
    """Calls that take ``[B, C, *]``, or ``[C, *]`` without a batch. Time then becomes the batch."""
    if not step.only_first_varies() or not isinstance(value(step.node), Tensor):
        return None
    dims = next(int(c) for c in name_of(step.node.target) if c.isdigit())
    return _folded(step) if step.rank(step.first) == dims + 2 else step.again()


@rule(
    "feature_dropout", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
)  # fmt: skip
def batch_of_images(step: StepCall) -> Node | None:
    """Calls that always take ``[B, C, *]``."""
    return _folded(step) if step.only_first_varies() and step.rank(step.first) > 1 else None


@rule("batch_norm")
def batch_norm(step: StepCall) -> Node | None:
    """With fixed statistics, time becomes the batch. In training, each step has its own statistics."""
    if not step.given["training"]:
        return _folded(step) if step.only_first_varies() and step.rank(step.first) > 1 else None
    running = [step.given[name] for name in ("running_mean", "running_var")]
    if any(isinstance(every, list) and len(set(every)) < len(every) for every in running):
        raise UnmergedError("some steps share their running averages")
    x, weight, bias = (step.given[name] for name in ("input", "weight", "bias"))
    others = weight, bias, *running, step.given["momentum"], step.given["eps"]
    if x not in step.varies:
        x = step.emit(aten.expand.default, x, (step.steps, *(-1,) * value(x).dim()))
    repeated = None if weight in step.varies or bias in step.varies else step_of_constant(x)
    if repeated is None:
        return step.emit(batch_norm_over_time, x, *others)
    found = step.emit(batch_norm_of_constant, repeated, *others, step.steps)
    return step.emit(aten.expand.default, found, (step.steps, *(-1,) * value(found).dim()))


@rule("layer_norm", "rms_norm", "pad", "real", "imag", "view_as_real", "view_as_complex")
def last_dimensions(step: StepCall) -> Node | None:
    """Calls that look at the last dimensions only."""
    return step.again() if step.only_first_varies() else None


@rule("matmul")
def matmul(step: StepCall) -> Node | None:
    a, b = step.given.values()
    if b not in step.varies and step.rank(b) == 2 and step.rank(a) > 1:
        return _folded(step) if step.rank(a) == 2 else step.again()
    both = a in step.varies and b in step.varies and step.rank(a) == step.rank(b) > 1
    return step.again() if both else None


@rule("bmm")
def products(step: StepCall) -> Node | None:
    """Products of matrices, one for each of B."""
    return _folded(step, *step.given) if all(a in step.varies for a in step.given.values()) else None


@rule("snnfast.sparse_mm")
def sparse_product(step: StepCall) -> Node | None:
    """A sparse matrix times the results of each step."""
    x = step.given["x"]
    if step.first in step.varies or x not in step.varies:
        raise UnmergedError("another sparse matrix at each step")
    return step.emit(sparse_mm_over_time, step.first, x, step.given["sparse_gradient"])


@rule("scaled_dot_product_attention")
def attention(step: StepCall) -> Node | None:
    """Attention on ``[B, heads, L, E]`` without a mask."""
    names = ("query", "key", "value")
    fit = all(step.given[name] in step.varies and step.rank(step.given[name]) == 4 for name in names)
    return _folded(step, *names) if fit and step.given["attn_mask"] is None else None


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(step: StepCall) -> Node | None:
    """Cells that do not go on from the step before, such as those of snnTorch's ``SLSTM`` behind a reset to zero."""
    x, states, *weights = step.given.values()
    several = isinstance(states, tuple | list)
    given = [x, *states] if several else [x, states]
    if step.rank(x) != 2 or any(w in step.varies for w in weights if isinstance(w, Node)):
        return None
    flat = []
    for a in given:
        if a not in step.varies:
            a = step.emit(aten.expand.default, a, (step.steps, -1, -1))
        flat.append(step.emit(aten.flatten.using_ints, a, 0, 1))
    result = step.again(input=flat[0], hx=flat[1:] if several else flat[1])
    return step.emit(_in_steps, result, step.steps)


def _in_steps(results: Any, steps: int) -> Any:
    """``[T, B, *]`` of each of the results."""
    return pytree.tree_map(lambda t: t.unflatten(0, (steps, -1)), results)


# ---- shapes


@rule("view", "reshape", "_unsafe_view")
def reshaped(step: StepCall) -> Node | None:
    shape = step.given.get("size", step.given.get("shape"))
    if not step.only_first_varies() or shape is None:
        return None
    return step.emit(aten.reshape.default, step.first, (step.steps, *shape))


@rule("flatten", "unflatten")
def flattened(step: StepCall) -> Node | None:
    rank = step.rank(step.first)
    if not step.only_first_varies() or rank == 0:
        return None
    dims = {name: step.given[name] for name in ("dim", "start_dim", "end_dim") if name in step.given}
    return step.again(**{name: dim % rank + 1 for name, dim in dims.items()})


@rule("max", "min", "median", "nanmedian")
def extreme(step: StepCall) -> Node | None:
    """The maximum or minimum of a whole step. Equal elements, such as spikes, share its gradient. Not so under vmap."""
    if len(step.given) > 1:
        return element_wise(step) if is_pointwise(step.node.target) else None
    name = name_of(step.node.target)
    if name.endswith("median"):
        raise UnmergedError("torch.vmap gives another gradient where elements are equal")
    dims = list(range(1, step.rank(step.first) + 1))
    return step.emit(aten.amax.default if name == "max" else aten.amin.default, step.first, dims)


@rule("stack")
def stacked(step: StepCall) -> Node | None:
    every, dim = all(t in step.varies for t in step.first), step.given["dim"]
    return step.again(dim=dim + (dim >= 0)) if every else None


# ---- losses

_NONE, _MEAN = 0, 1  # of the argument "reduction"


@rule("cross_entropy_loss", "nll_loss_nd", "nll_loss")
def cross_entropy(step: StepCall) -> Node | None:
    """A loss of class indices: the mean over ``[B]`` at each step, from ``[T, B, C]`` in one call."""
    logits, targets, weight, reduction, ignored = list(step.given.values())[:5]
    if (
        not isinstance(targets, Node)
        or targets in step.varies
        or value(targets).dim() != 1
        or logits not in step.varies
        or step.rank(logits) != 2
        or reduction == _NONE
        or weight is not None
        or value(targets).is_floating_point()
    ):
        return None
    if name_of(step.node.target) == "cross_entropy_loss":
        options = {"ignore_index": ignored, "label_smoothing": step.given["label_smoothing"], "reduction": "none"}
        losses = step.emit(cross_entropy_over_time, logits, targets, **options)
    else:  # of log-probabilities
        every = step.emit(aten.repeat.default, targets, [step.steps])
        losses = step.again(self=step.emit(aten.flatten.using_ints, logits, 0, 1), target=every, reduction=_NONE)
        losses = step.emit(aten.unflatten.int, losses, 0, (step.steps, -1))
    if reduction == _MEAN:  # divided first: a sum of many could be too large for float16
        counted = step.emit(aten.sum.default, step.emit(aten.ne.Scalar, targets, ignored))
        losses = step.emit(aten.div.Tensor, losses, counted)
    return step.emit(aten.sum.dim_IntList, losses, [1])


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
def mean_of_each(step: StepCall) -> Node | None:
    """Losses that are a mean, or a sum, over all elements of a step."""
    found, wanted, reduction = step.first, step.given["target"], step.given["reduction"]
    if (
        any(step.given.get(name) is not None for name in ("weight", "pos_weight"))
        or reduction == _NONE
        or found not in step.varies
        or value(wanted).shape[wanted in step.varies :] != value(found).shape[1:]  # a broadcast, of which PyTorch warns
    ):
        return None
    if wanted not in step.varies:
        wanted = step.emit(aten.expand_as.default, wanted, found)
    each = step.again(target=wanted, reduction=_NONE)
    over = aten.mean.dim if reduction == _MEAN else aten.sum.dim_IntList
    return step.emit(over, each, list(range(1, value(each).dim())))


@rule("one_hot")
def one_hot(step: StepCall) -> Node | None:
    """``torch.vmap`` does not check the classes."""
    return step.again() if step.given["num_classes"] > 0 and step.first in step.varies else None


# ---- everything else


def by_vmap(writer: Writer, target: Any, args: Any, kwargs: Any, varies: set[Node]) -> Node:
    """Merge a call by ``torch.vmap``: into one call of ATen if that is all, else into the function that is mapped.

    Several calls are not written out: an operator made of others may switch gradients off between them, which a trace
    does not show.
    """
    over_time, nodes = _mapped(writer, target, args, kwargs, varies)
    functorch: Any = torch._C._functorch
    loops = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)  # a loop over time in vmap is no gain, and it warns
    try:
        return _one_call(writer, over_time, nodes, varies) or writer.call(over_time, *nodes)
    finally:
        functorch._set_vmap_fallback_enabled(loops)


def _one_call(writer: Writer, function: Any, nodes: list[Node], varies: set[Node]) -> Node | None:
    """The call that a function consists of, if it returns all results of one call and does nothing else."""
    if any(type(value(n)) is int for n in nodes):  # a trace has it as a constant
        return None
    traced = writer.trace(function, list(map(value, nodes)))
    if writer.any_steps and _numbers_in(traced) != _numbers_in(
        writer.trace(function, [writer.run(_one_more, (n,), {}) if n in varies else value(n) for n in nodes])
    ):
        return None
    calls = [n for n in traced.nodes if n.op not in ("placeholder", "output") and n.target is not operator.getitem]
    if len(calls) != 1 or calls[0].op != "call_function" or has_effect(calls[0]):
        return None
    (call,), (output,) = calls, (n.args[0] for n in traced.nodes if n.op == "output")
    if output is not call and not (isinstance(output, tuple | list) and len(output) == len(call.meta["val"])):
        return None
    given = dict(zip((n for n in traced.nodes if n.op == "placeholder"), nodes, strict=True))
    return writer.call(call.target, *map_arg(call.args, given.get), **map_arg(call.kwargs, given.get))


def _one_more(t: Tensor) -> Tensor:
    """A tensor with one more step."""
    return torch.cat((t, t[:1]))


def _numbers_in(graph: Graph) -> list[Any]:
    """The constants among the arguments of the calls of a graph."""
    leaves = (a for n in graph.nodes if n.op == "call_function" for a in pytree.tree_leaves((n.args, n.kwargs)))
    return [literal(a) for a in leaves if not isinstance(a, Node)]


def _mapped(
    writer: Writer, target: Any, args: Any, kwargs: Any, varies: set[Node]
) -> tuple[Callable[..., Any], list[Node]]:
    """A call as a function that ``torch.vmap`` maps over time, and what it is given."""
    leaves, spec = pytree.tree_flatten(writer.with_numbers((args, kwargs)))
    places = [i for i, a in enumerate(leaves) if isinstance(a, Node)]
    nodes = [leaves[i] for i in places]
    fixed = [None if isinstance(a, Node) else a for a in leaves]
    dims = tuple(0 if n in varies else None for n in nodes)

    def step(*tensors: Any) -> Any:
        filled = list(fixed)
        for i, t in zip(places, tensors, strict=True):
            filled[i] = t
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    def over_time(*tensors: Any) -> Any:
        return torch.vmap(step, in_dims=dims, randomness="different")(*tensors)

    over_time.constants = fixed  # type: ignore[attr-defined]
    return over_time, nodes
