"""Programs with products between their steps, which bring spikes or states back to the neurons of some layers.

An op runs each step: these products, by the operators of PyTorch that the loop calls, and the kernels of the programs.
The gradient of a weight is one product after all steps. There is no such op on CUDA.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from snnfast._core.autograd import differentiable
from snnfast._core.products import mm
from snnfast._core.pytorch import not_compiled_alone
from snnfast._program.call import Call, broadcast, flat_parameters, needs_of, rows_of, split, summed
from snnfast._program.code import Code, Codes, Counts
from snnfast._program.engines import takes_kernels
from snnfast._program.run import Program

__all__ = ["Between", "Part", "Product", "Source", "unroll"]


class Source(NamedTuple):
    """The operand of a product: a state before the step, or, ``now``, an output of an earlier part in this step."""

    part: int
    number: int
    now: bool = False


class Product(NamedTuple):
    """``linear(x, weight, bias)``; ``mm(x, weight)``; or ``bmm``, which is what ``einsum`` makes of a product.

    Attributes:
        name: Which of these it is.
        source: Where ``x`` comes from.
        to: The part that takes the result.
        weight, bias: Their numbers among the constants; -1: no bias.
        pieces: The result is cut into so many inputs, as the gates of an LSTM are.
    """

    name: str
    source: Source
    to: int
    weight: int
    bias: int = -1
    pieces: int = 1

    def of(self, x: Tensor, constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weight, bias = constants[self.weight], self.bias_of(constants)
        if self.name == "linear":
            made = F.linear(x, weight, bias)
        elif self.name == "bmm":
            made = torch.bmm(x.unsqueeze(0), weight.unsqueeze(0)).squeeze(0)
        else:
            made = torch.mm(x, weight)
        return made.chunk(self.pieces, -1)

    def bias_of(self, constants: Sequence[Tensor]) -> Tensor | None:
        return None if self.bias < 0 else constants[self.bias]

    def weight_of(self, constants: Sequence[Tensor]) -> Tensor:
        """The weight as PyTorch's operator takes it: ``linear`` without a bias is a product of the turned weight."""
        weight = constants[self.weight]
        if self.name == "linear":
            return weight if self.bias >= 0 else weight.t()
        return weight if self.name == "mm" else weight.unsqueeze(0)

    def by_outputs(self, constants: Sequence[Tensor]) -> Tensor:
        """The weight as ``[outputs, inputs]``."""
        weight = constants[self.weight]
        return weight if self.name == "linear" else weight.t()

    def numbers(self, given: Sequence[Sequence[int]] | None = None) -> list[int]:
        """It as the ops take it, where the outputs that are ``given`` for each part have other numbers."""
        part, number, now = self.source
        if now and given is not None:
            number = given[part].index(number)
        return [self.to, self.pieces, part, int(now), number]


class Part(NamedTuple):
    """A program of neurons of one shape. At every step, the parts run one after the other.

    Attributes:
        program: Its inputs are the series, and behind them what the products make.
        series, states, constants: What it takes, by their numbers among those that :func:`unroll` is given.
    """

    program: Program
    series: tuple[int, ...]
    states: tuple[int, ...]
    constants: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Between:
    """Parts, and the products before them.

    Attributes:
        products: In the order of the inputs that they are.
        counts: How many series, states and constants ``unroll`` is given.
    """

    parts: tuple[Part, ...]
    products: tuple[Product, ...]
    counts: Counts

    def to(self, part: int) -> list[Product]:
        return [p for p in self.products if p.to == part]

    @cached_property
    def read(self) -> list[list[int]]:
        """The outputs of each part that products take."""
        read = [p.source for p in self.products if p.source.now]
        return [sorted({s.number for s in read if s.part == part}) for part in range(len(self.parts))]

    @cached_property
    def numbers(self) -> list[int]:
        """The products as the ops take them."""
        return [n for p in self.products for n in p.numbers()]


