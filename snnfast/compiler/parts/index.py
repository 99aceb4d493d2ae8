"""``x[0]``, ``x[1]``, ...: rows of one tensor along a dimension."""

import operator
from typing import Any

from torch.fx import Node

from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.graph.nodes import LEAST, aten, index_of, size_of, value
from snnfast.compiler.loop.loop import Count
from snnfast.compiler.parts.base import Part
from snnfast.compiler.parts.repeat import repeat


class Index(Part):
    """A tensor that each step reads a row of: the tensor itself, or a view."""

    kind = "Index"

    def emit(self, to: Emitter) -> None:
        (statement,) = self.statements
        made = self._rows(to)
        if made is None:
            repeat(statement, "its steps are in no regular order, under no_grad", to)
            return
        to.enter(statement, made)
        # The caller may change a step in place, which is a view as in the loop.
        to.new |= {node: to.copy(node) for node in statement.calls if node in to.returned}

    def _rows(self, to: Emitter) -> Node | None:
        (statement,) = self.statements
        place = statement.args[2]
        tensor, axis, _ = index_of(statement.node)  # type: ignore[misc]
        places = [index_of(node)[2] for node in statement.calls]  # type: ignore[index]
        base: Node = to.get(tensor)
        made = base
        size = size_of(value(base), axis)
        stride = place.stride if isinstance(place, Count) else 0
        last = None if size is None else size - 1 - max(places)
        if stride > 0:
            if min(places) != 0 or stride != 1 or last != 0:
                made = to.call(aten.slice.Tensor, base, axis, places[0], self._stop(places, last, to), stride)
        elif not to.context.records and to.records:
            # Under no_grad, a view of what needs a gradient says that it needs one, too; a copy does not.
            return None
        elif stride == -1:
            if places[-1] != 0 or last != 0:
                made = to.call(aten.slice.Tensor, base, axis, places[-1], self._stop(places, last, to))
            made = to.call(aten.flip.default, made, [axis])
        else:
            made = to.call(operator.getitem, base, (*(slice(None),) * axis, places))
        if axis != 0:
            made = to.call(aten.movedim.int, made, axis, 0)
        if made is base and (base.meta["context"] != to.context or not to.context.records):
            made = to.call(operator.getitem, base, slice(None))  # whose steps have gradients as in this context
        return made

    def _stop(self, places: list[int], last: int | None, to: Emitter) -> Any:
        """Where the rows end: so many before the last one, or where all steps are done."""
        if last is not None and last < LEAST:
            return -last or None
        return to.times(self.statements[0], min(places)) if abs(places[1] - places[0]) == 1 else max(places) + 1
