"""Programs with products between their steps, which bring spikes or states back to the neurons of a layer.

An op runs each step: these products, by the operators of PyTorch that the loop calls, and the kernels of the program.
The gradient of a weight is one product after all steps. There is no such op on CUDA.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from snnfast._core.pytorch import not_compiled_alone
from snnfast._program.autograd import differentiable
from snnfast._program.call import Call, broadcast, flat_parameters, needs_of, rows_of, split, summed
from snnfast._program.code import Codes, Counts
from snnfast._program.engines import takes_kernels
from snnfast._program.run import Program

__all__ = ["Between", "Product", "unroll"]


class Product(NamedTuple):
    """``linear(state, weight, bias)``; ``mm(state, weight)``; or ``bmm``, which is what ``einsum`` makes of a product.

    Attributes:
        name: Which of these it is.
        state: The number of the state.
        weight, bias: Their numbers among the constants; -1: no bias.
    """

    name: str
    state: int
    weight: int
    bias: int = -1

    def of(self, state: Tensor, constants: Sequence[Tensor]) -> Tensor:
        weight, bias = constants[self.weight], self.bias_of(constants)
        if self.name == "linear":
            return F.linear(state, weight, bias)
        if self.name == "bmm":
            return torch.bmm(state.unsqueeze(0), weight.unsqueeze(0)).squeeze(0)
        return torch.mm(state, weight)

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


class Between(NamedTuple):
    """The products before each step of a program, and the constants that the program itself takes.

    Attributes:
        products: Their results are inputs of the program, behind its series.
        counts: How many series, states and constants ``unroll`` is given.
        constants: The numbers of the constants that the program takes.
    """

    products: tuple[Product, ...]
    counts: Counts
    constants: tuple[int, ...]


def unroll(program: Program, between: Between, given: Sequence[Any], steps: int) -> tuple[Tensor, ...]:
    """Run all steps, given series ``[T, *]``, states ``[*]``, which may be numbers, and constants.

    Returns the outputs ``[T, *]`` and the last states ``[*]``, as :meth:`Program.unroll`.
    """
    series, states, constants = split(given, between.counts)
    parts = [*states, *(constants[i] for i in between.constants)]
    shape = broadcast([x.shape[1:] for x in series] + [t.shape for t in parts if isinstance(t, Tensor)])
    like = next(t for t in given if isinstance(t, Tensor))
    series = [x if x.shape[1:] == shape else x.expand(steps, *shape) for x in series]
    states = [s.expand(shape) if isinstance(s, Tensor) else like.new_full(shape, s) for s in states]
    tensors = [*series, *states, *constants]
    call = Call(steps, shape, like.dtype, like.dtype, like.device)
    if takes_kernels(like, shape):
        needs = needs_of(tensors)
        if needs is not None:
            of_constants = needs[len(series) + len(states) :]
            # A product asks for a gradient where a state does, which is so from the second step on if it ever is.
            made = (any(needs),) * len(between.products)
            needs = (
                *needs[: len(series)],
                *made,
                *needs[len(series) : len(series) + len(states)],
                *(of_constants[i] for i in between.constants),
            )
        codes = program.plain.codes(call.opmath, len(call.shape), needs)
        return _Run.apply(program, codes, between, call, *tensors)  # type: ignore[no-any-return]
    return _loop(program, between, call, tensors)


def _loop(program: Program, between: Between, call: Call, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run all steps by a call of the program for each, which autograd records."""
    series, states, constants = split(given, between.counts)
    taken = [constants[i] for i in between.constants]
    found = []
    for row in zip(*(x.unbind(0) for x in series), strict=True) if series else ((),) * call.steps:
        inputs = [*row, *(p.of(states[p.state], constants) for p in between.products)]
        results = program.unroll(*(x.unsqueeze(0) for x in inputs), *states, *taken, steps=1)
        found.append(results[: len(results) - len(states)])
        states = results[len(results) - len(states) :]
    return (*map(torch.cat, zip(*found, strict=True)), *states)


