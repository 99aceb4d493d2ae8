"""SpikingJelly's IF, LIF and parametric LIF neurons on the fused kernels, in its new and its old signatures."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from snnfast._core.ops import RESET_DELAY_AT, RESET_MECHANISMS, opmath_dtype
from snnfast._core.settings import check_flag
from snnfast._unroll.call import Options
from snnfast._unroll.checks import check_options
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.ifnode import IFNODE
from snnfast.spikingjelly.base import StepModule
from snnfast.spikingjelly.surrogate import Sigmoid, settings_of, spike_grad_of
from snnfast.surrogate.base import number
from snnfast.surrogate.examine import SpikeGrad

__all__ = [
    "BaseNode",
    "IFNode",
    "LIFNode",
    "MultiStepIFNode",
    "MultiStepLIFNode",
    "MultiStepParametricLIFNode",
    "ParametricLIFNode",
]

BACKENDS = ("torch", "cupy", "triton", "inductor", "lava")

_Checked = tuple[Any, tuple[float, bool] | None, Options, tuple[Tensor, ...] | None]
"""A surrogate function with its settings, and the options and parameters of a call; ``None``: they are to be made."""

_NUMBERS = {"v_threshold", "v_reset", "surrogate_function", "detach_reset", "tau", "decay_input"}
"""Attributes that may be assigned to a node at any time, which takes effect with the next step."""

ATTRIBUTES = {*_NUMBERS, "v", "v_seq", "w"}
"""All that a step reads and writes."""


class BaseNode(StepModule, SpikingLayer):
    """The base of all nodes: a step charges the membrane, fires where it reaches the threshold, and resets it.

    In the step mode ``"s"`` a call takes one step ``[B, *]``, and in ``"m"`` all steps ``[T, B, *]``, in one kernel. It
    returns the spikes. The membrane stays in the node until :func:`snnfast.spikingjelly.functional.reset_net`. For
    half-precision inputs it is float32.

    Args:
        v_threshold: Membrane from which on a neuron spikes.
        v_reset: Membrane after a spike. ``None``: the threshold is subtracted.
        surrogate_function: One of :mod:`snnfast.spikingjelly.surrogate`, of the installed SpikingJelly's, or of
            :mod:`snnfast.surrogate`; or a callable of ``v - v_threshold`` that returns the spikes. ``None``:
            ``Sigmoid()``.
        detach_reset: Let no gradient pass through the reset.
        step_mode: ``"s"`` or ``"m"``.
        backend: Any of SpikingJelly's backends, without effect. (A bool in its place is ``store_v_seq``, as in the
            positional arguments of SpikingJelly 2.)
        store_v_seq: Keep the membrane after every step, ``[T, B, *]``, in ``v_seq``.
        cupy_fp32_inference: Without effect, as ``backend``.

    Attributes:
        v: The membrane after the last step ``[B, *]``; a number before the first one.
        v_seq: The membrane after every step, with ``store_v_seq``; else ``None``.

    Raises:
        TypeError, ValueError: An argument is wrong. The message names it.

    Source: W. Fang et al., *SpikingJelly: An open-source machine learning infrastructure platform for spike-based
    intelligence*, Science Advances 9 (2023); ``BaseNode`` of SpikingJelly 2.0.0.
    """

    neuron = IFNODE
    init_hidden, output = True, False
    surrogate_function: Any
    v: Any
    v_seq: Tensor | None
    _begins: float | Tensor
    _checked: _Checked | None = None  # type: ignore[assignment]

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str | bool | None = "torch",
        store_v_seq: bool = False,
        cupy_fp32_inference: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        if isinstance(backend, bool):
            store_v_seq, backend = backend, "torch"
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        self.v_threshold = number("v_threshold", v_threshold)
        self.v_reset = None if v_reset is None else number("v_reset", v_reset)
        self.surrogate_function = Sigmoid() if surrogate_function is None else surrogate_function
        self.detach_reset = check_flag("detach_reset", detach_reset)
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq
        self.set_reset_value("v", 0.0 if self.v_reset is None else self.v_reset)
        self.reset()

    def reset(self) -> None:
        """Forget the membrane, and with it its graph: the next step starts from the reset value.

        This is the ``v_reset`` that the node was made with, until ``set_reset_value`` sets another one.
        """
        begin = self._begins
        self.v = begin.clone() if isinstance(begin, Tensor) else begin
        self.v_seq = None

    def set_reset_value(self, name: str, value: float | Tensor) -> None:
        """Set the membrane that :meth:`reset` leaves: a number, or a tensor of the shape of a step ``[B, *]``.

        Args:
            name: ``"v"``, the only state of a node.
            value: It is copied.

        Raises:
            KeyError: The node has no such state.
        """
        _check_state_name(name)
        self._begins = value.detach().clone() if isinstance(value, Tensor) else float(value)

    def get_reset_value(self, name: str) -> float | Tensor:
        """The membrane that :meth:`reset` leaves.

        Raises:
            KeyError: The node has no such state.
        """
        _check_state_name(name)
        return self._begins

    @property
    def store_v_seq(self) -> bool:
        """Whether ``v_seq`` is kept. Where it is assigned, the present ``v_seq`` is forgotten."""
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, store_v_seq: bool) -> None:
        self._store_v_seq = check_flag("store_v_seq", store_v_seq)
        self.v_seq = None

    def detach(self) -> None:
        """Cut the membrane from its graph: truncated backpropagation through time."""
        if isinstance(self.v, Tensor):
            self.v = self.v.detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def forward(self, x: Tensor) -> Tensor:
        """The spikes of one step ``[B, *]``, or of all steps ``[T, B, *]``, as the step mode says."""
        return self.single_step_forward(x) if self._step_mode == "s" else self.multi_step_forward(x)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """The spikes ``[B, *]`` of one step."""
        spk: Tensor = self._step(x, (None,))
        if self.store_v_seq:
            before, now = self.v_seq, self.v.unsqueeze(0)
            goes_on = before is not None and before.shape[1:] == now.shape[1:] and before.dtype == now.dtype
            self.v_seq = torch.cat((before, now)) if goes_on else now.clone()  # type: ignore[arg-type]
        return spk

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """The spikes ``[T, B, *]`` of all steps."""
        spk, v = self._unroll(x_seq, (None,), None, self.store_v_seq, None)
        if self.store_v_seq:
            self.v_seq = v
        return spk

    # ---- what the kernels take

    def _options(self) -> Options:
        return self._known()[0]

    def _values(self) -> tuple[Tensor, ...]:
        return self._known()[1]

    def _known(self) -> tuple[Options, tuple[Tensor, ...]]:
        """Options and parameters of a call, which are made again after an attribute was assigned.

        ``torch.compile`` traces this at every step, and guards what is read here. The numbers of a node are not read:
        ``__setattr__`` makes tensors of them, which are inputs of the graph. So a new number needs no new graph.
        """
        function, known = self.surrogate_function, self._checked
        settings = settings_of(function)  # which may change in place
        if known is None or known[0] is not function or known[1] != settings:
            spike_grad: SpikeGrad = spike_grad_of(function)
        elif known[3] is not None:
            return known[2], known[3]
        else:
            spike_grad = known[2].spike_grad
        mechanism = RESET_MECHANISMS[0 if self.v_reset is None else 1]
        # The membrane that is passed on is the one after the reset. Whether that has a gradient is a parameter.
        options = check_options(spike_grad, mechanism, False, False, None)
        if not _divides(self._tau()):
            options = options._replace(packed=options.packed | 1 << RESET_DELAY_AT)  # as csrc/neurons/ifnode.h has it
        values = tuple([torch.tensor(value, dtype=torch.float64, device="cpu") for value in self._constants()])
        if not torch.compiler.is_compiling():
            self.__dict__["_checked"] = function, settings, options, values
        return options, values

    def __setattr__(self, name: str, value: Any) -> None:
        nn.Module.__setattr__(self, name, value)
        if name in _NUMBERS and "_checked" in self.__dict__:  # not before all of them are there
            function, settings, options, _ = self._checked  # type: ignore[misc]
            object.__setattr__(self, "_checked", (function, settings, options, None))
            self._known()  # raises now if the value is wrong

    def _constants(self) -> tuple[float, ...]:
        v_reset, tau = 0.0 if self.v_reset is None else number("v_reset", self.v_reset), self._tau()
        paces = (1.0, tau) if _divides(tau) else (1 / tau, 1.0)
        return *paces, self._charge(), not self.detach_reset, v_reset, number("v_threshold", self.v_threshold), 1.0

    def _tau(self) -> float:
        return 1.0

    def _charge(self) -> int:
        """0 without a leak, 1 with one, 2 if the input decays as well."""
        return 0

    def _held(self, name: str, x: Tensor, shape: torch.Size) -> Tensor:
        held, dtype = self.v, opmath_dtype(x.dtype)
        if not isinstance(held, Tensor) or held.shape != shape:
            start = (self.v_reset or 0.0) if isinstance(held, Tensor) else float(held)
            # One number, which backward keeps, and the kernels lay out in the order of the current.
            self._set_held(name, torch.full((), start, dtype=dtype, device=x.device).expand(shape))
        held = super()._held(name, x, shape)
        return held if held.dtype == dtype else held.to(dtype)

    # ---- what SpikingLayer does for layers with snnTorch's parameters and states

    def reset_mem(self) -> None:
        """Call :meth:`reset`, as :func:`snnfast.reset` asks of every neuron."""
        self.reset()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the membranes of all nodes that exist from their graph."""
        for node in cls.instances:
            node.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("v", "_begins"):
            if isinstance(held := getattr(self, name), Tensor):
                setattr(self, name, fn(held))
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_checked"}
        for name in ("v", "v_seq"):
            if isinstance(state[name], Tensor):
                state[name] = state[name].detach()
        return state

    def extra_repr(self) -> str:
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode}"
        )


