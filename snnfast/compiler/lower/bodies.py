"""Calls of an ``autograd.Function`` that stay, as calls of a class that is made once.

dynamo makes two graphs of such a call. PyTorch makes a class of them at each call, and interprets both, which takes
longer than the user's own class.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from snnfast._core.pytorch import not_compiled_alone
from snnfast.compiler.calls import name_of
from snnfast.compiler.passes.dead import remove_unused


def apply_by_classes(gm: GraphModule) -> None:
    """Let each ``autograd_function_apply`` call a class that is made now; equal calls share one."""
    classes: dict[Any, FunctionOfGraphs] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or name_of(node.target) != "autograd_function_apply":
            continue
        names = [str(a.target) for a in node.args[:2]]
        key = *names, repr(sorted(node.kwargs.items()))
        if key not in classes:
            classes[key] = FunctionOfGraphs(*(getattr(gm, name) for name in names), **node.kwargs)
        node.target = classes[key]
        node.args, node.kwargs = node.args[2:], {}
    if classes:
        remove_unused(gm.graph, lambda node: node.op != "get_attr")
        gm.recompile()


class FunctionOfGraphs:
    """An ``autograd.Function`` made of the graphs of its forward and its backward pass."""

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
