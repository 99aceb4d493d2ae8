"""The neuron of :class:`Lapicque`."""

import numbers
from typing import Any

import torch
from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_current, check_options, check_parameter_value
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer, source_parameter
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["LAPICQUE", "Lapicque", "lapicque"]

LAPICQUE = Neuron(
    "lapicque",
    states=("mem",),
    parameters=("R", "rate", "time_step", "decay", "threshold", "graded_spikes_factor"),
)


@LAPICQUE.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (mem,), (R, rate, time_step, decay, threshold, _) = states, parameters
    base = x * R * rate * time_step + decay * mem
    if mechanism == "subtract":
        return [base - reset * threshold]
    return [base - reset * base if mechanism == "zero" else base]


def lapicque(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None = None,  # [*]
    *,
    beta: float | Tensor | None = None,
    R: float | Tensor | None = None,
    C: float | Tensor | None = None,
    time_step: float | Tensor = 1,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor]:
    r"""Unroll a layer of neurons that are RC circuits over time, in one kernel forward and one backward.

    Pass ``beta``, or two of ``beta``, ``R`` and ``C``. The missing one follows from
    ``beta = exp(-time_step / (R * C))``, with ``R = 1`` if only ``beta`` is given. The equations are those of
    :func:`synaptic` with another ``base``::

        base = x * R * (1 / (R * C)) * time_step + (1 - time_step / (R * C)) * u

    As in snnTorch, the decay is the first-order approximation of ``beta``, and is not clamped.

    Args:
        current: Input current of every step, as of :func:`lif`.
        mem: Membrane before the first step, ``[*]``. ``None``: zeros.
        beta: Decay per time step, between 0 and 1; a number, or a tensor broadcastable to ``[*]``. ``None`` and 0: not
            given.
        R: Resistance; likewise.
        C: Capacitance; likewise.
        time_step: Duration of a step, in units of ``R * C``; likewise.

    All other arguments are those of :func:`lif`.

    Returns:
        ``(spk, mem)``: as of :func:`lif`.

    Raises:
        TypeError, ValueError: As :func:`lif`; ``beta``, ``R`` and ``C`` all given, or too few of them.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.functional.lapicque(torch.full((3, 1), 3.0), R=1.0, C=4.0)
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 1., 0.]), tensor([0.7500, 1.3125, 0.7344]))

    Source: ``snntorch.Lapicque`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    given: dict[str, Any] = {**check_rc(beta, R, C), "time_step": time_step}
    for name, value in given.items():
        if value is not None:
            given[name] = source_parameter(name, value, current, num_steps)
    parameters = *kernel_rc(*infer_rc(**given), given["time_step"]), threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        LAPICQUE, options, current, (mem,), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def check_rc(beta: Any, R: Any, C: Any) -> dict[str, Any]:
    """By name, ``None`` for each that is not given: snnTorch takes 0 and ``False`` for that."""
    given = {"beta": beta, "R": R, "C": C}
    given = {name: None if isinstance(v, numbers.Real) and v == 0 else v for name, v in given.items()}
    names = [name for name, value in given.items() if value is not None]
    if names != ["beta"] and len(names) != 2:
        raise ValueError(f"beta, R, C: expected beta, or two of the three, got {', '.join(names) or 'none of them'}")
    return given


def infer_rc(beta: Any, R: Any, C: Any, time_step: Tensor) -> tuple[Any, Any]:
    """R and C, the missing ones from ``beta``."""
    if R is None and C is not None:
        return time_step / (C * torch.log(1 / beta)), C
    R = torch.as_tensor(1, device=time_step.device) if R is None else R
    return R, time_step / (R * torch.log(1 / beta)) if C is None else C


def kernel_rc(R: Tensor, C: Tensor, time_step: Tensor) -> tuple[Tensor, ...]:
    """The parameters of the kernel but for the last two. snnTorch computes them at each step."""
    rc = R * C
    return R, 1 / rc, time_step, 1 - time_step / rc


class Lapicque(SpikingLayer):
    r"""A layer of neurons that are RC circuits, with the arguments of ``snntorch.Lapicque`` and ``reset_delay``.

    The equations are those of :func:`snnfast.functional.lapicque`. What :class:`snnfast.Leaky` says of steps,
    :meth:`unroll` and the ``state_dict`` holds here as well.

    Args:
        beta: Decay per time step, as in :func:`snnfast.functional.lapicque`. Pass ``beta``, or two of ``beta``, ``R``
            and ``C``. ``False``: not given.
        R: Resistance; likewise.
        C: Capacitance; likewise.
        time_step: Duration of a step.
        learn_beta: Make ``beta`` an ``nn.Parameter``. ``C`` then follows it, and must not be given.
        reset_delay: As in :class:`snnfast.Leaky`. snnTorch's layer does not have this argument: its reset is always
            delayed.

    All other arguments, the attributes and the errors are those of :class:`snnfast.Leaky`. In error messages, ``rate``
    means ``1 / (R * C)``, and ``decay`` means ``1 - time_step / (R * C)``.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.Lapicque(R=5.0, C=1.44)
        >>> spk_rec, mem_rec = layer.unroll(torch.rand(25, 128, 1000))  # [T, B, N], in one kernel

    Source: ``snntorch.Lapicque`` 1.0.0.
    """

    beta: Tensor
    R: Tensor
    C: Tensor
    time_step: Tensor

    neuron = LAPICQUE
    shown = ("R", "C", "time_step", "threshold")

    def __init__(
        self,
        beta: float | Tensor | bool = False,
        R: float | Tensor | bool = False,
        C: float | Tensor | bool = False,
        time_step: float | Tensor = 1,
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
        reset_delay: bool = True,
    ) -> None:
        self._begin(
            threshold, learn_threshold, spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism,
            state_quant, output, reset_delay,
        )  # fmt: skip
        given = check_rc(beta, R, C)
        if learn_beta and (given["beta"] is None or given["C"] is not None):
            raise ValueError("learn_beta: beta must be given, and C, which follows it, must not")
        step = check_parameter_value("time_step", time_step)
        made: Any = {name: None if v is None else check_parameter_value(name, v) for name, v in given.items()}
        # snnTorch computes with R as it was given, not with its tensor. So it does with C if beta is missing.
        plain = {name: v if isinstance(v, int | float) else made[name] for name, v in given.items()}
        if made["beta"] is None:
            ratio = -step / (plain["R"] * plain["C"])
            made["beta"] = torch.exp(torch.ones(1, device=ratio.device) * ratio).detach()
        inferred = dict(zip("RC", infer_rc(made["beta"], plain["R"], made["C"], step), strict=True))
        self._add("beta", made["beta"], learn_beta)
        self.register_buffer("time_step", step)
        for name in "RC" if (made["R"] is None) == (made["C"] is None) else "CR":
            self.register_buffer(name, torch.as_tensor(inferred[name]))
        self._finish()

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One time step: arguments, results and errors are those of :meth:`snnfast.Leaky.forward`."""
        return self._step(input_, (mem,))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor]:
        """All time steps in one kernel: as :meth:`snnfast.Leaky.unroll`."""
        return self._unroll(current, (mem,), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_lapicque(self) -> Tensor:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]

    def _values(self) -> tuple[Tensor, ...]:
        return *kernel_rc(self.R, self._capacitance(), self.time_step), self.threshold, self.graded_spikes_factor

    def _capacitance(self) -> Tensor:
        """C follows a learned beta at each call. snnTorch's has a graph that lasts for one backward pass."""
        return self.C if "beta" in self._buffers else infer_rc(self.beta, self.R, None, self.time_step)[1]

    def _refresh(self) -> None:
        if "beta" not in self._buffers:
            self.C = self._capacitance().detach()

    def _register(self) -> None:
        self._refresh()
        super()._register()

    def _become_snntorchs(self) -> None:
        with torch.enable_grad():
            self.C = self._capacitance()  # with its graph: all that snnTorch's learned beta is used for

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._refresh()
        super()._save_to_state_dict(*args, **kwargs)
