"""The call of a program: all steps of a step function, by the kernels or as a loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snnfast._core import ops
from snnfast._core.backend import current_backend, use_fused, warn_once
from snnfast._core.linear import FEW_OUTPUTS, Linear, bits_pay, flat_bits, weight_gradient
from snnfast._core.ops import opmath_dtype
from snnfast._core.pytorch import is_forward_mode, not_compiled_alone, transforms_are_active
from snnfast._program import cuda
from snnfast._program.code import Code, Counts, backward_code, forward_code
from snnfast._program.nvrtc import NoKernelError, kernel_of
from snnfast._program.seen import Surroundings
from snnfast._program.trace import NotElementwiseError, Place, Step, Trace, trace

__all__ = ["Program", "expanded", "order_of"]


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

    def unroll(self, *given: Any, steps: int, output: int = 0, linear: Linear | None = None) -> tuple[Tensor, ...]:
        """Run all steps, given all that the step takes: inputs ``[T, *]``, states and parameters, all of one dtype.

        All are broadcast to a step; states may be numbers. Returns the outputs ``[T, *]`` and the last states ``[*]``.
        With a ``linear`` layer, that of this ``output`` takes its place.
        """
        series, states, parameters = split(given, self.counts)
        shapes = [x.shape[1:] for x in series] + [t.shape for t in (*states, *parameters) if isinstance(t, Tensor)]
        shape = broadcast(shapes)
        series = [x if x.shape[1:] == shape else x.expand(steps, *shape) for x in series]
        like = next(t for t in given if isinstance(t, Tensor))
        states = [s.expand(shape) if isinstance(s, Tensor) else like.new_full((), s) for s in states]
        call = Call(steps, shape, like.dtype, like.dtype, like.device)
        return self.plain(call, [*series, *states, *parameters], output, linear)

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


class Call(NamedTuple):
    steps: int
    shape: torch.Size  # of a step
    dtype: torch.dtype  # of inputs and outputs
    opmath: torch.dtype  # of the arithmetic
    device: torch.device
    output: int = -1  # that a linear layer alone reads
    dims: int = 0  # of a step, from the last, that are the inputs of this layer
    bits: bool = False  # whether the layer takes it as bits
    order: Sequence[int] | None = None  # of the dimensions of a step in memory, if it is not the usual one

    def like(self) -> Tensor:
        """An empty tensor, which tells the kernels dtype and device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def _dims(self, t: Tensor) -> list[int]:
        """The dimensions of a step, or of several, as they lie in memory."""
        lead = t.dim() - len(self.shape)
        return [*range(lead), *(lead + d for d in self.order or range(len(self.shape)))]

    def flat(self, t: Tensor) -> Tensor:
        """``[N]`` of a step, or ``[T, N]`` of several: the neurons as they lie in memory."""
        if self.order is not None:
            t = t.permute(self._dims(t))
        return t.reshape(*t.shape[: t.dim() - len(self.shape)], self.shape.numel()).contiguous()

    def shaped(self, t: Tensor) -> Tensor:
        """The reverse of ``flat``. It is no view: autograd forbids changes of those that a function has made."""
        strides, n = [1] * len(self.shape), 1
        for d in reversed(self.order or range(len(self.shape))):
            strides[d], n = n, n * self.shape[d]
        lead = t.dim() - 1
        size, stride = (*t.shape[:lead], *self.shape), (*t.stride()[:lead], *strides)
        return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), size, stride)

    def ordered(self, t: Tensor) -> Tensor:
        """A tensor with its dimensions in memory in the order of ``shaped``."""
        dims = self._dims(t)
        return t.permute(dims).contiguous().permute(sorted(range(t.dim()), key=dims.__getitem__))


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
        self, call: Call, tensors: Sequence[Tensor], output: int = 0, linear: Linear | None = None
    ) -> tuple[Tensor, ...]:
        """Outputs and last states, from series, states and parameters; in place of one, what ``linear`` makes of it."""
        codes = self._codes_of(call, tensors) if takes_kernels(tensors[0], call.shape) else None
        call = call._replace(order=order_of(tensors[0], call.shape) if self.counts[0] else None)
        # A linear layer reads the last dimensions side by side, as bits or as numbers.
        usual = call.order is None and linear is not None and bits_pay(tensors[0], call.shape, call.steps, linear)
        if codes is not None and linear is not None and usual:
            weight, bias, dims = linear
            asked = call._replace(output=output, dims=dims, bits=codes.forward.binary[output])
            found = list(_Run.apply(self, codes, asked, *tensors, weight, bias))
            # Not in the function: autograd forbids changes of a view that a function has made.
            found[output] = found[output].view(call.steps, *call.shape[:-dims], weight.shape[0])
            return tuple(found)
        found = list(self._results(call, tensors, codes))
        if linear is not None:
            found[output] = linear.of_spikes(found[output])
        return tuple(found)

    def _results(self, call: Call, tensors: Sequence[Tensor], codes: "Codes | None") -> tuple[Tensor, ...]:
        if codes is not None:
            try:
                return _Run.apply(self, codes, call, *tensors)  # type: ignore[no-any-return]
            except NoKernelError as error:
                say_step_by_step(f"on {call.device.type}: {error}")
        found = self.loop(call, tensors)
        # In the order of the kernels, which the nodes of a compiled graph rely on.
        return found if torch.compiler.is_compiling() else tuple(map(call.ordered, found))

    def _codes_of(self, call: Call, tensors: Sequence[Tensor]) -> "Codes | None":
        """The codes of a call, ``None``, once said, where there are none.

        They are made before the call, of one moment: the derivative is that of what the forward pass computed.
        """
        try:
            return self.codes(call.opmath, len(call.shape), needs_of(tensors), Place(call.shape, call.device))
        except NotElementwiseError as error:
            problem = str(error)
        except Exception as error:  # The loop shows whether it is the step's own, or only that of made-up arguments.
            problem = f"step: {type(error).__name__}: {error}"
        say_step_by_step(f"because a program can't compute it ({problem})")
        return None

    def codes(
        self, dtype: torch.dtype, dims: int, needs: tuple[bool, ...] | None = None, place: Place | None = None
    ) -> "Codes":
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
            self._codes[key] = Codes(self, found) if isinstance(found, Trace) else found
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

    def check_current(self) -> None:
        """Before the step runs for a forward pass that was.

        Raises:
            RuntimeError: It would compute something else.
        """
        surroundings = self._program.surroundings
        if surroundings is not None and not surroundings.are_current():
            raise RuntimeError(
                "what the step of a neuron of your own reads beside its arguments has changed since the forward pass, "
                "and its second derivative needs it as it was"
            )

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


