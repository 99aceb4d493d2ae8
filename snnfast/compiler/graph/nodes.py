"""Questions about one call of a graph of ATen calls (see ``aten.py``): its schema, its results, its site."""

import contextlib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import _side_effectful_functions
from torch.utils import _pytree as pytree

from snnfast._program.trace import NotElementwiseError
from snnfast._unroll.graph import elementwise_step, step, unroll
from snnfast.compiler.graph.files import is_users

aten: Any = torch.ops.aten


def value(node: Node) -> Any:
    """The value that a node has in tracing: a fake tensor, a number, or a tuple of them."""
    return node.meta.get("example_value")


def tensors_of(node: Node) -> list[Tensor]:
    """The fake tensors that a node returns."""
    return tensors_in(value(node))


def signature_of(node: Any) -> Any:
    """Shapes, dtypes and devices of what a node returns."""
    found = tensors_of(node) if isinstance(node, Node) else ()
    return tuple((tuple(map(str, t.shape)), t.dtype, t.device) for t in found)


def are_alike(nodes: Sequence[Node]) -> bool:
    """Whether all have the same shapes, dtypes and devices."""
    return all(signature_of(node) == signature_of(nodes[0]) for node in nodes)


def size_of(tensor: Tensor, dim: int) -> int | None:
    """The size of a dimension; ``None`` where it may differ from call to call."""
    size: Any = tensor.shape[dim]
    return size if isinstance(size, int) else size.node.maybe_as_int()


def storage_of(tensor: Tensor) -> int:
    """A number that tensors share if they share memory."""
    return int(tensor.untyped_storage()._cdata)


def overlaps(tensor: Tensor) -> bool:
    """Whether several elements are one place in memory, so that PyTorch lets nobody change them."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def index_of(node: Node) -> tuple[Node, int, int] | None:
    """The tensor that a node is a part of, the dimension, and the index from the front; ``None`` for other nodes."""
    if node.target is operator.getitem and node.args[0].target is aten.unbind.int:  # type: ignore[union-attr]
        unbind, index = node.args
        given = arguments(unbind)  # type: ignore[arg-type]
    elif node.target is aten.select.int:
        given = arguments(node)
        index = given["index"]
    else:
        return None
    base, dim = given["self"], given["dim"] % value(given["self"]).dim()
    size = size_of(value(base), dim)
    if not isinstance(index, int) or (index < 0 and size is None):
        return None
    return base, dim, index if size is None else index % size


def tensors_in(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


def is_view_made_leaf(t: Tensor) -> bool:
    """Whether it is a leaf with a gradient that is a view of a tensor without one."""
    return t.requires_grad and t.is_leaf and t._base is not None and not t._base.requires_grad


def fake_mode_of(values: Any) -> Any:
    """The mode that fake tensors were made in, or ``None``."""
    return next((t.fake_mode for t in tensors_in(values) if hasattr(t, "fake_mode")), None)


def fake_call(target: Callable[..., Any], args: Any, kwargs: Any, mode: Any = None, blocks: Any = ()) -> Any:
    """Call on the fake tensors of nodes, in a grad mode without gradients, inside of the blocks of a context."""
    args, kwargs = pytree.tree_map_only(Node, value, (args, kwargs))
    mode = mode or fake_mode_of((args, kwargs))
    with contextlib.ExitStack() as stack:
        for enter, given, leave in blocks:
            stack.callback(leave, enter(*given))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode or torch.no_grad())
        return target(*args, **kwargs)


def insert_call(before: Node, target: Any, args: Any, kwargs: Any = None, *, like: Node) -> Node:
    """Insert a call before a node, at the site and in the context of another one."""
    kwargs = kwargs or {}
    meta = {**like.meta, "example_value": fake_call(target, args, kwargs, blocks=like.meta["context"].blocks)}
    with before.graph.inserting_before(before):
        made = before.graph.call_function(target, args, kwargs)
    made.meta = meta
    made.meta.pop("storage", None)  # of the other one
    return made


def same_context(a: Node, b: Node) -> bool:
    """Whether two calls run under the same grad mode, autocast and inference mode."""
    return bool(a.meta["context"] == b.meta["context"])


# ---- the place of a call in the user's code


class Site(NamedTuple):
    """The place of a call in the user's code. The steps of a loop make their calls at the same sites.

    Attributes:
        trace: The lines that lead to the call, as text; empty if unknown.
        name: The name of the operator or function.
        modules: The modules around it. Layers of one class share their lines, but each is a module of its own.
    """

    trace: str
    name: str
    modules: tuple[str, ...]

    @property
    def of_any_module(self) -> "Site":
        """The site that layers of one class share."""
        return self._replace(modules=())

    @property
    def of_line(self) -> "Site":
        """The site by its line alone, whatever leads there."""
        return self._replace(trace=_line_in(self.trace))


def site_of(node: Node) -> Site:
    return Site(node.stack_trace or "", name_of(node.target), node.meta.get("modules", ()))


def line_of(node: Node | None, with_code: bool = True) -> str:
    """File, line and code of the user's program that a node comes from; empty if unknown."""
    return _line_in((node.stack_trace or "") if node is not None else "", with_code)


