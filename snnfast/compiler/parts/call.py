"""A call that waits for none of its own results: the calls of all steps become one, by a rule or by ``torch.vmap``."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.fx import Node, map_arg
from torch.utils import _pytree as pytree

from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.errors import TrialError, UnmergedError
from snnfast.compiler.graph.memory import memory_of
from snnfast.compiler.graph.nodes import (
    are_alike,
    aten,
    changed,
    is_number,
    name_of,
    named,
    tensors_of,
    value,
    with_tensor,
)
from snnfast.compiler.loop.loop import Count, Same
from snnfast.compiler.parts.base import Part
from snnfast.compiler.parts.repeat import repeat
from snnfast.compiler.parts.rules import StepCall, by_vmap, rule_for


class Call(Part):
    """One call on ``[T, *]``."""

    kind = "Call"

    def emit(self, to: Emitter) -> None:
        (statement,) = self.statements
        try:
            made = self._merged(to)
        except UnmergedError as error:
            repeat(statement, str(error), to)
            return
        if statement.node in to.facts.effects:
            to.effects.add(made)
        to.enter(statement, to.call(aten.clone.default, made) if self._shares(made, to) else made)

    def _shares(self, made: Node, to: Emitter) -> bool:
        """Whether all steps of a result are one in memory, and the caller gets several that are not so in the loop."""
        (statement,) = self.statements
        t = value(made)
        if not isinstance(t, Tensor) or not t.numel() or t.stride(0) != 0:
            return False
        memory = [memory_of(node) for node in statement.calls]
        return memory[0] != memory[-1] and any(to.is_shown(found) for found in memory)

    def _merged(self, to: Emitter) -> Node:
        """Write the call.

        Raises:
            UnmergedError: There is none. The message is the reason.
        """
        (statement,) = self.statements
        node, steps = statement.node, to.times(statement)
        varies: set[Node] = set()
        updated = {a for n in statement.calls for a in changed(n)}
        made = []
        target: Any = node.target
        for a, column in zip(statement.args, statement.columns(), strict=True):
            if isinstance(a, Same):
                made.append(map_arg(a.value, to.get) if isinstance(a.value, Node) else a.value)
            elif isinstance(a, Count) or all(map(is_number, column)):
                made.append(to.numbers(a, statement))
                varies.add(made[-1])
                target = with_tensor(target)
            elif updated.issuperset(column):
                made.append([to.get(n) for n in column])
            else:
                made.append(self._of_steps(column, to))
                varies.add(made[-1])
        if not varies:  # random numbers, anew at every step
            i = next((i for i, n in enumerate(made) if isinstance(n, Node) and isinstance(value(n), Tensor)), None)
            if i is None:
                raise UnmergedError("none of its inputs varies with time")
            made[i] = to.call(aten.expand.default, made[i], (steps, *(-1,) * value(made[i]).dim()))
            varies.add(made[i])
        args, kwargs = pytree.tree_unflatten(made, pytree.tree_structure((node.args, node.kwargs)))
        if target is operator.getitem:  # one of several results
            return to.call(operator.getitem, *args)
        ways: list[Callable[[], Node | None]] = [lambda: by_vmap(to, target, args, kwargs, varies)]
        if (rule := rule_for(target)) is not None:
            ways.insert(0, lambda: rule(StepCall(to.call, node, named(target, args, kwargs), varies, steps)))
        why = ""
        for way in ways:
            try:
                found = way()
                if found is not None and (why := self._unlike(found)) == "":
                    return found
            except TrialError as error:
                why = str(error)
        raise UnmergedError(f"torch.vmap can't merge it ({why})")

    def _of_steps(self, column: tuple[Any, ...], to: Emitter) -> Node:
        """``[T, *]`` of an argument that is another node at every step."""
        if not are_alike(column):
            raise UnmergedError("its inputs have other shapes at other steps")
        if to.context.records and any(n in to.facts.written_untracked for n in column):
            # In the loop, backward reads what was written since. A stack would keep the old numbers.
            raise UnmergedError("its inputs are changed in place, through .data")
        if not all(isinstance(value(n), Tensor) for n in column) and not to.are_one_whole(column):
            raise UnmergedError("it takes several results of a call that is not merged")
        return to.over_time(list(column))

    def _unlike(self, merged: Node) -> str:
        """How the results of a merged call differ from T results of the single call; empty if they do not."""
        (statement,) = self.statements
        wanted, found = tensors_of(statement.node), tensors_of(merged)
        if len(wanted) != len(found):
            return "another number of results"
        for a, b in zip(wanted, found, strict=True):
            if a.dtype != b.dtype or a.device != b.device:
                return f"{b.dtype} in place of {a.dtype}"
            if list(map(str, b.shape)) != [str(len(statement.calls)), *map(str, a.shape)]:
                return f"steps of shape {tuple(b.shape[1:])} in place of {tuple(a.shape)}"
        return ""

    def describe(self) -> Iterator[str]:
        (statement,) = self.statements
        yield f"{len(statement.calls)} x {name_of(statement.node.target)}"
