"""See :class:`RSynaptic`."""

from typing import ClassVar

from torch import Tensor, nn

from snnfast._core import ops
from snnfast._unroll.call import StateQuant
from snnfast.neurons.instances import Instances
from snnfast.neurons.recurrent import RecurrentLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["RSynaptic"]


class RSynaptic(RecurrentLayer):
    r"""A layer of neurons with a synaptic current to which their spikes come back, argument for argument
    ``snntorch.RSynaptic``.

    A call computes one time step. :meth:`unroll` computes all time steps. It equals that many calls, bit for bit in
    float32 and float64. The equations are those of :func:`snnfast.functional.rsynaptic`. The ``state_dict`` has the
    keys, order, shapes and dtypes of ``snntorch.RSynaptic``'s, so that checkpoints load both ways.

    Args:
        alpha: Decay of the synaptic current per time step, as of :class:`snnfast.Synaptic`.
        beta: Decay of the membrane per time step, as of :class:`snnfast.Leaky`.
        V: Weight of a neuron's own last spike, with ``all_to_all=False``; a number, or a tensor broadcastable to one
            step of the input ``[B, *]``.
        all_to_all: Connect all neurons of the layer by ``recurrent``, an ``nn.Linear`` or ``nn.Conv2d``. ``False``: the
            spike of a neuron comes back only to that neuron, times ``V``, and all steps are one kernel.
        linear_features: Number of features of that ``nn.Linear``, the last dimension of the input.
        conv2d_channels, kernel_size: Channels and kernel size of that ``nn.Conv2d``, for inputs ``[B, C, H, W]``. The
            kernel sizes must be odd.
        learn_recurrent: Learn the weights of ``recurrent``, or make ``V`` an ``nn.Parameter``.

    All other arguments are those of :class:`snnfast.Synaptic`.

    Attributes:
        spk: The spikes of the last step ``[B, *]``, which are a state; empty at first.
        syn: The synaptic current after the last step ``[B, *]``, empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        recurrent: The connections; with ``all_to_all=False`` the product with ``V``.
        instances: All layers that exist, held weakly.

    Raises:
        TypeError: An argument has a wrong type, or the sizes do not fit ``all_to_all``. The message names it.
        ValueError: An argument has a wrong value, such as NaN in a parameter.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.RSynaptic(alpha=0.9, beta=0.8, linear_features=100)
        >>> spk_rec, syn_rec, mem_rec = layer.unroll(torch.rand(25, 128, 100))  # [T, B, N]
        >>> spk, syn, mem = layer(torch.rand(128, 100))  # one step, as in snnTorch
        >>> own = snnfast.RSynaptic(alpha=0.9, beta=0.8, V=0.5, all_to_all=False)  # in one kernel over time

    Source: ``snntorch.RSynaptic`` 1.0.0.
    """

    alpha: Tensor
    beta: Tensor
    syn: Tensor

    neuron = ops.RSYNAPTIC
    instances: ClassVar[Instances] = Instances()

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        V: float | Tensor = 1.0,
        all_to_all: bool = True,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_recurrent: bool = True,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant | bool = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.RSynaptic as its next base
        self._set_options(
            spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism, state_quant, output, reset_delay
        )
        # The order is that of snntorch.RSynaptic's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", 1.0, False)
        self._add_reset_mechanism()
        self._add("beta", beta, learn_beta)
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self._add("alpha", alpha, learn_alpha)
        self._finish()

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            spk, syn, mem: States before the step ``[B, *]``. ``None``: those held from the last call. A state of
                another shape than ``input_`` is replaced by zeros, as in snnTorch.

        Returns:
            ``(spk, syn, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``. Dtypes are
            as in :meth:`snnfast.Synaptic.forward`.

        Raises:
            TypeError, ValueError, RuntimeError: As :meth:`snnfast.Leaky.forward`.
        """
        return self._step(input_, (spk, syn, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        spk: Tensor | None = None,  # [B, *]
        syn: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All time steps.

        It starts from the given states, or from zeros. With ``init_hidden``, it starts from the held states.

        Args:
            current, num_steps, reduce, lengths: As of :meth:`snnfast.Leaky.unroll`.
            spk, syn, mem: States before the first step ``[B, *]``; with ``init_hidden`` none may be given.
            record_mem: Return the states of every step, or only the last.

        Returns:
            ``(spk_rec, syn_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, ``(spk_rec, syn, mem)`` with
            states ``[B, *]``. With ``reduce="sum"`` the first is the spike count ``[B, *]``.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.rsynaptic`.
        """
        return self._unroll(current, (spk, syn, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_rsynaptic(self) -> tuple[Tensor, Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