@functools.lru_cache(4096)
def _line_in(trace: str, with_code: bool = True) -> str:
    frames = reversed(_FRAME.findall(trace))
    return user_line((file, number, code.strip() if with_code else "") for file, number, code in frames)


Frames = tuple[tuple[str, int], ...]


def frames_of(node: Node) -> Frames:
    """File and line of each frame that a node comes from, outermost first."""
    return frames_in(node.stack_trace or "")


def frames_in(trace: str) -> Frames:
    """File and line of each frame of a trace, outermost first."""
    return tuple((file, int(line)) for file, line, _ in _FRAME.findall(trace))


_FRAME = re.compile(r'File "(.*?)", line (\d+).*(?:\n(?!\s*File ")(.*))?')
"""File, number and code of a frame."""


def user_line(stack: Iterable[tuple[str, Any, str]]) -> str:
    """The first line, of file, number and code each, that is in the user's program; empty if none is."""
    for file, number, code in stack:
        if is_users(file):
            return f"{file}:{number}" + (f": {code}" if code else "")
    return ""


# ---- what a call is


def name_of(target: Any) -> str:
    """The name of an ATen operator without its overload, such as ``"sum"``; of any other function its own."""
    if isinstance(target, OpOverload):
        namespace, name = target._schema.name.split("::")
        return str(name) if namespace == "aten" else f"{namespace}.{name}"
    return str(target if isinstance(target, str) else getattr(target, "__name__", target))


def is_step(target: Any) -> bool:
    """Whether a target is one step of a neuron of ours."""
    return target in (torch.ops.snnfast.step, torch.ops.snnfast.step.default, step)


def step_of(node: Node) -> Node | None:
    """The step of a neuron that a node is, or that it is a result of."""
    made: Any = node.args[0] if node.target is operator.getitem else node
    return made if isinstance(made, Node) and is_step(made.target) else None


def step_of_constant(whole: Node) -> Node | None:
    """The tensor that ``[T, *]`` repeats at each step; ``None``: its steps may differ."""
    if whole.target is not aten.expand.default:
        return None
    step: Any = whole.args[0]
    return step if list(map(str, value(step).shape)) == list(map(str, value(whole).shape[1:])) else None


def is_zero(node: Node) -> bool:
    """Whether a tensor is made of zeros."""
    if node.op != "call_function":
        return False
    if name_of(node.target) in ("full", "full_like", "new_full"):
        return repr(arguments(node)["fill_value"]) == "0.0"  # which differs from -0.0
    return name_of(node.target) in ("zeros", "zeros_like", "new_zeros")


def is_pointwise(target: Any) -> bool:
    return isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags


def may_alias(target: Any) -> bool:
    """Whether results may have the memory of arguments: views, and calls that copy if need be, as ``contiguous``."""
    return isinstance(target, OpOverload) and any(r.alias_info is not None for r in target._schema.returns)


