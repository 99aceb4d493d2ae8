"""Questions about the nodes of a graph of ATen calls (see ``normal.py``)."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import _side_effectful_functions
from torch.utils import _pytree as pytree

from snnfast._unroll.graph import step, unroll

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
    """What tensors that share memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def memory_of(node: Node) -> list[int]:
    """The memory of the tensors that a node returns, by numbers; ``functionalize.py`` adds its own."""
    return node.meta.get("storage") or [storage_of(t) for t in tensors_of(node)]


def index_of(node: Node) -> tuple[Node, int, int] | None:
    """The tensor that a node is an index of, the dimension, and the place from the front; ``None`` for other nodes."""
    if node.target is operator.getitem and node.args[0].target is aten.unbind.int:  # type: ignore[union-attr]
        unbind, place = node.args
        given = arguments(unbind)  # type: ignore[arg-type]
    elif node.target is aten.select.int:
        given = arguments(node)
        place = given["index"]
    else:
        return None
    base, dim = given["self"], given["dim"] % value(given["self"]).dim()
    size = size_of(value(base), dim)
    if not isinstance(place, int) or (place < 0 and size is None):
        return None
    return base, dim, place if size is None else place % size


def tensors_in(found: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


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


def same_context(a: Node, b: Node) -> bool:
    """Whether two calls run under the same grad mode, autocast and inference mode."""
    return bool(a.meta["context"] == b.meta["context"])


# ---- the user's program

_NOT_THE_USERS = ("/torch/", "/snnfast/", "/snntorch/")


def line_of(node: Node | None, with_code: bool = True) -> str:
    """File, line and code of the user's program that a node comes from; empty if unknown."""
    lines = (node.stack_trace or "").strip().splitlines() if node is not None else []
    stack = []
    for place, code in pairwise([*lines, ""]):
        if place.strip().startswith("File "):
            file, number, *_ = place.strip().removeprefix("File ").split(", ")
            code = code.strip()
            code = "" if code.startswith("File") or not with_code else code
            stack.append((file.strip('"'), number.removeprefix("line "), code))
    return user_line(reversed(stack))


def user_line(stack: Iterable[tuple[str, Any, str]]) -> str:
    """The first place, of file, line and code each, that is in the user's program; empty if none is."""
    for file, number, code in stack:
        if not any(part in file for part in _NOT_THE_USERS):
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


def is_pointwise(target: Any) -> bool:
    return isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags


def may_alias(target: Any) -> bool:
    """Whether results may have the memory of arguments: views, and calls that copy if need be, as ``contiguous``."""
    return isinstance(target, OpOverload) and any(r.alias_info is not None for r in target._schema.returns)


def named(target: OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by their names in a schema and in its order. Those that were left out have their defaults."""
    places = target._schema.arguments
    found: dict[str, Any] = {a.name: a.default_value for a in places}
    found.update(zip((a.name for a in places), args))  # noqa: B905 - the last may be left out
    found.update(kwargs)
    return found


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names; of another call none."""
    target: Any = node.target
    return named(target, node.args, node.kwargs) if isinstance(target, OpOverload) else {}


def spelled(target: OpOverload, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a call with these; what is left out has its default."""
    places = target._schema.arguments
    args = [given.get(a.name, a.default_value) for a in places if not a.kwarg_only]
    while args and places[len(args) - 1].has_default_value() and args[-1] == places[len(args) - 1].default_value:
        args.pop()
    named = {a.name: given.get(a.name, a.default_value) for a in places if a.kwarg_only}
    return tuple(args), {a.name: named[a.name] for a in places if a.kwarg_only and named[a.name] != a.default_value}


# ---- what a call does

# These update their running statistics if this argument asks for it. Their schemas do not say so.
_UPDATES_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}


def is_opaque(node: Node) -> bool:
    """Whether nothing is known of a call: it is no operator with a schema, and none of those that only compute."""
    return (
        node.op == "call_function"
        and not isinstance(node.target, OpOverload)
        and not is_step(node.target)
        and node.target is not operator.getitem
        and not node.meta.get("computes")
        and not isinstance(value(node), int | float | torch.SymInt | torch.SymFloat | torch.SymBool)
    ) or node.op in ("call_method", "call_module")


def changed(node: Node) -> list[Node]:
    """The arguments that a call changes in place: what its schema says, and all of a call of which nothing is known."""
    if is_opaque(node):
        return [a for a in node.all_input_nodes if tensors_of(a)]
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return []
    found: list[Any] = []
    if target._schema.is_mutable:
        given = arguments(node)
        found += [given.get(a.name) for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]
    elif (asks := _UPDATES_STATISTICS.get(name_of(target))) is not None:
        given = arguments(node)
        found += [given["running_mean"], given["running_var"]] if given[asks] else []
    return [a for a in pytree.tree_leaves(found) if isinstance(a, Node)]


def updates_statistics(node: Node) -> bool:
    """Whether a call is a normalisation in training, which changes nothing but its running averages."""
    return name_of(node.target) == "batch_norm" and bool(changed(node))


def has_effect(node: Node) -> bool:
    """Whether a call does something else than return results that depend on its arguments."""
    return bool(changed(node)) or is_opaque(node) or node.target in _side_effectful_functions


def is_unroll(target: Any) -> bool:
    """Whether a target is all steps of a neuron of ours."""
    return target in (torch.ops.snnfast.unroll, torch.ops.snnfast.unroll.default, unroll)


def is_assert(node: Node) -> bool:
    """Whether a call is an ``assert`` of the user's program, and not their own call of ``torch._assert_async``."""
    return name_of(node.target) == "_assert_async" and len(node.args) == 2 and "_assert_async" not in line_of(node)


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


def only_computes(body: Any) -> bool:
    """Whether the graph of a function, as dynamo makes it, changes no tensor that it was given."""
    given = {storage_of(t) for node in body.graph.nodes if node.op == "placeholder" for t in tensors_of(node)}
    for node in body.graph.nodes:
        name = name_of(node.target)
        if node.op in ("call_function", "call_method"):
            changes = (name.endswith("_") and not name.endswith("__")) or name in _CHANGING
            if node.kwargs.get("out") is not None or (changes and not _is_own(node, given)):
                return False
        elif node.op == "call_module" or isinstance(getattr(body, str(node.target), None), torch.nn.Module):
            return False
    return True


def _is_own(node: Node, given: set[int]) -> bool:
    """Whether what a call changes is a tensor that was made in the body, as ``out`` in ``out[x > 0] = 1``."""
    target = node.args[0] if node.args and name_of(node.target) not in _NORMS else None
    tensors = tensors_of(target) if isinstance(target, Node) and target.op.startswith("call") else []
    return bool(tensors) and not any(storage_of(t) in given for t in tensors)


def body_key(body: GraphModule) -> Any:
    """A key that is the same for two graphs of functions that compute the same."""
    numbers = {node: i for i, node in enumerate(body.graph.nodes)}

    def key(node: Node) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            target = None
        elif node.op == "get_attr":
            found = functools.reduce(getattr, str(target).split("."), body)
            target = body_key(found) if isinstance(found, GraphModule) else id(found)
        args, kwargs = pytree.tree_map_only(Node, lambda a: ("node", numbers[a]), (node.args, node.kwargs))
        return node.op, target, literal((args, kwargs)), signature_of(node)

    return tuple(map(key, body.graph.nodes))


def module_of(node: Node) -> Any:
    """The graph of a function that a node stands for, or another attribute of the program."""
    return getattr(node.graph.owning_module, str(node.target), None) if node.op == "get_attr" else None


_NORMS = ("batch_norm", "instance_norm")
_CHANGING = (
    "setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
    *_NORMS,
)  # fmt: skip
"""Calls of dynamo's graphs that change a tensor, beside those whose names end in an underscore."""


def remove_unused(graph: Graph, needed: Callable[[Node], bool]) -> None:
    """Remove calls whose results nobody reads. ``Graph.eliminate_dead_code`` would go into the bodies of functions."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not needed(node):
            graph.erase_node(node)


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


def is_number(a: object) -> bool:
    return isinstance(a, int | float) and not isinstance(a, bool)


def series_key(node: Node) -> Any:
    """What two nodes of a series must have in common: all arguments that are no nodes, and the names of parameters."""

    numbers = node.target in _TAKE_NUMBERS and all(t.dtype in (torch.float32, torch.float64) for t in tensors_of(node))
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
