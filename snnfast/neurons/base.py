"""See :class:`SpikingLayer`."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from snnfast._core import watch
from snnfast._core.linear import Linear
from snnfast._core.modules import are_plain
from snnfast._core.norm import Norm
from snnfast._core.ops import RESET_MECHANISMS, Neuron, opmath_dtype
from snnfast._core.pytorch import current_graph_task_id, current_recorder, transforms_are_active
from snnfast._core.settings import check_flag
from snnfast._unroll import node
from snnfast._unroll.call import ONE_STEP, Options, StateQuant, UnrollCall
from snnfast._unroll.checks import (
    check_current,
    check_dense,
    check_options,
    check_parameter,
    check_parameter_value,
    check_request,
    check_reset_mechanism,
    check_spike_grad,
    check_state_quant,
    out_of_inference,
)
from snnfast._unroll.ragged import check_lengths
from snnfast._unroll.reference import winners
from snnfast._unroll.run import run
from snnfast.surrogate import DISABLED
from snnfast.surrogate.examine import SpikeGrad, recognise


class Instances(Sequence[Any]):
    """The layers that were added and still exist, oldest first.

    snnTorch's ``instances`` is a plain list, which keeps every layer and the memory of its state alive.
    """

    def __init__(self) -> None:
        # By their ids. Each change is one operation of a dict, so that no thread misses that of another.
        self._refs: dict[int, weakref.ref[Any]] = {}

    def append(self, layer: object) -> None:
        ref = weakref.ref(layer, self._forget)
        self._refs[id(ref)] = ref

    def remove(self, layer: object) -> None:
        for ref in list(self._refs.values()):
            if ref() is layer:
                self._forget(ref)

    def clear(self) -> None:
        self._refs.clear()

    def _forget(self, ref: weakref.ref[Any]) -> None:
        self._refs.pop(id(ref), None)

    def _alive(self) -> list[Any]:
        return [layer for ref in list(self._refs.values()) if (layer := ref()) is not None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._alive()[index]

    def __repr__(self) -> str:
        return f"Instances({self._alive()!r})"


_OPTIONS = {"spike_grad", "_reset_mechanism", "reset_delay", "inhibition", "state_quant"}


class SpikingLayer(nn.Module):
    """The base of the layers of all neurons: options, parameters, held states, and the call of the kernels.

    A layer names its ``neuron``, adds its parameters in the order of snnTorch's ``state_dict``, and has a ``forward``
    and an ``unroll`` with its own states as arguments.

    Attributes:
        instances: All layers of a class that exist, held weakly.
    """

    neuron: ClassVar[Neuron]
    instances: ClassVar[Instances]
    shown: ClassVar[tuple[str, ...]] = ()  # what repr shows, if not the parameters of the kernel

    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    mem: Tensor

    _plain_attributes: ClassVar[bool]
    _run = staticmethod(run)  # all steps of a call
    _checked: Options | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "neuron" in vars(cls):
            cls.instances = Instances()
        if hasattr(cls, "neuron"):
            cls._plain_attributes = are_plain(cls, cls.neuron.states + cls.neuron.parameters)

    def _begin(
        self,
        threshold: float | Tensor,
        learn_threshold: bool,
        spike_grad: SpikeGrad | None,
        surrogate_disable: bool,
        init_hidden: bool,
        inhibition: bool,
        reset_mechanism: str,
        state_quant: StateQuant | bool,
        output: bool,
        reset_delay: bool,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
    ) -> None:
        """Set what all neurons have. Call first in ``__init__``: snnTorch's ``state_dict`` begins with it."""
        nn.Module.__init__(self)  # by name: a layer of snnfast.snntorch has snnTorch's class as its next base
        self.surrogate_disable = check_flag("surrogate_disable", surrogate_disable, optional=True)
        self.spike_grad = DISABLED if self.surrogate_disable else check_spike_grad(spike_grad)
        self.init_hidden = check_flag("init_hidden", init_hidden, optional=True)
        self.inhibition = check_flag("inhibition", inhibition, optional=True)
        checked = check_state_quant(state_quant)
        self.state_quant: StateQuant | bool = False if checked is None else checked
        self.output = check_flag("output", output, optional=True)
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_delay = check_flag("reset_delay", reset_delay)
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.as_tensor(RESET_MECHANISMS.index(self._reset_mechanism)))

    def _add(self, name: str, value: float | Tensor, learn: bool) -> None:
        value = check_parameter_value(name, value)
        if check_flag("learn_recurrent" if name == "V" else f"learn_{name}", learn, optional=True):
            if not value.is_floating_point():
                raise TypeError(f"{name}: only a floating tensor can be learned, got {value.dtype}")
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _finish(self) -> None:
        """Hold no states yet, and register the layer. Call last in ``__init__``."""
        for name in self.neuron.states:
            setattr(self, name, torch.zeros(0))
        self._register()

    def _register(self) -> None:
        self._options()  # checked now, they need not be traced later
        self.instances.append(self)

    @property
    def reset_mechanism(self) -> str:
        """``"subtract"``, ``"zero"`` or ``"none"``. A new value takes effect with the next step."""
        return self._reset_mechanism

    @reset_mechanism.setter
    def reset_mechanism(self, reset_mechanism: str) -> None:
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_mechanism_val.fill_(RESET_MECHANISMS.index(reset_mechanism))

    # ---- time steps

    def _step(self, input_: Tensor, states: tuple[Tensor | None, ...]) -> Any:
        """One time step: what ``forward`` of a layer returns.

        ``torch.compile`` interprets all lines again at every step of a loop, which is most of the time that it takes.
        So they are few, and a node of its graph checks its tensors itself.
        """
        neuron, options, values = self.neuron, self._options(), self._values()
        traced = is_dynamo_compiling()
        recorder = None if traced else current_recorder()
        backend = node.backend_of_step(options, values) if traced or recorder is not None else None
        if backend is None:
            check_current("input_", input_)
        shape = input_.shape
        given: list[Tensor | None] = []
        for name, state in zip(neuron.states, states):  # noqa: B905 - strict takes as long as the loop
            if state is None:
                given.append(self._held(name, input_, shape))
                continue
            if self.init_hidden or not isinstance(state, Tensor) or state.is_nested:
                self._refuse(name, state)
            given.append(state if backend is not None or state.shape == shape else None)
        if backend is None:
            found = run(UnrollCall(neuron, options, ONE_STEP, input_, tuple(given), values))
        else:
            step = node.step if recorder is None else recorder.step
            found = step(neuron, options, input_, given, values, backend)
        self._hold(found if neuron.has_spike_feedback else found[1:])
        return found[0] if self.init_hidden and not self.output else found

    def _unroll(
        self,
        current: Tensor,
        states: tuple[Tensor | None, ...],
        num_steps: int | None,
        record_mem: bool,
        reduce: str | None,
        last: bool = False,
        linear: Linear | None = None,
        lengths: Tensor | None = None,
        norm: Norm | None = None,
    ) -> tuple[Tensor, ...]:
        """The results of ``unroll`` of a layer. With ``last``, the states after the last step follow.

        With ``linear``, its output takes the place of the spikes. With ``norm``, it takes the place of the current,
        and if there is a pooling in it, that of the spikes, too.
        """
        check_current("current", current)
        options = self._options()
        wants_last = self.init_hidden or last
        request = check_request(self.neuron, current, num_steps, record_mem, reduce, wants_last)
        ragged = None if lengths is None else check_lengths(lengths, current, request)
        shape = current.shape if num_steps is not None else current.shape[1:]
        given: list[Tensor | None] = []
        for name, state in zip(self.neuron.states, states, strict=True):
            if state is not None and (self.init_hidden or not isinstance(state, Tensor) or state.is_nested):
                self._refuse(name, state)
            given.append(self._held(name, current, shape) if state is None and self.init_hidden else state)
        call = UnrollCall(self.neuron, options, request, current, tuple(given), self._values(), linear, ragged, norm)
        found = self._run(call)
        for watcher in watch.watchers:
            watcher.unrolled(self, found, request, ragged, linear is not None)
        n = len(self.neuron.states)
        if self.init_hidden:
            self._hold(found[-n:])
        if request.record:
            return found if last or not request.last else found[:-n]
        # The last spike is no result of its own.
        shown = found[:1] + found[2:] if self.neuron.has_spike_feedback else found
        return shown + found[-n:] if last else shown

    def _options(self) -> Options:
        """Options of a call. They are checked when they are made, and again only after one of them was assigned."""
        known = self._checked
        if known is not None:
            return known
        options = check_options(
            self.spike_grad,
            self._reset_mechanism,
            bool(self.reset_delay),  # snnTorch takes any assigned value as true or false
            bool(self.inhibition),
            self.state_quant,
        )
        if not torch.compiler.is_compiling():
            self.__dict__["_checked"] = options
        return options

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OPTIONS and "_checked" in self.__dict__:  # not before all of them are there
            object.__setattr__(self, "_checked", None)
            self._options()  # raises now if the value is wrong

    def _values(self) -> tuple[Tensor, ...]:
        """The parameters, in the order of the ops."""
        buffers = self._buffers
        if self._plain_attributes:
            try:  # bypasses nn.Module.__getattr__, which costs as much as the kernel of a small step
                return tuple(map(buffers.__getitem__, self.neuron.parameters))  # type: ignore[arg-type]
            except KeyError:  # one of them is learned, or was replaced
                pass
        return tuple([getattr(self, name) for name in self.neuron.parameters])

    def _refuse(self, name: str, state: object) -> None:
        """Raise an error for a state that must not be passed, or is wrong."""
        if self.init_hidden:
            raise TypeError(f"{name}: must not be passed to a layer with init_hidden=True, which holds its own")
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(state).__name__}")
        check_dense(name, state)

    # ---- held states

    def _hold(self, states: Sequence[Tensor]) -> None:
        if is_dynamo_compiling():
            for name, state in zip(self.neuron.states, states):  # noqa: B905
                object.__setattr__(self, name, state)  # of nn.Module's, each line would be traced at every step
            return
        if not torch.compiler.is_compiling():
            if transforms_are_active():
                return  # a tensor of a transform is dead after it
            if self._plain_attributes and current_graph_task_id() == -1:
                attributes = self.__dict__
                for name, state in zip(self.neuron.states, states):  # noqa: B905
                    if name in attributes:
                        attributes[name] = state  # bypasses nn.Module.__setattr__, which costs a microsecond
                    else:
                        setattr(self, name, state)
                return
        for name, state in zip(self.neuron.states, states):  # noqa: B905
            self._set_held(name, state)

    def _set_held(self, name: str, state: Tensor) -> None:
        if torch.compiler.is_compiling():
            object.__setattr__(self, name, state)  # nn.Module's would be traced, at every step
            return
        if (task := current_graph_task_id()) != -1:
            self.__dict__[f"_{name}_in_backward"] = task, id(state)
        setattr(self, name, state)

    def _held(self, name: str, x: Tensor, shape: torch.Size) -> Tensor:
        """The held state if it has the shape of a step of ``x``, else zeros.

        ``None`` would do for zeros, but activation checkpointing wants the same tensors when it computes a step again.
        """
        held: Tensor = getattr(self, name)
        if not torch.compiler.is_compiling():
            if transforms_are_active():
                raise RuntimeError(
                    f"{name}: must be passed under a torch.func transform (with init_hidden=False), where a layer "
                    "can't hold it; begin with zeros"
                )
            task = current_graph_task_id()
            if task != -1 and self.__dict__.get(f"_{name}_in_backward") != (task, id(held)):
                raise RuntimeError(
                    "a layer that holds its membrane can't be recomputed in a backward pass (activation "
                    "checkpointing): the membrane has moved on since. Pass it, or checkpoint a function that begins "
                    "with snnfast.reset(net)"
                )
        if held.shape != shape:
            return torch.zeros((), dtype=opmath_dtype(x.dtype), device=x.device).expand(shape)
        held = out_of_inference(held)
        return held if held.device == x.device else held.to(x.device)  # as a replica of DataParallel may find it

    def reset_mem(self) -> Any:
        """Set the held states to zeros (of their present shape) and return them.

        In a compiled network they are empty, as in a new layer, and stand for zeros of any shape. So compiled code does
        not depend on the batch before.
        """
        if torch.compiler.is_compiling() or current_recorder() is not None:
            zeros = [torch.zeros(0) for _ in self.neuron.states]
        else:
            zeros = [torch.zeros_like(getattr(self, name)) for name in self.neuron.states]
        for name, state in zip(self.neuron.states, zeros, strict=True):
            self._set_held(name, state)
        return zeros[0] if len(zeros) == 1 else tuple(zeros)

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the held states of every layer from their graph, in place: truncated backpropagation through time."""
        for layer in cls.instances:
            for name in cls.neuron.states:
                getattr(layer, name).detach_()

    @classmethod
    def reset_hidden(cls) -> None:
        """Set the held states of every layer to zeros."""
        for layer in cls.instances:
            layer.reset_mem()

    @classmethod
    def init(cls) -> None:
        """Forget all layers: :meth:`detach_hidden` and :meth:`reset_hidden` reach only layers that are made later."""
        cls.instances.clear()

    def _become_snntorchs(self) -> None:
        """Prepare for ``snnfast.snntorch.revert``, which makes snnTorch's layer of this one."""

    # ---- the parts of a step, as snnTorch has them

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes ``[B, *]`` of a membrane ``[B, *]``: ``graded_spikes_factor`` where it is above the threshold."""
        if callable(self.state_quant):
            mem = self.state_quant(mem)
        return self._step_function(mem) * self.graded_spikes_factor

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """Spikes ``[B, N]`` of a membrane ``[B, N]``: 1 for the largest of each sample if it is above the threshold.

        ``batch_size`` is an argument of snnTorch's method: the size of the first dimension.
        """
        spk = self._step_function(mem)
        return spk * winners(mem - self.threshold)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """The reset of a membrane ``[B, *]``: ``1`` where it is above the threshold, without a gradient."""
        return self._step_function(mem).detach()

    def _step_function(self, mem: Tensor) -> Tensor:
        distance = mem - self.threshold
        return self.spike_grad(distance).to(distance.dtype)

    # ---- nn.Module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.neuron.states:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        error_msgs: list[str] = args[-1]
        problems = [_problem(state_dict, prefix + name) for name in (*self._parameters, *self._buffers)]
        if any(problems):  # then nothing of this layer is loaded
            error_msgs += filter(None, problems)
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        # A reset mechanism that was loaded takes effect.
        if not self.reset_mechanism_val.is_meta:
            self._reset_mechanism = RESET_MECHANISMS[int(self.reset_mechanism_val)]

    def __getstate__(self) -> dict[str, Any]:
        # A state with a graph can be neither copied nor pickled, and neither can snnTorch's closures.
        state = {**self.__dict__, **{name: getattr(self, name).detach() for name in self.neuron.states}}
        state.pop("_checked", None)
        if "spike_grad" in state:  # an nn.Module is among the submodules
            state["spike_grad"] = recognise(self.spike_grad)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def extra_repr(self) -> str:
        return (
            f"{self._show(self.shown or self.neuron.parameters[:-1])}, reset_mechanism={self.reset_mechanism!r}, "
            f"reset_delay={self.reset_delay}, init_hidden={self.init_hidden}"
        )

    def _show(self, names: Sequence[str]) -> str:
        def show(parameter: Tensor) -> str:
            known = parameter.numel() == 1 and not parameter.is_meta
            return f"{parameter.item():g}" if known else str(tuple(parameter.shape))

        return ", ".join([f"{name}={show(getattr(self, name))}" for name in names if hasattr(self, name)])


def source_parameter(name: str, value: Any, current: Tensor, num_steps: object) -> Tensor:
    """A parameter of a function from which those of the kernel are computed.

    Tensors and ints keep their dtype: PyTorch's promotion decides what the others are computed in.
    """
    step_shape = current.shape if num_steps is not None else current.shape[1:]
    checked = check_parameter(name, value, current, step_shape, opmath_dtype(current.dtype))
    if isinstance(value, Tensor):
        return out_of_inference(value)
    return torch.as_tensor(value, device="cpu") if isinstance(value, int) else checked


def _problem(state_dict: dict[str, Any], key: str) -> str | None:
    """The error of an entry of a checkpoint that PyTorch would copy all the same; ``None``: it is right."""
    value = state_dict.get(key)
    if not isinstance(value, Tensor) or value.is_meta:
        return None
    if value.is_complex():
        return f"{key}: expected a real tensor, got {str(value.dtype).removeprefix('torch.')}"
    if key.endswith("reset_mechanism_val") and value.numel() == 1 and value.item() not in range(len(RESET_MECHANISMS)):
        return f"{key}: expected 0, 1 or 2, for {', '.join(RESET_MECHANISMS)}, got {value.item()}"
    return None
