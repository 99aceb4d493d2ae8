"""See :class:`Alpha`."""

from typing import ClassVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from snnfast._core import ops
from snnfast._core.settings import check_flag
from snnfast._unroll.call import StateQuant
from snnfast._unroll.checks import check_parameter_value
from snnfast._unroll.functional import check_decays, kernel_tau
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.instances import Instances
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["Alpha"]


class Alpha(SpikingLayer):
    r"""A layer of neurons with an excitatory and an inhibitory current, argument for argument ``snntorch.Alpha``.

    A call computes one time step. :meth:`unroll` computes all time steps in one kernel. It equals that many calls, bit
    for bit in float32 and float64. The equations are those of :func:`snnfast.functional.alpha`. The ``state_dict`` has
    the keys, order, shapes and dtypes of ``snntorch.Alpha``'s, so that checkpoints load both ways.

    Args:
        alpha: Decay of the excitatory current per time step, clamped to [0, 1]; a number, or a tensor broadcastable to
            one step of the input ``[B, *]`` (one per neuron, channel ...). It must be greater than ``beta``.
        beta: Decay of the inhibitory current per time step, clamped to [0, 1] when used; like ``alpha``, but less than
            1.
        learn_alpha: Make ``alpha`` an ``nn.Parameter``.
        reset_mechanism: What a spike does one step later: ``"zero"`` sets the states to zero, ``"subtract"`` does what
            snnTorch does (see :func:`snnfast.functional.alpha`), ``"none"`` does nothing.
        state_quant: A function that quantizes all states at every step; ``False``: none.
        threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_beta, learn_threshold, output: As of
            :class:`snnfast.Leaky`.

    Attributes:
        syn_exc: The excitatory current after the last step ``[B, *]``, empty at first.
        syn_inh: The inhibitory current after the last step ``[B, *]``, empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        reset_delay: Always ``True``.
        instances: All layers that exist, held weakly.

    Raises:
        TypeError: An argument has a wrong type. The message names it.
        ValueError: An argument has a wrong value, such as NaN in a parameter, or an ``alpha`` that is not greater than
            ``beta``.

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

    neuron = ops.ALPHA
    shown = ("alpha", "beta", "threshold")
    instances: ClassVar[Instances] = Instances()

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
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.Alpha as its next base
        self._set_options(
            spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism, state_quant, output, True
        )
        # The order is that of snntorch.Alpha's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", 1.0, False)
        self._add_reset_mechanism()
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
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            syn_exc, syn_inh, mem: States before the step ``[B, *]``. ``None``: those held from the last call. A state
                of another shape than ``input_`` is replaced by zeros, as in snnTorch.

        Returns:
            ``(spk, syn_exc, syn_inh, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.
            Dtypes are as in :meth:`snnfast.Synaptic.forward`.

        Raises:
            TypeError, ValueError, RuntimeError: As :meth:`snnfast.Leaky.forward`.
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
        """All time steps in one kernel.

        It starts from the given states, or from zeros. With ``init_hidden``, it starts from the held states.

        Args:
            current, num_steps, reduce, lengths: As of :meth:`snnfast.Leaky.unroll`.
            syn_exc, syn_inh, mem: States before the first step ``[B, *]``; with ``init_hidden`` none may be given.
            record_mem: Return the states of every step, or only the last.

        Returns:
            ``(spk_rec, syn_exc_rec, syn_inh_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, the states
            are those after the last step, ``[B, *]``. With ``reduce="sum"`` the first is the spike count ``[B, *]``.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.alpha`.
        """
        return self._unroll(current, (syn_exc, syn_inh, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_alpha(self) -> tuple[Tensor, Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]

    def _values(self) -> tuple[Tensor, ...]:
        alpha, beta = self.alpha, self.beta
        return alpha, beta, kernel_tau(alpha, beta), self.threshold, self.graded_spikes_factor
