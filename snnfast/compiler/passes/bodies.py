"""Calls of an ``autograd.Function`` that dynamo wrote out become calls again, so that all steps are alike.

Where no input needs a gradient, dynamo writes the forward pass in place of the call. In a loop such as SpyTorch's, in
which a spike is computed of the membrane of the step before, that happens in the first two steps::

    gt = gt(mem, 0)                   f = autograd_function_apply(forward, backward, mem)
    to = to(gt, torch.float32)        getitem = f[0]
    out = add(x, to)                  out = add(x, getitem)
"""

import operator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from snnfast._program.trace import NotElementwiseError
from snnfast._program.trace import trace as trace_step
from snnfast.compiler.calls import Frames, frames_of, module_of, run_call, signature_of, value


def run(graph: Graph) -> None:
    calls: dict[Frames, Node] = {}
    for node in graph.nodes:
        if node.meta.get("computes") and len(node.all_input_nodes) == 3 and frames_of(node):  # two graphs, a tensor
            calls.setdefault(frames_of(node), node)
    if not calls:
        return

    def frames_of_call(node: Node) -> Frames | None:
        # Of what is in the same line as the call, such as its argument, the call has all frames.
        found = frames_of(node) if node.op == "call_function" else ()
        return next((frames for frames in calls if found[: len(frames)] == frames != found), None)

    # A list: the iterator of graph.nodes begins again when it is asked behind its end.
    for frames, inside in [(frames, list(inside)) for frames, inside in groupby(list(graph.nodes), frames_of_call)]:
        if frames is not None:
            _call_again(calls[frames], inside)


def _call_again(like: Node, inside: list[Node]) -> None:
    """Make the call ``like`` in place of these nodes, if they are what it is for their input."""
    given = {a for n in inside for a in n.all_input_nodes if a not in inside}
    read = [n for n in inside if any(user not in inside for user in n.users)]
    if len(given) != 1 or len(read) != 1 or not isinstance(value(like), tuple):
        return
    (x,), (out,), taken = given, read, like.all_input_nodes[2]
    if signature_of(x) != signature_of(taken) or signature_of(out) != signature_of(like):
        return
    if not _computes(like, taken, inside, x, out):
        return
    graph = like.graph
    with graph.inserting_after(out):
        result = graph.call_function(operator.getitem, (like, 0))
    with graph.inserting_before(result):
        bodies = {body: graph.node_copy(body) for body in like.all_input_nodes[:2]}
        made = graph.node_copy(like, lambda n: x if n is taken else bodies[n])
    made.meta |= {"example_value": (value(out),), "context": out.meta["context"]}
    made.meta.pop("storage", None)
    result.args = made, 0
    result.meta = {**out.meta, "stack_trace": like.stack_trace}
    out.replace_all_uses_with(result)


def _computes(like: Node, taken: Node, inside: list[Node], x: Node, out: Node) -> bool:
    """Whether the forward pass of a call computes of ``x`` what the nodes compute."""

    def step(t: Tensor) -> tuple[Tensor, ...]:
        env: dict[Node, Any] = {x: t}
        for node in inside:
            env[node] = run_call(node, *pytree.tree_map_only(Node, env.__getitem__, (node.args, node.kwargs)))
        forward, _, *arguments = like.args
        result, _ = module_of(forward)(*(t if a is taken else a for a in arguments))  # type: ignore[arg-type]
        return env[out], result[0] if isinstance(result, tuple | list) else result

    t: Any = value(x)
    if t.dtype not in (torch.float32, torch.float64):
        return False
    try:
        found = trace_step(step, (1, 0, 0), t.dtype, t.dim()).outputs
    except (NotElementwiseError, RuntimeError):  # an operator takes tensors of its own sizes
        return False
    return found[0] == found[1]
