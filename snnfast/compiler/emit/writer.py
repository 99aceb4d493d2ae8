"""The new graph while it is written: each call runs on fake tensors, in its grad mode and autocast."""

from itertools import takewhile
from typing import Any, cast

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfast.compiler.errors import TrialError
from snnfast.compiler.graph.context import ENTER_INFERENCE, Context
from snnfast.compiler.graph.nodes import fake_call


class Writer:
    """A graph, and the context of what is written next.

    Attributes:
        mode: The mode of the fake tensors, or ``None``.
        effects: Calls that stay though nobody reads their results.
        any_steps: Whether the graph is to run for any number of steps.
    """

    def __init__(self, mode: Any, context: Context, any_steps: bool = False) -> None:
        self.graph = Graph()
        self.any_steps = any_steps
        self.mode = mode
        self.context = context
        self.effects: set[Node] = set()
        self._entered: list[Node] = []  # the nodes that entered the blocks of the context

    def with_numbers(self, tree: Any) -> Any:
        """Arguments, in which the inputs stand for the numbers that follow from the numbers of steps."""
        return tree

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Append a call, and run it on fake tensors to know its results.

        Raises:
            TrialError: PyTorch does not take these arguments.
        """
        found = self.run(target, args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        node.meta |= {"example_value": found, "context": self.context}
        return node

    def run(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a call on fake tensors, and return its results.

        Raises:
            TrialError: PyTorch does not take these arguments.
        """
        try:
            return fake_call(target, args, kwargs, self.mode, self.context.blocks)
        except Exception as error:
            raise TrialError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error

    def trace(self, function: Any, given: list[Any]) -> Graph:
        """The ATen calls of a function of nodes or fake tensors."""
        return cast(Graph, self.run(make_fx(function), given, {}).graph)

    def behind(self, before: Node, target: Any, *args: Any) -> Node:
        """Insert a call directly behind a node of the new graph, in its context."""
        if before.op == "placeholder":
            before = next(reversed([n for n in self.graph.nodes if n.op == "placeholder"]))
        with self.graph.inserting_after(before):
            made = self.call(target, *args)
        made.meta["context"] = before.meta["context"]
        return made

    def switch_to(self, context: Context) -> None:
        """Let what is written from here on run under a context."""
        if context == self.context:
            return
        now, wanted = self.context.blocks, context.blocks
        common = len(list(takewhile(lambda both: both[0] == both[1], zip(now, wanted, strict=False))))
        for _, _, leave in reversed(now[common:]):
            self._effect(leave, self._entered.pop())
        for enter, given, _ in wanted[common:]:
            self._entered.append(self._effect(enter, *given))
        # Inference mode has a grad mode of its own, and restores the one in which it was entered.
        inference = any(enter is ENTER_INFERENCE for enter, *_ in (*now[common:], *wanted[common:]))
        if inference or context.grad != self.context.grad:
            self._effect(torch._C._set_grad_enabled, context.grad)
        self.context = context

    def _effect(self, target: Any, *args: Any) -> Node:
        node = self.graph.call_function(target, args)
        self.effects.add(node)
        return node
