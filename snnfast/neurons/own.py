"""Neurons of your own: :func:`neuron` makes a layer of a step function, :func:`spike` is a spike in it."""

import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnfast._core.backend import warn_once
from snnfast._core.ops import CONSTANT, opmath_dtype
from snnfast._core.settings import check_flag
from snnfast._program.call import expanded
from snnfast._program.run import Program
from snnfast._program.seen import Moment, Sight, Surroundings, modes
from snnfast._program.trace import NotElementwiseError
from snnfast._unroll.call import UnrollCall, step_shape
from snnfast._unroll.checks import check_current, check_parameter, check_spike_grad, out_of_inference
from snnfast.neurons.base import SpikingLayer
from snnfast.surrogate.base import spike_of

__all__ = ["StepLayer", "neuron", "spike"]

# How many programs of one step are kept. A surrogate whose slope changes in each epoch has one in each.
_MOMENTS = 256


def spike(x: Tensor, surrogate: Any) -> Tensor:
    """Spikes ``1[x > 0]`` whose gradient is that of a surrogate.

    Args:
        x: Distance of the membrane from the threshold ``[*]``.
        surrogate: One of :mod:`snnfast.surrogate` or ``snntorch.surrogate``; a callable of ``x``, such as the ``apply``
            of a ``torch.autograd.Function``, which also decides what a spike is; or an object with a method
            ``derivative`` of ``x``.

    Returns:
        Spikes ``[*]`` in the dtype of ``x``.

    Raises:
        TypeError: ``surrogate`` is neither.

    Example::

        >>> import torch, snnfast
        >>> from snnfast import surrogate
        >>> snnfast.spike(torch.tensor([-0.5, 0.5]), surrogate.atan())
        tensor([0., 1.])
    """
    if not callable(surrogate) and callable(getattr(surrogate, "derivative", None)):
        return spike_of(x, surrogate)
    return check_spike_grad(surrogate)(x).to(x.dtype)


def neuron(step: Callable[..., tuple[Tensor, ...]]) -> type["StepLayer"]:
    """Make a layer of neurons from a function that computes one time step.

    The function takes the input and the states, all ``[B, *]``, and parameters by keyword. It returns the spikes and
    the new states, in this order. It may use all elementwise operators of PyTorch, writes in place, masks, and any
    ``torch.autograd.Function``. The layer's ``unroll`` runs all time steps in one kernel, forward and backward. The
    results equal those of the function in a loop: bit for bit, but for ``exp``, ``log``, ``sigmoid``, ``tanh`` and
    powers, which are equal up to rounding.

    A call computes with what the function reads now: numbers of its module, of its closure, of options and of
    surrogates may change between calls. A function that is not elementwise runs in a loop, and a warning names the
    operator and the line once. On CUDA the kernel is compiled by NVRTC when it is first needed. On devices other than
    CPU and CUDA the function runs in a loop.

    Args:
        step: The function. Its first argument is the input. The other positional arguments are the states, which begin
            with zeros, or with the number that is their default. Keyword-only arguments with a number or a tensor as
            their default are parameters. Any other default, such as a surrogate, makes an option.

    Returns:
        A class of layers with the name of the function, a subclass of :class:`torch.nn.Module`. Its constructor takes
        the parameters, as numbers or as tensors broadcastable to one step ``[B, *]``; ``learn_<name>=True``, which
        makes an ``nn.Parameter``; the options; ``init_hidden=True``, with which the layer holds its states, and
        ``output=True``, with which one step returns them all the same. A layer has ``forward(input_, *states)`` for one
        step, ``unroll(current, *states, num_steps=None, record_mem=True, reduce=None, lengths=None)`` for all steps,
        and ``reset_mem()``, all as :class:`snnfast.Leaky` has them. It goes into a :class:`snnfast.MultiStep`.

    Raises:
        TypeError: The function has no input and state, or arguments that are neither states nor parameters. In a call:
            it does not return spikes and new states.

    Example::

        >>> import torch, snnfast
        >>> from snnfast import surrogate
        >>> @snnfast.neuron
        ... def LIF(x, v, *, tau=2.0, threshold=1.0, spike_grad=surrogate.atan()):
        ...     v = v + (x - v) / tau
        ...     spk = snnfast.spike(v - threshold, spike_grad)
        ...     return spk, v * (1 - spk.detach())
        >>> lif = LIF(tau=4.0, learn_tau=True)
        >>> lif
        LIF(tau=4, threshold=1, init_hidden=False)
        >>> spk_rec, v_rec = lif.unroll(torch.rand(25, 128, 100))  # [T, B, N]
        >>> spk_rec.shape
        torch.Size([25, 128, 100])
    """
    if not callable(step) or not hasattr(step, "__name__"):
        raise TypeError(f"step: expected a function, got {type(step).__name__}")
    initial, parameters, options, required = _read_signature(step)
    described = SimpleNamespace(
        name=step.__name__,
        states=tuple(initial),
        parameters=tuple(parameters),
        every_state=(1 << len(initial)) - 1,
        has_spike_feedback=False,
    )
    attributes = {
        "__doc__": step.__doc__,
        "__module__": step.__module__,
        "__qualname__": step.__qualname__,
        "step": staticmethod(step),
        "neuron": described,
        "initial": initial,
        "defaults": parameters,
        "options": options,
        "required": required,
        "_programs": _Programs(step),
    }
    return type(step.__name__, (StepLayer,), attributes)


