"""Calls that stay in the graph, made as the user's code makes them: of an ``autograd.Function``, and ``assert``.

dynamo makes two graphs of a call of an ``autograd.Function``. PyTorch makes a class of them at each call, and
interprets both, which takes longer than the user's own class. Here the class is made once.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfast._core.pytorch import not_compiled_alone
from snnfast.compiler.nodes import is_assert, line_of, name_of, remove_unused, value


def apply_by_classes(gm: GraphModule) -> None:
    """Let each ``autograd_function_apply`` call a class that is made now; equal calls share one."""
    classes: dict[Any, Applied] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or name_of(node.target) != "autograd_function_apply":
            continue
        names = [str(a.target) for a in node.args[:2]]
        key = *names, repr(sorted(node.kwargs.items()))
        if key not in classes:
            classes[key] = Applied(*(getattr(gm, name) for name in names), **node.kwargs)
        node.target = classes[key]
        node.args, node.kwargs = node.args[2:], {}
    if classes:
        remove_unused(gm.graph, lambda node: node.op != "get_attr")
        gm.recompile()


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
        places = [k for k, b in enumerate(kept) if b is inside]
        unread = gradients[i] is None and not any(taken[first + k].users for k in places)
        is_size = isinstance(a, Node) and isinstance(value(a), torch.SymInt)
        if not is_size or not unread or inside in outputs or any(user is not end for user in inside.users):
            continue
        end.args = ((outputs, tuple(b for b in kept if b is not inside)),)
        back.args = ((*gradients[:i], *gradients[i + 1 :]),)
        for dropped in (inside, *(taken[first + k] for k in places)):
            dropped.graph.erase_node(dropped)
        saved = [k for k in node.kwargs.get("saved_for_backward_idx", ()) if k not in places]
        moved = [k - sum(place < k for place in places) for k in saved]
        node.args = (*node.args[: 2 + i], *node.args[3 + i :])
        node.kwargs = {**node.kwargs, "saved_for_backward_idx": moved}
        forward.recompile()
        backward.recompile()
        return True
    return False


class Applied:
    """A call of an ``autograd.Function`` by the graphs of its forward and its backward pass."""

    __name__ = __qualname__ = "autograd_function"

    def __init__(
        self,
        forward: GraphModule,  # returns the results, and what backward reads
        backward: GraphModule,  # of the gradients of the results, and of what forward has kept
        non_differentiable_idx: Any = (),
        saved_for_backward_idx: Any = (),
        dirty_idx: Any = (),
        **others: Any,
    ) -> None:
        run_forward, run_backward = forward.forward, backward.forward
        checked = set(saved_for_backward_idx)  # autograd raises an error if they are changed before they are read

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output, kept = run_forward(*args)
                outputs = output if isinstance(output, tuple | list) else (output,)
                tracked = [i for i, a in enumerate(kept) if i in checked and isinstance(a, Tensor)]
                ctx.save_for_backward(*(kept[i] for i in tracked))
                ctx.tracked, ctx.kept = tracked, [None if i in tracked else a for i, a in enumerate(kept)]
                if dirty_idx:
                    ctx.mark_dirty(*(outputs[i] for i in dirty_idx))
                if non_differentiable_idx:
                    ctx.mark_non_differentiable(*(outputs[i] for i in non_differentiable_idx))
                return output

            @staticmethod
            @not_compiled_alone
            def backward(ctx: Any, *grads: Any) -> Any:
                kept = list(ctx.kept)
                for i, a in zip(ctx.tracked, ctx.saved_tensors, strict=True):
                    kept[i] = a
                return run_backward(*grads, *kept)

        self._apply = Function.apply

    def __call__(self, *args: Any) -> Any:
        return self._apply(*args)


def raise_in_python(gm: GraphModule) -> None:
    """Let an ``assert`` raise Python's error, not that of ``torch._assert_async``."""
    found = [node for node in gm.graph.nodes if is_assert(node)]
    for node in found:
        node.target = Assert(line_of(node))
    if found:
        gm.recompile()


class Assert:
    """An ``assert`` of the user's program, at a line."""

    __name__ = __qualname__ = "assert_"

    def __init__(self, line: str) -> None:
        self._line = line

    def __call__(self, condition: Tensor, message: str) -> None:
        if not condition:
            error = AssertionError(*[message][: message != NO_MESSAGE])
            error.add_note(f"of {self._line}")
            raise error


NO_MESSAGE = "assertion error"
"""What PyTorch writes where an ``assert`` has no message."""
