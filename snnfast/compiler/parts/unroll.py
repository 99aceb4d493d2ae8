"""A neuron layer whose steps follow one another: one unroll over time."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch.fx import Node, map_arg

from snnfast._core.ops import NEURONS, opmath_dtype
from snnfast._unroll.graph import unroll_steps
from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.emit.linear import fuse_linear
from snnfast.compiler.emit.norm import fuse_norm, fuse_pool
from snnfast.compiler.emit.sums import is_sum
from snnfast.compiler.graph.memory import take_place
from snnfast.compiler.graph.nodes import aten, step_of_constant, value
from snnfast.compiler.loop.layers import inputs_of_layer, is_connected, parameters_of, states_of
from snnfast.compiler.loop.loop import Statement
from snnfast.compiler.parts.base import Part, steps_of

_SPIKES = 0
"""The number of the spikes among the results of ``unroll_steps``. Behind them are the records, then the last states."""


class Unroll(Part):
    """All steps of a neuron layer. Its first statement is the step, the others are the results of it."""

    kind = "Unroll"

    def __init__(self, statements: Sequence[Statement]) -> None:
        super().__init__(statements)
        self.layer = statements[0]
        self.neuron = NEURONS[self.layer.node.args[0]]  # type: ignore[index]
        self._call: Any = None
        self._results: dict[int, Node] = {}
        self.normed = self.pooled = False

    def calls(self) -> list[Node]:
        return self.layer.calls

    def reads(self) -> list[Node]:
        return inputs_of_layer(self.layer.calls)

    def emit(self, to: Emitter) -> None:
        calls = self.layer.calls
        currents: list[Any] = [step.args[1] for step in calls]
        constant = all(n is currents[0] for n in currents)
        x = to.get(currents[0]) if constant else to.over_time(currents)
        if not constant and (repeated := step_of_constant(x)) is not None:
            x, constant = repeated, True
        first: Any = calls[0].args
        step: Any = value(currents[0])
        begins = states_of(calls[0])
        for i, state in enumerate(begins):
            if isinstance(state, Node) and to.is_zeros(state, step.shape, opmath_dtype(step.dtype)):
                begins[i] = None
        tensors = map_arg([*begins, *parameters_of(calls[0])], to.get)
        steps = to.times(self.layer) if constant else None
        # It returns all states of every step until `finish` knows which of them are read.
        self._call = to.call(unroll_steps, first[0], x, tensors, *first[3:], steps, self.neuron.every_state, False)

    def _state(self, statement: Statement) -> int:
        """The number of the state that a statement is the result of, from 0; -1: the spikes."""
        output: Any = statement.node.args[1]
        return int(output - 1 + self.neuron.has_spike_feedback)

    def _result(self, number: int, to: Emitter) -> Node:
        if number not in self._results:
            self._results[number] = to.behind(self._call, operator.getitem, self._call, number)
        return self._results[number]

    def whole(self, statement: Statement, to: Emitter) -> Node:
        output: Any = statement.node.args[1]
        return self._result(_SPIKES if output == 0 else 1 + self._state(statement), to)

    def last(self, statement: Statement, to: Emitter) -> Node | None:
        state = self._state(statement)
        if state < 0:
            return None
        # A layer may hold it and detach it in place, which PyTorch forbids for a slice of the record.
        last = self._result(1 + len(self.neuron.states) + state, to)
        dtype = value(statement.calls[-1]).dtype
        return last if value(last).dtype == dtype else to.behind(last, aten.to.dtype, last, dtype)

    def finish(self, to: Emitter) -> None:
        used = {number: made for number, made in self._results.items() if made.users}
        record = sum(1 << i for i in range(len(self.neuron.states)) if 1 + i in used)
        spk = used.get(_SPIKES)
        count = None if spk is None else _count_of(spk)
        self._call.args = (*self._call.args[:-2], record, count is not None)
        if count is not None and spk is not None:
            take_place(count, spk)
        elif spk is not None and (linear := fuse_linear(to, self._call, spk)) is not None:
            self._call.args = (*self._call.args, *linear)
            self.fused = True
        self.normed = fuse_norm(to, self._call)
        self.pooled = self.normed and spk is not None and count is None and fuse_pool(to, self._call, spk)

    def describe(self) -> Iterator[str]:
        how = ", connected: one product a step" if is_connected(self.layer.node) else ""
        linear = ", with the linear behind it" * self.fused
        norm = ", with the batch normalisation before it" * self.normed
        pool = ", with the pooling behind it" * self.pooled
        yield f"{steps_of(len(self.layer.calls), self.neuron.name)}: one unroll{how}{norm}{pool}{linear}"


def _count_of(spk: Node) -> Node | None:
    """The sum over time of spikes, if nothing else reads them: an unroll can return it in their place."""
    reader = next(iter(spk.users))
    if len(spk.users) > 1 or not is_sum(reader) or value(reader).dtype != value(spk).dtype:
        return None
    return reader if reader.meta["context"].records == spk.meta["context"].records else None