def _read_signature(step: Callable[..., Any]) -> tuple[dict[str, float], dict[str, Any], dict[str, Any], set[str]]:
    """The states with what they begin with, parameters and options with their defaults, and parameters without."""
    places: list[inspect.Parameter] = []
    parameters: dict[str, Any] = {}
    options: dict[str, Any] = {}
    required: set[str] = set()
    for p in inspect.signature(step).parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            places.append(p)
        elif p.kind != p.KEYWORD_ONLY:
            raise TypeError(f"step: expected an input, states, and parameters by keyword, got {p}")
        elif p.default is p.empty:
            required.add(p.name)
            parameters[p.name] = None
        elif isinstance(p.default, Tensor) or (isinstance(p.default, numbers.Real) and not isinstance(p.default, bool)):
            parameters[p.name] = p.default
        else:
            options[p.name] = p.default
    if len(places) < 2:
        raise TypeError("step: expected an input and at least one state, as def step(x, mem, *, beta=0.9)")
    initial: dict[str, float] = {}
    for p in places[1:]:
        begin = 0.0 if p.default is p.empty else p.default
        if isinstance(begin, bool) or not isinstance(begin, numbers.Real):
            raise TypeError(f"{p.name}: expected a number that the state begins with, got {type(begin).__name__}")
        initial[p.name] = float(begin)
    for name in (*initial, *parameters, *options):
        if hasattr(nn.Module(), name) or hasattr(StepLayer, name) or name in ("init_hidden", "output"):
            raise TypeError(f"{name}: is an attribute of the layer; give the argument another name")
    return initial, parameters, options, required


