"""Programs: all steps of a step function, by the kernels or as a loop."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._core.linear import Linear, bits_pay
from snnfast._core.norm import Norm, fits, numbers_of
from snnfast._core.ops import has_cpu_kernels, opmath_dtype
from snnfast._core.order import dense_steps
from snnfast._program.autograd import Run
from snnfast._program.call import Call, Normed, broadcast, expanded, needs_of, order_of_steps, samples_of, split
from snnfast._program.code import Codes, Counts
from snnfast._program.engines import say_step_by_step, takes_kernels
from snnfast._program.nvrtc import NoKernelError
from snnfast._program.seen import Surroundings
from snnfast._program.trace import NotElementwiseError, Place, Step, Trace, trace

__all__ = ["Program"]


class _Options(NamedTuple):
    """How a call differs from a plain one."""

    record: bool  # the states of each step are outputs, too
    constant: bool  # the inputs are the same at each step
    ragged: bool  # samples have lengths of their own
    counts: bool  # the first output is summed over the steps


_PLAIN = _Options(record=False, constant=False, ragged=False, counts=False)


class Program:
    """A step function, and the code that was made of it.

    Args:
        step: ``(*inputs, *states, *parameters)`` to a tuple of the outputs, and the new states behind them. Inputs and
            states have one shape and dtype; parameters broadcast to it.
        inputs: How many there are; likewise ``states``, ``parameters`` and ``outputs``.
        surroundings: All that the step sees beside its arguments; ``None``: nothing.
    """

    def __init__(
        self,
        step: Step,
        inputs: int,
        states: int,
        parameters: int,
        outputs: int = 1,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.step = step
        self.counts = inputs, states, parameters
        self.outputs = outputs
        self.surroundings = surroundings
        self._variants: dict[_Options, _Variant] = {}

    def __call__(
        self,
        inputs: Sequence[Tensor],  # [T, *], or [*] of constant inputs
        states: Sequence[Tensor],  # [*]
        parameters: Sequence[Tensor],  # broadcastable to [*]
        steps: int,
        record: bool = False,
        constant: bool = False,
        lengths: Tensor | None = None,  # [B]
        counts: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run all steps; states and parameters have the opmath dtype of the inputs.

        Returns the outputs ``[T, *]`` in the dtype of the inputs, with ``record`` the states behind them, with
        ``counts`` the sum of the first one over the steps ``[*]`` in its place; and the last states ``[*]``.
        """
        options = _Options(record, constant, lengths is not None, counts)
        x = inputs[0]
        shape, opmath = x.shape if constant else x.shape[1:], opmath_dtype(x.dtype)
        series, given = ([], list(inputs)) if constant else (list(inputs), [])
        given = [t.to(opmath) for t in given] + list(parameters)
        states = list(states)
        if lengths is not None:
            series.append(torch.arange(steps, dtype=torch.float64, device=x.device))
            given.append(lengths.to(opmath).view(-1, *(1,) * (len(shape) - 1)))
        if counts:
            states.append(torch.zeros(shape, dtype=opmath, device=x.device))
        call = Call(steps, shape, x.dtype, opmath, x.device)
        results = self._variant(options)(call, [*series, *states, *given])
        first = len(results) - len(states)
        outputs, last = list(results[:first]), list(results[first:])
        if counts:
            outputs.insert(0, last.pop().to(x.dtype))
        return outputs, last

    def unroll(
        self,
        *given: Any,
        steps: int,
        output: int = 0,
        linear: Linear | None = None,
        normed: int = 0,
        norm: Norm | None = None,
    ) -> tuple[Tensor, ...]:
        """Run all steps, given all that the step takes: inputs ``[T, *]``, states and parameters, all of one dtype.

        All are broadcast to a step; states may be numbers. Returns the outputs ``[T, *]`` and the last states ``[*]``.
        With a ``linear`` layer, that of this ``output`` takes its place. With a batch normalisation, ``norm``, that of
        the input ``normed`` does.
        """
        series, states, parameters = split(given, self.counts)
        shapes = [x.shape[1:] for x in series] + [t.shape for t in (*states, *parameters) if isinstance(t, Tensor)]
        shape = broadcast(shapes)
        series = [x if x.shape[1:] == shape else x.expand(steps, *shape) for x in series]
        if norm is not None and not _takes_norm(norm, series[normed], shape):
            series[normed], norm = norm.by_itself(series[normed]), None
        elif norm is not None and not norm.over_time:
            series[normed] = dense_steps(series[normed])
        like = next(t for t in given if isinstance(t, Tensor))
        states = [s.expand(shape) if isinstance(s, Tensor) else like.new_full((), s) for s in states]
        samples = samples_of(series[0], shape) if series else 1
        call = Call(steps, shape, like.dtype, like.dtype, like.device, samples=samples)
        return self.plain(call, [*series, *states, *parameters], output, linear, normed, norm)

    def binary(self, dtype: torch.dtype, dims: int) -> tuple[bool, ...]:
        """Which outputs are certainly 0 or 1."""
        return self.plain.codes(dtype, dims).forward.binary

    def check(self, dtype: torch.dtype, dims: int, derivative: bool) -> None:
        """Trace the step, and its derivative.

        Raises:
            NotElementwiseError: It can't be a program.
        """
        trace(self.step, self.counts, dtype, dims, (True,) * sum(self.counts) if derivative else None)

    @property
    def plain(self) -> "_Variant":
        """The step function as it is."""
        return self._variant(_PLAIN)

    def _variant(self, options: _Options) -> "_Variant":
        variant = self._variants.get(options)
        if variant is None:
            variant = self._variants[options] = _Variant(self, options)
        return variant


