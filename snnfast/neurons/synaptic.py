"""See :class:`Synaptic`."""

from typing import ClassVar

from torch import Tensor, nn

from snnfast._core import ops
from snnfast._unroll.call import StateQuant
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.instances import Instances
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["Synaptic"]


class Synaptic(SpikingLayer):
    r"""A layer of neurons with a decaying synaptic current, argument for argument ``snntorch.Synaptic``.

    A call computes one time step. :meth:`unroll` computes all time steps in one kernel. It equals that many calls, bit
    for bit in float32 and float64. The equations are those of :func:`snnfast.functional.synaptic`. The ``state_dict``
    has the keys, order, shapes and dtypes of ``snntorch.Synaptic``'s, so that checkpoints load both ways.

    Args:
        alpha: Decay of the synaptic current per time step, clamped to [0, 1] when used; a number, or a tensor
            broadcastable to one step of the input ``[B, *]`` (one per neuron, channel ...).
        beta: Decay of the membrane per time step; like ``alpha``.
        learn_alpha: Make ``alpha`` an ``nn.Parameter``.
        state_quant: A function that quantizes both states at every step; ``False``: none.

    All other arguments are those of :class:`snnfast.Leaky`. A reset changes the membrane, never the synaptic current.

    Attributes:
        syn: The synaptic current after the last step ``[B, *]``, empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        instances: All layers that exist, held weakly.

    Raises:
        TypeError: An argument has a wrong type. The message names it.
        ValueError: An argument has a wrong value, such as NaN in a parameter.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.Synaptic(alpha=0.9, beta=0.8)
        >>> spk_rec, syn_rec, mem_rec = layer.unroll(torch.rand(25, 128, 1000))  # [T, B, N], in one kernel
        >>> spk, syn, mem = layer(torch.rand(128, 1000))                         # one step, as in snnTorch

    Source: ``snntorch.Synaptic`` 1.0.0.
    """

    alpha: Tensor
    beta: Tensor
    syn: Tensor

    neuron = ops.SYNAPTIC
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
        reset_mechanism: str = "subtract",
        state_quant: StateQuant | bool = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.Synaptic as its next base
        self._set_options(
            spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism, state_quant, output, reset_delay
        )
        # The order is that of snntorch.Synaptic's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", 1.0, False)
        self._add_reset_mechanism()
        self._add("beta", beta, learn_beta)
        self._add("alpha", alpha, learn_alpha)
        self._finish()

    def forward(
        self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            syn: Synaptic current before the step ``[B, *]``. ``None``: the one held from the last call. One of another
                shape than ``input_`` is replaced by zeros, as in snnTorch.
            mem: Membrane before the step ``[B, *]``, likewise.

        Returns:
            ``(spk, syn, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``. ``spk`` has
            the dtype of ``input_``, and the states have the opmath dtype: float32 for a half-precision ``input_``.

        Raises:
            TypeError, ValueError, RuntimeError: As :meth:`snnfast.Leaky.forward`.
        """
        return self._step(input_, (syn, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        syn: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All time steps in one kernel.

        It starts from ``syn`` and ``mem``, or from zeros if they are not given. With ``init_hidden``, it starts from
        the held states.

        Args:
            current, num_steps, reduce, lengths: As of :meth:`snnfast.Leaky.unroll`.
            syn: Synaptic current before the first step ``[B, *]``; with ``init_hidden`` it must not be given.
            mem: Membrane before the first step ``[B, *]``, likewise.
            record_mem: Return the states of every step, or only the last.

        Returns:
            ``(spk_rec, syn_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, ``(spk_rec, syn, mem)`` with
            states ``[B, *]``. With ``reduce="sum"`` the first is the spike count ``[B, *]``.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.synaptic`.
        """
        return self._unroll(current, (syn, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