def named(target: OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by their names in a schema and in its order. Those that were left out have their defaults."""
    known = target._schema.arguments
    found: dict[str, Any] = {a.name: a.default_value for a in known}
    found.update(zip((a.name for a in known), args))  # noqa: B905 - the last may be left out
    found.update(kwargs)
    return found


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names; of another call none."""
    target: Any = node.target
    return named(target, node.args, node.kwargs) if isinstance(target, OpOverload) else {}


def spelled(target: OpOverload, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a call with these; what is left out has its default."""
    known = target._schema.arguments
    args = [given.get(a.name, a.default_value) for a in known if not a.kwarg_only]
    while args and known[len(args) - 1].has_default_value() and args[-1] == known[len(args) - 1].default_value:
        args.pop()
    named = {a.name: given.get(a.name, a.default_value) for a in known if a.kwarg_only}
    return tuple(args), {a.name: named[a.name] for a in known if a.kwarg_only and named[a.name] != a.default_value}


def as_leaf(t: Tensor) -> Tensor:
    """``t.requires_grad_()`` as a call that returns a tensor, of one that requires no gradient."""
    return t.detach().requires_grad_()


# ---- what a call does

# These update their running statistics if this argument asks for it. Their schemas do not say so.
_UPDATES_STATISTICS = {
    **dict.fromkeys(("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), "training"),
    "instance_norm": "use_input_stats",
}


def is_opaque(node: Node) -> bool:
    """Whether nothing is known of a call: it is no operator with a schema, and none of those that only compute."""
    return (
        node.op == "call_function"
        and not isinstance(node.target, OpOverload)
        and not is_step(node.target)
        and node.target is not operator.getitem
        and not node.meta.get("computes")
        and not isinstance(value(node), int | float)
    )


def changed(node: Node) -> list[Node]:
    """The arguments that a call changes in place: what its schema says, and all of a call of which nothing is known."""
    if is_opaque(node):
        return [a for a in node.all_input_nodes if tensors_of(a)]
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return []
    return [a for a in pytree.tree_leaves(written_by(target, node.args, node.kwargs)) if isinstance(a, Node)]


def written_by(target: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator changes in place."""
    if target._schema.is_mutable:
        given = named(target, args, kwargs)
        return [given.get(a.name) for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]
    if (asks := _UPDATES_STATISTICS.get(name_of(target))) is not None:
        given = named(target, args, kwargs)
        return [given["running_mean"], given["running_var"]] if given[asks] else []
    return []


def updates_statistics(node: Node) -> bool:
    """Whether a call is a normalisation in training, which changes nothing but its running averages."""
    return name_of(node.target) == "batch_norm" and bool(changed(node))


def has_effect(node: Node) -> bool:
    """Whether a call does something else than return results that depend on its arguments."""
    return bool(changed(node)) or is_opaque(node) or node.target in _side_effectful_functions


def is_unroll(target: Any) -> bool:
    """Whether a target is all steps of a neuron of ours."""
    return target in (torch.ops.snnfast.unroll, torch.ops.snnfast.unroll.default, unroll)


def is_random(node: Node) -> bool:
    """Whether two equal calls may return different numbers."""
    target: Any = node.target
    if is_opaque(node):
        return True
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = arguments(node)
    idle = given.get("train", given.get("training", True)) is False or 0.0 in (given.get("p"), given.get("dropout_p"))
    return not idle


def module_of(node: Node) -> Any:
    """The attribute of the graph that a node stands for, such as a constant; ``None`` for other nodes."""
    return getattr(node.graph.owning_module, str(node.target), None) if node.op == "get_attr" else None


# ---- calls that are alike


def literal(tree: Any) -> Any:
    """Arguments in a form to compare and to hash, in which ``1``, ``1.0`` and ``True`` differ."""
    if isinstance(tree, Node):
        return tree
    if isinstance(tree, tuple | list):
        return "list", *map(literal, tree)
    if isinstance(tree, dict):
        return "dict", *((k, literal(v)) for k, v in sorted(tree.items()))
    return type(tree).__name__, repr(tree)


_TAKE_NUMBERS = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_COMPARE_NUMBERS = {
    getattr(aten, name).Scalar: getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
"""Comparisons with a number, and those with a tensor of numbers."""


def _filled(self: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return torch.where(mask, value, self)


_CHOOSE_NUMBERS = {
    aten.masked_fill.Scalar: _filled,
    aten.where.ScalarSelf: aten.where.self,
    aten.where.ScalarOther: aten.where.self,
}
"""Calls that choose a number by a mask, and those that choose a row of a tensor of numbers."""


def with_tensor(target: Any) -> Any:
    """The function that takes a tensor where another one takes a number."""
    return _COMPARE_NUMBERS.get(target) or _CHOOSE_NUMBERS.get(target, target)


def dtype_of_numbers(node: Node) -> torch.dtype:
    """The dtype in which a call takes numbers that differ from step to step."""
    given: Any = node.args[0] if node.target in _COMPARE_NUMBERS else node  # a comparison's own dtype is bool
    return value(given).dtype  # type: ignore[no-any-return]


def _takes_numbers(node: Node) -> bool:
    """Whether the numbers of a call may differ from step to step: as a tensor they give the same result."""
    if node.target in _COMPARE_NUMBERS:
        dtype, number = dtype_of_numbers(node), node.args[1]
        return dtype in (torch.float32, torch.float64) or (dtype == torch.int64 and type(number) is int)
    takes = node.target in _TAKE_NUMBERS or node.target in _CHOOSE_NUMBERS
    return takes and all(t.dtype in (torch.float32, torch.float64) for t in tensors_of(node))


def is_number(a: object) -> bool:
    return isinstance(a, int | float) and not isinstance(a, bool)


def are_same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal. Zeros of two signs are not, and NaN is equal to NaN."""
    if is_number(a) and is_number(b):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    return bool(a == b)


def series_key(node: Node) -> Any:
    """A key that two nodes of a series share: all arguments that are no nodes, and the names of parameters."""
    numbers = _takes_numbers(node)
    normalises = name_of(node.target) == "batch_norm"

    def is_named(parameter: Node) -> bool:
        """Whether all steps must take this very parameter. Each may have a batch normalisation of its own."""
        of_one_step = normalises and sum(name_of(user.target) == "batch_norm" for user in parameter.users) == 1
        return bool(parameter.meta.get("parameter")) and not of_one_step

    def shape_of(tree: Any) -> Any:
        if numbers and is_number(tree):
            return "number"  # such as a weight of each step
        if isinstance(tree, Node):
            return tree if is_named(tree) else "node"
        if tree is None and is_step(node.target):
            return "node"  # a state that begins with zeros
        if isinstance(tree, tuple | list):
            return "list", *map(shape_of, tree)
        if isinstance(tree, dict):
            return "dict", *((k, shape_of(v)) for k, v in sorted(tree.items()))
        return literal(tree)

    return node.op, node.target, shape_of((node.args, node.kwargs)), signature_of(node), node.meta["context"]


# ---- calls of recurrences

LEAST = 3
"""A program pays from this number of steps on."""


def is_whole(node: Node) -> bool:
    """Whether a call returns a tensor of whole numbers."""
    t = value(node)
    return isinstance(t, Tensor) and t.dtype in (torch.int32, torch.int64)


def run_call(node: Node, args: Any, kwargs: Any, whole: torch.dtype | None = None) -> Any:
    """Make the call of a node, under its grad mode. Tensors of whole numbers have the dtype ``whole``, if one is given.

    They have no gradient.
    """
    if whole is not None and is_whole(node):
        args = (args[0], whole) if node.target is aten.to.dtype else args
        return run_call(node, args, kwargs).detach()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled() and node.meta["context"].records):
            target: Any = elementwise_step if is_step(node.target) else node.target
            return target(*args, **kwargs)
    except NotElementwiseError as error:
        raise NotElementwiseError(f"{name_of(node.target)} is no operator of programs: {error.problem}") from None
    except RuntimeError as error:  # a program is traced with tensors of other sizes
        raise NotElementwiseError(f"{name_of(node.target)} is not elementwise") from error


def product_of(node: Node) -> tuple[Any, ...] | None:
    """The name of a product (see :class:`Product`), and its state, weight and bias, if it has one."""
    name, given = name_of(node.target), arguments(node)
    if name == "linear":
        found = [given["input"], given["weight"], *([given["bias"]] if given["bias"] is not None else [])]
    elif name in ("mm", "matmul"):
        name, found = "mm", [given["self"], given.get("mat2", given.get("other"))]
    elif name == "einsum" and _PRODUCT.fullmatch(given["equation"].replace(" ", "")) and given["path"] is None:
        name, found = "bmm", list(given["tensors"])
    else:
        return None
    shapes = [value(a).shape if isinstance(a, Node) and isinstance(value(a), Tensor) else () for a in found]
    rank = len(shapes[0])
    fits = len(shapes[1]) == 2 and (rank == 2 or (name == "linear" and rank > 2))
    fits = fits and all(tuple(shape) == tuple(shapes[1][:1]) for shape in shapes[2:])
    return (name, *found) if fits else None


_PRODUCT = re.compile(r"(\w)((?!\1)\w),\2((?!\1|\2)\w)->\1\3")