class _Variant:
    """A step function with the options of a call, and the codes of both."""

    def __init__(self, program: Program, options: _Options) -> None:
        inputs, states, parameters = program.counts
        series = options.ragged + (0 if options.constant else inputs)
        others = options.ragged + (inputs if options.constant else 0)
        self.counts: Counts = series, states + options.counts, parameters + others
        self._program, self._options, self._inputs = program, options, inputs
        self._codes: dict[Any, Codes | Exception] = {}
        self._placed: set[Any] = set()  # what has other codes in each place

    def __call__(
        self,
        call: Call,
        tensors: Sequence[Tensor],
        output: int = 0,
        linear: Linear | None = None,
        normed: int = 0,
        norm: Norm | None = None,
    ) -> tuple[Tensor, ...]:
        """Outputs and last states, from series, states and parameters; in place of one, what ``linear`` makes of it.

        In place of a series, what ``norm`` makes of it.
        """
        needs = needs_of(tensors)
        if needs is not None and norm is not None and any(t is not None and t.requires_grad for t in norm[:2]):
            needs = (*needs[:normed], True, *needs[normed + 1 :])
        codes = self._codes_of(call, needs) if takes_kernels(tensors[0], call.shape) else None
        before: Any = None, None, None
        if norm is not None and codes is not None:
            numbers = numbers_of(norm, _as_it_lies(tensors[normed]) if norm.over_time else tensors[normed])
            call = call._replace(normed=Normed(normed, norm.eps, norm.over_time))
            before = numbers, norm.weight, norm.bias
        elif norm is not None:
            tensors = [norm.by_itself(x) if i == normed else x for i, x in enumerate(tensors)]
        call = call._replace(order=order_of_steps(tensors[0], call.shape) if self.counts[0] else None)
        # A linear layer reads the last dimensions side by side, as bits or as numbers.
        usual = call.order is None and linear is not None and bits_pay(tensors[0], call.shape, call.steps, linear)
        # Bits are in the order of the neurons, however the steps of the samples lie.
        if codes is not None and linear is not None and usual and (call.samples == 1 or codes.forward.binary[output]):
            weight, bias, dims = linear
            asked = call._replace(output=output, dims=dims, bits=codes.forward.binary[output])
            found = list(Run.apply(self.again, codes, asked, *before, weight, bias, *tensors))
            # Not in the function: autograd forbids changes of a view that a function has made.
            found[output] = found[output].view(call.steps, *call.shape[:-dims], weight.shape[0])
            return tuple(found)
        found = list(self._results(call, tensors, codes, before))
        if linear is not None:
            found[output] = linear.of_spikes(found[output])
        return tuple(found)

    def _results(self, call: Call, tensors: Sequence[Tensor], codes: Codes | None, before: Any) -> tuple[Tensor, ...]:
        if codes is not None:
            try:
                return Run.apply(self.again, codes, call, *before, None, None, *tensors)  # type: ignore[no-any-return]
            except NoKernelError as error:
                say_step_by_step(f"on {call.device.type}: {error}")
        found = self.loop(call, tensors)
        # In the order of the kernels, which the nodes of a compiled graph rely on.
        return found if torch.compiler.is_compiling() else tuple(map(call.ordered, found))

    def _codes_of(self, call: Call, needs: tuple[bool, ...] | None) -> Codes | None:
        """The codes of a call, ``None``, once said, where there are none.

        They are made before the call, of one moment: the derivative is that of what the forward pass computed.
        """
        try:
            return self.codes(call.opmath, len(call.shape), needs, Place(call.shape, call.device))
        except NotElementwiseError as error:
            problem = str(error)
        except Exception as error:  # The loop shows whether it is the step's own, or only that of made-up arguments.
            problem = f"step: {type(error).__name__}: {error}"
        say_step_by_step(f"because a program can't compute it ({problem})")
        return None

    def codes(
        self, dtype: torch.dtype, dims: int, needs: tuple[bool, ...] | None = None, place: Place | None = None
    ) -> Codes:
        """The codes for an opmath dtype and a number of dimensions of a step.

        Args:
            dtype, dims: The opmath dtype, and the number of dimensions of a step.
            needs: Which series, states and parameters ask for a gradient; ``None``: the grad mode is off.
            place: Where the call runs. A step that asks for its sizes has other codes elsewhere.

        Raises:
            NotElementwiseError: There are none.
        """
        key: Any = dtype, dims, needs
        if key in self._placed:
            key = (*key, place)
        if key not in self._codes:
            found: Trace | Exception
            try:
                found = self._traced(*key)
            except Exception as error:
                found = error.with_traceback(None)  # whose frames hold tensors
            if len(key) == 3 and _is_of_sizes(found, place):
                self._placed.add(key)
                return self.codes(dtype, dims, needs, place)
            # A step that can't be a program is not traced again, either.
            self._codes[key] = Codes(found, self.counts) if isinstance(found, Trace) else found
        codes = self._codes[key]
        if isinstance(codes, Exception):
            raise codes
        return codes

    def _traced(
        self, dtype: torch.dtype, dims: int, needs: tuple[bool, ...] | None, place: Place | None = None
    ) -> Trace:
        surroundings = self._program.surroundings
        constant = self._inputs if self._options.constant else 0
        if surroundings is None:
            return trace(self.step, self.counts, dtype, dims, needs, place, constant)

        def step(*arguments: Tensor) -> tuple[Tensor, ...]:
            results = self.step(*arguments)
            if not surroundings.are_current():
                raise NotElementwiseError("it changes what it sees")
            return results

        with surroundings.undisturbed():
            found = trace(step, self.counts, dtype, dims, needs, place, constant)
            # A second run shows whether the step reads anything else, such as a random number or a time.
            if not trace(step, self.counts, dtype, dims, needs, place, constant).equals(found):
                raise NotElementwiseError("it computes something else when it runs again")
        return found

    def step(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        record, constant, ragged, counted = self._options
        n = self._inputs
        series, states, parameters = (list(part) for part in split(arguments, self.counts))
        inputs = parameters[:n] if constant else series[:n]
        parameters = parameters[n:] if constant else parameters
        total = states.pop() if counted else None
        before = states
        if ragged:
            valid = series[-1] < parameters.pop()
            inputs = [torch.where(valid, x, 0) for x in inputs]  # padding may be NaN
            states = [s.clone() for s in states]  # the step may write to them
        results = self._program.step(*inputs, *states, *parameters)
        first = len(results) - len(before)
        outputs, after = list(results[:first]), list(results[first:])
        if ragged:
            outputs = [torch.where(valid, o, 0) for o in outputs]
            after = [torch.where(valid, s, b) for s, b in zip(after, before, strict=True)]
        if record:
            outputs += after
        if total is not None:
            after.append(total + outputs.pop(0))
        return (*outputs, *after)

    def again(self, call: Call, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The loop of a forward pass that was.

        Raises:
            RuntimeError: It would compute something else.
        """
        surroundings = self._program.surroundings
        if surroundings is not None and not surroundings.are_current():
            raise RuntimeError(
                "what the step of a neuron of your own reads beside its arguments has changed since the forward pass, "
                "and its second derivative needs it as it was"
            )
        return self.loop(call, tensors)

    def loop(self, call: Call, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The step function in a loop, which defines the results of the kernels."""
        series, states, parameters = split(tensors, self.counts)
        rows = [x.to(call.opmath).unbind(0) for x in series]
        now, outputs = [expanded(s, call.shape) for s in states], []
        for t in range(call.steps):
            # A step that writes to its arguments must not reach what the caller, a record, or the next step has.
            arguments = [*(x[t] for x in rows), *now, *parameters]
            results = [expanded(r, call.shape) for r in self.step(*(a.clone() for a in arguments))]
            outputs.append(results[: len(results) - len(now)])
            now = results[len(results) - len(now) :]
        if not outputs:
            _, recorded, _ = self._program.counts
            count = self._program.outputs + (recorded if self._options.record else 0) - self._options.counts
            rows_of_none = [torch.empty(0, *call.shape, dtype=call.dtype, device=call.device) for _ in range(count)]
            return (*rows_of_none, *(s.clone() for s in now))
        return (*(torch.stack(rows).to(call.dtype) for rows in zip(*outputs, strict=True)), *now)


def _takes_norm(norm: Norm, x: Tensor, shape: torch.Size) -> bool:
    """Whether the kernels normalise a series where they read it: as a batch normalisation by itself, bit for bit."""
    if not has_cpu_kernels(x.device) or x.dtype != torch.float32 or x.shape[1:] != shape or not fits(norm, x):
        return False
    return takes_kernels(x, shape) and (not norm.over_time or _lies_together(x))


def _is_of_sizes(found: Trace | Exception, place: Place | None) -> bool:
    """Whether a trace at made-up sizes says nothing of a call: the step asks for its sizes, or fails with these."""
    if isinstance(found, Trace):
        return found.asks
    return place is not None and not isinstance(found, NotElementwiseError)


def _lies_together(x: Tensor) -> bool:
    """Whether steps and samples are one batch of images in memory, with the channels of a pixel side by side."""
    images = _as_it_lies(x)
    return x.dim() > 4 and images.movedim(2, -1).is_contiguous() and not images.is_contiguous()


def _as_it_lies(x: Tensor) -> Tensor:
    """``[T, B, *]``, or ``[B, T, *]`` where the steps of a sample are side by side."""
    return x if x.stride(0) >= x.stride(1) else x.transpose(0, 1)
