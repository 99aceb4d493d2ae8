"""Calls of an ``autograd.Function`` in dynamo's graph. Each has a graph of its forward and one of its backward pass."""

import functools
from collections import Counter
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast.compiler.calls import literal, name_of, signature_of, storage_of, tensors_of, value


def drop_sizes(gm: GraphModule) -> None:
    """Take the sizes that no body reads from the calls ``autograd_function_apply``.

    Where a size may differ from call to call, dynamo gives it to both bodies, for the shapes of their tensors.
    """
    calls = [n for n in gm.graph.nodes if n.op == "call_function" and name_of(n.target) == "autograd_function_apply"]
    times = Counter(a.target for n in calls for a in n.args[:2])
    for node in calls:
        if all(times[a.target] == 1 for a in node.args[:2]):
            while _drop_size(node, *(getattr(gm, str(a.target)) for a in node.args[:2])):
                pass


def _drop_size(node: Any, forward: GraphModule, backward: GraphModule) -> bool:
    """Drop one size. It is kept for a backward pass that does not read it, and has no gradient."""
    given, taken = (body.graph.find_nodes(op="placeholder") for body in (forward, backward))
    end: Any = forward.graph.output_node()
    back: Any = backward.graph.output_node()
    outputs, kept = end.args[0]
    gradients = list(back.args[0])
    first = len(taken) - len(kept)
    for i, (a, inside) in enumerate(zip(node.args[2:], given, strict=True)):
        found = [k for k, b in enumerate(kept) if b is inside]
        unread = gradients[i] is None and not any(taken[first + k].users for k in found)
        is_size = isinstance(a, Node) and isinstance(value(a), torch.SymInt)
        if not is_size or not unread or inside in outputs or any(user is not end for user in inside.users):
            continue
        end.args = ((outputs, tuple(b for b in kept if b is not inside)),)
        back.args = ((*gradients[:i], *gradients[i + 1 :]),)
        for dropped in (inside, *(taken[first + k] for k in found)):
            dropped.graph.erase_node(dropped)
        saved = [k for k in node.kwargs.get("saved_for_backward_idx", ()) if k not in found]
        moved = [k - sum(at < k for at in found) for k in saved]
        node.args = (*node.args[: 2 + i], *node.args[3 + i :])
        node.kwargs = {**node.kwargs, "saved_for_backward_idx": moved}
        forward.recompile()
        backward.recompile()
        return True
    return False


def record_backward(gm: GraphModule) -> None:
    """Let the backward passes of the calls ``autograd_function_apply`` be recorded where the caller asks for it.

    dynamo traces them under ``no_grad``, and writes that into their graphs. With ``create_graph=True`` a second
    derivative would then lack what comes through the surrogate's derivative, without an error.
    """
    for node in gm.graph.nodes:
        if node.op != "call_function" or name_of(node.target) != "autograd_function_apply":
            continue
        body = getattr(gm, str(node.args[1].target))
        calls = [n for n in body.graph.nodes if n.op.startswith("call")]
        ends = (calls[0], calls[-1]) if len(calls) > 1 else ()
        if [(n.target, n.args) for n in ends] == [(torch._C._set_grad_enabled, (on,)) for on in (False, True)]:
            for n in ends:
                body.graph.erase_node(n)
            body.recompile()


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


_NORMS = ("batch_norm", "instance_norm")
_CHANGING = (
    "setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
    *_NORMS,
)  # fmt: skip
"""Calls of dynamo's graphs that change a tensor, beside those whose names end in an underscore."""


def body_key(body: GraphModule) -> Any:
    """A key that two bodies of functions share if they make the same calls."""
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
