"""Questions about the nodes of a graph."""

import inspect
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree


def value(node: Node) -> Any:
    """The value that dynamo found for a node: a fake tensor, a number, or a tuple of them."""
    return node.meta.get("example_value")


def tensors_of(node: Node) -> list[Tensor]:
    """The fake tensors that a node returns."""
    return tensors_in(value(node))


def looks(node: Any) -> Any:
    """Shapes, dtypes and devices, which nodes must have in common to be merged."""
    found = tensors_of(node) if isinstance(node, Node) else ()
    return tuple((tuple(map(str, t.shape)), t.dtype, t.device) for t in found)


def size_of(tensor: Tensor, dim: int) -> int | None:
    """The size of a dimension; ``None`` where it may differ from call to call."""
    size: Any = tensor.shape[dim]
    return size if isinstance(size, int) else size.node.maybe_as_int()


def storage_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def tensors_in(found: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


def fake_mode_of(values: Any) -> Any:
    """The mode that fake tensors were made in, or ``None``."""
    return next((t.fake_mode for t in tensors_in(values) if hasattr(t, "fake_mode")), None)


def fake_call(op: str, target: Any, args: Any, kwargs: Any, mode: Any = None) -> Any:
    """Call on the fake tensors of nodes."""
    args, kwargs = pytree.tree_map_only(Node, value, (args, kwargs))
    mode = mode or fake_mode_of((args, kwargs))
    with torch.no_grad(), mode or torch.no_grad():
        return getattr(args[0], target)(*args[1:], **kwargs) if op == "call_method" else target(*args, **kwargs)


def one_int(index: Any, dims: int) -> tuple[int, int] | None:
    """Dimension and int of an index that has one int, and takes all other dimensions whole."""
    parts = index if isinstance(index, tuple) else (index,)
    dim, found = 0, None
    for part in parts:
        if part is Ellipsis:
            dim += dims - sum(p is not Ellipsis for p in parts)
        elif isinstance(part, int) and not isinstance(part, bool):
            if found is not None:
                return None
            found, dim = (dim, part), dim + 1
        elif isinstance(part, slice) and part == slice(None):
            dim += 1
        else:
            return None
    return found


@lru_cache
def place_of(target: Callable[..., Any], name: str) -> int | None:
    try:
        return list(inspect.signature(target).parameters).index(name)
    except (TypeError, ValueError):
        return None


def argument(node: Node, name: str, place: int | None = None) -> Any:
    """An argument of a call by its name."""
    if name in node.kwargs:
        return node.kwargs[name]
    if place is None and callable(node.target):
        place = place_of(node.target, name)
    return node.args[place] if place is not None and place < len(node.args) else None


# ---- kinds of calls

_BARRIERS = (
    "_enter_autocast", "_exit_autocast", "_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode",
    "_saved_tensors_hooks_disable", "_saved_tensors_hooks_enable",
)  # fmt: skip


def is_barrier(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _BARRIERS


_RANDOM = ("bernoulli", "normal", "log_normal", "multinomial", "poisson", "rrelu", "exponential", "gumbel_softmax")


def is_random(node: Node) -> bool:
    """Whether two equal calls may return different numbers."""
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))
    if "attention" in name:
        return bool(argument(node, "dropout_p", 4 if name.startswith("scaled") else None))
    if "dropout" in name:
        return argument(node, "training", 2) is not False and argument(node, "p", 1) != 0.0
    return name.strip("_") in _RANDOM or "rand" in name or "empty" in name


# ---- calls that are alike


def named(target: Any) -> Any:
    return target if isinstance(target, str) else id(target)


def literal(tree: Any) -> Any:
    """Arguments in a form to compare and to hash, in which ``1``, ``1.0`` and ``True`` differ."""
    if isinstance(tree, Node):
        return tree
    if isinstance(tree, tuple | list):
        return type(tree).__name__, *map(literal, tree)
    if isinstance(tree, dict):
        return "dict", *((k, literal(v)) for k, v in sorted(tree.items()))
    if isinstance(tree, slice):
        return "slice", literal(tree.start), literal(tree.stop), literal(tree.step)
    return type(tree).__name__, repr(tree)


_TAKE_NUMBERS = {getattr(place, name) for place in (operator, torch) for name in ("add", "sub", "mul")}
_TAKE_NUMBERS |= {operator.truediv, torch.div, "add", "sub", "mul", "div"}


def is_number(a: object) -> bool:
    return isinstance(a, int | float) and not isinstance(a, bool)


def signature(node: Node, segment: dict[Node, int]) -> Any:
    """What two nodes of a series must have in common: all arguments that are no nodes, and the names of parameters."""

    numbers = node.target in _TAKE_NUMBERS and all(t.dtype in (torch.float32, torch.float64) for t in tensors_of(node))

    def shape_of(tree: Any) -> Any:
        if numbers and is_number(tree):
            return "number"  # such as a weight of each step
        if isinstance(tree, Node):
            return tree if tree.type is nn.Parameter or isinstance(value(tree), nn.Parameter) else "node"
        if isinstance(tree, tuple | list):
            return type(tree).__name__, *map(shape_of, tree)
        if isinstance(tree, dict):
            return "dict", *((k, shape_of(v)) for k, v in sorted(tree.items()))
        return literal(tree)

    return node.op, named(node.target), shape_of((node.args, node.kwargs)), looks(node), segment[node]
