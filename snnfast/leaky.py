"""See :class:`Leaky`."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snnfast import _backend, functional
from snnfast._arguments import (
    StateQuant,
    check_current,
    check_dense,
    check_flag,
    check_parameter_value,
    check_reset_mechanism,
    check_spike_grad,
    check_state_quant,
    fits,
    out_of_inference,
)
from snnfast._attributes import are_plain
from snnfast._instances import Instances
from snnfast._ops import RESET_MECHANISMS, arithmetic_dtype
from snnfast._spike_grad import SpikeGrad, recognise
from snnfast.autograd import fused_lif_step, fused_unroll
from snnfast.reference import winners
from snnfast.surrogate import DISABLED, known_to_kernels

__all__ = ["Leaky"]

_HALVES = (torch.float16, torch.bfloat16)
_transforms_are_active = torch._C._are_functorch_transforms_active
_current_graph_task_id = torch._C._current_graph_task_id  # -1 outside of a backward pass


class Leaky(nn.Module):
    r"""A layer of leaky integrate-and-fire neurons, argument for argument ``snntorch.Leaky``.

    Called, it computes one time step; :meth:`unroll` computes all of them in one kernel and equals that many calls,
    bit for bit in float32 and float64. The equations are those of :func:`snnfast.functional.lif`. Its ``state_dict``
    has the keys, order, shapes and dtypes of ``snntorch.Leaky``'s: checkpoints load both ways. (To have an instance of
    ``snntorch.Leaky`` itself, take :class:`snnfast.snntorch.Leaky`.)

    Args:
        beta: Decay of the membrane per time step, clamped to [0, 1] when used; a number, or a tensor broadcastable to
            one step of the input ``[B, *]`` (one per neuron, channel ...).
        threshold: Membrane above which a neuron spikes; a number or a tensor like ``beta``.
        spike_grad: Surrogate gradient, one of :mod:`snnfast.surrogate` or ``snntorch.surrogate``, or any callable of
            ``mem - threshold`` that returns the spikes ``1[mem - threshold > 0]``. ``None``: ``surrogate.atan()``.
        surrogate_disable: Let no gradient pass through the spikes, whatever ``spike_grad`` is.
        init_hidden: Keep the membrane inside the layer: it is not passed, and one step returns only the spikes.
            :func:`snnfast.reset` sets it to zeros between samples.
        inhibition: Of each sample only the neuron with the largest ``mem - threshold`` may spike; needs ``[B, N]``.
        learn_beta: Make ``beta`` an ``nn.Parameter``.
        learn_threshold: Make ``threshold`` an ``nn.Parameter``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        state_quant: A function that quantizes the membrane at every step, e.g. from ``snntorch.functional.quant``;
            ``False``: none. It runs step by step, at the speed of snnTorch.
        output: With ``init_hidden``, return the membrane as well.
        graded_spikes_factor: Height of a spike; a number or a tensor like ``beta``.
        learn_graded_spikes_factor: Make ``graded_spikes_factor`` an ``nn.Parameter``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.

    Flags may also be numpy's bools, or 1 and 0, and those whose default is False may be ``None``.

    Attributes:
        mem: The membrane after the last step ``[B, *]``, empty at first; it follows the layer to another device or
            dtype. Not a buffer, so that ``DistributedDataParallel`` does not overwrite it with another process's.
        instances: All layers that exist, held weakly.

    Raises:
        TypeError: An argument of a wrong type, named.
        ValueError: A wrong value, named; NaN in ``beta``, ``threshold`` or ``graded_spikes_factor``.

    Example::

        >>> import torch, snnfast
        >>> lif = snnfast.Leaky(beta=0.95)
        >>> cur = torch.rand(25, 128, 1000, requires_grad=True)  # [T, B, N]
        >>> spk_rec, mem_rec = lif.unroll(cur)                   # every step in one kernel
        >>> spk_rec.shape, mem_rec.shape
        (torch.Size([25, 128, 1000]), torch.Size([25, 128, 1000]))
        >>> spk, mem = lif(cur[0], torch.zeros(128, 1000))       # one step, as in snnTorch

    Source: ``snntorch.Leaky`` 1.0.0; J. K. Eshraghian et al., Proc. IEEE 111 (2023).
    """

    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    mem: Tensor

    instances: ClassVar[Instances] = Instances()

    _plain_attributes: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._plain_attributes = are_plain(cls)

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant | bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.Leaky as its next base
        self.surrogate_disable = check_flag("surrogate_disable", surrogate_disable, optional=True)
        self.spike_grad = DISABLED if self.surrogate_disable else check_spike_grad(spike_grad)
        self.init_hidden = check_flag("init_hidden", init_hidden, optional=True)
        self.inhibition = check_flag("inhibition", inhibition, optional=True)
        checked = check_state_quant(state_quant)
        self.state_quant: StateQuant | bool = False if checked is None else checked
        self.output = check_flag("output", output, optional=True)
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_delay = check_flag("reset_delay", reset_delay)
        # The order is that of snntorch.Leaky's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.as_tensor(RESET_MECHANISMS.index(reset_mechanism)))
        self._add("beta", beta, learn_beta)
        self.mem = torch.zeros(0)
        self._register()  # last: no layer whose constructor raised is ever found among the instances

    def _add(self, name: str, value: float | Tensor, learn: bool) -> None:
        value = check_parameter_value(name, value)
        if check_flag(f"learn_{name}", learn, optional=True):
            if not value.is_floating_point():
                raise TypeError(f"{name}: only a floating tensor can be learned, got {value.dtype}")
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _register(self) -> None:
        self.instances.append(self)

    @property
    def reset_mechanism(self) -> str:
        """``"subtract"``, ``"zero"`` or ``"none"``; setting it takes effect with the next step."""
        return self._reset_mechanism

    @reset_mechanism.setter
    def reset_mechanism(self, reset_mechanism: str) -> None:
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_mechanism_val.fill_(RESET_MECHANISMS.index(reset_mechanism))

    # ---- time steps

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            mem: Membrane before the step ``[B, *]``. ``None``: the one held from the last call. One of another shape
                than ``input_`` (as it is before the first call) is replaced by zeros, as in snnTorch.

        Returns:
            ``(spk, mem)``, both ``[B, *]``; with ``init_hidden`` and not ``output`` only ``spk``. ``spk`` has the dtype
            of ``input_``, ``mem`` that of the arithmetic: float32 for a half-precision ``input_``.

        Raises:
            TypeError: ``mem`` is given though ``init_hidden=True``; nothing is changed then.
            ValueError: A parameter that does not broadcast to ``input_``, or is on another device.
            RuntimeError: The held membrane is asked for where it can't be right: in the recomputation of activation
                checkpointing, or under a transform of ``torch.func``.
        """
        check_current("input_", input_)
        if mem is None:
            mem = self._held(input_, input_.shape)
        else:
            self._check_passed(mem)
            mem = out_of_inference(mem) if mem.shape == input_.shape else None
        surrogate = self.spike_grad
        if not known_to_kernels(surrogate):
            surrogate = recognise(surrogate)  # assigned after construction
        beta, threshold, graded = self._values()
        if (
            known_to_kernels(surrogate)
            and not self.inhibition
            and self.state_quant is False
            and fits(input_, False, mem, beta, threshold, graded)
            and _backend.use_fused(input_.device)
        ):
            reset = RESET_MECHANISMS.index(self._reset_mechanism)
            spk, mem = fused_lif_step(input_, mem, beta, threshold, graded, reset, self.reset_delay, surrogate)
        else:
            spk_rec, mem = self._lif(input_, mem, num_steps=1, record_mem=False)
            spk = spk_rec[0]
        self._hold(mem)
        return spk if self.init_hidden and not self.output else (spk, mem)

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        membrane_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All time steps in one kernel.

        Starts from ``mem`` if given; else, with ``init_hidden``, from the held membrane (zeros if it has another
        shape); else from zeros. With ``init_hidden`` the layer then holds the last membrane.

        Args:
            current: Current of every step ``[T, B, *]``; with ``num_steps`` the same current ``[B, *]`` at each of
                that many steps.
            mem: Membrane before the first step ``[B, *]``; with ``init_hidden`` it must not be given.
            num_steps: Number of steps of a constant current.
            record_mem: Return the membrane of every step, or only the last.
            reduce: ``"sum"``: return the sum of the spikes over time in place of those of every step, which are then
                never written. ``None``: the spikes.
            membrane_dtype: ``torch.bfloat16``: keep the membranes for backward at half size, for a gradient that is
                rounded (see :func:`snnfast.functional.lif`).

        Returns:
            ``(spk_rec, mem_rec)``, both ``[T, B, *]``; with ``record_mem=False`` ``(spk_rec, mem)``, ``mem [B, *]``.
            With ``reduce="sum"`` the first is the spike count ``[B, *]``. Of a half-precision ``current``, ``mem`` is
            float32, and ``mem_rec`` is rounded: to go on from the last membrane, take ``mem`` or ``init_hidden``.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`.
            RuntimeError: As for one step.
        """
        return self._unroll(current, mem, num_steps, record_mem, reduce, membrane_dtype)[:2]

    def _unroll(
        self,
        current: Tensor,
        mem: Tensor | None,
        num_steps: int | None,
        record_mem: bool,
        reduce: str | None,
        membrane_dtype: torch.dtype | None,
        wants_last: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """:meth:`unroll`, and the last membrane as a state to go on from, if that is wanted or held."""
        check_current("current", current)
        wants_last = wants_last or self.init_hidden
        if mem is not None:
            self._check_passed(mem)
            mem = out_of_inference(mem)
        elif self.init_hidden:
            mem = self._held(current, current.shape if num_steps is not None else current.shape[1:])
        # A state is exact, and a record in half precision is not: it is rounded from a record that is.
        exact = wants_last and record_mem and current.dtype in _HALVES
        given = current.to(torch.float32) if exact else current
        spk_rec, mem_rec = self._lif(given, mem, num_steps, record_mem, reduce, membrane_dtype)
        last: Tensor | None = None
        if wants_last:
            # A copy where it would be a view, which would keep the record and can't be detached in place.
            last = mem_rec if not record_mem else mem_rec[-1].clone() if mem_rec.shape[0] > 0 else None
            if last is None and mem is not None:  # no step: a copy, so that writing to it can't reach the argument
                last = mem.to(mem_rec.dtype, copy=True)
            elif last is None:
                last = mem_rec.new_zeros(mem_rec.shape[1:])
        if self.init_hidden:
            self._hold(last)  # type: ignore[arg-type]
        if exact:
            spk_rec = spk_rec.to(current.dtype)
            mem_rec = mem_rec if mem_rec.dtype == torch.float64 else mem_rec.to(current.dtype)
        return spk_rec, mem_rec, last

    def _hold(self, mem: Tensor) -> None:
        if torch.compiler.is_compiling() or not _transforms_are_active():  # a tensor of a transform is dead after it
            self._set_held(mem)

    def _set_held(self, mem: Tensor) -> None:
        compiling = torch.compiler.is_compiling()
        if not compiling and (task := _current_graph_task_id()) != -1:
            self.__dict__["_held_in_backward"] = task, id(mem)
        if self._plain_attributes and "mem" in self.__dict__ and not compiling:
            self.__dict__["mem"] = mem  # past nn.Module.__setattr__, which costs a microsecond
        else:
            self.mem = mem

    def _held(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The held membrane if it has the shape of a step of ``x``, else zeros.

        Not ``None`` for zeros: activation checkpointing wants to see the same tensors when a step is computed again.
        """
        held = self.mem
        if not torch.compiler.is_compiling():
            if _transforms_are_active():
                raise RuntimeError(
                    "mem: must be passed under a torch.func transform (with init_hidden=False), where a layer can't "
                    "hold it; begin with zeros"
                )
            task = _current_graph_task_id()
            if task != -1 and self.__dict__.get("_held_in_backward") != (task, id(held)):
                raise RuntimeError(
                    "a layer that holds its membrane can't be recomputed in a backward pass (activation "
                    "checkpointing): the membrane has moved on since. Pass it, or checkpoint a function that begins "
                    "with snnfast.reset(net)"
                )
        if held.shape != shape:
            return torch.zeros(shape, dtype=arithmetic_dtype(x.dtype), device=x.device)
        held = out_of_inference(held)
        return held if held.device == x.device else held.to(x.device)  # as a replica of DataParallel may find it

    def _values(self) -> tuple[Tensor, Tensor, Tensor]:
        """``beta``, ``threshold`` and ``graded_spikes_factor``."""
        buffers = self._buffers
        if self._plain_attributes:
            try:  # past nn.Module.__getattr__, which costs as much as the kernel of a small step
                return buffers["beta"], buffers["threshold"], buffers["graded_spikes_factor"]  # type: ignore[return-value]
            except KeyError:  # one of them is learned, or was replaced
                pass
        return self.beta, self.threshold, self.graded_spikes_factor

    def _check_passed(self, mem: object) -> None:
        if self.init_hidden:
            raise TypeError("mem: must not be passed to a layer with init_hidden=True, which holds its own")
        if not isinstance(mem, Tensor):
            raise TypeError(f"mem: expected a torch.Tensor or None, got {type(mem).__name__}")
        if mem.is_nested:
            check_dense("mem", mem)

    def _lif(
        self,
        current: Tensor,
        mem: Tensor | None,
        num_steps: int | None,
        record_mem: bool,
        reduce: str | None = None,
        membrane_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        beta, threshold, graded = self._values()
        surrogate = self.spike_grad
        # Most calls need none of the checks and conversions below, which cost as much as the kernels of a small layer.
        if (
            isinstance(current, Tensor)
            and (current.dim() > 0 if num_steps is None else type(num_steps) is int and num_steps >= 0)
            and (record_mem is True or record_mem is False)
            and (reduce is None or reduce == "sum")
            and membrane_dtype is None
            and not self.inhibition
            and self.state_quant is False
            and known_to_kernels(surrogate)
            and fits(current, num_steps is None, mem, beta, threshold, graded)
            and _backend.use_fused(current.device)
        ):
            return fused_unroll(
                current, mem, beta, threshold, graded, num_steps, RESET_MECHANISMS.index(self._reset_mechanism),
                bool(self.reset_delay), record_mem, reduce is not None, surrogate, False,
            )  # fmt: skip
        return functional.lif(
            current,
            mem,
            beta=beta,
            threshold=threshold,
            graded_spikes_factor=graded,
            spike_grad=surrogate,
            reset_mechanism=self._reset_mechanism,
            reset_delay=bool(self.reset_delay),  # snnTorch takes whatever is assigned for true or false
            num_steps=num_steps,
            record_mem=record_mem,
            inhibition=bool(self.inhibition),
            state_quant=self.state_quant,
            reduce=reduce,
            membrane_dtype=membrane_dtype,
        )

    # ---- the parts of a step, as snnTorch has them

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes ``[B, *]`` of a membrane ``[B, *]``: ``graded_spikes_factor`` where it is above the threshold."""
        if callable(self.state_quant):
            mem = self.state_quant(mem)
        return self._step_function(mem) * self.graded_spikes_factor

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """Spikes ``[B, N]`` of a membrane ``[B, N]``: 1 for the largest of each sample if it is above the threshold.

        ``batch_size`` is snnTorch's argument; it is the size of the first dimension.
        """
        spk = self._step_function(mem)
        return spk * winners(mem - self.threshold)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Which neurons of a membrane ``[B, *]`` are to be reset: ``1`` above the threshold, without a gradient."""
        return self._step_function(mem).detach()

    def _step_function(self, mem: Tensor) -> Tensor:
        distance = mem - self.threshold
        return self.spike_grad(distance).to(distance.dtype)

    # ---- state

    def reset_mem(self) -> Tensor:
        """Set the held membrane to zeros (of its present shape) and return it."""
        held = self.mem
        # By its shape alone: with zeros_like the old membrane, and its graph, would be an input to a compiled function.
        zeros = torch.zeros(held.shape, dtype=held.dtype, device=held.device)
        self._set_held(zeros)
        return zeros

    def init_leaky(self) -> Tensor:
        """The old name of :meth:`reset_mem`, which snnTorch's tutorials use."""
        return self.reset_mem()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the held membrane of every layer from its graph, in place: truncated backpropagation through time."""
        for layer in cls.instances:
            layer.mem.detach_()

    @classmethod
    def reset_hidden(cls) -> None:
        """Set the held membrane of every layer to zeros."""
        for layer in cls.instances:
            layer.reset_mem()

    @classmethod
    def init(cls) -> None:
        """Forget all layers: :meth:`detach_hidden` and :meth:`reset_hidden` reach only those made from now on."""
        cls.instances.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mem = fn(self.mem)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # What is loaded takes effect.
        if not self.reset_mechanism_val.is_meta:
            self._reset_mechanism = RESET_MECHANISMS[int(self.reset_mechanism_val)]

    def __getstate__(self) -> dict[str, Any]:
        # A membrane with a graph can be neither copied nor pickled, and neither can snnTorch's closures.
        state = {**self.__dict__, "mem": self.mem.detach()}
        if "spike_grad" in state:  # an nn.Module is among the submodules
            state["spike_grad"] = recognise(self.spike_grad)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def extra_repr(self) -> str:
        def show(parameter: Tensor) -> str:
            known = parameter.numel() == 1 and not parameter.is_meta
            return f"{parameter.item():g}" if known else str(tuple(parameter.shape))

        return (
            f"beta={show(self.beta)}, threshold={show(self.threshold)}, reset_mechanism={self.reset_mechanism!r}, "
            f"reset_delay={self.reset_delay}, init_hidden={self.init_hidden}"
        )