def _is_of_sizes(found: "Trace | Exception", place: Place | None) -> bool:
    """Whether a trace at made-up sizes says nothing of a call: the step asks for its sizes, or fails with these."""
    if isinstance(found, Trace):
        return found.asks
    return place is not None and not isinstance(found, NotElementwiseError)


class Codes:
    """The codes of a variant that come from one trace: of the forward pass, and of its derivative."""

    def __init__(self, variant: _Variant, trace: Trace) -> None:
        self.trace = trace
        self._counts = variant.counts
        self.forward = forward_code(trace, variant.counts)
        self._backward: dict[Any, Code] = {}

    def backward(self, given: tuple[int, ...], needs: tuple[bool, ...]) -> Code:
        """The derivative, for outputs ``given`` a gradient, and the ``needs`` of series and parameters."""
        key = given, needs
        if key not in self._backward:
            self._backward[key] = backward_code(self.trace, self._counts, given, needs)
        return self._backward[key]


def needs_of(tensors: Sequence[Tensor]) -> tuple[bool, ...] | None:
    """Which tensors ask for a gradient; ``None``: the grad mode is off."""
    return tuple(t.requires_grad for t in tensors) if torch.is_grad_enabled() else None


def expanded(t: Tensor, shape: torch.Size) -> Tensor:
    # A call that does nothing has sizes, with which a compiled loop is no program.
    return t if t.shape == shape else t.expand(shape)