class StepLayer(SpikingLayer):
    """A layer of neurons whose step is a function: see :func:`neuron`."""

    step: ClassVar[Callable[..., tuple[Tensor, ...]]]
    initial: ClassVar[dict[str, float]]
    defaults: ClassVar[dict[str, Any]]
    options: ClassVar[dict[str, Any]]
    required: ClassVar[set[str]]
    _programs: ClassVar["_Programs"]

    def __init__(self, *, init_hidden: bool = False, output: bool = False, **given: Any) -> None:
        nn.Module.__init__(self)
        self.init_hidden = check_flag("init_hidden", init_hidden, optional=True)
        self.output = check_flag("output", output, optional=True)
        for name, default in self.defaults.items():
            if name in self.required and name not in given:
                raise TypeError(f"{name}: {type(self).__name__} needs a value for it")
            self._add(name, given.pop(name, default), given.pop(f"learn_{name}", False))
        for name, default in self.options.items():
            setattr(self, name, given.pop(name, default))
        if given:
            known = ", ".join([*self.defaults, *self.options])
            raise TypeError(f"{next(iter(given))}: {type(self).__name__} has no such parameter, but {known}")
        self._finish()

    def _register(self) -> None:
        self.instances.append(self)

    def forward(self, input_: Tensor, *states: Tensor | None) -> Any:
        """One time step, by PyTorch.

        Args:
            input_: Input ``[B, *]``.
            *states: States before the step ``[B, *]``. ``None``, or none: those that the layer holds.

        Returns:
            ``(spk, *states)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.

        Raises:
            TypeError, ValueError: An argument has a wrong type or shape. The message names it.
        """
        check_current("input_", input_)
        shape, opmath = input_.shape, opmath_dtype(input_.dtype)
        now = [
            self._held(name, input_, shape) if state is None else self._fit(name, state, input_, shape)
            for name, state in zip(self.neuron.states, self._states(states), strict=True)
        ]
        # Copies, because the step may write to its arguments.
        arguments = [t.clone() for t in (input_.to(opmath), *now, *self._fitting(self._values(), input_, shape))]
        spk, *after = self._bound_step()(*arguments)
        after = [expanded(state, shape) for state in after]
        self._hold(after)
        spk = expanded(spk, shape).to(input_.dtype)
        return spk if self.init_hidden and not self.output else (spk, *after)

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        *states: Tensor | None,  # [B, *]
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, ...]:
        """All time steps in one kernel.

        Args:
            current: Input of every step ``[T, B, *]``. With ``num_steps``, ``[B, *]``: the same input at each step.
            *states: States before the first step ``[B, *]``. ``None``, or none: what they begin with.
            num_steps: Number of steps of a constant input.
            record_mem: Return the states of every step, or only the last ones.
            reduce: ``"sum"``: return the sum of the spikes over time, which are then never written.
            lengths: The number of steps of each sample ``[B]``. After its last step a sample keeps its states and does
                not spike.

        Returns:
            ``(spk_rec, *state_recs)``, all ``[T, B, *]``. With ``record_mem=False`` the states are ``[B, *]``, and with
            ``reduce="sum"`` the first is ``[B, *]``.

        Raises:
            TypeError, ValueError: An argument has a wrong type or shape. The message names it.
            RuntimeError: The backend ``"fused"`` was chosen, and the step is not elementwise.
        """
        return self._unroll(current, self._states(states), num_steps, record_mem, reduce, lengths=lengths)

    def _run(self, call: UnrollCall) -> tuple[Tensor, ...]:  # type: ignore[override]
        request, shape = call.request, step_shape(call)
        x = call.current if call.norm is None else call.norm.by_itself(call.current)
        states = zip(self.neuron.states, call.states, strict=True)
        now = [self._first(name, x, shape) if s is None else self._fit(name, s, x, shape) for name, s in states]
        (spk, *records), after = self._programs.of(self)(
            [out_of_inference(x)],
            list(map(out_of_inference, now)),
            self._fitting(call.parameters, x, shape),
            request.steps,
            request.record > 0,
            request.time == CONSTANT,
            call.lengths,
            request.reduce,
        )
        if call.norm is not None and call.norm.pool is not None:
            spk = call.norm.pool.by_itself(spk)
        spk = spk if call.linear is None else call.linear.of_spikes(spk)
        return spk, *records, *(after if request.last else ())

    def _bound_step(self) -> Callable[..., tuple[Tensor, ...]]:
        """The step with parameters by their places, and with the options of this layer."""
        options = {name: getattr(self, name) for name in self.options}
        return functools.partial(_by_place, type(self).step, self.neuron.states, self.neuron.parameters, options)

    def _states(self, states: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        names = self.neuron.states
        if len(states) > len(names):
            raise TypeError(f"states: expected {', '.join(names)}, got {len(states)}")
        for name, state in zip(names, states, strict=False):
            if state is not None and (self.init_hidden or not isinstance(state, Tensor)):
                self._refuse(name, state)
        return *states, *(None,) * (len(names) - len(states))

    def _fit(self, name: str, state: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        if state.shape != shape:
            raise ValueError(f"{name}: expected the shape of one step, {tuple(shape)}, got {tuple(state.shape)}")
        return state.to(opmath_dtype(x.dtype))

    def _fitting(self, parameters: Sequence[Tensor], x: Tensor, shape: torch.Size) -> list[Tensor]:
        named, opmath = zip(self.neuron.parameters, parameters, strict=True), opmath_dtype(x.dtype)
        return [check_parameter(name, value, x, shape, opmath) for name, value in named]

    def _options(self) -> Any:
        """None: a step has options of its own."""

    def _first(self, name: str, x: Tensor, shape: torch.Size) -> Tensor:
        return torch.full(shape, self.initial[name], dtype=opmath_dtype(x.dtype), device=x.device)

    def _held(self, name: str, x: Tensor, shape: torch.Size) -> Tensor:
        held = super()._held(name, x, shape)
        return held if getattr(self, name).shape == shape else self._first(name, x, shape)

    def reset_mem(self) -> Any:
        """Set the held states to what they begin with (of their present shape) and return them."""
        states = super().reset_mem()
        for name, state in zip(self.neuron.states, states if isinstance(states, tuple) else (states,), strict=True):
            state.fill_(self.initial[name])
        return states

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)

    def extra_repr(self) -> str:
        shown = self._show(list(self.defaults))
        return f"{shown}{', ' if shown else ''}init_hidden={self.init_hidden}"


class _Programs:
    """The programs of a step function. There is one for each moment of what the step sees beside its arguments."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._sight = Sight(step)
        self._found: dict[Any, tuple[Moment, Program]] = {}

    def of(self, layer: StepLayer) -> Program:
        """The program of what the step sees now, with the options of a layer."""
        counts = 1, len(layer.neuron.states), len(layer.neuron.parameters)
        if torch.compiler.is_compiling():  # which sees for itself what changes
            return Program(layer._bound_step(), *counts)
        options = {name: getattr(layer, name) for name in layer.options}
        try:
            moment = self._sight.now(options)
        except NotElementwiseError:  # the program asks again, and says it; it is one of this call
            return Program(layer._bound_step(), *counts, surroundings=Surroundings(self._sight, options, None))
        key = modes(), moment.key
        found = self._found.get(key)
        if found is None:
            surroundings = Surroundings(self._sight, options, moment)
            found = self._found[key] = moment, Program(layer._bound_step(), *counts, surroundings=surroundings)
            if len(self._found) > _MOMENTS:
                before, _ = self._found.pop(next(iter(self._found)))
                self._say_changes(layer, before, moment)
        return found[1]

    def _say_changes(self, layer: StepLayer, before: Moment, now: Moment) -> None:
        warn_once(
            f"snnfast: {type(layer).__name__} was traced {_MOMENTS} times, because its step reads "
            f"{now.differs_in(before)!r}, which changes. A parameter of the layer may change without that."
        )


def _by_place(
    step: Callable[..., Any],
    states: tuple[str, ...],
    parameters: tuple[str, ...],
    options: dict[str, Any],
    *args: Tensor,
) -> tuple[Tensor, ...]:
    count = 1 + len(states)
    results = step(*args[:count], **dict(zip(parameters, args[count:], strict=True)), **options)
    if not isinstance(results, tuple | list) or len(results) != count:
        got = f"{len(results)} results" if isinstance(results, tuple | list) else type(results).__name__
        raise TypeError(f"step: expected it to return (spk, {', '.join(states)}), got {got}")
    for result in results:
        if not isinstance(result, Tensor):
            raise TypeError(f"step: expected it to return tensors, got {type(result).__name__}")
    return tuple(results)
