"""See :class:`Lapicque`."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnfast._core import ops
from snnfast._unroll.call import StateQuant
from snnfast._unroll.checks import check_parameter_value
from snnfast._unroll.functional import check_rc, infer_rc, kernel_rc
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.instances import Instances
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["Lapicque"]


class Lapicque(SpikingLayer):
    r"""A layer of neurons that are RC circuits, with the arguments of ``snntorch.Lapicque`` and ``reset_delay``.

    A call computes one time step. :meth:`unroll` computes all time steps in one kernel. It equals that many calls, bit
    for bit in float32 and float64. The equations are those of :func:`snnfast.functional.lapicque`. The ``state_dict``
    has the keys, order, shapes and dtypes of ``snntorch.Lapicque``'s, so that checkpoints load both ways.

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

    neuron = ops.LAPICQUE
    shown = ("R", "C", "time_step", "threshold")
    instances: ClassVar[Instances] = Instances()

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
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.Lapicque as its next base
        self._set_options(
            spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism, state_quant, output, reset_delay
        )
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
        # The order is that of snntorch.Lapicque's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", 1.0, False)
        self._add_reset_mechanism()
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

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._refresh()
        super()._save_to_state_dict(*args, **kwargs)
