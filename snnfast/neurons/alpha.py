"""The neuron of :class:`Alpha`."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snnfast._core.ops import Neuron
from snnfast._core.settings import check_flag
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_current, check_options, check_parameter_value
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer, source_parameter
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["ALPHA", "Alpha", "alpha"]

ALPHA = Neuron(
    "alpha",
    states=("syn_exc", "syn_inh", "mem"),
    parameters=("alpha", "beta", "tau", "threshold", "graded_spikes_factor"),
    membrane_of_states=("none",),
)


@ALPHA.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (exc, before, _), (alpha, beta, tau, threshold, _) = states, parameters
    exc = alpha.clamp(0, 1) * exc + x
    inh = beta.clamp(0, 1) * before - x
    v = tau * (exc + inh)  # whatever the membrane before
    if mechanism == "subtract":  # of the membrane no threshold, but the current before the step: as in snnTorch
        return [exc - threshold * reset, inh - inh * reset, v - -before * reset]
    if mechanism == "zero":
        return [exc - exc * reset, inh - inh * reset, v - v * reset]
    return [exc, inh, v]


def alpha(
    current: Tensor,  # [T, *], or [*] with num_steps
    syn_exc: Tensor | None = None,  # [*]
    syn_inh: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "zero",
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Unroll a layer of neurons that respond with an alpha function, in one kernel forward and one backward.

    Per neuron and step, with ``a = clamp(alpha, 0, 1)``, ``b = clamp(beta, 0, 1)``, ``e`` and ``h`` the currents
    ``syn_exc`` and ``syn_inh`` before the step, ``u`` the membrane before it, and the rest as in :func:`lif`::

        tau = log(a) / (log(b) - log(a)) + 1
        r = H(u - threshold)                                       (no gradient)
        exc = a * e + x;  inh = b * h - x;  v = tau * (exc + inh)
        zero:     syn_exc = exc - exc * r;        syn_inh = inh - inh * r;  mem = v - v * r
        subtract: syn_exc = exc - threshold * r;  syn_inh = inh - inh * r;  mem = v + h * r
        none:     syn_exc = exc;                  syn_inh = inh;            mem = v
        s = H(mem - threshold);  spk = s * graded_spikes_factor

    The previous membrane decides only the reset; the new membrane does not depend on it otherwise. What ``"subtract"``
    changes is as in snnTorch. There is no ``reset_delay``: the reset comes one step after the spike.

    Args:
        current: Input current of every step, as of :func:`lif`.
        syn_exc, syn_inh, mem: The states before the first step, ``[*]`` each. ``None``: zeros.
        alpha: Decay of ``syn_exc`` per time step, clamped to [0, 1], and greater than ``beta``; a number or a tensor.
        beta: Decay of ``syn_inh`` per time step, clamped to [0, 1], and less than 1; likewise.
        threshold, graded_spikes_factor, spike_grad, reset_mechanism, num_steps, inhibition, reduce: As of :func:`lif`.
        weight, bias, lengths: As of :func:`lif`.
        record_mem: Return the states after every step, or only after the last one.
        state_quant: As of :func:`lif`; it is applied to all states.

    Returns:
        ``(spk, syn_exc, syn_inh, mem)``: as of :func:`lif`, with two more states.

    Raises:
        TypeError, ValueError: As :func:`lif`; ``alpha`` and ``beta`` are numbers, and ``alpha`` is not greater.

    Example::

        >>> import torch, snnfast
        >>> found = snnfast.functional.alpha(torch.tensor([[2.0], [0.0], [0.0]]), alpha=0.5, beta=0.25)
        >>> spk, syn_exc, syn_inh, mem = found
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 0., 0.]), tensor([0.0000, 1.0000, 0.7500]))

    Source: ``snntorch.Alpha`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    made = source_parameter("alpha", alpha, current, num_steps), source_parameter("beta", beta, current, num_steps)
    if not isinstance(alpha, Tensor) and not isinstance(beta, Tensor):
        check_decays(*made)
    states, parameters = (syn_exc, syn_inh, mem), (*made, kernel_tau(*made), threshold, graded_spikes_factor)
    options = check_options(spike_grad, reset_mechanism, True, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        ALPHA, options, current, states, parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def check_decays(alpha: Tensor, beta: Tensor) -> None:
    """Between the two, ``tau`` must exist."""
    if (alpha <= beta).any():
        raise ValueError("alpha: expected more than beta, which the other current decays by")
    if (beta == 1).any():
        raise ValueError("beta: expected less than 1, at which the time constant has no value")


def kernel_tau(alpha: Tensor, beta: Tensor) -> Tensor:
    """The parameter ``tau`` of the kernel, which snnTorch computes at each step."""
    log_alpha = torch.log(alpha.clamp(0, 1))
    return log_alpha / (torch.log(beta.clamp(0, 1)) - log_alpha) + 1


class Alpha(SpikingLayer):
    r"""A layer of neurons with an excitatory and an inhibitory current, argument for argument ``snntorch.Alpha``.

    The equations are those of :func:`snnfast.functional.alpha`. What :class:`snnfast.Leaky` says of steps,
    :meth:`unroll` and the ``state_dict`` holds here as well.

    Args:
        alpha: Decay of the excitatory current per time step, clamped to [0, 1]; a number, or a tensor broadcastable to
            one step of the input ``[B, *]`` (one per neuron, channel ...). It must be greater than ``beta``.
        beta: Decay of the inhibitory current per time step, clamped to [0, 1] when used; like ``alpha``, but less than
            1.
        learn_alpha: Make ``alpha`` an ``nn.Parameter``.
        reset_mechanism: What a spike does one step later: ``"zero"`` sets the states to zero, ``"subtract"`` does what
            snnTorch does (see :func:`snnfast.functional.alpha`), ``"none"`` does nothing.
        state_quant: A function that quantizes all states at every step; ``False``: none.

    All other arguments, and the errors, are those of :class:`snnfast.Leaky`. There is no ``reset_delay``.

    Attributes:
        syn_exc: The excitatory current after the last step ``[B, *]``, empty at first.
        syn_inh: The inhibitory current after the last step ``[B, *]``, empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        reset_delay: Always ``True``.
        instances: All layers that exist, held weakly.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.Alpha(alpha=0.9, beta=0.8)
        >>> spk_rec, syn_exc_rec, syn_inh_rec, mem_rec = layer.unroll(torch.rand(25, 128, 1000))  # [T, B, N]
        >>> spk, syn_exc, syn_inh, mem = layer(torch.rand(128, 1000))  # one step, as in snnTorch

    Source: ``snntorch.Alpha`` 1.0.0.
    """

    alpha: Tensor
    beta: Tensor
    syn_exc: Tensor
    syn_inh: Tensor

    neuron = ALPHA
    shown = ("alpha", "beta", "threshold")

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "zero",
        state_quant: StateQuant | bool = False,
        output: bool = False,
    ) -> None:
        self._begin(
            threshold, learn_threshold, spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism,
            state_quant, output, True,
        )  # fmt: skip
        self._add("beta", beta, learn_beta)
        self._add("alpha", check_parameter_value("alpha", alpha).clamp(0, 1), learn_alpha)
        if not any(t.is_meta or isinstance(t, FakeTensor) for t in (self.alpha, self.beta)):
            check_decays(self.alpha.detach(), self.beta.detach())
        self._finish()

    @property
    def reset_delay(self) -> bool:
        """``True``: the reset comes one step after the spike."""
        return True

    @reset_delay.setter
    def reset_delay(self, reset_delay: object) -> None:
        if not check_flag("reset_delay", reset_delay):
            raise ValueError("reset_delay: Alpha has no immediate reset, as in snnTorch")

    def forward(
        self,
        input_: Tensor,
        syn_exc: Tensor | None = None,
        syn_inh: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """One time step, as :meth:`snnfast.Leaky.forward`, with three states.

        Returns:
            ``(spk, syn_exc, syn_inh, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.
        """
        return self._step(input_, (syn_exc, syn_inh, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        syn_exc: Tensor | None = None,  # [B, *]
        syn_inh: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All time steps in one kernel, as :meth:`snnfast.Leaky.unroll`, with three states.

        Returns:
            ``(spk_rec, syn_exc_rec, syn_inh_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, states are
            those after the last step, ``[B, *]``. With ``reduce="sum"``, the first is the spike count ``[B, *]``.
        """
        return self._unroll(current, (syn_exc, syn_inh, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_alpha(self) -> tuple[Tensor, Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]

    def _values(self) -> tuple[Tensor, ...]:
        alpha, beta = self.alpha, self.beta
        return alpha, beta, kernel_tau(alpha, beta), self.threshold, self.graded_spikes_factor