class _Run(torch.autograd.Function):
    """All steps, the products by PyTorch and the program by the kernels."""

    @staticmethod
    def forward(
        ctx: Any, program: Program, codes: Codes, between: Between, call: Call, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        series, states, constants = split(tensors, between.counts)
        code = codes.forward
        keep = any(ctx.needs_input_grad[4:])
        found = torch.ops.snnfast.program_between_forward(
            call.like(),
            [rows_of(x, call) for x in series],
            [call.flat(s) for s in states],
            flat_parameters(code.parameters([constants[i] for i in between.constants]), call),
            [p.weight_of(constants) for p in between.products],
            [p.bias_of(constants) for p in between.products],
            [p.state for p in between.products],
            call.shape[-1],
            code.words,
            code.constants,
            call.steps,
            call.shape.numel(),
            keep,
        )
        ctx.how = program, codes, between, call
        ctx.set_materialize_grads(False)
        results = len(found)
        if keep:
            results -= 1 + len(between.products)
            ctx.save_for_backward(*tensors, *found[results:])
        return tuple(map(call.shaped, found[:results]))

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[4:]
        if all(g is None for g in grads):
            return (None,) * (4 + len(needs))
        if torch.is_grad_enabled():
            program, _, between, call = ctx.how
            saved = ctx.saved_tensors[: len(needs)]
            return (
                None,
                None,
                None,
                None,
                *differentiable(lambda t: _loop(program, between, call, t), saved, needs, grads),
            )
        return None, None, None, None, *_backward(ctx, needs, grads)


def _backward(ctx: Any, needs: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    _, codes, between, call = ctx.how
    *tensors, tape = ctx.saved_tensors[: len(needs) + 1]
    products, made = between.products, ctx.saved_tensors[len(needs) + 1 :]
    series, states, constants = split(tensors, between.counts)
    needs_series, needs_states, needs_constants = split(needs, between.counts)
    outputs, last = grads[: len(grads) - len(states)], grads[len(grads) - len(states) :]
    given = tuple(i for i, g in enumerate(outputs) if g is not None)
    wanted = *needs_series, *(True for _ in products), *(needs_constants[i] for i in between.constants)
    code = codes.backward(given, wanted)
    none = torch.zeros((), dtype=call.opmath, device=call.device)
    found = torch.ops.snnfast.program_between_backward(
        call.like(),
        [*(rows_of(x, call) for x in series), *made],
        flat_parameters(code.parameters([constants[i] for i in between.constants]), call),
        tape,
        [rows_of(g, call) for g in outputs if g is not None],
        [none if g is None else call.flat(g) for g in last],
        [p.by_outputs(constants) for p in products],
        [p.state for p in products],
        call.shape[-1],
        code.words,
        code.constants,
        call.steps,
        call.shape.numel(),
    )
    inputs = [found.pop(0) if i in code.gradients else None for i in range(len(series) + len(products))]
    result: list[Tensor | None] = [None if g is None else call.shaped(g) for g in inputs[: len(series)]]
    of_states = [found.pop(0) for _ in states]
    result += [call.shaped(g) if need else None for g, need in zip(of_states, needs_states, strict=True)]
    of_constants: list[Tensor | None] = [None] * len(constants)

    def add(place: int, gradient: Tensor) -> None:
        before = of_constants[place]
        of_constants[place] = gradient if before is None else before + gradient

    for j, place in enumerate(between.constants):
        if len(series) + len(products) + len(states) + j in code.gradients:
            add(place, summed(found.pop(0), constants[place], call))
    columns = call.shape[-1]
    for product, of_made in zip(products, inputs[len(series) :], strict=True):
        if of_made is None:
            continue
        every = of_made.view(-1, columns)
        if needs_constants[product.weight]:
            before = tape.view(call.steps, len(states), -1)[:, product.state].reshape(-1, columns)
            add(product.weight, every.t() @ before if product.name == "linear" else before.t() @ every)
        if product.bias >= 0 and needs_constants[product.bias]:
            add(product.bias, every.sum(0))
    return result + of_constants