def taken(found: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    """So many of what there is for each part."""
    at = 0
    for count in counts:
        yield found[at : at + count]
        at += count


def unroll(between: Between, given: Sequence[Any], steps: int) -> tuple[Tensor, ...]:
    """Run all steps, given series ``[T, *]``, states ``[*]``, which may be numbers, and constants.

    Returns the outputs ``[T, *]`` of all parts, and their last states ``[*]`` behind them, each part after part.
    """
    series, states, constants = map(list, split(given, between.counts))
    like = next(t for t in given if isinstance(t, Tensor))
    calls = [Call(steps, shape, like.dtype, like.dtype, like.device) for shape in _shapes(between, given)]
    for part, call in zip(between.parts, calls, strict=True):
        for i in part.series:
            series[i] = series[i] if series[i].shape[1:] == call.shape else series[i].expand(steps, *call.shape)
        for i in part.states:
            state = states[i]
            is_tensor = isinstance(state, Tensor)
            states[i] = state.expand(call.shape) if is_tensor else like.new_full(call.shape, state)
    tensors = [*series, *states, *constants]
    if all(takes_kernels(like, call.shape) for call in calls):
        found = _Run.apply(between, _codes(between, calls, tensors), calls, *tensors)
    else:
        found = _loop(between, calls, tensors)
    return tuple(found)


def _shapes(between: Between, given: Sequence[Any]) -> list[torch.Size]:
    """The shape of a step of each part. All have the same dimensions before the last."""
    series, states, constants = split(given, between.counts)
    rows, widths = [], []
    for part in between.parts:
        others = [*(states[i] for i in part.states), *(constants[i] for i in part.constants)]
        shapes = [*(series[i].shape[1:] for i in part.series), *(t.shape for t in others if isinstance(t, Tensor))]
        rows += [shape[:-1] for shape in shapes]
        widths.append(max((shape[-1] for shape in shapes if shape), default=1))
    for p in between.products:
        weight = constants[p.weight].shape
        outputs, inputs = weight if p.name == "linear" else reversed(weight)
        widths[p.to] = max(widths[p.to], outputs // p.pieces)
        widths[p.source.part] = max(widths[p.source.part], inputs)
    lead = broadcast(rows)
    return [torch.Size((*lead, width)) for width in widths]


def _codes(between: Between, calls: Sequence[Call], tensors: Sequence[Tensor]) -> list[Codes]:
    needs, found = needs_of(tensors), []
    needed = needs is not None and any(needs)
    for number, (part, call) in enumerate(zip(between.parts, calls, strict=True)):
        asked = None
        if needs is not None:
            of_series, of_states, of_constants = split(needs, between.counts)
            made = sum(p.pieces for p in between.to(number))
            # A product asks for a gradient where a state does, which is so from the second step on if it ever is.
            asked = (
                *(of_series[i] for i in part.series),
                *(needed for _ in range(made)),
                *(of_states[i] for i in part.states),
                *(of_constants[i] for i in part.constants),
            )
        found.append(part.program.plain.codes(call.opmath, len(call.shape), asked))
    return found


def _loop(between: Between, calls: Sequence[Call], given: Sequence[Tensor]) -> list[Tensor]:
    """Run all steps by a call of each program for each, which autograd records."""
    series, states, constants = split(given, between.counts)
    now = [[states[i] for i in part.states] for part in between.parts]
    found: list[list[Sequence[Tensor]]] = [[] for _ in between.parts]
    for t in range(calls[0].steps):
        before = [list(part) for part in now]
        outputs: list[list[Tensor]] = []
        for number, part in enumerate(between.parts):
            inputs = [series[i][t] for i in part.series]
            for p in between.to(number):
                of = outputs if p.source.now else before
                inputs += p.of(of[p.source.part][p.source.number], constants)
            taken = [constants[i] for i in part.constants]
            results = part.program.unroll(*(x.unsqueeze(0) for x in inputs), *before[number], *taken, steps=1)
            outputs.append([x.squeeze(0) for x in results[: part.program.outputs]])
            now[number] = list(results[part.program.outputs :])
        for rows, made in zip(found, outputs, strict=True):
            rows.append(made)
    records = [torch.stack(rows) for part in found for rows in zip(*part, strict=True)]
    return [*records, *(s for part in now for s in part)]


class _Run(torch.autograd.Function):
    """All steps, the products by PyTorch and the programs by the kernels."""

    @staticmethod
    def forward(
        ctx: Any, between: Between, codes: Sequence[Codes], calls: Sequence[Call], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        series, states, constants = split(tensors, between.counts)
        keep = any(ctx.needs_input_grad[3:])
        parts, products = list(zip(between.parts, calls, strict=True)), between.products
        parameters = _parameters(between, calls, [c.forward for c in codes], constants)
        found = torch.ops.snnfast.program_between_forward(
            calls[0].like(),
            [rows_of(series[i], call) for part, call in parts for i in part.series],
            [call.flat(states[i]) for part, call in parts for i in part.states],
            [p for of_part in parameters for p in of_part],
            [c.forward.words for c in codes],
            [c.forward.constants for c in codes],
            _counts(between, calls, [part.series for part in between.parts], parameters),
            [p.weight_of(constants) for p in products],
            [p.bias_of(constants) for p in products],
            between.numbers,
            calls[0].steps,
            _rows(calls),
            keep,
        )
        outputs: list[list[Tensor]] = []
        last: list[Tensor] = []
        constant: list[Tensor] = []
        counts = [c.forward.outputs + len(part.states) for c, part in zip(codes, between.parts, strict=True)]
        for code, call, results in zip(codes, calls, taken(found, counts), strict=True):
            shaped = list(map(call.shaped, results))
            outputs.append(shaped[: code.forward.outputs])
            last += shaped[code.forward.outputs :]
            constant += [t for t, need in zip(shaped, code.trace.differentiable, strict=True) if not need]
        ctx.mark_non_differentiable(*constant)
        ctx.how = between, codes, calls
        ctx.set_materialize_grads(False)
        if keep:
            read = [outputs[i][o] for i in range(len(parts)) for o in between.read[i]]
            # A buffer may change before the backward pass, as in a program without products.
            weights = {k for p in products for k in (p.weight, p.bias)}
            constants = [t if t.requires_grad or k in weights else t.clone() for k, t in enumerate(constants)]
            ctx.save_for_backward(*series, *states, *constants, *read, *found[sum(counts) :])
        return (*(t for of_part in outputs for t in of_part), *last)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[3:]
        if all(g is None for g in grads):
            return (None,) * (3 + len(needs))
        if torch.is_grad_enabled():
            between, _, calls = ctx.how
            saved = ctx.saved_tensors[: len(needs)]
            return None, None, None, *differentiable(lambda t: _loop(between, calls, t), saved, needs, grads)
        return None, None, None, *_backward(ctx, needs, grads)


def _rows(calls: Sequence[Call]) -> int:
    return calls[0].shape[:-1].numel()


def _parameters(
    between: Between, calls: Sequence[Call], codes: Sequence[Code], constants: Sequence[Tensor]
) -> list[list[Tensor]]:
    """The parameters of each part as the kernels take them."""
    found = []
    for part, call, code in zip(between.parts, calls, codes, strict=True):
        given = [constants[i] for i in part.constants]
        found.append(flat_parameters(code.parameters(given, code.fixed), call))
    return found


def _counts(
    between: Between, calls: Sequence[Call], series: Sequence[Sequence[Any]], parameters: Sequence[Sequence[Tensor]]
) -> list[int]:
    """How many series, states, parameters and columns each part has."""
    every = zip(between.parts, calls, series, parameters, strict=True)
    return [n for part, call, x, p in every for n in (len(x), len(part.states), len(p), call.shape[-1])]


def _backward(ctx: Any, needs: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    between, codes, calls = ctx.how
    parts, products, numbers = between.parts, between.products, range(len(between.parts))
    saved = ctx.saved_tensors  # a checkpoint hands each of them out once
    tensors, others = saved[: len(needs)], list(saved[len(needs) :])
    series, states, constants = split(tensors, between.counts)
    needs_series, _, needs_constants = split(needs, between.counts)
    read: dict[tuple[int, int], Tensor] = {(i, o): others.pop(0) for i in numbers for o in between.read[i]}
    tapes = [others.pop(0) for _ in parts]
    made = [[others.pop(0) for _ in range(p.pieces)] for p in products]
    outputs = list(taken(grads, [c.forward.outputs for c in codes]))
    last = grads[sum(map(len, outputs)) :]
    given = [[o for o, g in enumerate(of) if g is not None or (i, o) in read] for i, of in enumerate(outputs)]
    every: list[list[Tensor]] = []  # that a part takes
    backward: list[Code] = []
    for i, part in enumerate(parts):
        pieces = [t for p, of in zip(products, made, strict=True) if p.to == i for t in of]
        every.append([*(rows_of(series[k], calls[i]) for k in part.series), *pieces])
        of_constants = [needs_constants[k] for k in part.constants]
        wanted = *(needs_series[k] for k in part.series), *(True for _ in pieces), *of_constants
        backward.append(codes[i].backward(tuple(given[i]), wanted))
    none = torch.zeros((), dtype=calls[0].opmath, device=calls[0].device)
    of_states = zip(taken(last, [len(part.states) for part in parts]), calls, strict=True)
    parameters = _parameters(between, calls, backward, constants)
    found = torch.ops.snnfast.program_between_backward(
        calls[0].like(),
        [x for of in every for x in of],
        [p for of in parameters for p in of],
        tapes,
        [None if outputs[i][o] is None else rows_of(outputs[i][o], calls[i]) for i in numbers for o in given[i]],
        [none if g is None else call.flat(g) for of, call in of_states for g in of],
        [code.words for code in backward],
        [code.constants for code in backward],
        _counts(between, calls, every, parameters),
        list(map(len, given)),
        [p.by_outputs(constants) for p in products],
        between.numbers if not any(between.read) else [n for p in products for n in p.numbers(given)],
        calls[0].steps,
        _rows(calls),
    )
    result: list[Tensor | None] = [None] * len(tensors)

    def add(place: int, gradient: Tensor) -> None:
        if needs[place]:
            before = result[place]
            result[place] = gradient if before is None else before + gradient

    def before(source: Source) -> Tensor:
        if source.now:
            return read[source.part, source.number]
        tape: Tensor = tapes[source.part]
        return tape.view(calls[0].steps, len(parts[source.part].states), -1)[:, source.number]

    first, of_pieces = len(series) + len(states), []
    for i, (part, call, code) in enumerate(zip(parts, calls, backward, strict=True)):
        of_series = [found.pop(0) if k in code.gradients else None for k in range(len(every[i]))]
        of_pieces.append(of_series[len(part.series) :])
        for k, gradient in zip(part.series, of_series, strict=False):
            if gradient is not None:
                add(k, call.shaped(gradient))
        for k in part.states:
            add(len(series) + k, call.shaped(found.pop(0)))
        for j, k in enumerate(part.constants, len(every[i]) + len(part.states)):
            if j in code.gradients:
                add(first + k, summed(found.pop(0), constants[k], call))
    for p, of in zip(products, made, strict=True):
        gradients = [of_pieces[p.to].pop(0) for _ in of]
        asked = [k for k in (p.weight, p.bias) if k >= 0 and needs_constants[k]]
        if not asked or all(g is None for g in gradients):
            continue
        whole = [torch.zeros_like(m) if g is None else g for g, m in zip(gradients, of, strict=True)]
        rows = [t.view(-1, calls[p.to].shape[-1]) for t in whole]
        side_by_side = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
        if p.weight in asked:
            x = before(p.source).reshape(-1, calls[p.source.part].shape[-1])
            add(first + p.weight, mm(side_by_side.t(), x) if p.name == "linear" else mm(x.t(), side_by_side))
        if p.bias in asked:
            add(first + p.bias, side_by_side.sum(0))
    return result