class IFNode(BaseNode):
    """Integrate-and-fire neurons: ``h = v + x``. :class:`BaseNode` describes the arguments.

    Example::

        >>> import torch
        >>> from snnfast.spikingjelly import functional, neuron
        >>> node = neuron.IFNode(step_mode="m")
        >>> node(torch.full((3, 1), 0.5)).flatten(), node.v
        (tensor([0., 1., 0.]), tensor([0.5000]))
        >>> functional.reset_net(node)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._register()


class _Leaking(BaseNode):
    decay_input: bool

    def _charge(self) -> int:
        return 2 if self.decay_input else 1


class LIFNode(_Leaking):
    """Leaky integrate-and-fire neurons, with ``r = v_reset``, or 0 where that is ``None``::

        decay_input:  h = v + (x - (v - r)) / tau
        otherwise:    h = v - (v - r) / tau + x

    Args:
        tau: Time constant in steps, above 1.
        decay_input: Whether the input decays as well.
        others: The arguments of :class:`BaseNode`, in its order.

    Example::

        >>> import torch
        >>> from snnfast.spikingjelly import neuron, surrogate
        >>> node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")
        >>> spk_seq = node(torch.rand(4, 32, 64, 8, 8))  # [T, B, C, H, W]
    """

    def __init__(self, tau: float = 2.0, decay_input: bool = True, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tau = _above_one("tau", tau)
        self.decay_input = check_flag("decay_input", decay_input)
        self._register()

    def _tau(self) -> float:
        return number("tau", self.tau)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}"


class ParametricLIFNode(_Leaking):
    """:class:`LIFNode` with a learned time constant: the parameter ``w``, with ``1 / tau = sigmoid(w)``.

    Args:
        init_tau: Time constant at first, in steps, above 1.
        decay_input: Whether the input decays as well.
        others: The arguments of :class:`BaseNode`, in its order.

    Source: W. Fang et al., *Incorporating learnable membrane time constants to enhance learning of spiking neural
    networks*, ICCV 2021.
    """

    def __init__(self, init_tau: float = 2.0, decay_input: bool = True, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay_input = check_flag("decay_input", decay_input)
        self.w = nn.Parameter(torch.as_tensor(-math.log(_above_one("init_tau", init_tau) - 1.0)))
        self._register()

    def _values(self) -> tuple[Tensor, ...]:
        _, *others = super()._values()
        return self.w.sigmoid(), *others

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={1 / self.w.detach().sigmoid():g}"


class _MultiStep(BaseNode):
    """A node for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""

    supported = ("m",)

    def __init__(self, *args: Any, lava_s_cale: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **{"step_mode": "m", **kwargs})


class MultiStepIFNode(_MultiStep, IFNode):
    """:class:`IFNode` for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""


class MultiStepLIFNode(_MultiStep, LIFNode):
    """:class:`LIFNode` for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    """:class:`ParametricLIFNode` for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""


def _check_state_name(name: str) -> None:
    if name != "v":
        raise KeyError(f"{name}: the only state of a node is v")


def _divides(tau: float) -> bool:
    """Whether a division by ``tau`` is no product with its reciprocal: ``tau`` is no power of two."""
    return math.frexp(tau)[0] != 0.5


def _above_one(name: str, value: object) -> float:
    tau = number(name, value)
    if not tau > 1:
        raise ValueError(f"{name}: expected a time constant above 1, got {value}")
    return tau