def split(tensors: Sequence[Any], counts: Counts) -> tuple[Sequence[Any], ...]:
    first, second = counts[0], counts[0] + counts[1]
    return tensors[:first], tensors[first:second], tensors[second:]


def takes_kernels(x: Tensor, shape: torch.Size) -> bool:
    """Whether a call with steps of a shape runs by the kernels; says why not, if that was not chosen."""
    if current_backend() == "reference" or x.is_meta:
        return False
    if torch.compiler.is_compiling():
        reason = "where torch.compile traces it"
    elif isinstance(x, FakeTensor) or shape.numel() == 0:  # there is nothing to compute
        return False
    elif transforms_are_active() or is_forward_mode():
        reason = "under a torch.func transform"
    elif x.is_cuda:  # NVRTC makes the kernels, also where the library has none
        return True
    elif not x.is_cpu:
        reason = f"on {x.device.type}, for which there are no kernels of programs"
    else:
        return use_fused(x)
    say_step_by_step(reason)
    return False


def say_step_by_step(reason: str) -> None:
    if current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available {reason}. A neuron of your own runs step by step there")
    warn_once(
        f"snnfast: a neuron of your own runs step by step {reason}. use_backend('reference') chooses it without this "
        "warning."
    )


class _CpuEngine:
    """Runs codes by the ops of the library."""

    def forward(self, code: Code, like: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, steps, neurons, keep, bits = arguments
        words, constants = code.words, code.constants
        found = torch.ops.snnfast.program_forward(like, *tensors, words, constants, steps, neurons, keep, bits)
        return cast(list[Tensor], found)

    def backward(self, code: Code, like: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, steps, neurons = arguments
        found = torch.ops.snnfast.program_backward(like, *tensors, code.words, code.constants, steps, neurons)
        return cast(list[Tensor], found)


ENGINES: dict[str, Any] = {"cpu": _CpuEngine(), "cuda": cuda.Engine(kernel_of)}
"""The engine that runs the codes of a program, by the type of the device."""


class _Run(torch.autograd.Function):
    """All steps by the kernels, and the linear layer that alone reads an output, if there is one.

    Arguments are the series, the states and the parameters; behind them the weight and the bias of the layer.
    """

    @staticmethod
    def forward(ctx: Any, variant: _Variant, codes: Codes, call: Call, *tensors: Any) -> tuple[Tensor, ...]:
        code = codes.forward
        count = sum(variant.counts)
        tensors, linear = tensors[:count], tensors[count:]
        series, states, parameters = split(tensors, variant.counts)
        neurons = call.shape.numel()
        keep = bool(codes.trace.gradients) and any(ctx.needs_input_grad[3 : 3 + count])  # not under no_grad
        found = ENGINES[call.device.type].forward(
            code,
            call.like(),
            [rows_of(x, call) for x in series],
            [s if s.dim() == 0 else call.flat(s) for s in states],
            flat_parameters(code.parameters(parameters), call),
            call.steps,
            neurons,
            keep,
            call.output if call.bits else -1,
        )
        checkpoints = found.pop() if keep else None
        read = None
        if linear:
            weight, bias = linear
            if call.bits:
                read = _bits(found[call.output], call)
                found[call.output] = ops.spikes_linear(read, weight, bias, _ONE, call.steps)
            else:
                read = found[call.output].view(call.steps, -1, weight.shape[1])
                found[call.output] = F.linear(read, weight, bias)
        ctx.variant, ctx.codes, ctx.call = variant, codes, call
        ctx.set_materialize_grads(False)
        if linear and not ctx.needs_input_grad[3 + count]:
            read = None  # only the gradient of the weight reads it
        if keep:  # A buffer may change before the backward pass: where no gradient needs it, a loop has not saved it.
            buffers = [p if p.requires_grad else p.clone() for p in parameters]
            tensors = (*series, *states, *buffers)
        ctx.save_for_backward(*tensors, *linear, read, checkpoints)
        return tuple(t if i == call.output else call.shaped(t) for i, t in enumerate(found))

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        variant, call = ctx.variant, ctx.call
        needs = ctx.needs_input_grad[3:]
        if all(g is None for g in grads):
            return (None,) * (3 + len(needs))
        if torch.is_grad_enabled():
            return None, None, None, *_second(ctx, grads)
        count = sum(variant.counts)
        *saved, read, checkpoints = ctx.saved_tensors
        tensors, linear = saved[:count], saved[count:]
        behind: list[Tensor | None] = [None] * len(linear)
        few = -1  # the output whose gradient the kernels make from that of a linear layer
        if linear and grads[call.output] is not None:
            of_output, behind = _through_linear(ctx, grads[call.output], read, linear[0])
            few = call.output if of_output is not None and linear[0].shape[0] <= FEW_OUTPUTS else -1
            grads = (*grads[: call.output], of_output, *grads[call.output + 1 :])
        if checkpoints is None:
            return None, None, None, *[None] * count, *behind
        series, states, parameters = split(tensors, variant.counts)
        needs_series, _, needs_parameters = split(needs[:count], variant.counts)
        first = len(grads) - len(states)
        given = tuple(i for i in range(first) if grads[i] is not None)
        code = ctx.codes.backward(given, (*needs_series, *needs_parameters))
        neurons = call.shape.numel()
        none = torch.zeros((), dtype=call.opmath, device=call.device)
        try:
            found = ENGINES[call.device.type].backward(
                code,
                call.like(),
                [rows_of(x, call) for x in series],
                flat_parameters(code.parameters(parameters), call),
                checkpoints,
                [g if i == few else rows_of(g, call) for i, g in enumerate(grads[:first]) if g is not None],
                [none if g is None else call.flat(g) for g in grads[first:]],
                linear[0].contiguous() if few >= 0 else None,
                call.steps,
                neurons,
            )
        except NoKernelError as error:
            say_step_by_step(f"backward on {call.device.type}: {error}")
            return None, None, None, *_second(ctx, grads)
        made: list[Tensor | None] = []
        for i, t in enumerate(tensors):
            if len(series) <= i < len(series) + len(states):
                gradient = found.pop(0)
                made.append(call.shaped(gradient) if needs[i] else None)
            elif i not in code.gradients:
                made.append(None)
            elif i < len(series):
                made.append(call.shaped(found.pop(0)))
            else:
                made.append(summed(found.pop(0), t, call))
        return None, None, None, *made, *behind


def _through_linear(ctx: Any, grad: Tensor, read: Any, weight: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of the output ``[T, *]``, and of weight and bias, from that of the linear layer behind it.

    Where the layer has few outputs, the kernels make the first of these themselves, and ``grad`` is in its place.
    """
    call, (*needs, needs_weight, needs_bias) = ctx.call, ctx.needs_input_grad[3:]
    grad = grad.reshape(call.steps, -1, grad.shape[-1]).contiguous()
    of_output = None
    if any(needs) and grad.shape[-1] <= FEW_OUTPUTS:
        of_output = grad
    elif any(needs):
        of_output = ops.rows_like(weight.new_empty(call.shape), call.steps)
        torch.mm(grad.flatten(0, 1), weight, out=of_output.view(-1, weight.shape[1]))
    of_weight = None
    if needs_weight and call.bits:
        of_weight = weight_gradient(read, grad, _ONE, again=False)
    elif needs_weight:
        of_weight = grad.flatten(0, 1).t() @ read.flatten(0, 1)
    return of_output, [of_weight, grad.sum((0, 1)) if needs_bias else None]


def _bits(found: Tensor, call: Call) -> Tensor:
    """``[rows of eight steps, R, N]`` of the spikes of all neurons of a step."""
    return flat_bits(found.view(-1, *call.shape), call.shape[-call.dims :])


_ONE = torch.ones((), device="cpu", dtype=torch.float32)  # the height of a spike


def order_of(x: Tensor, shape: torch.Size) -> list[int] | None:
    """The dimensions of a step from the outermost in memory to the innermost; ``None``: as usual, or with gaps.

    Gaps in the outermost dimension do not count. The samples of a step of ``[B, T, *]`` have them.
    """
    if x.is_contiguous() or x.shape[1:] != shape or x.numel() == 0:
        return None
    strides = x.stride()[1:]
    order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
    step = x[0]
    usual = step.is_contiguous() or (order[0] == 0 and step[0].is_contiguous())
    return order if not usual and step.permute(order)[0].is_contiguous() else None


def rows_of(x: Tensor, call: Call) -> Tensor:
    """A series as the kernels take it: ``[T, N]``, or ``[1, N]`` of one that was expanded over time.

    Numbers of each step stay as they are.
    """
    if x.dim() == 1 and call.shape:
        return x
    one = call.steps > 1 and x.stride(0) == 0
    return call.flat(x[:1] if one else x)


def flat_parameters(parameters: Sequence[Tensor], call: Call) -> list[Tensor]:
    """Parameters as the engines take them: a number, ``[N]``, or the last dimensions of a step as one."""
    found = []
    for p in parameters:
        if p.numel() == 1:
            found.append(p.reshape(()))
        elif call.order is None and p.dim() > 0 and p.shape == call.shape[-p.dim() :]:
            found.append(p.reshape(-1).contiguous())
        else:
            found.append(call.flat(p.expand(call.shape)))
    return found


def broadcast(shapes: Sequence[torch.Size]) -> torch.Size:
    longest = max(shapes, key=len)
    if all(s == longest[len(longest) - len(s) :] for s in shapes):
        return longest
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call, no-any-return]  # ten times slower


def summed(gradient: Tensor, parameter: Tensor, call: Call) -> Tensor:
    """The gradient of a parameter, float64 until it is summed."""
    if gradient.dim() > 0:
        gradient = call.shaped(gradient).sum_to_size(parameter.shape)
    return gradient.to(parameter.dtype).view(parameter.shape)


def _second(ctx: Any, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients by autograd through the loop, which can be differentiated again."""
    variant, call, needs = ctx.variant, ctx.call, ctx.needs_input_grad[3:]
    count = sum(variant.counts)
    variant.check_current()

    def loop(saved: Sequence[Tensor]) -> list[Tensor]:
        results = list(variant.loop(call, saved[:count]))
        if call.output >= 0:
            weight, bias = saved[count:]
            y = Linear(weight, bias, call.dims).of_spikes(results[call.output])
            results[call.output] = y.reshape(call.steps, -1, y.shape[-1])
        return results

    return differentiable(loop, ctx.saved_tensors[: len(needs)], needs, grads)


def differentiable(
    loop: Callable[[Sequence[Any]], Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients that are needed of tensors, by autograd through a loop of them, for those of its results."""
    with torch.enable_grad():
        # A tensor may have been computed from another one. A gradient stops at these views, and so is not added twice.
        tensors = [None if t is None else t.view_as(t) for t in tensors]
        results = loop(tensors)
        given = [i for i, g in enumerate(grads) if g is not None and results[i].requires_grad]
        wanted = [t for t, need in zip(tensors, needs, strict=True) if t is not None and need]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if given:
            outputs, seeds = [results[i] for i in given], [grads[i] for i in given]
            found = torch.autograd.grad(outputs, wanted, seeds, create_graph=True, allow_unused=True)
    made = iter(found)
    return [next(made) if need else None for need in needs]
